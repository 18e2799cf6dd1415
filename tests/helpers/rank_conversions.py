"""Conversions on one rank and two: ``python rank_conversions.py BASE OUT CACHE`` runs those of `JOBS`.

DeepSpeed's process group stays out of the tests' own process.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

from tests.helpers.conversions import PLAIN, SPARSE, Stop, stop_at

STEPS = 10
JOBS: dict[str, tuple[int, int, tuple[str, ...]]] = {
    "alone": (1, 0, ()),
    **{f"zero{stage}": (2, stage, ()) for stage in (0, 1, 2, 3)},
    "alone3": (1, 3, ()),
    "distil": (1, 0, ("distil=0.5",)),
    "distil3": (2, 3, ("distil=0.5",)),
}
"""By name: ranks, ZeRO stage, other keys."""
BROKEN = {"zero0": 5, "zero2": 5, "zero3": 5}
"""Jobs that are also stopped after a step and resumed, as NAME-broken."""


def main(base: str, out: str, cache: str) -> None:
    """Run every job; write ``results.json``."""
    from layersearch.convert.config import load_convert_recipe
    from layersearch.convert.run import convert
    from layersearch.schedule import Schedule

    found: dict[str, Any] = {}
    runs = [(name, name, (None,)) for name in JOBS] + [
        (f"{name}-broken", name, (step, None)) for name, step in BROKEN.items()
    ]
    for label, name, stops in runs:
        ranks, stage, keys = JOBS[name]
        settings = [*PLAIN, f"training.steps={STEPS}", f"training.ranks={ranks}", f"training.deepspeed=zero{stage}"]
        recipe = load_convert_recipe("plain", [*settings, "training.weight_decay=0.1", *keys])
        for wanted in stops:
            try:
                done = convert(
                    recipe, base, Schedule.parse(SPARSE), Path(out) / label, cache=Path(cache), listener=stop_at(wanted)
                )
            except Stop:
                continue
        found[label] = {"family": done.family, "evaluations": [dataclasses.asdict(one) for one in done.evaluations]}
        print(label, file=sys.stderr, flush=True)
    (Path(out) / "results.json").write_text(json.dumps(found))


if __name__ == "__main__":
    if len(sys.argv) > 4:
        JOBS = {name: JOBS[name] for name in sys.argv[4].split(",")}
        BROKEN = {name: step for name, step in BROKEN.items() if name in JOBS}
    main(*sys.argv[1:4])
