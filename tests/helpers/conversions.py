"""Conversions in a process of their own: ``python conversions.py BASE OUT CACHE`` runs those of `JOBS`.

DeepSpeed's process group and its hooks stay out of the tests' own process, and its imports are paid once.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

TRAINING = ["training.precision=float32", "training.val_sequences=8", "training.batch_size=4", "checkpoint_steps=2"]
PLAIN = [*TRAINING, "training.seq_len=32", "training.learning_rate=0.002", "data.max_tokens=200000", "evaluations=1"]
SPARSE = "window:4 full window:4"
JOBS: dict[str, dict[str, Any]] = {
    "sparse": {"schedule": SPARSE, "set": [*PLAIN, "training.steps=8"], "seed": 3},
    "blocks": {"schedule": "block:8+sink:1 full window:4/2", "set": [*PLAIN, "training.steps=4"]},
    "whole": {"schedule": SPARSE, "set": [*PLAIN, "training.steps=30"]},
    "attention": {"schedule": SPARSE, "set": [*PLAIN, "training.steps=3", "only_attention=true"]},
    "lora": {"schedule": SPARSE, "set": [*PLAIN, "training.steps=3", "lora=2", "training.learning_rate=0.02"]},
    "both": {"schedule": SPARSE, "set": [*PLAIN, "training.steps=3", "lora=2", "only_attention=true"]},
    "distil": {"schedule": SPARSE, "set": [*PLAIN, "training.steps=3", "distil=1.0"]},
    "longer": {
        "recipe": "longer",
        "schedule": "window:16 full window:16",
        "set": [
            *(*TRAINING, "data.max_tokens=200000", "training.gpus=0", "evaluations=2", "training.seq_len=128"),
            "training.steps=10",
            "stages=[{seq_len: 8, window: 0.0625, learning_rate: 4e-3, share: 4}, "
            "{seq_len: 16, window: 0.125, learning_rate: 2e-3, share: 2}, "
            "{seq_len: 32, window: 0.25, learning_rate: 1e-3, share: 2}, "
            "{seq_len: 64, window: 0.5, learning_rate: 5e-4, share: 1}, "
            "{seq_len: 128, window: 1.0, learning_rate: 2.5e-4, share: 1}]",
        ],
    },
}
JOBS["broken"] = {**JOBS["longer"], "stops": (4, 5, 10)}  # at a stage's end, within one, and after the last step


class Stop(Exception):
    """A process that ends."""


def stop_at(wanted: int | None) -> Any:
    """Return a listener that ends the conversion after a step."""

    def listener(step: Any) -> None:
        if step.step == wanted and step.evaluation is None:
            raise Stop

    return listener


def main(base: str, out: str, cache: str) -> None:
    """Run every job; write ``results.json``."""
    import torch

    torch.set_num_threads(1)
    from layersearch.convert.config import load_convert_recipe
    from layersearch.convert.run import convert
    from layersearch.schedule import Schedule

    found = {}
    for name, job in JOBS.items():
        recipe = load_convert_recipe(job.get("recipe", "plain"), job["set"])
        schedule, groups = Schedule.parse(job["schedule"]), []
        for wanted in (*job.get("stops", ()), None):
            options = {"seed": job.get("seed", 0), "cache": Path(cache), "listener": stop_at(wanted)}
            try:
                done = convert(recipe, base, schedule, Path(out) / name, **options)
            except Stop:
                assert wanted is not None
                continue
            finally:
                groups.append(torch.distributed.is_initialized())
            assert wanted is None
        found[name] = {"family": done.family, "gap": done.gap, "recovered": done.recovered, "groups": groups}
        found[name] |= {"evaluations": [dataclasses.asdict(evaluation) for evaluation in done.evaluations]}
    (Path(out) / "results.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
