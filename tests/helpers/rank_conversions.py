"""Conversions on one rank and two: ``python rank_conversions.py BASE OUT CACHE`` runs those of `JOBS`.

DeepSpeed's process group stays out of the tests' own process.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.helpers.conversions import PLAIN, SPARSE, Stop, stop_at

STEPS = 10
JOBS: dict[str, tuple[int, int, tuple[str, ...]]] = {
    "alone": (1, 0, ()),
    **{f"zero{stage}": (2, stage, ()) for stage in (0, 1, 2, 3)},
    "alone3": (1, 3, ()),
    "bf16": (2, 3, ("training.precision=bf16",)),
}
"""By name: ranks, ZeRO stage, other keys. All are healed by distillation, so the original is sharded too."""
VOCABULARY = 300
PIECE_ROWS = 8
"""Rows of logits that jobs of one rank may make at once: their texts need several pieces, those of other jobs one."""
BROKEN = {"zero3": 5}
"""Jobs that are also stopped after a step and resumed, as NAME-broken: under ZeRO-3 the state lies in shards."""


def _recipe(name: str) -> Any:
    from layersearch.convert.config import load_convert_recipe

    ranks, stage, keys = JOBS[name]
    settings = [*PLAIN, f"training.steps={STEPS}", f"training.ranks={ranks}", f"training.deepspeed=zero{stage}"]
    return load_convert_recipe("plain", [*settings, "training.weight_decay=0.1", "distil=0.5", *keys])


KILLED: list[int] = []


def _kill_second_rank(step: Any) -> None:
    import psutil

    if step.step >= 3:
        ranks = [one for one in psutil.Process().children() if "layersearch.convert.worker" in one.cmdline()]
        if len(ranks) == 2 and ranks[1].pid not in KILLED:
            KILLED.append(ranks[1].pid)
            ranks[1].kill()


@contextlib.contextmanager
def _small_pieces() -> Iterator[list[int]]:
    """Let pieces of logits have `PIECE_ROWS` rows in this process; give the rows that each loss was taken of."""
    import torch.nn.functional as F

    from layersearch.model import head_loss

    usual, numbers, rows = F.cross_entropy, head_loss.PIECE_NUMBERS, list[int]()

    def watched(*given: Any, **named: Any) -> Any:
        logits = given[0]
        rows.append(logits.numel() // logits.shape[-1])
        return usual(*given, **named)

    F.cross_entropy, head_loss.PIECE_NUMBERS = watched, PIECE_ROWS * VOCABULARY
    try:
        yield rows
    finally:
        F.cross_entropy, head_loss.PIECE_NUMBERS = usual, numbers


def main(base: str, out: str, cache: str) -> None:
    """Run every job; write ``results.json``."""
    from layersearch.convert.run import convert
    from layersearch.errors import LayersearchError
    from layersearch.schedule import Schedule

    found: dict[str, Any] = {}
    schedule = Schedule.parse(SPARSE)
    stops = [(name, name, None) for name in JOBS] + [(f"{name}-broken", name, step) for name, step in BROKEN.items()]
    for label, name, stop in stops:
        recipe, folder = _recipe(name), Path(out) / label
        with contextlib.suppress(Stop):
            if stop is not None:
                convert(recipe, base, schedule, folder, cache=Path(cache), listener=stop_at(stop))
        with _small_pieces() as rows:
            done = convert(recipe, base, schedule, folder, cache=Path(cache))
        evaluations = [dataclasses.asdict(one) for one in done.evaluations]
        found[label] = {"family": done.family, "evaluations": evaluations, "rows": max(rows, default=0)}
    try:
        convert(_recipe("zero1"), base, schedule, Path(out) / "dead", cache=Path(cache), listener=_kill_second_rank)
    except LayersearchError as error:
        found["dead"], found["kills"] = str(error), len(KILLED)
    (Path(out) / "results.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:4])
