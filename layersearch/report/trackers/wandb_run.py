"""A run in Weights & Biases: losses by training step, a table of trials, the figures."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from layersearch.report.trackers.base import trial_name, trial_values
from layersearch.training.record import TrialRecord

PROJECT = "layersearch"


class WandbRun:
    """Logs to one run; wandb's own variables (WANDB_MODE, WANDB_PROJECT, WANDB_API_KEY) hold.

    Args:
        folder: where wandb puts its files.
        name: of the run, for people.
        id: of the run that a resumed search goes on with; None: a new one.
    """

    def __init__(self, folder: Path, name: str, id: str | None) -> None:
        import wandb

        folder.mkdir(parents=True, exist_ok=True)
        project = os.environ.get("WANDB_PROJECT", PROJECT)
        quiet = wandb.Settings(silent=True, console="off")
        self._wandb: Any = wandb
        self._run = wandb.init(project=project, name=name, dir=str(folder), id=id, resume="allow", settings=quiet)
        self.id: str | None = self._run.id
        self._run.define_metric("training step")
        self._run.define_metric("trial number")
        self._run.define_metric("validation loss/*", step_metric="training step")
        self._run.define_metric("by trial/*", step_metric="trial number")
        self._rows: list[dict[str, Any]] = []

    def trial(self, number: int, record: TrialRecord) -> None:
        """Log the losses of a trial by step, and its last loss and cost by number."""
        name = trial_name(number, record)
        for step, loss in record.curve:
            self._run.log({f"validation loss/{name}": loss, "training step": step})
        values: dict[str, Any] = {"by trial/attention cost": record.cost, "trial number": number}
        if record.loss is not None and record.state == "complete":
            values["by trial/validation loss"] = record.loss
        self._run.log(values)
        self._rows.append(trial_values(number, record))

    def finish(self, figures: Sequence[Path]) -> None:
        """Log the table of trials and the figures, and end the run."""
        if self._rows:
            columns = list(dict.fromkeys(key for row in self._rows for key in row))
            data = [[row.get(key) for key in columns] for row in self._rows]
            first = self._rows[0]["trial"]  # more than 0 in a resumed run, whose first part has a table of its own
            self._run.log(
                {f"trials from {first}" if first else "trials": self._wandb.Table(columns=columns, data=data)}
            )
        for figure in figures:
            self._run.log({figure.stem: self._wandb.Image(str(figure))})
        self._run.finish()

    def close(self) -> None:
        """End the run as failed; a resumed search goes on with it."""
        self._run.finish(exit_code=1)
