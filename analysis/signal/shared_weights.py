"""Can one network with shared weights rank the schedules of a planted task as full trials do?

Command:  python analysis/signal/shared_weights.py trials|shared|table [--recipe recall] [--way uniform] [--seed 0]
          [--steps N] [--tune N] [--rate SHARE]
Time:     one core: 16 full trials of recall 1 to 2 minutes, of hops2 4 minutes; a shared network 20 seconds (recall) to
          2 minutes (laptop)
Shows:    rank correlation of the schedules' losses under shared weights with those of full trials, what it cost in
          full trials, and whether schedules that solve the task are told from those that do not. Finished runs are
          taken from shared_weights.jsonl, which holds one line per full trial and per shared network. Trials of recall
          are also read from known_l.jsonl; those of laptop are those of a run (`layersearch run --budget 0.27 --set
          data.recall_vocab=28`), entered from its trials.jsonl.

Spans carry no weights, so a network can run a batch whose sequences follow different schedules: attention is called
once per span on the rows that use it, everything else on the whole batch. A schedule is a word of letters, ``w`` for
the window and ``f`` for full, bottom layer first. Training is the package's own model, optimizer and learning-rate
curve in a plain loop (no DeepSpeed, no compilation), on one thread.

Ways to choose what a step trains, 32 sequences a step unless said otherwise:

- ``uniform``: 8 schedules drawn at random, 4 sequences each.
- ``stratified``: all 16 schedules, 2 sequences each.
- ``sandwich``: all-full, all-window and 6 drawn at random, 4 sequences each.
- ``local_first``: 8 drawn from those with a window at the bottom and a full layer above; after a third of the steps
  every second one, after two thirds all, is drawn from the whole space.
- ``one_full``: for the mix, whose 6 layers are full or a window of 2, 4 or 6 (letters ``f246``): 6 schedules with one
  full layer and 2 with none, 4 sequences each.
- ``distil``: as ``uniform``, with the divergence from a teacher's predictions added to the loss; the teacher is one
  hybrid (`TEACHER`), trained alone before on the same batches, and its training counts.
- ``tree``: 4 sequences, each under all 16 schedules; shared prefixes are computed once, which costs about as much as
  30 sequences.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import itertools
import json
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from layersearch.config.recipe import Recipe, load_recipe
from layersearch.config.training import TrainingConfig
from layersearch.data import open_source
from layersearch.data.source import IGNORE, Source
from layersearch.model.attention.dispatch import attend
from layersearch.model.decoder import Decoder, mean_loss, rotary_table
from layersearch.results.stats import rank_correlation
from layersearch.schedule import Schedule, Span
from layersearch.training.engine import learning_rate_factor
from layersearch.training.optimizer import make_optimizer

HERE = Path(__file__).resolve().parent
RECORDS = HERE / "shared_weights.jsonl"
SPANS = {"f": Span.parse("full"), "w": Span.parse("window:2")} | {
    letter: Span.parse(f"window:{letter}") for letter in "246"
}
WORDS = ["".join(letters) for letters in itertools.product("fw", repeat=4)]
TREE_SEQUENCES = 4
WAYS = ["uniform", "stratified", "sandwich", "local_first", "tree", "one_full", "distil"]
TEACHER = {"recall": "wwfw", "hops2": "wffw", "text": "wwwwwf"}
"""The hybrid that teaches, by recipe."""
TEXT_WORDS = ["wwwwww", "ffffff"] + ["w" * at + "f" + "w" * (5 - at) for at in range(6)]
TEXT_WORDS += ["wfwwwf", "wwfwwf", "fwwwwf", "wwwwff", "ffwwww", "wfwfwf", "wwfffw", "fffwww", "wwwfff", "wfffff"]
TEXT_WORDS += ["fffffw", "wffffw"]
"""What is trained alone of the 64 schedules of the text recipe, which shared weights are trained under all of."""
POINTS = 8
KNOWN_L = HERE / "known_l.jsonl"
CHANGES = {"laptop": ["data.recall_vocab=28"]}
"""The mix as the trials recorded here had it."""
SOLVED = 0.3
"""A schedule solves a planted task below this loss, a tenth of chance."""
TUNE_SEED = 1_000
"""Fine-tuning reads batches that the shared network has not seen: those of the seed this much higher."""


def pick(way: str, done: float, rng: Random, words: list[str] = WORDS) -> list[str]:
    """Return the schedules of one step, each for an equal share of the batch, when a share ``done`` of steps is."""
    if way == "one_full":
        return ["".join(rng.sample(["f", *rng.choices("246", k=5)], k=6)) for _ in range(6)] + [
            "".join(rng.choices("246", k=6)) for _ in range(2)
        ]
    if way == "stratified":
        return rng.sample(words, len(words))
    if way == "sandwich":
        return [words[0], words[-1], *rng.choices(words, k=6)]
    if way == "local_first":
        narrow = 8 if done < 1 / 3 else 4 if done < 2 / 3 else 0
        below = [word for word in words if word[0] == "w" and "f" in word]
        return rng.choices(below, k=narrow) + rng.choices(words, k=8 - narrow)
    assert way in ("uniform", "distil"), way
    return rng.choices(words, k=8)


def tables(model: Decoder, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Return the rotary tables in the precision of the products."""
    cos, sin = rotary_table(tokens.shape[1], model.config.head_dim, model.config.rope_theta, tokens.device)
    return cos.to(torch.bfloat16), sin.to(torch.bfloat16)


