"""Pools run trials. `LocalPool` keeps worker processes on this machine."""

import queue
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from pathlib import Path

from layersearch.config.recipe import Recipe, deepspeed_file
from layersearch.errors import require
from layersearch.training.deepspeed_config import zero_stage
from layersearch.training.record import KeepGoing, Trial, TrialRecord
from layersearch.training.workers.meeting import meeting_folder
from layersearch.training.workers.process import WorkerProcess
from layersearch.training.workers.worker_group import WorkerGroup

_PLACE_TIMEOUT = 0.5  # Seconds that a trial waits for one group's place before it tries the next group


class Pool:
    """Runs trials in parallel, on worker groups that each train one trial at a time.

    A group trains many trials, so imports and DeepSpeed's start-up run once. Under ZeRO-3 a group is replaced after
    each trial: it leaks memory if one process initializes it again (643 to 2165 MB over 8 trials with DeepSpeed
    0.19.8).
    """

    def __init__(self, recipe: Recipe, groups: Sequence[WorkerGroup]) -> None:
        self._replace_after_each = zero_stage(deepspeed_file(recipe)) == 3
        self._groups = tuple(groups)
        self._idle: queue.Queue[WorkerGroup] = queue.Queue()
        for group in self._groups:
            self._idle.put(group)
        self._closed = False
        self._threads = ThreadPoolExecutor(max_workers=len(self._groups), thread_name_prefix="trial")

    def submit(self, trial: Trial, keep_going: KeepGoing | None = None) -> Future[TrialRecord]:
        """Queue one trial; its future holds the record, or raises LayersearchError if the worker refused it.

        ``keep_going`` runs in the caller's process.
        """
        return self._threads.submit(self._run, trial, keep_going)

    def _run(self, trial: Trial, keep_going: KeepGoing | None) -> TrialRecord:
        group = self._idle.get()
        try:
            while not group.wait_until_placed(_PLACE_TIMEOUT):
                if self._closed:
                    raise CancelledError
                self._idle.put(group)
                group = self._idle.get()
            record = group.run(trial, keep_going)
            # One failed rank leaves the others inside a collective: none of them is usable.
            if self._replace_after_each or (record.state == "failed" and record.ranks > 1):
                group.kill()
            return record
        finally:
            self._idle.put(group)

    @property
    def process_ids(self) -> tuple[int, ...]:
        """IDs of the live worker processes, group by group, rank 0 first."""
        return tuple(rank.pid for group in self._groups for rank in group.ranks)

    def close(self) -> None:
        """End every worker and wait for their threads."""
        self._closed = True
        self._threads.shutdown(wait=False, cancel_futures=True)
        for group in self._groups:
            group.kill()
        self._threads.shutdown(wait=True)


PoolFactory = Callable[[Recipe, int, Path, Path | None], Pool]
"""Makes the pool of a search: `LocalPool`, or `layersearch.training.workers.ray_pool.RayPool`.

It takes the trials' recipe, the number of worker groups, the folder for the workers' standard error, and the folder of
prepared data (None: the default one). It raises LayersearchError if the recipe's trials cannot run there, and starts
nothing before the first trial."""


class LocalPool(Pool):
    """Worker processes on this machine, in groups of ``recipe.training.ranks``. See `PoolFactory`."""

    def __init__(self, recipe: Recipe, workers: int, logs: Path, cache: Path | None = None) -> None:
        gpus = _gpus() if recipe.training.gpus else 0
        needs = f"the recipe needs {recipe.training.ranks} GPUs, but this machine has {gpus}"
        enough = not recipe.training.gpus or gpus >= recipe.training.ranks
        require(enough, f"{needs}: set training.gpus=0 to train on the CPU, or training.ranks")
        super().__init__(recipe, [_LocalWorkerGroup(recipe, index, logs, cache, gpus) for index in range(workers)])


def _gpus() -> int:
    import torch  # here, so that a run without a trial to train, or on the CPU, does not import it

    return torch.cuda.device_count()


class _LocalWorkerGroup(WorkerGroup):
    """Child processes. They meet at a file, which needs no port and is closed to other users."""

    def __init__(self, recipe: Recipe, index: int, logs: Path, cache: Path | None, gpus: int) -> None:
        super().__init__(recipe, index, logs, cache)
        self._gpus = gpus
        self._meeting: tempfile.TemporaryDirectory[str] | None = None

    def launch(self) -> None:
        self.logs.mkdir(parents=True, exist_ok=True)
        # A new folder: an old file would hold another group's ranks.
        self._meeting = meeting_folder()
        rendezvous = str(Path(self._meeting.name, "store"))
        count = self.recipe.training.ranks
        for rank in range(count):
            device = f"cuda:{(self.index * count + rank) % self._gpus}" if self._gpus else "cpu"
            process = WorkerProcess()
            process.start(self.settings(rank, device) | {"rendezvous": rendezvous}, self.log(rank))
            self.ranks.append(process)

    def kill(self) -> None:
        super().kill()
        if self._meeting is not None:
            self._meeting.cleanup()
            self._meeting = None
