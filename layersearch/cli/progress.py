"""What a person sees while a search runs: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from layersearch.study.plan import Progress

QUIET_SECONDS = 15.0
"""Without a terminal, a line at most so often, and one at each change of phase."""


class ProgressDisplay:
    """Shows trials done, the best schedule within the budget so far, and the time left.

    Args:
        stream: where to; a bar is drawn only if it is a terminal. None: standard error.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as Bar

        stream = sys.stderr if stream is None else stream
        self._stream = stream
        self._phase = ""
        self._last_line = 0.0
        self._bar: Bar | None = None
        if stream.isatty():
            self._bar = Bar(
                TextColumn("{task.description:<9}"),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("{task.fields[note]}"),
                console=Console(file=stream),
                transient=True,
            )
            self._task = self._bar.add_task("starting", total=None, note="starting the workers")

    def __enter__(self) -> ProgressDisplay:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, progress: Progress) -> None:
        """Show one step; fits `layersearch.search`'s ``listener``."""
        notes = []
        if progress.best is not None:
            notes.append(f"best {progress.best.loss:.4f} at cost {progress.best.cost:.3f} ({progress.best.schedule})")
        if progress.seconds_left:
            notes.append(f"about {duration(progress.seconds_left)} left")
        note = ", ".join(notes)
        if self._bar is not None:
            self._bar.update(
                self._task, description=progress.phase, completed=progress.done, total=progress.planned, note=note
            )
            return
        now = time.monotonic()
        if progress.phase == self._phase and now - self._last_line < QUIET_SECONDS:
            return
        self._phase, self._last_line = progress.phase, now
        print(f"{progress.phase}: {progress.done}/{progress.planned} trials; {note}", file=self._stream, flush=True)


def duration(seconds: float) -> str:
    """Return a length of time as people say it."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
