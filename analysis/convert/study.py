"""How soon does a pre-trained model recover from a switch of its attention schedule?

Command:  python analysis/convert/study.py [--threads 1]
Time:     about 8 minutes of one core (CPU time; 45 minutes beside other work); finished runs are kept in records.jsonl
Writes:   records.jsonl, one line per evaluation, and recovery.png
Shows:    loss after the switch, and how much of it training wins back in how many steps, at the budgets 0.2, 0.27, 0.42
          and 0.6 (0, 1, 2 and 3 full layers of 6), for full layers at the bottom, on top, interleaved, chosen greedily
          by KL to the original, and by sensitivity; 3 seeds of the data order, shared by all schedules.

A Qwen3 of 6 layers (a Llama with normalised queries and keys) is first trained, all-full, on the default mix: a
quarter the standard library's sources, the rest recall from beyond the reach of all windows together. It is saved as a
Hugging Face folder, and what follows is what `layersearch convert` does: load, route, switch, train on.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from layersearch.config.loader import find_file
from layersearch.config.recipe import load_recipe
from layersearch.config.training import TrainingConfig
from layersearch.data import open_source
from layersearch.data.source import Source
from layersearch.export.hf import save_weights, stock_config
from layersearch.model.decoder import Decoder
from layersearch.model.pretrained import load_pretrained
from layersearch.schedule import Schedule, Span, presets
from layersearch.schedule.cost import budget_ratio
from layersearch.selection.rankings import remove_one, restore_greedy
from layersearch.study.layer_selection import kl_to_original
from layersearch.training.deepspeed_config import deepspeed_config
from layersearch.training.engine import Engine, RankGroup, join
from layersearch.training.evaluate import named_metrics, validate
from layersearch.training.trial import train_steps

HERE = Path(__file__).parent
RECORDS = HERE / "records.jsonl"
LAYERS, TOKENS, WINDOW = 6, 64, Span(kind="window", size=4)
BUDGETS = {0.27: 1, 0.42: 2, 0.6: 3}
SPARSEST = (0.2, "window:6*6")
"""One full layer of six costs more than 0.2 whatever window the others have, but for a window of one key."""
SEEDS = (1, 2, 3)
EVALUATIONS = (0, 4, 8, 16, 32, 64)
LONG = (0, 64, 128, 256, 384, 512)
LONG_BUDGET, LONG_PLACES, LONG_SEED = 0.27, ("restore_greedy", "bottom", "top", "interleaved"), 1
"""What becomes of one full layer in the wrong place after eight times as many steps; one seed."""
MODEL = load_recipe("laptop").model
DATA = load_recipe("laptop").data
PRETRAINING = TrainingConfig(
    seq_len=TOKENS,
    batch_size=32,
    steps=400,
    learning_rate=0.004,
    optimizer="muon",
    muon_learning_rate=0.03,
    warmup_steps=20,
    final_lr_ratio=0.0,
    val_sequences=96,
)
TRAINING = TrainingConfig(
    seq_len=TOKENS,
    batch_size=16,
    steps=max(EVALUATIONS),
    learning_rate=0.001,
    warmup_steps=4,
    weight_decay=0.0,
    val_sequences=96,
)


def say(**facts: Any) -> None:
    """Append one record."""
    with RECORDS.open("a", encoding="utf-8") as file:
        file.write(json.dumps(facts) + "\n")
        file.flush()
        os.fsync(file.fileno())


def records() -> list[dict[str, Any]]:
    """Return the whole lines so far."""
    if not RECORDS.exists():
        return []
    return [json.loads(line) for line in RECORDS.read_text(encoding="utf-8").split("\n")[:-1]]


def measure(model: torch.nn.Module, source: Source) -> dict[str, Any]:
    """Return the validation loss, whole, by part and by position."""
    batch = source.validation(TRAINING.val_sequences)

    @torch.no_grad()
    def token_losses(tokens: torch.Tensor, targets: torch.Tensor) -> Any:
        with torch.autocast("cpu", torch.bfloat16):
            return model(tokens, targets, reduce=False)

    found = validate(token_losses, batch, 32, RankGroup())
    return {"loss": found.loss, "loss_by_position": found.by_position} | named_metrics(source, batch, found)


def engine(model: torch.nn.Module, training: TrainingConfig) -> Engine:
    return Engine(
        model, training, deepspeed_config(training, find_file("zero0", "trials/deepspeed", ".json")), RankGroup()
    )


def pretrain(folder: Path, source: Source) -> None:
    """Train the all-full model and save it as a Hugging Face folder."""
    torch.manual_seed(0)
    model = Decoder(MODEL, source.vocab_size, presets.all_full(LAYERS))
    running = engine(model, PRETRAINING)
    began = time.monotonic()
    for step, _ in train_steps(running, source, seed=0):
        if step % 100 == 0:
            found = measure(model, source)
            say(kind="pretraining", step=step, seconds=time.monotonic() - began, **found)
            print(step, found["loss"], found, flush=True)
    running.close()
    part = folder.with_suffix(".part")
    shutil.rmtree(part, ignore_errors=True)
    stock_config(MODEL, vocab_size=source.vocab_size, seq_len=TOKENS).save_pretrained(part)
    save_weights(model.state_dict(), "qwen3", model=MODEL, out=part)
    assert source.tokenizer_file is not None
    shutil.copy(source.tokenizer_file, part / "tokenizer.json")
    part.rename(folder)


def placements(folder: Path, source: Source) -> Iterator[tuple[str, float, Schedule]]:
    """Yield every placement at every budget; what the selectors found is recorded once."""
    known = {found["name"]: found for found in records() if found["kind"] == "ranking"}
    if not known:
        routed = load_pretrained(str(folder))
        tokens = torch.from_numpy(source.train(seed=0, step=PRETRAINING.steps, batch_size=64).tokens)
        score = kl_to_original(routed, tokens)
        for ranking in (
            restore_greedy(LAYERS, WINDOW, score, max(BUDGETS.values())),
            remove_one(LAYERS, WINDOW, score),
        ):
            say(kind="ranking", name=ranking.name, layers=ranking.layers, scores=ranking.scores)
            known[ranking.name] = {"layers": ranking.layers}
    yield "all_full", 1.0, presets.all_full(LAYERS)  # the control: trained on as long, nothing switched
    yield "all_sparse", SPARSEST[0], Schedule.parse(SPARSEST[1])
    for budget, count in BUDGETS.items():
        for place in (presets.bottom, presets.top, presets.interleaved):
            yield place.__name__, budget, place(LAYERS, count, WINDOW)
        for name, found in known.items():
            kept = set(found["layers"][:count])
            yield name, budget, Schedule(tuple(Span(kind="full") if i in kept else WINDOW for i in range(LAYERS)))


def run(
    folder: Path,
    source: Source,
    name: str,
    budget: float,
    schedule: Schedule,
    seed: int,
    steps: tuple[int, ...] = EVALUATIONS,
    kind: str = "run",
) -> None:
    """Switch, train on, and record each evaluation."""
    routed = load_pretrained(str(folder), check=False)
    routed.set_schedule(schedule)
    lines = [(0, measure(routed, source))]
    running = engine(routed, replace(TRAINING, steps=max(steps)))
    for step, _ in train_steps(running, source, seed=seed):
        if step in steps:
            lines.append((step, measure(routed, source)))
    running.close()
    cost = budget_ratio(schedule, seq_len=TOKENS, n_heads=MODEL.n_heads)
    for step, found in lines:
        say(kind=kind, placement=name, budget=budget, cost=cost, schedule=str(schedule), seed=seed, step=step, **found)
    print(name, budget, seed, [round(found["loss"], 3) for _, found in lines], flush=True)


def commit(message: str) -> None:
    """Keep what was measured, in a clone that has nothing else to commit."""
    subprocess.run(["git", "-C", str(HERE), "commit", "-qm", message, "--", str(RECORDS)], check=False)


def main() -> None:
    """Pre-train once, then run what has no record yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path(tempfile.gettempdir()) / "layersearch-convert-study")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--commit", action="store_true", help="commit the records as they grow")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    source = open_source(DATA, TOKENS)
    with tempfile.TemporaryDirectory() as place:
        join(RankGroup(), str(Path(place, "rendezvous")))
        if not options.model.is_dir():
            pretrain(options.model, source)
        if not any(found["kind"] == "original" for found in records()):
            say(kind="original", **measure(load_pretrained(str(options.model)), source))
        todo = list(placements(options.model, source))
        whole = max(EVALUATIONS)
        done = {
            (found["placement"], found["budget"], found["seed"])
            for found in records()
            if found["kind"] == "run" and found["step"] == whole
        }
        for seed in SEEDS:
            for name, budget, schedule in todo:
                if (name, budget, seed) not in done:
                    run(options.model, source, name, budget, schedule, seed)
            if options.commit:
                commit(f"Measure recovery after the switch: seed {seed}")
        longer = {found["placement"] for found in records() if found["kind"] == "long" and found["step"] == max(LONG)}
        for name, budget, schedule in todo:
            if budget == LONG_BUDGET and name in LONG_PLACES and name not in longer:
                run(options.model, source, name, budget, schedule, LONG_SEED, LONG, "long")
        if options.commit:
            commit("Measure recovery over more steps")


if __name__ == "__main__":
    main()
