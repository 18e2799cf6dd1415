"""A worker group: the ranks that train one trial at a time, on this machine or on a cluster."""

from abc import ABC, abstractmethod
from dataclasses import replace
from pathlib import Path
from typing import Any

from layersearch.config.recipe import Recipe
from layersearch.errors import LayersearchError
from layersearch.schedule.files import plain
from layersearch.training.record import Trial, TrialRecord, blank_record
from layersearch.training.trial import KeepGoing
from layersearch.training.workers.process import WorkerProcess

_EXIT_TIMEOUT = 5.0  # Seconds for a process to end after its pipe did


class WorkerGroup(ABC):
    """The ranks of one trial at a time: started when first needed, then kept for later trials.

    ``index`` is the number of the group in its pool. See `layersearch.training.workers.pool.PoolFactory` for the
    others.
    """

    def __init__(self, recipe: Recipe, index: int, logs: Path, cache: Path | None) -> None:
        self.recipe, self.index, self.logs, self.cache = recipe, index, logs, cache
        self.ranks: list[WorkerProcess] = []

    @abstractmethod
    def launch(self) -> None:
        """Start every rank's worker and set ``ranks``; raise EOFError if one died at once."""

    def wait_until_placed(self, timeout: float) -> bool:
        """Wait this many seconds for a place to run; return whether there is one."""
        return True

    def settings(self, rank: int, device: str) -> dict[str, Any]:
        """Return a worker's first message, without its rendezvous."""
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
        """Train one trial. Raises LayersearchError if a worker refused the recipe; the group is killed then."""
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
            # The pipe ends a moment before the process does.
            codes = [rank.exit_status(0.0 if number else _EXIT_TIMEOUT) for number, rank in enumerate(self.ranks)]
            self.kill()
            reason = f"a worker process died (exit codes [{', '.join(codes)}]): out of memory? see {self.log_place()}"
            return replace(blank_record(trial, self.recipe), error=reason)

    def log_place(self) -> str:
        """Return where to find the workers' standard error."""
        return str(self.logs)

    def kill(self) -> None:
        """Kill every rank; the next trial starts them again."""
        for rank in self.ranks:
            rank.kill()
        self.ranks = []

    def _send(self, **message: Any) -> None:
        # Send to every rank before reporting that one is gone: the others would wait for the message.
        if not all([rank.send(message) for rank in self.ranks]):
            raise EOFError

    def _receive(self, rank: WorkerProcess) -> dict[str, Any]:
        message = rank.receive()
        if message is None:
            raise EOFError
        if message["event"] == "refused":
            self.kill()
            raise LayersearchError(message["message"])
        return message