def grouped(model: Decoder, tokens: Tensor, words: list[str]) -> Tensor:
    """Return the residual stream (B, T, C) of tokens (B, T), whose rows follow the words in equal blocks."""
    x = model.embed_tokens(tokens)
    cos, sin = tables(model, tokens)
    rows = len(tokens) // len(words)
    for index, layer in enumerate(model.layers):
        q, k, v = layer.before(x, cos, sin)  # type: ignore[operator]
        letters = [word[index] for word in words for _ in range(rows)]
        order, parts = [], []
        for letter in sorted(set(letters)):
            chosen = [row for row, own in enumerate(letters) if own == letter]
            order += chosen
            parts.append(attend(q[chosen], k[chosen], v[chosen], SPANS[letter]))
        x = layer.after(x, torch.cat(parts)[torch.tensor(order).argsort()])  # type: ignore[operator]
    return x


def tree(model: Decoder, tokens: Tensor) -> Tensor:
    """Return the streams (16 B, T, C) of tokens (B, T) under all schedules, in the order of `WORDS`."""
    x = model.embed_tokens(tokens)
    cos, sin = tables(model, tokens)
    batch = len(tokens)
    for layer in model.layers:
        q, k, v = layer.before(x, cos, sin)  # type: ignore[operator]
        outs = [attend(q, k, v, span).unflatten(0, (-1, batch)) for span in (SPANS["f"], SPANS["w"])]  # type: ignore[no-untyped-call]
        out = torch.stack(outs, dim=1).flatten(0, 2)  # every prefix followed by each letter
        x = x.unflatten(0, (-1, batch)).repeat_interleave(2, dim=0).flatten(0, 1)
        x = layer.after(x, out)  # type: ignore[operator]
    return x


@torch.no_grad()
def losses_of(model: Decoder, source: Source, training: TrainingConfig, words: list[str]) -> dict[str, float]:
    """Return each schedule's validation loss under the model's weights, in nats; that of the text as ``word:text``."""
    held_out = source.validation(training.val_sequences)
    tokens, targets = torch.from_numpy(held_out.tokens), torch.from_numpy(held_out.targets)
    found = {}
    with torch.autocast("cpu", torch.bfloat16):
        streams = tree(model, tokens).unflatten(0, (len(WORDS), -1)) if words == WORDS else None  # type: ignore[no-untyped-call]
        for index, word in enumerate(words):
            x = grouped(model, tokens, [word]) if streams is None else streams[index]
            found[word] = round(float(mean_loss(model.lm_head, model.norm, x, targets)), 4)
            text = source.groups(held_out).get("text")
            if text is not None:
                rows = torch.from_numpy(text[:, 0].copy())
                found[f"{word}:text"] = round(float(mean_loss(model.lm_head, model.norm, x[rows], targets[rows])), 4)
    return found


