"""A worker process: one rank of a worker group that trains many trials of one recipe, one after another.

It imports libraries and joins the process group once. It reads one JSON message per line from standard input and writes
one per line to standard output. Output of libraries goes to standard error. It exits at once when standard input ends:
the search is gone, even by ``kill -9``.

To the worker: its settings once, then ``{"op": "train", "trial": {...}}``, and after each checkpoint ``{"op": "go"}``
or ``{"op": "stop"}``. From every rank: ``{"event": "opened"}`` once its data are open, or
``{"event": "refused", "message": "..."}``. From rank 0: ``{"event": "ready"}`` once all have met,
``{"event": "checkpoint", "step": s, "loss": x}`` and ``{"event": "record", "record": "..."}``.
"""

import json
import os
import queue
import socket
import sys
import threading
import traceback
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any, TextIO


def main() -> int:
    """Serve until standard input ends."""
    # Libraries print to file descriptor 1: reserve the real one for the messages.
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    inbox: queue.Queue[dict[str, Any]] = queue.Queue()
    threading.Thread(target=_listen, args=(inbox,), daemon=True).start()
    start = inbox.get()

    # DeepSpeed calls collectives by deprecated names: torch would warn at every trial of several ranks.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")
    import torch

    torch.set_num_threads(start["threads"])
    from layersearch.config.loader import build
    from layersearch.config.recipe import Recipe
    from layersearch.data import open_source
    from layersearch.errors import DataError, LayersearchError
    from layersearch.training.engine import RankGroup, join
    from layersearch.training.record import Trial, blank_record
    from layersearch.training.trial import run_trial

    group = RankGroup(rank=start["rank"], size=start["ranks"], device=start["device"])
    recipe = build(Recipe, start["recipe"], "recipe")
    try:
        source = open_source(recipe.data, recipe.training.seq_len, Path(start["cache"]) if start["cache"] else None)
        if start["fingerprint"] not in (None, source.fingerprint):
            raise DataError(
                f"{socket.gethostname()}: its data differ from those here (data.source {recipe.data.source}): "
                "give every machine the same files, the same Python and the same layersearch"
            )
        _send(channel, event="opened")
        join(group, start["rendezvous"], start["listening"])
    except LayersearchError as error:
        _send(channel, event="refused", message=str(error))
        return 2
    _send(channel, event="ready")

    def keep_going(step: int, loss: float) -> bool:
        if group.rank == 0:
            _send(channel, event="checkpoint", step=step, loss=loss)
        return bool(inbox.get()["op"] == "go")

    while True:
        trial = build(Trial, inbox.get()["trial"], "trial")
        try:
            record = run_trial(trial, recipe, source, group, keep_going)
        except LayersearchError as error:
            _send(channel, event="refused", message=str(error))
            return 2
        except Exception as error:
            # Only this trial fails: its record gives the reason, the log the traceback.
            traceback.print_exc()
            if group.rank != 0:
                return 1  # rank 0 waits for this one in a collective, then fails and reports
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            record = replace(blank_record(trial, recipe), error=reason)
        if group.rank == 0:
            _send(channel, event="record", record=record.to_json())


def _listen(inbox: queue.Queue[dict[str, Any]]) -> None:
    for line in sys.stdin:
        inbox.put(json.loads(line))
    os._exit(0)


def _send(channel: TextIO, **message: Any) -> None:
    channel.write(json.dumps(message) + "\n")
    channel.flush()


if __name__ == "__main__":
    sys.exit(main())
