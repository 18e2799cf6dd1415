"""What every tracker does, and the values of a trial that each of them logs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from layersearch.training.record import TrialRecord


class Tracker(Protocol):
    """Logs the trials of one run; made by `layersearch.report.trackers.tracking`."""

    id: str | None
    """Names the run in the tracker's own store, so that a resumed run goes on there; None: it needs none."""

    def trial(self, number: int, record: TrialRecord) -> None:
        """Log the record of the trial with this number, counted from 0 in the order of ``trials.jsonl``."""

    def finish(self, figures: Sequence[Path]) -> None:
        """Log the figures of the finished run, PNG files, and close the store."""

    def close(self) -> None:
        """Close the store of a run that did not end."""


def trial_name(number: int, record: TrialRecord) -> str:
    """Return a name for people that is a file's name too: number, phase, seed and the beginning of the schedule."""
    words = re.sub(r"[^\w.+-]+", "_", str(record.schedule).replace("*", "x").replace(":", ""))
    return f"{number:04d}-{record.phase}-s{record.seed}-{words[:80]}"


def trial_values(number: int, record: TrialRecord) -> dict[str, Any]:
    """Return the plain facts of a trial: schedule, l, cost, role, phase, seed, state, steps, loss, time, metrics."""
    return {
        "trial": number,
        "phase": record.phase,
        "seed": record.seed,
        "role": record.role,
        "schedule": str(record.schedule),
        "full_layers": record.schedule.n_full,
        "cost": record.cost,
        "attention_flops": record.flops,
        "state": record.state,
        "steps": record.steps,
        "loss": record.loss,
        "seconds": record.seconds,
        **dict(record.metrics),
    }
