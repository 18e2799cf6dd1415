"""Follows a run folder and hands each new record to the trackers that the user asked for.

Records are read from ``trials.jsonl`` as it grows, so a tracker cannot change a search. A tracker that fails is named
once and left out from then on; the search goes on. ``tracking/KIND.json`` holds what was logged, for a resumed run.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from layersearch.errors import ConfigError, LayersearchError, one_line
from layersearch.files import parse_sealed, write_sealed
from layersearch.report.trackers.base import Tracker
from layersearch.training.record import TrialRecord

KINDS: dict[str, tuple[str, ...]] = {
    "csv": (),
    "tensorboard": ("tensorboard",),
    "mlflow": ("mlflow",),
    "wandb": ("wandb",),
}
"""Every tracker by its name for ``--log``, with the modules that it needs; its extra has the same name."""
FOLDER = "tracking"
_LOG = logging.getLogger(__name__)


def check_trackers(kinds: Sequence[str]) -> None:
    """Raise ConfigError if the extra of a tracker is not installed."""
    for kind in kinds:
        if any(importlib.util.find_spec(name) is None for name in KINDS[kind]):
            raise ConfigError(f"--log {kind} needs its extra: pip install 'layersearch[{kind}]'")


class Tracking:
    """The trackers of one run.

    Args:
        kinds: names of `KINDS`, each once.
        run: the run folder; it need not exist yet.
    """

    def __init__(self, kinds: Sequence[str], run: Path) -> None:
        check_trackers(kinds)
        self._run, self._kinds = run, tuple(dict.fromkeys(kinds))
        self._open: dict[str, Tracker] = {}
        self._logged: dict[str, int] = {}
        self._failed: set[str] = set()
        self._size = -1

    def update(self) -> None:
        """Log the records that are new; cheap if there is none."""
        file = self._run / "trials.jsonl"
        size = file.stat().st_size if self._kinds and file.exists() else -1
        if size in (-1, self._size):
            return
        self._size = size
        lines = file.read_bytes().split(b"\n")[:-1]  # what follows the last newline is not whole yet
        for kind in self._kinds:
            if self._tracker(kind) is None:
                continue
            try:
                for number in range(self._logged[kind], len(lines)):
                    record = TrialRecord.from_json(lines[number].decode("utf-8"))
                    self._do(kind, lambda tracker, n=number, r=record: tracker.trial(n, r))  # type: ignore[misc]
                    if kind in self._failed:
                        break
                    self._logged[kind] = number + 1
            except (LayersearchError, UnicodeDecodeError) as error:  # the command itself says what is damaged
                _LOG.debug("tracking: %s", error)
            self._save(kind)

    def finish(self) -> None:
        """Log what is left and the run's figures, and close the trackers."""
        self.update()
        figures = [path for name in ("pareto.png", "selection.png") if (path := self._run / name).exists()]
        for kind in tuple(self._open):
            self._do(kind, lambda tracker: tracker.finish(figures))
        self._open.clear()

    def close(self) -> None:
        """Close the trackers of a run that did not end; nothing where `finish` was called."""
        for kind in tuple(self._open):
            self._do(kind, lambda tracker: tracker.close())
        self._open.clear()

    def _do(self, kind: str, act: Callable[[Tracker], None]) -> None:
        if kind in self._failed:
            return
        try:
            act(self._open[kind])
        except Exception as error:  # of a library, a network or a disk: no reason to end a search of hours
            self._failed.add(kind)
            _LOG.warning("--log %s: stopped (%s); the run goes on", kind, one_line(error))

    def _tracker(self, kind: str) -> Tracker | None:
        """Return an open tracker; open it first, where the search has made its run folder by now."""
        if kind in self._failed:
            return None
        if kind not in self._open:
            held = self._held(kind)
            self._logged[kind] = int(held.get("logged", 0))
            try:
                self._open[kind] = _make(kind, self._run, held.get("id"), fresh=not self._logged[kind])
            except Exception as error:
                self._failed.add(kind)
                _LOG.warning("--log %s: not started (%s); the run goes on", kind, one_line(error))
                return None
        return self._open[kind]

    def _held(self, kind: str) -> dict[str, Any]:
        try:
            held = parse_sealed((self._run / FOLDER / f"{kind}.json").read_text(encoding="utf-8"))
            return held if isinstance(held, dict) and isinstance(held.get("logged"), int) else {}
        except (OSError, ValueError):
            return {}

    def _save(self, kind: str) -> None:
        try:
            held = {"id": self._open[kind].id, "logged": self._logged[kind]}
            write_sealed(self._run / FOLDER / f"{kind}.json", held, indent=None)
        except OSError as error:
            _LOG.warning("--log %s: %s", kind, one_line(error))


def _make(kind: str, run: Path, id: object, *, fresh: bool) -> Tracker:
    folder, name = run / FOLDER / kind, run.resolve().name
    folder.parent.mkdir(parents=True, exist_ok=True)
    known = None if id is None else str(id)
    if kind == "csv":
        from layersearch.report.trackers.csv_files import CsvFiles

        return CsvFiles(folder, fresh=fresh)
    if kind == "tensorboard":
        from layersearch.report.trackers.tensorboard_files import TensorboardFiles

        return TensorboardFiles(folder)
    if kind == "mlflow":
        from layersearch.report.trackers.mlflow_store import MlflowStore

        return MlflowStore(folder, name, known)
    from layersearch.report.trackers.wandb_run import WandbRun

    return WandbRun(folder, name, known)
