"""A worker group: the ranks that train one trial at a time, on this machine or on a cluster."""

import time
from abc import ABC, abstractmethod
from dataclasses import replace
from pathlib import Path
from typing import Any

from layersearch.config.recipe import Recipe
from layersearch.errors import LayersearchError
from layersearch.schedule.files import plain
from layersearch.training.record import DIED, KeepGoing, Trial, TrialRecord, blank_record
from layersearch.training.workers.patience import Patience
from layersearch.training.workers.process import WorkerProcess

_EXIT_TIMEOUT = 5.0  # Seconds for a process to end after its pipe did
_DEATH_TIMEOUT = 0.5  # Seconds for a rank to end after another one failed


class WorkerGroup(ABC):
    """The ranks of one trial at a time: started when first needed, then kept for later trials.

    ``index`` is the number of the group in its pool. See `layersearch.training.workers.pool.PoolFactory` for the
    others.
    """

    def __init__(self, recipe: Recipe, index: int, logs: Path, cache: Path | None) -> None:
        self.recipe, self.index, self.logs, self.cache = recipe, index, logs, cache
        self.ranks: list[WorkerProcess] = []
        self._launched, self._started = 0.0, 0.0  # seconds of the longest launch, and of the longest start of a trial

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
            "unfinished": str(self.logs / "unfinished"),
        }

    def log(self, rank: int) -> Path:
        """Return the file of a rank's standard error."""
        return self.logs / f"worker-{self.index}-rank-{rank}.log"

    def run(self, trial: Trial, keep_going: KeepGoing | None) -> TrialRecord:
        """Train one trial. Raises LayersearchError if a worker refused the recipe; the group is killed then."""
        patience = Patience(self.recipe.training)
        try:
            if not self.ranks:
                began = time.monotonic()
                patience.start(self._launched)
                self.launch()
                for rank in self.ranks:
                    self._receive(rank, patience)  # its data are open
                self._receive(self.ranks[0], patience)  # all have met
                self._launched = max(self._launched, time.monotonic() - began)
            began, begun = time.monotonic(), False
            patience = Patience(self.recipe.training)
            patience.start(self._started)
            self._send(op="train", trial=plain(trial))
            while True:
                message = self._receive(self.ranks[0], patience)
                if not begun:
                    begun, self._started = True, max(self._started, time.monotonic() - began)
                if message["event"] == "record":
                    return self._with_dead_rank(TrialRecord.from_json(message["record"]))
                if message["event"] == "beat":
                    patience.beat(message["slowest"])
                    continue
                go = keep_going is None or keep_going(message["step"], message["loss"])
                self._send(op="go" if go else "stop")
        except EOFError:
            # The pipe ends a moment before the process does.
            codes = [rank.exit_status(0.0 if number else _EXIT_TIMEOUT) for number, rank in enumerate(self.ranks)]
            self.kill()
            reason = f"{DIED} (exit codes [{', '.join(codes)}]): out of memory? see {self.log_place()}"
        except TimeoutError:
            self.kill()
            reason = patience.reason(self.log_place())
        return replace(blank_record(trial, self.recipe), error=reason)

    def _with_dead_rank(self, record: TrialRecord) -> TrialRecord:
        """Return a record that names the rank whose end made the first one fail, if one ended."""
        if record.state != "failed" or len(self.ranks) == 1:
            return record
        codes = {number: rank.exit_status(_DEATH_TIMEOUT) for number, rank in enumerate(self.ranks) if number}
        ended = {number: code for number, code in codes.items() if code != "alive"}
        if not ended:
            return record
        # A rank that met an exception of its own ends with 1. Another attempt would end alike.
        what = "a rank failed" if set(ended.values()) == {"1"} else DIED
        said = ", ".join(f"rank {number}: exit code {code}" for number, code in ended.items())
        return replace(record, error=f"{what} ({said}): out of memory? see {self.log_place()} ({record.error})"[:600])

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

    def _receive(self, rank: WorkerProcess, patience: Patience) -> dict[str, Any]:
        message = rank.receive(patience.seconds)
        if message is None:
            raise EOFError
        if message["event"] == "refused":
            self.kill()
            raise LayersearchError(message["message"])
        return message