def train(
    model: Decoder,
    source: Source,
    training: TrainingConfig,
    seed: int,
    words_at: Callable[[int], list[str] | None],
    after: Callable[[int], None] = lambda step: None,
    teacher: tuple[Decoder, str] | None = None,
) -> None:
    """Train a model; ``words_at`` names the schedules of a step, None for all of them through the tree.

    A teacher is a trained model and its schedule; the divergence of the model's predictions from its own is added.
    """
    optimizer = make_optimizer(model, training)
    peaks = [group["lr"] for group in optimizer.param_groups]
    for step in range(training.steps):
        factor = learning_rate_factor(step, training)
        for group, peak in zip(optimizer.param_groups, peaks, strict=True):
            group["lr"] = peak * factor
        words = words_at(step)
        size = training.batch_size if words else TREE_SEQUENCES
        batch = source.train(seed=seed, step=step, batch_size=size)
        tokens, targets = torch.from_numpy(batch.tokens), torch.from_numpy(batch.targets)
        with torch.autocast("cpu", torch.bfloat16):
            x = grouped(model, tokens, words) if words else tree(model, tokens)
            loss = mean_loss(model.lm_head, model.norm, x, targets.repeat(len(x) // len(targets), 1))
            if teacher is not None:
                with torch.no_grad():
                    taught = teacher[0].norm(grouped(teacher[0], tokens, [teacher[1]]))
                    goal = teacher[0].lm_head(taught).float().log_softmax(-1)
                mine = model.lm_head(model.norm(x)).float().log_softmax(-1)
                scored = targets != IGNORE
                loss = loss + F.kl_div(mine[scored], goal[scored], log_target=True, reduction="batchmean")
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), training.grad_clip)
        optimizer.step()
        optimizer.zero_grad()
        after(step + 1)


def decoder(recipe: Recipe, source: Source, seed: int) -> Decoder:
    """Return the model that a trial of this seed starts from; which schedule it names does not matter here."""
    torch.manual_seed(seed)
    return Decoder(recipe.model, source.vocab_size, Schedule.parse(f"full*{recipe.model.n_layers}"))


def judged(recipe: Recipe, rows: list[dict[str, Any]]) -> list[str]:
    """Return the schedules that are trained alone, to be compared with."""
    if recipe.name == "laptop":
        return sorted({row["word"] for row in rows if _is(row, kind="trial", recipe=recipe.name)})
    return TEXT_WORDS if recipe.name == "text" else WORDS


def full_trials(recipe: Recipe, source: Source, seed: int, rows: list[dict[str, Any]]) -> None:
    """Train every schedule on its own."""
    done = {
        row["word"]
        for row in rows
        if _is(row, kind="trial", recipe=recipe.name, seed=seed, steps=recipe.training.steps)
    }
    for word in [word for word in judged(recipe, rows) if word not in done]:
        began = time.process_time()
        model = decoder(recipe, source, seed)
        train(model, source, recipe.training, seed, lambda step, word=word: [word])  # type: ignore[misc]
        loss = losses_of(model, source, recipe.training, [word])[word]
        seconds = round(time.process_time() - began, 1)
        row = {"kind": "trial", "recipe": recipe.name, "seed": seed, "steps": recipe.training.steps, "word": word}
        _append(row | {"loss": loss, "seconds": seconds})
        print(recipe.name, seed, word, loss, seconds, flush=True)


