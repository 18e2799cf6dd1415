"""CSV files of a run: ``trials.csv``, a row per trial, and ``curves.csv``, a row per evaluation."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from layersearch.report.trackers.base import trial_values
from layersearch.training.record import TrialRecord


class CsvFiles:
    """Appends to the two files in a folder; where a later trial has a further metric, the file is written again."""

    def __init__(self, folder: Path, *, fresh: bool = False) -> None:
        self.id: str | None = None
        folder.mkdir(parents=True, exist_ok=True)
        self._trials, self._curves = folder / "trials.csv", folder / "curves.csv"
        if fresh:  # nothing says what they hold
            self._trials.unlink(missing_ok=True)
            self._curves.unlink(missing_ok=True)

    def trial(self, number: int, record: TrialRecord) -> None:
        """Append the trial and its curve."""
        self._append(self._trials, [trial_values(number, record)])
        self._append(self._curves, [{"trial": number, "step": step, "loss": loss} for step, loss in record.curve])

    def _append(self, path: Path, rows: list[dict[str, Any]]) -> None:
        if not rows:
            return
        held: list[dict[str, Any]] = []
        if path.exists():
            with path.open(encoding="utf-8", newline="") as file:
                reader = csv.DictReader(file)
                names = list(reader.fieldnames or ())
                if set(rows[0]) - set(names):  # another metric: the header must name it
                    held = list(reader)
        else:
            names = []
        wider = [*names, *(name for name in rows[0] if name not in names)]
        new = len(wider) > len(names)
        with path.open("w" if new else "a", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, wider, restval="")
            if new:
                writer.writeheader()
                writer.writerows(held)
            writer.writerows(rows)

    def finish(self, figures: Sequence[Path]) -> None:
        """Do nothing: figures lie in the run folder."""

    def close(self) -> None:
        """Do nothing: every row is on the disk."""
