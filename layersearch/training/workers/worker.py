"""A worker process: one rank of a worker group that trains many trials of one recipe, one after another.

It imports libraries and joins the process group once. It reads one JSON message per line from standard input and writes
one per line to standard output. Output of libraries goes to standard error. It exits at once when standard input ends:
the search is gone, even by ``kill -9``.

To the worker: its settings once, then ``{"op": "train", "trial": {...}}``, and after each checkpoint ``{"op": "go"}``
or ``{"op": "stop"}``. From every rank: ``{"event": "opened"}`` once its data are open, or
``{"event": "refused", "message": "..."}``. From rank 0: ``{"event": "ready"}`` once all have met,
``{"event": "beat", "slowest": seconds}`` while it makes progress, ``{"event": "checkpoint", "step": s, "loss": x}`` and
``{"event": "record", "record": "..."}``.
"""

import socket
import sys
import traceback
import warnings
from dataclasses import replace
from pathlib import Path

from layersearch.training.workers.channel import Channel


def main() -> int:
    """Serve until standard input ends."""
    channel = Channel()
    start = channel.receive()

    # DeepSpeed calls collectives by deprecated names: torch would warn at every trial of several ranks.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")
    import torch

    torch.set_num_threads(start["threads"])
    from layersearch.config.loader import build
    from layersearch.config.recipe import Recipe
    from layersearch.data import open_of
    from layersearch.errors import DataError, LayersearchError
    from layersearch.training.engine import RankGroup, join
    from layersearch.training.record import Trial, blank_record
    from layersearch.training.trial import run_trial

    group = RankGroup(rank=start["rank"], size=start["ranks"], device=start["device"])
    recipe = build(Recipe, start["recipe"], "recipe")
    try:
        cache = Path(start["cache"]) if start["cache"] else None
        source = open_of(recipe, cache)
        if start["fingerprint"] not in (None, source.fingerprint):
            raise DataError(
                f"{socket.gethostname()}: its data differ from those here (data.source {recipe.data.source}): "
                "give every machine the same files, the same Python and the same layersearch"
            )
        channel.send(event="opened")
        join(group, start["rendezvous"], start["listening"])
    except LayersearchError as error:
        channel.send(event="refused", message=str(error))
        return 2
    channel.send(event="ready")

    unfinished = Path(start["unfinished"]) if Path(start["unfinished"]).parent.is_dir() else None

    def beat() -> None:
        if group.rank == 0:
            channel.beat()

    def keep_going(step: int, loss: float) -> bool:
        if group.rank == 0:
            channel.send(event="checkpoint", step=step, loss=loss)
        return bool(channel.receive()["op"] == "go")

    while True:
        trial = build(Trial, channel.receive()["trial"], "trial")
        channel.begin()
        try:
            record = run_trial(trial, recipe, source, group, keep_going, beat=beat, unfinished=unfinished)
        except LayersearchError as error:
            channel.send(event="refused", message=str(error))
            return 2
        except Exception as error:
            # Only this trial fails: its record gives the reason, the log the traceback.
            traceback.print_exc()
            if group.rank != 0:
                return 1  # rank 0 waits for this one in a collective, then fails and reports
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            record = replace(blank_record(trial, recipe), error=reason)
        if group.rank == 0:
            channel.send(event="record", record=record.to_json())


if __name__ == "__main__":
    sys.exit(main())