def shared_network(recipe: Recipe, source: Source, options: argparse.Namespace, words: list[str]) -> dict[str, Any]:
    """Train one network for all schedules, score them along the way and after fine-tuning; return the record."""
    way, seed = options.way, options.seed
    training = dataclasses.replace(
        recipe.training,
        steps=options.steps,
        learning_rate=recipe.training.learning_rate * options.rate,
        muon_learning_rate=recipe.training.muon_learning_rate * options.rate,
    )
    rng = Random(seed)
    curve: list[tuple[int, dict[str, float]]] = []
    model = decoder(recipe, source, seed)

    def score(step: int) -> None:
        if step in {options.steps * point // POINTS for point in range(1, POINTS + 1)}:
            curve.append((step, losses_of(model, source, training, words)))

    everything = ["".join(letters) for letters in itertools.product("fw", repeat=recipe.model.n_layers)]

    def words_at(step: int) -> list[str] | None:
        return None if way == "tree" else pick(way, step / options.steps, rng, everything)

    began = time.process_time()
    teacher = None
    if way == "distil":
        teacher = (decoder(recipe, source, seed), TEACHER[recipe.name])
        train(teacher[0], source, recipe.training, seed, lambda step: [TEACHER[recipe.name]])
    train(model, source, training, seed, words_at, score, teacher)
    seconds = round(time.process_time() - began, 1)
    tuned: dict[str, float] = {}
    if options.tune:
        brief = dataclasses.replace(
            recipe.training,
            steps=options.tune,
            warmup_steps=min(3, options.tune),
            learning_rate=recipe.training.learning_rate * options.tune_rate,
            muon_learning_rate=recipe.training.muon_learning_rate * options.tune_rate,
        )
        for word in words:
            own = copy.deepcopy(model)
            train(own, source, brief, seed + TUNE_SEED, lambda step, word=word: [word])  # type: ignore[misc]
            tuned |= losses_of(own, source, brief, [word])
    return {
        "kind": "shared",
        **_settings(recipe, options),
        "shared_seconds": seconds,
        "seconds": round(time.process_time() - began, 1),
        "curve": curve,
        "tuned": tuned,
    }


def agreement(cheap: dict[str, float], full: dict[str, float], tolerance: float | None) -> str:
    """Return in words how well a cheap measure ranks schedules.

    Args:
        cheap: its loss of each schedule, in nats.
        full: the loss of each schedule's own trial, in nats.
        tolerance: losses this close to the best solve the task alike; None: there is nothing to solve.
    """
    words = list(full)
    found = rank_correlation([cheap[word] for word in words], [full[word] for word in words])
    assert found is not None
    text = (
        f"Spearman {found.spearman:.2f} [{found.bounds(found.spearman_low, found.spearman_high)}], "
        f"Kendall {found.kendall:.2f} [{found.kendall_low:.2f}, {found.kendall_high:.2f}]"
    )
    if tolerance is None:
        return text
    # Schedules that solve the task alike are in no order: their differences are noise, in either measure.
    first, second = ([max(m[word], min(m.values()) + tolerance) for word in words] for m in (cheap, full))
    tied = rank_correlation(first, second)
    ties = f"{tied.spearman:.2f} [{tied.bounds(tied.spearman_low, tied.spearman_high)}]" if tied else "none"
    solved = [word for word in words if full[word] <= SOLVED]
    pairs = [cheap[a] < cheap[b] for a in solved for b in words if b not in solved]
    lowest = sorted(words, key=lambda word: cheap[word])[: len(solved)]
    wrong = sum(word not in solved for word in lowest)
    return f"{text}; tied {ties}; AUC {sum(pairs) / len(pairs):.2f}, {wrong} of {len(solved)} misplaced"


def truths(rows: list[dict[str, Any]], recipe: Recipe) -> dict[tuple[int, int, str], dict[str, float]]:
    """Return the losses of full trials by (seed, their steps, where from); of the mix also those of its text."""
    found: dict[tuple[int, int, str], dict[str, float]] = {}
    for row in rows:
        if _is(row, kind="trial", recipe=recipe.name):
            found.setdefault((row["seed"], row["steps"], row.get("from", "loop")), {})[row["word"]] = row["loss"]
            if "text_loss" in row:
                found.setdefault((row["seed"], row["steps"], "text"), {})[row["word"]] = row["text_loss"]
    letters = {str(SPANS["f"]): "f", str(SPANS["w"]): "w"}
    for line in KNOWN_L.read_text().splitlines():
        row = json.loads(line)
        if row["recipe"] == recipe.name and len(row["searched"]) == len(WORDS):
            found[row["seed"], recipe.training.steps, "run"] = {
                "".join(letters[str(span)] for span in Schedule.parse(text)): loss
                for text, loss in row["searched"].items()
            }
    return found


def table(rows: list[dict[str, Any]], recipe: Recipe, points: int) -> None:
    """Print every shared network against the full trials, and the full trials of one seed against another's."""
    full = truths(rows, recipe)
    tolerance = recipe.search.tolerance or None
    for (seed, steps, origin), losses in full.items():
        print(f"{origin}, seed {seed}, {steps} steps:", dict(sorted(losses.items(), key=lambda item: item[1])))
    for a, b in itertools.permutations(full, 2):
        both = sorted(full[a].keys() & full[b].keys())
        if a[1:] == b[1:] and len(both) >= 8:
            one, other = ({word: losses[word] for word in both} for losses in (full[a], full[b]))
            print(f"  {a[2]} seed {a[0]} for seed {b[0]}, {len(both)} schedules:", agreement(one, other, tolerance))
    every = POINTS // points
    for row in rows:
        if not _is(row, kind="shared", recipe=recipe.name):
            continue
        name = f"{row['way']} seed {row['seed']} rate {row['rate']} of {row['steps']}"
        before = recipe.training.steps if row["way"] == "distil" else 0
        measured = [(f"{step} steps", step + before, losses) for step, losses in row["curve"][every - 1 :: every]]
        if row["tuned"]:
            spent = row["steps"] + sum(":" not in word for word in row["tuned"]) * row["tune"]
            measured.append((f"tuned {row['tune']} at {row['tune_rate']}", spent, row["tuned"]))
        for label, spent, losses in measured:
            for (seed, steps, origin), truth in full.items():
                ending = ":text" if origin == "text" else ""
                # The first fine-tuning of the mix was scored as a whole only.
                if seed == row["seed"] and all(word + ending in losses for word in truth):
                    found = agreement({word: losses[word + ending] for word in truth}, truth, tolerance)
                    print(f"  {name}, {label}: {spent / steps:.1f} trials, {origin} of {steps}: {found}")


def _settings(recipe: Recipe, options: argparse.Namespace) -> dict[str, Any]:
    return {"recipe": recipe.name} | {
        name: getattr(options, name) for name in ("way", "seed", "steps", "rate", "tune", "tune_rate")
    }


def _is(row: dict[str, Any], **wanted: Any) -> bool:
    return all(row.get(name) == value for name, value in wanted.items())


def _append(row: dict[str, Any]) -> None:
    with RECORDS.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def main() -> None:
    """Run what has no record yet."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=["trials", "shared", "table"])
    parser.add_argument("--recipe", choices=["recall", "hops2", "laptop", "text"], default="recall")
    parser.add_argument("--way", choices=WAYS, default="uniform")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=320, help="of the shared network")
    parser.add_argument("--rate", type=float, default=1.0, help="its peak learning rates, as a share of the recipe's")
    parser.add_argument("--tune", type=int, default=0, help="steps of fine-tuning per schedule")
    parser.add_argument("--tune-rate", type=float, default=0.5, help="as --rate, for fine-tuning")
    parser.add_argument("--points", type=int, default=4, choices=[1, 2, 4, 8], help="of a run's scores to print")
    options = parser.parse_args()
    torch.set_num_threads(1)
    recipe = load_recipe(options.recipe, CHANGES.get(options.recipe, []))
    assert recipe.training.precision == "bf16"
    source = open_source(recipe.data, recipe.training.seq_len)
    rows = [json.loads(line) for line in RECORDS.read_text().splitlines()] if RECORDS.exists() else []
    if options.part == "trials":
        full_trials(recipe, source, options.seed, rows)
    elif options.part == "shared" and not any(_is(row, kind="shared", **_settings(recipe, options)) for row in rows):
        rows.append(shared_network(recipe, source, options, judged(recipe, rows)))
        _append(rows[-1])
    if options.part != "trials":
        table(rows, recipe, options.points)


if __name__ == "__main__":
    main()
