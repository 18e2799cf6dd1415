"""The pool: where trials run. This one keeps worker processes on this machine."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import tempfile
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import IO, Any, Protocol

from layersearch.engine import zero_stage
from layersearch.errors import UserError
from layersearch.recipe import Recipe, deepspeed_file
from layersearch.record import TrialRecord
from layersearch.train import KeepGoing, Trial, blank_record


class Pool(Protocol):
    """Runs trials side by side. A search only ever talks to this."""

    def submit(self, trial: Trial, keep_going: KeepGoing | None = None) -> Future[TrialRecord]:
        """Queue one trial; its future holds the record. ``keep_going`` is asked in the caller's process."""
        ...

    def close(self) -> None:
        """End every worker."""
        ...


class LocalPool:
    """Worker processes on this machine, each group training one trial at a time on ``recipe.training.ranks`` ranks.

    A group trains many trials, so that imports and DeepSpeed's start-up are paid once. Under ZeRO-3, which leaks
    memory when it is initialised again in one process (643 to 2165 MB over 8 trials with DeepSpeed 0.19.8), a group
    is replaced after each trial.

    Args:
        recipe: what the trials run.
        workers: groups side by side.
        cache: folder of prepared data; None: the default one.
        logs: folder for the workers' standard error.
    """

    def __init__(self, recipe: Recipe, workers: int, logs: Path, cache: Path | None = None) -> None:
        self._recipe, self._cache, self._logs = recipe, cache, logs
        self._replace_after_each = zero_stage(deepspeed_file(recipe)) == 3
        logs.mkdir(parents=True, exist_ok=True)
        self._groups: list[_Group] = []
        self._idle: queue.Queue[_Group] = queue.Queue()
        for index in range(workers):
            group = _Group(recipe, index, logs, cache)
            self._groups.append(group)
            self._idle.put(group)
        self._threads = ThreadPoolExecutor(max_workers=workers, thread_name_prefix="trial")

    def submit(self, trial: Trial, keep_going: KeepGoing | None = None) -> Future[TrialRecord]:
        """Queue one trial; its future holds the record, or raises UserError if the worker refused it."""
        return self._threads.submit(self._run, trial, keep_going)

    def _run(self, trial: Trial, keep_going: KeepGoing | None) -> TrialRecord:
        group = self._idle.get()
        try:
            record = group.run(trial, keep_going)
            # One failed rank leaves the others in the middle of a collective: none of them is of further use.
            if self._replace_after_each or (record.state == "failed" and record.ranks > 1):
                group.end()
            return record
        finally:
            self._idle.put(group)

    @property
    def process_ids(self) -> tuple[int, ...]:
        """The worker processes that are alive now, group by group, rank 0 first."""
        return tuple(pid for group in self._groups for pid in group.process_ids)

    def close(self) -> None:
        """End every worker and wait for their threads."""
        for group in self._groups:
            group.end()
        self._threads.shutdown(wait=True, cancel_futures=True)


def gpus_here(recipe: Recipe) -> int:
    """Return the number of GPUs that trials may use; 0 where the recipe asks for none.

    Raises:
        UserError: if it asks for more than there are.
    """
    if not recipe.training.gpus:
        return 0
    import torch

    count = torch.cuda.device_count()
    if count < recipe.training.ranks:
        raise UserError(
            f"the recipe asks for {recipe.training.ranks} GPU ranks and {count} GPUs are here: "
            "set training.gpus=0 to train on the CPU, or training.ranks"
        )
    return count


class _Group:
    """The processes of one trial at a time: one per rank, started when first needed."""

    def __init__(self, recipe: Recipe, index: int, logs: Path, cache: Path | None) -> None:
        self._recipe, self._index, self._logs, self._cache = recipe, index, logs, cache
        self._processes: list[subprocess.Popen[str]] = []
        self._files: list[IO[str]] = []
        self._rendezvous: Path | None = None

    @property
    def process_ids(self) -> tuple[int, ...]:
        return tuple(process.pid for process in self._processes)

    def run(self, trial: Trial, keep_going: KeepGoing | None) -> TrialRecord:
        try:
            if not self._processes:
                self._start()
            self._tell(op="train", trial=asdict(trial))
            while True:
                message = self._hear()
                if message["event"] == "record":
                    return TrialRecord.from_json(message["record"])
                go = keep_going is None or keep_going(message["step"], message["loss"])
                self._tell(op="go" if go else "stop")
        except (BrokenPipeError, EOFError):
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._processes[0].wait(timeout=5)  # its pipe ends a moment before the process does
            codes = [process.poll() for process in self._processes]
            self.end()
            reason = f"a worker process died (exit codes {codes}): out of memory? see {self._logs}"
            return replace(blank_record(trial, self._recipe), error=reason)

    def _start(self) -> None:
        training = self._recipe.training
        descriptor, rendezvous = tempfile.mkstemp(prefix="layersearch-")
        os.close(descriptor)
        os.unlink(rendezvous)  # the store makes it; a left-over would hold another group's ranks
        self._rendezvous = Path(rendezvous)
        for rank in range(training.ranks):
            log = (self._logs / f"worker-{self._index}-rank-{rank}.log").open("a", encoding="utf-8")
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "layersearch.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                bufsize=1,
                env=os.environ | {"OMP_NUM_THREADS": str(training.threads)},
            )
            self._files.append(log)
            self._processes.append(process)
            assert process.stdin is not None
            process.stdin.write(
                json.dumps(
                    {
                        "recipe": self._recipe.to_dict(),
                        "rank": rank,
                        "ranks": training.ranks,
                        "threads": training.threads,
                        "device": self._device(rank),
                        "rendezvous": rendezvous,
                        "cache": str(self._cache) if self._cache else None,
                    }
                )
                + "\n"
            )
            process.stdin.flush()
        assert self._hear()["event"] == "ready"

    def _device(self, rank: int) -> str:
        count = gpus_here(self._recipe)
        return f"cuda:{(self._index * self._recipe.training.ranks + rank) % count}" if count else "cpu"

    def _tell(self, **message: Any) -> None:
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.write(json.dumps(message) + "\n")
            process.stdin.flush()

    def _hear(self) -> dict[str, Any]:
        stdout = self._processes[0].stdout
        assert stdout is not None
        line = stdout.readline()
        if not line.endswith("\n"):  # a killed process may leave half a line
            raise EOFError
        message: dict[str, Any] = json.loads(line)
        if message["event"] == "refused":
            self.end()
            raise UserError(message["message"])
        return message

    def end(self) -> None:
        for process in self._processes:
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    with contextlib.suppress(OSError):
                        pipe.close()
            process.kill()
            process.wait()
        for file in self._files:
            file.close()
        if self._rendezvous is not None:
            self._rendezvous.unlink(missing_ok=True)  # a killed process leaves it
        self._processes, self._files, self._rendezvous = [], [], None
