"""How far a command is, on standard error: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
from time import monotonic
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

if TYPE_CHECKING:
    from layersearch.convert.converter import Step
    from layersearch.study.plan import Progress as Trials
    from layersearch.study.plan import Stage

QUIET_SECONDS = 15.0  # least time between two plain lines of one phase; a new phase is printed at once


class ProgressDisplay(Progress):
    """Shows the phase, the work done (in trials or steps) and the time left."""

    def __init__(self, unit: str) -> None:
        super().__init__(
            TextColumn("{task.description:<10}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}", markup=False),
            console=Console(stderr=True, highlight=False),
            transient=True,
            disable=not sys.stderr.isatty(),
        )
        self._unit = unit
        self._phase, self._last_line = "", 0.0
        self._began: tuple[float, int] | None = None
        self._task = self.add_task("starting", total=None, note="starting")

    def report(self, phase: str, done: int, planned: int, notes: list[str], seconds_left: float | None) -> None:
        """Show how many units are done and planned, with notes; ``seconds_left`` is None where it is not known."""
        note = ", ".join([*notes, *([f"about {duration(seconds_left)} left"] if seconds_left else [])])
        self.update(self._task, description=phase, completed=done, total=planned, note=note)
        now = monotonic()
        if self.disable and (phase != self._phase or now - self._last_line >= QUIET_SECONDS):
            self._phase, self._last_line = phase, now
            count = f" {done}/{planned} {self._unit};" if self._unit else ""
            print(f"{phase}:{count} {note}".rstrip(" :"), file=sys.stderr, flush=True)

    def trials(self, progress: Trials) -> None:
        """Show a search's progress; the ``listener`` of `layersearch.search`."""
        best = progress.best
        notes = [] if best is None else [f"best {best.loss:.4f} at cost {best.cost:.3f} ({best.schedule})"]
        self.report(progress.phase, progress.done, progress.planned, notes, progress.seconds_left)

    def stage(self, stage: Stage) -> None:
        """Show the progress of a selection on a pre-trained model; the ``on_stage`` of `layersearch.search`."""
        unit = {"gates": "steps", "search": "schedules", "confirm": "measurements"}.get(stage.phase, "")
        self._unit = unit
        self.report(stage.phase, stage.done, stage.planned, [stage.note], stage.seconds_left)

    def steps(self, step: Step) -> None:
        """Show a conversion's progress; the ``listener`` of `layersearch.convert.run.convert`."""
        if step.evaluation is not None:
            phase = "validation" if step.evaluation.moment == "training" else step.evaluation.moment
            self.report(phase, step.step, step.steps, [f"loss {step.evaluation.loss:.4f}"], None)
            return
        now = monotonic()
        self._began = self._began or (now, step.step)
        done = step.step - self._began[1]
        left = (now - self._began[0]) / done * (step.steps - step.step) if done else None
        self.report("training", step.step, step.steps, [f"training loss {step.loss:.4f}"], left)


def duration(seconds: float) -> str:
    """Return a length of time in a readable unit."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
