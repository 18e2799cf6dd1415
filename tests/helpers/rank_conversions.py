"""Conversions on one rank and two: ``python rank_conversions.py BASE OUT CACHE`` runs those of `JOBS`.

DeepSpeed's process group stays out of the tests' own process.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.helpers.conversions import PLAIN, SPARSE

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
"""Jobs that are done again as NAME-broken: after this step the second rank stops, as in a machine that hangs, and the
conversion goes on from its last checkpoint. Under ZeRO-3 the state lies in shards."""


def _recipe(name: str) -> Any:
    from layersearch.convert.config import load_convert_recipe

    ranks, stage, keys = JOBS[name]
    settings = [*PLAIN, f"training.steps={STEPS}", f"training.ranks={ranks}", f"training.deepspeed=zero{stage}"]
    return load_convert_recipe("plain", [*settings, "training.weight_decay=0.1", "distil=0.5", *keys])


STOPPED: list[int] = []


def _ranks() -> list[Any]:
    import psutil

    found = []
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.NoSuchProcess):
            if "layersearch.convert.worker" in child.cmdline():
                found.append(child)
    return found


def _nothing(step: Any) -> None:
    pass


def _stop_second_rank(wanted: int) -> Callable[[Any], None]:
    def listener(step: Any) -> None:
        if step.step >= wanted and not STOPPED and len(ranks := _ranks()) == 2:
            STOPPED.append(ranks[1].pid)
            ranks[1].suspend()

    return listener


@contextlib.contextmanager
def _first_ranks_killed() -> Iterator[list[int]]:
    """Kill each first rank as soon as there are two; give their process IDs."""
    killed, ended = list[int](), threading.Event()

    def kill() -> None:
        while not ended.wait(0.02):
            ranks = _ranks()
            if len(ranks) == 2 and ranks[0].pid not in killed:
                killed.append(ranks[0].pid)
                ranks[0].kill()

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        yield killed
    finally:
        ended.set()
        thread.join()


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
        recipe, folder, listener = _recipe(name), Path(out) / label, _nothing
        if stop is not None:
            patience = dataclasses.replace(recipe.training, hang_seconds=8, hang_factor=8)
            recipe, listener = dataclasses.replace(recipe, training=patience), _stop_second_rank(stop)
        with _small_pieces() as rows:
            done = convert(recipe, base, schedule, folder, cache=Path(cache), listener=listener)
        evaluations = [dataclasses.asdict(one) for one in done.evaluations]
        found[label] = {"family": done.family, "evaluations": evaluations, "rows": max(rows, default=0)}
    found["stopped"] = len(STOPPED)
    with _first_ranks_killed() as killed:
        try:
            convert(_recipe("zero2"), base, schedule, Path(out) / "dead", cache=Path(cache))
        except LayersearchError as error:
            found["dead"], found["kills"] = str(error), len(killed)
    (Path(out) / "results.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:4])
