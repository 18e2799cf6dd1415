"""Worker processes and Ray actors whose trials train nothing: they run the module ``noop_worker``.

They have a module of their own, so that Ray's workers import them too.
"""

from layersearch.training.workers.process import WorkerProcess
from layersearch.training.workers.ray_pool import _Actor


class IdleWorker(WorkerProcess):
    """A worker process on this machine."""

    def __init__(self) -> None:
        super().__init__("noop_worker")


class IdleActor(_Actor):
    """A Ray actor with such a process."""

    def __init__(self) -> None:
        super().__init__("noop_worker")
