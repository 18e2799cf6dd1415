"""A run in MLflow: a parent run for the search, a nested run per trial. MLFLOW_TRACKING_URI names another store."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from layersearch.report.trackers.base import trial_name, trial_values
from layersearch.training.record import TrialRecord

EXPERIMENT = "layersearch"
_MOST = 500
"""Most characters of a parameter's value in every store."""


class MlflowStore:
    """Logs to the store of ``MLFLOW_TRACKING_URI``, else to files below a folder.

    Args:
        folder: of the store of files.
        name: of the run, for people.
        id: of the parent run that a resumed search goes on with; None: a new one.
    """

    def __init__(self, folder: Path, name: str, id: str | None) -> None:
        uri = os.environ.get("MLFLOW_TRACKING_URI")
        if not uri:
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # newer releases ask before they write files
            folder.mkdir(parents=True, exist_ok=True)
            uri = folder.resolve().as_uri()
        from mlflow import MlflowClient

        self._client = MlflowClient(tracking_uri=uri)
        named = self._client.get_experiment_by_name(EXPERIMENT)
        self._experiment = named.experiment_id if named else self._client.create_experiment(EXPERIMENT)
        self.id: str | None = id
        if id is None:
            self.id = self._client.create_run(self._experiment, run_name=name).info.run_id

    def trial(self, number: int, record: TrialRecord) -> None:
        """Log a trial as a nested run: its facts as parameters, its losses by step as a metric."""
        tags = {"mlflow.parentRunId": str(self.id)}
        made = self._client.create_run(self._experiment, run_name=trial_name(number, record), tags=tags)
        run = made.info.run_id
        for key, value in trial_values(number, record).items():
            if isinstance(value, float):
                self._client.log_metric(run, key, value, step=record.steps)
            else:
                self._client.log_param(run, key, str(value)[:_MOST])
        for step, loss in record.curve:
            self._client.log_metric(run, "validation_loss", loss, step=step)
        status = "FAILED" if record.state == "failed" else "FINISHED"
        self._client.set_terminated(run, status)
        self._client.log_metric(str(self.id), "trials", number + 1, step=number)

    def finish(self, figures: Sequence[Path]) -> None:
        """Log the figures as artifacts of the parent run, and end it."""
        for figure in figures:
            self._client.log_artifact(str(self.id), str(figure))
        self._client.set_terminated(str(self.id), "FINISHED")

    def close(self) -> None:
        """End the parent run as killed; a resumed search goes on with it."""
        self._client.set_terminated(str(self.id), "KILLED")
