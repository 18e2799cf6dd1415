"""One rank of a conversion, in a process of its own.

To it, one JSON message per line: its settings. From it: ``{"event": "beat", "slowest": seconds}`` while rank 0 makes
progress, ``{"event": "step", "step": {...}}``, a `layersearch.convert.converter.Step`, and ``{"event": "done"}`` from
rank 0; ``{"event": "refused", "message": "..."}`` from any.
"""

import dataclasses
import sys
import warnings

from layersearch.training.workers.channel import Channel


def main() -> int:
    """Convert, then exit."""
    channel = Channel()
    start = channel.receive()
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")
    import torch

    torch.set_num_threads(start["threads"])
    from layersearch.config.loader import build
    from layersearch.convert.converter import Job, Step, convert_here
    from layersearch.convert.run_folder import ConvertFolder
    from layersearch.errors import LayersearchError
    from layersearch.files import unwritable
    from layersearch.training.engine import RankGroup, join

    def beat() -> None:
        if group.rank == 0:
            channel.beat()

    def listener(step: Step) -> None:
        if group.rank == 0:
            channel.send(event="step", step=dataclasses.asdict(step))

    try:
        job = build(Job, start["job"], "job")
        group = RankGroup(rank=start["rank"], size=job.recipe.training.ranks, device=start["device"])
        join(group, start["rendezvous"])
        try:
            convert_here(job, ConvertFolder(job.out, None), group, listener, beat=beat)
        except OSError as error:
            raise unwritable(job.out, error) from None
    except LayersearchError as error:
        channel.send(event="refused", message=str(error))
        return 2
    if group.rank == 0:
        channel.send(event="done")
    channel.receive()  # until the parent ends all ranks: none may leave while another still saves
    return 0


if __name__ == "__main__":
    sys.exit(main())
