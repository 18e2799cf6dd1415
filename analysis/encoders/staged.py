"""Longformer's staged training against one stage of the last length, at equal FLOPs, on paired seeds.

    python analysis/encoders/staged.py --minutes 5            # train what is missing, then print the table
    python analysis/encoders/staged.py --minutes 0            # only the table

Each line of ``staged.jsonl`` is one trial. A trial that the time limit broke off goes on from its last state. The FLOPs
of a training are all matrix products, forward and backward, of every step: one multiply-add counts as one FLOP.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from layersearch.config.recipe import Recipe, load_recipe
from layersearch.results.stats import mean_interval, paired_difference
from layersearch.schedule import Schedule

HERE = Path(__file__).resolve().parent
RECORDS = HERE / "staged.jsonl"
SCHEDULE = Schedule.parse("window:32*2 window:128 full")
"""Windows that grow from the bottom to the top, as Longformer's."""
STEPS, WARMUP = 400, 0.1
SINGLE = ((4, 0.004), (4, 0.002), (4, 0.008), (1, 0.004), (1, 0.008))
"""Sequences in a batch and peak rate of the single stage. The staged training has 4, and goes from 0.008 to 0.0005. Its
batches hold a sixteenth of the tokens at first, so it takes more steps; a batch of 1 takes more too."""
SEEDS = (0, 1, 2)
KINDS = {"decoder": (), "encoder": ("model.kind=encoder", "data.mask_share=0.15")}


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One way to train, of one kind of model."""

    kind: str
    name: str
    recipe: Recipe

    @property
    def flops(self) -> int:
        """FLOPs of a training, exactly."""
        from layersearch.training.stages import stage_costs

        vocab = self.recipe.data.vocab_size + (self.kind == "encoder")
        return sum(stage.flops for stage in stage_costs(self.recipe, SCHEDULE, vocab))


def arms(kind: str) -> Iterator[Arm]:
    """Yield the staged training, and single stages of as many FLOPs: the steps are rounded to the nearest."""
    common = [*KINDS[kind], "training.precision=float32"]
    staged = load_recipe(
        "staged", [*common, f"training.steps={STEPS}", f"training.warmup_steps={round(STEPS * WARMUP)}"]
    )
    first = Arm(kind=kind, name="five stages", recipe=staged)
    yield first
    for rows, rate in SINGLE:
        single = [*common, "training.stages=[]", f"training.learning_rate={rate}", "training.warmup_steps=0"]
        single.append(f"training.batch_size={rows}")
        step = Arm(kind=kind, name="", recipe=load_recipe("staged", [*single, "training.steps=1"])).flops
        steps = round(first.flops / step)
        single += [f"training.steps={steps}", f"training.warmup_steps={round(steps * WARMUP)}"]
        name = f"one stage, rate {rate:g}" + (f", batch {rows}" if rows != 4 else "")
        yield Arm(kind=kind, name=name, recipe=load_recipe("staged", single))


class OutOfTime(Exception):
    """The time is up; the trial goes on the next time."""


def train(minutes: float, scratch: Path) -> None:
    """Train what ``staged.jsonl`` lacks: all arms of a seed before the next seed."""
    import torch

    from layersearch.data import open_training
    from layersearch.training.engine import RankGroup, join
    from layersearch.training.record import Trial
    from layersearch.training.trial import run_trial

    torch.set_num_threads(1)
    end, done = time.monotonic() + 60 * minutes, {key(one) for one in records()}

    def beat() -> None:
        if time.monotonic() > end:
            raise OutOfTime

    with tempfile.TemporaryDirectory() as folder:
        join(RankGroup(), str(Path(folder, "rendezvous")))
        try:
            for seed in SEEDS:
                for arm in [one for kind in KINDS for one in arms(kind)]:
                    if (arm.kind, arm.name, seed) in done:
                        continue
                    beat()
                    recipe = arm.recipe
                    source = open_training(recipe.data, recipe.training)
                    trial = Trial(schedule=SCHEDULE, seed=seed)
                    record = run_trial(trial, recipe, source, beat=beat, unfinished=scratch)
                    line = {
                        "kind": arm.kind,
                        "arm": arm.name,
                        "seed": seed,
                        "steps": record.steps,
                        "tokens": _tokens(recipe),
                        "flops": arm.flops,
                        "attention_flops": record.train_flops,
                        "state": record.state,
                        "loss": record.loss,
                        "by_position": record.loss_by_position,
                        "seconds": round(record.seconds, 1),
                    }
                    with RECORDS.open("a", encoding="utf-8") as file:
                        file.write(json.dumps(line) + "\n")
                    print(line, flush=True)
        except OutOfTime:
            print("the time is up: the same command goes on")


def _tokens(recipe: Recipe) -> int:
    from layersearch.training.stages import trial_stages

    stages = trial_stages(recipe.training)
    return sum(one.training.steps * one.training.batch_size * one.training.seq_len for one in stages)


def records() -> list[dict[str, Any]]:
    """Return the trials so far."""
    return [json.loads(line) for line in RECORDS.read_text().splitlines()] if RECORDS.exists() else []


def key(line: dict[str, Any]) -> tuple[str, str, int]:
    """Return what a line is a trial of."""
    return line["kind"], line["arm"], line["seed"]


def table() -> str:
    """Return the table: mean losses, and paired differences from the staged training, ± Student's 95% half widths."""
    held: dict[tuple[str, str], dict[int, dict[str, Any]]] = {}
    for line in records():
        held.setdefault((line["kind"], line["arm"]), {})[line["seed"]] = line
    text = "| model | training | seeds | steps | tokens | FLOPs | loss, nats | less the staged one, same seeds |\n"
    text += "|---|---|---|---|---|---|---|---|\n"
    for (kind, name), lines in held.items():
        losses = {seed: line["loss"] for seed, line in sorted(lines.items())}
        staged = {seed: line["loss"] for seed, line in held.get((kind, "five stages"), {}).items()}
        loss = str(mean_interval(losses.values()))
        paired = name != "five stages" and losses.keys() & staged.keys()
        off = str(paired_difference(losses, staged)) if paired else ""
        one = next(iter(lines.values()))
        cells = (kind, name, len(losses), one["steps"], f"{one['tokens']:,}", f"{one['flops']:.4g}", loss, off)
        text += f"| {' | '.join(map(str, cells))} |\n"
    return text


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=5.0, help="train for so long (default: %(default)s)")
    parser.add_argument("--scratch", type=Path, default=Path("runs/staged-unfinished"), help="states of broken trials")
    options = parser.parse_args()
    if options.minutes > 0:
        train(options.minutes, options.scratch)
    print(table())
