"""Can one network with shared weights rank every schedule of the benchmark, three choices a layer?

Command:  python analysis/signal/shared_table.py [--corpora mix recall] [--ways ...] [--seeds 0 1 2] [--shares 0.5 1]
Time:     10 to 20 seconds a network on one core; finished ones are taken from shared_table.jsonl
Shows:    rank correlation of the shared network's losses of all 243 schedules with the means of their own trials
          (`layersearch.study.benchmark`), over all of them and over those within a budget of 0.27, and what
          hypervolume the network's own frontier holds

The network, its training and its scoring are those of `shared_weights.py`. Ways to draw the 8 schedules of a step:

- ``uniform``: from the whole space.
- ``by_cost``: from the whole space, then repaired to a cost drawn uniformly, so that cheap ones are not rare.
- ``by_count``: the number of full layers from (0, 1, 1, 2, 2, 3, 4, 5), the rest at random.
- ``one_full``: that number from (0, 1, 1, 1, 1, 1, 2, 2).
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import shared_weights
import torch
from scipy import stats
from shared_weights import SPANS, decoder, tables, train
from torch import Tensor

from layersearch.config.recipe import load_recipe
from layersearch.config.training import TrainingConfig
from layersearch.data import open_source
from layersearch.data.source import Source
from layersearch.model.attention.dispatch import attend
from layersearch.model.decoder import Decoder, mean_loss
from layersearch.results.pareto import nondominated
from layersearch.schedule import Schedule, Span
from layersearch.study.benchmark import Benchmark, load_bench

HERE = Path(__file__).resolve().parent
RECORDS = HERE / "shared_table.jsonl"
BENCH = HERE.parent / "schedule_bench"
LETTERS = {"f": "full", "2": "window:2", "1": "window:1"}
COUNTS = {"by_count": (0, 1, 1, 2, 2, 3, 4, 5), "one_full": (0, 1, 1, 1, 1, 1, 2, 2)}
WAYS = ("uniform", "by_cost", *COUNTS)
BUDGET = 0.27


def word(schedule: Schedule) -> str:
    """Return a schedule as a word of letters, bottom layer first."""
    return "".join("f" if span.is_full else str(span)[-1] for span in schedule)


def drawer(way: str, bench: Benchmark, rng: Random) -> Callable[[], list[str]]:
    """Return what draws the schedules of a step."""
    space, words = bench.space, [word(schedule) for schedule in bench.schedules]
    cheapest, dearest = space.cost_range

    def one() -> str:
        if way == "by_cost":
            drawn, cost = space.encode(space.sample(rng)), rng.uniform(cheapest, dearest)
            assert drawn is not None
            return word(space.repair(drawn, max(cost, cheapest), rng))
        count = rng.choice(COUNTS[way])
        letters = [rng.choice("12") for _ in range(space.n_layers)]
        for at in rng.sample(range(space.n_layers), count):
            letters[at] = "f"
        return "".join(letters)

    return lambda: rng.choices(words, k=8) if way == "uniform" else [one() for _ in range(8)]


@torch.no_grad()
def scores(model: Decoder, source: Source, training: TrainingConfig) -> dict[str, float]:
    """Return every schedule's validation loss under the model's weights, in nats; shared prefixes are computed once."""
    held_out = source.validation(training.val_sequences)
    tokens, targets = torch.from_numpy(held_out.tokens), torch.from_numpy(held_out.targets)
    cos, sin = tables(model, tokens)
    found: dict[str, float] = {}

    def descend(x: Tensor, prefix: str) -> None:
        if len(prefix) == len(model.layers):
            found[prefix] = round(float(mean_loss(model.lm_head, model.norm, x, targets)), 4)
            return
        layer = model.layers[len(prefix)]
        q, k, v = layer.before(x, cos, sin)  # type: ignore[operator]
        for letter in LETTERS:
            descend(layer.after(x, attend(q, k, v, SPANS[letter])), prefix + letter)  # type: ignore[operator]

    with torch.autocast("cpu", torch.bfloat16):
        descend(model.embed_tokens(tokens), "")
    return found


def network(corpus: str, way: str, seed: int, share: float) -> dict[str, Any]:
    """Train one network for all schedules; return its record."""
    bench, recipe = load_bench(corpus), load_recipe(str(BENCH / f"{corpus}.yaml"))
    source = open_source(recipe.data, recipe.training.seq_len)
    training = dataclasses.replace(recipe.training, steps=int(recipe.training.steps * share))
    began = time.process_time()
    model = decoder(recipe, source, seed)
    draw = drawer(way, bench, Random(seed))
    train(model, source, training, seed, lambda step: draw())
    trained = time.process_time()
    losses = scores(model, source, training)
    return {
        "corpus": corpus,
        "way": way,
        "seed": seed,
        "share": share,
        "train_seconds": round(trained - began, 1),
        "score_seconds": round(time.process_time() - trained, 1),
        "losses": losses,
    }


def say(row: dict[str, Any]) -> str:
    """Return one record in words."""
    bench = load_bench(row["corpus"])
    losses = np.array([row["losses"][word(schedule)] for schedule in bench.schedules])
    within = bench.costs <= BUDGET
    whole, inside = (
        float(stats.spearmanr(losses[some], bench.means[some]).statistic) for some in (np.ones_like(within), within)
    )
    front = nondominated(list(zip(losses.tolist(), bench.costs.tolist(), strict=True)))
    held = bench.hypervolume([bench.schedules[at] for at in front])
    name = f"{row['corpus']:6s} {row['way']:8s} seed {row['seed']}, {row['share']:g} of a trial's steps"
    return f"{name}: Spearman {whole:.2f}, within {BUDGET} {inside:.2f}; its frontier of {len(front)} holds {held:.3f}"


def main() -> None:
    """Run what has no record yet."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--corpora", nargs="+", default=["mix", "recall"])
    parser.add_argument("--ways", nargs="+", default=["by_cost"], choices=WAYS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--shares", nargs="+", type=float, default=[0.5, 1.0])
    options = parser.parse_args()
    torch.set_num_threads(1)
    shared_weights.SPANS.clear()
    shared_weights.SPANS.update({letter: Span.parse(text) for letter, text in LETTERS.items()})
    rows = [json.loads(line) for line in RECORDS.read_text().splitlines()] if RECORDS.exists() else []
    for corpus in options.corpora:
        for way in options.ways:
            for share in options.shares:
                for seed in options.seeds:
                    key = {"corpus": corpus, "way": way, "seed": seed, "share": share}
                    row = next((row for row in rows if row.items() >= key.items()), None)
                    if row is None:
                        row = network(corpus, way, seed, share)
                        with RECORDS.open("a", encoding="utf-8") as file:
                            file.write(json.dumps(row) + "\n")
                    print(say(row), flush=True)


if __name__ == "__main__":
    main()
