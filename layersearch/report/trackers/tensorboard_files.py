"""TensorBoard's event files of a run: one TensorBoard run per trial, and ``summary`` for all of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from layersearch.report.trackers.base import trial_name, trial_values
from layersearch.training.record import TrialRecord


class TensorboardFiles:
    """Writes event files below a folder: ``tensorboard --logdir FOLDER`` shows them."""

    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.id: str | None = None
        self._folder, self._make = folder, SummaryWriter
        self._summary = SummaryWriter(str(folder / "summary"))

    def trial(self, number: int, record: TrialRecord) -> None:
        """Write the validation losses of a trial by step, and its last loss and cost by number into ``summary``."""
        with self._make(str(self._folder / trial_name(number, record))) as writer:
            for step, loss in record.curve:
                writer.add_scalar("validation loss", loss, step)
            for name, value in record.metrics:
                writer.add_scalar(name, value, record.steps)
            rows = "".join(f"| {key} | {value} |\n" for key, value in trial_values(number, record).items())
            writer.add_text("trial", f"| key | value |\n|---|---|\n{rows}")
        self._summary.add_scalar("by trial/attention cost", record.cost, number)
        if record.loss is not None and record.state == "complete":
            self._summary.add_scalar("by trial/validation loss", record.loss, number)
        self._summary.flush()

    def finish(self, figures: Sequence[Path]) -> None:
        """Write the figures as images."""
        from matplotlib.image import imread

        for figure in figures:
            self._summary.add_image(figure.stem, imread(figure)[..., :3], dataformats="HWC")
        self.close()

    def close(self) -> None:
        """Close the files."""
        self._summary.close()
