"""A group: the ranks that train one trial at a time, wherever they run."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from layersearch.config.recipe import Recipe
from layersearch.errors import LayersearchError
from layersearch.schedule.files import plain
from layersearch.training.record import Trial, TrialRecord, blank_record
from layersearch.training.trial import KeepGoing

_PATIENCE = 5.0
"""Seconds that a process may take to end after its pipe did."""


class Rank(Protocol):
    """One rank's worker, as `layersearch.training.workers.process.WorkerProcess` is one."""

    @property
    def pid(self) -> int:
        """The number of the process to watch."""
        ...

    def send(self, message: Mapping[str, Any]) -> bool:
        """Send one message; tell whether there was still somebody to read it."""
        ...

    def receive(self) -> dict[str, Any] | None:
        """Wait for the next message; None if there will be none."""
        ...

    def exit_status(self, patience: float) -> str:
        """Return how it ended, or ``alive`` if it runs on for so many seconds."""
        ...

    def kill(self) -> None:
        """End it now, whatever it is at."""
        ...


class WorkerGroup(ABC):
    """The ranks of one trial at a time: started when first needed, kept for the trials that follow.

    Args:
        recipe: what the trials run.
        index: number of the group in its pool.
        logs: folder for the workers' standard error.
        cache: folder of prepared data; None: the default one.
    """

    def __init__(self, recipe: Recipe, index: int, logs: Path, cache: Path | None) -> None:
        self.recipe, self.index, self.logs, self.cache = recipe, index, logs, cache
        self.ranks: Sequence[Rank] = ()

    @abstractmethod
    def launch(self) -> None:
        """Start every rank's worker and set ``ranks``.

        Raises:
            EOFError: if one died at once.
        """

    def placed(self, patience: float) -> bool:
        """Wait so many seconds for a place to run at; tell whether there is one."""
        del patience
        return True

    def settings(self, rank: int, device: str) -> dict[str, Any]:
        """Return what a worker is told first, its rendezvous left out."""
        return {
            "recipe": self.recipe.to_dict(),
            "rank": rank,
            "ranks": self.recipe.training.ranks,
            "threads": self.recipe.training.threads,
            "device": device,
            "cache": str(self.cache) if self.cache else None,
            "fingerprint": None,
        }

    def log(self, rank: int) -> Path:
        """Return the file of a rank's standard error."""
        return self.logs / f"worker-{self.index}-rank-{rank}.log"

    def run(self, trial: Trial, keep_going: KeepGoing | None) -> TrialRecord:
        """Train one trial.

        Raises:
            LayersearchError: if a worker refused the recipe; the group is ended then.
        """
        try:
            if not self.ranks:
                self.launch()
                for rank in self.ranks:
                    self._receive(rank)  # its data are open
                self._receive(self.ranks[0])  # all have met
            self._send(op="train", trial=plain(trial))
            while True:
                message = self._receive(self.ranks[0])
                if message["event"] == "record":
                    return TrialRecord.from_json(message["record"])
                go = keep_going is None or keep_going(message["step"], message["loss"])
                self._send(op="go" if go else "stop")
        except EOFError:
            # Its pipe ends a moment before the process does.
            codes = [rank.exit_status(_PATIENCE if number == 0 else 0.0) for number, rank in enumerate(self.ranks)]
            self.kill()
            reason = f"a worker process died (exit codes [{', '.join(codes)}]): out of memory? see {self.log_place()}"
            return replace(blank_record(trial, self.recipe), error=reason)

    def log_place(self) -> str:
        """Return where the workers' standard error is to be found."""
        return str(self.logs)

    def kill(self) -> None:
        """End every rank; the next trial starts them anew."""
        for rank in self.ranks:
            rank.kill()
        self.ranks = ()

    def _send(self, **message: Any) -> None:
        # Every rank is told before it is said that one is gone: the others would wait for their word.
        if not all([rank.send(message) for rank in self.ranks]):
            raise EOFError

    def _receive(self, rank: Rank) -> dict[str, Any]:
        message = rank.receive()
        if message is None:
            raise EOFError
        if message["event"] == "refused":
            self.kill()
            raise LayersearchError(message["message"])
        return message
