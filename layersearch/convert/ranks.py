"""A conversion on several ranks: their processes, seen from the one that started them."""

from __future__ import annotations

import dataclasses
import logging
import queue
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from layersearch.convert.converter import Job
from layersearch.errors import LayersearchError
from layersearch.training.workers.meeting import meeting_folder
from layersearch.training.workers.patience import Patience
from layersearch.training.workers.process import WorkerProcess

_EXIT_TIMEOUT = 5.0  # seconds for a process to end after its pipe did

Messages = queue.Queue[tuple[int, dict[str, Any] | None]]
_LOG = logging.getLogger(__name__)


class RankLost(LayersearchError):
    """A rank died or hung: another attempt, from the last checkpoint, may succeed."""


def run_ranks(job: Job, logs: Path, on_message: Callable[[dict[str, Any]], None]) -> None:
    """Run `layersearch.convert.worker` once per rank and wait for the end; once more if a rank died or hung.

    Args:
        job: what every rank does.
        logs: folder for their standard error.
        on_message: called with the messages of rank 0.

    Raises:
        LayersearchError: a rank refused, or died or hung twice.
    """
    try:
        _run_once(job, logs, on_message)
    except RankLost as error:
        _LOG.warning("%s: tried once more, from the last checkpoint", error)
        _run_once(job, logs, on_message)


def _run_once(job: Job, logs: Path, on_message: Callable[[dict[str, Any]], None]) -> None:
    logs.mkdir(parents=True, exist_ok=True)
    training, ranks, inbox = job.recipe.training, list[WorkerProcess](), Messages()
    patience = Patience(training)
    with meeting_folder() as meeting:
        try:
            for number in range(training.ranks):
                rank = WorkerProcess("layersearch.convert.worker")
                settings = {
                    "job": _plain(job),
                    "rank": number,
                    "threads": training.threads,
                    "device": f"cuda:{number}" if training.gpus else "cpu",
                    "rendezvous": str(Path(meeting, "store")),
                }
                rank.start(settings, logs / f"rank-{number}.log")
                ranks.append(rank)
                threading.Thread(target=_pump, args=(number, rank, inbox, patience), daemon=True).start()
            while True:
                number, message = inbox.get()
                if message is None:
                    raise _death(ranks, inbox, logs)
                if message["event"] == "silent":
                    raise RankLost(patience.reason(str(logs)))
                if message["event"] == "refused":
                    raise LayersearchError(message["message"])
                if message["event"] == "done":
                    return
                on_message(message)
        finally:
            for rank in ranks:
                rank.kill()


def _plain(job: Job) -> dict[str, Any]:
    values = dataclasses.asdict(job)
    return values | {"out": str(job.out), "cache": None if job.cache is None else str(job.cache)}


def _pump(number: int, rank: WorkerProcess, inbox: Messages, patience: Patience) -> None:
    while True:
        try:
            # Rank 0 speaks for all: a rank that hangs lets it wait.
            message = rank.receive(None if number else patience.seconds)
        except TimeoutError:
            inbox.put((number, {"event": "silent"}))
            return
        if message is not None and message["event"] == "beat":
            patience.beat(message["slowest"])
            continue
        if message is not None and message["event"] == "step" and message["step"]["step"] == message["step"]["steps"]:
            patience.rest()  # the model is saved, loaded and compared
        inbox.put((number, message))
        if message is None:
            return


def _death(ranks: list[WorkerProcess], inbox: Messages, logs: Path) -> LayersearchError:
    """Return the error of ranks of which one died: a refusal that ended it, or their exit codes."""
    codes = [rank.exit_status(0.0 if number else _EXIT_TIMEOUT) for number, rank in enumerate(ranks)]
    while not inbox.empty():
        _, message = inbox.get()
        if message is not None and message["event"] == "refused":
            return LayersearchError(message["message"])
    return RankLost(
        f"a rank of the conversion died (exit codes [{', '.join(codes)}]): out of memory? see {logs}; the same command "
        "resumes at the last checkpoint"
    )
