"""Validation: the loss on held-out sequences, by position and by metric."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed
from torch import Tensor

from layersearch.data.source import Batch, Source
from layersearch.training.engine import RankGroup

POSITION_BINS = 8


@dataclass(frozen=True, kw_only=True)
class ValidationResult:
    """The result of one pass over the validation set."""

    loss: float  # Mean over sequences of the mean loss per predicted token, nats
    by_position: tuple[float, ...]  # Loss in equal bins of token position, nats; bins without a target are dropped
    edges: tuple[int, ...]  # Right edges of these bins, in tokens
    losses: np.ndarray  # Loss of each target in nats, 0 where not scored, (sequences, targets)
    correct: np.ndarray  # Whether the top prediction was right, (sequences, targets)


def named_metrics(source: Source, batch: Batch, measured: ValidationResult) -> dict[str, float]:
    """Return the source's metrics, and the loss of each token group that it names."""
    scored = batch.targets >= 0
    by_group = {
        f"{name}_loss": float(measured.losses[part & scored].mean()) for name, part in source.groups(batch).items()
    }
    return source.metrics(measured.correct, batch) | by_group


def validate(
    token_losses: Callable[..., tuple[Tensor, Tensor]],
    batch: Batch,
    rows_at_once: int,
    group: RankGroup,
    beat: Callable[[], None] = lambda: None,
) -> ValidationResult:
    """Return the validation loss, whole and by position.

    Each rank scores its share of ``rows_at_once`` sequences with ``token_losses``, see `Engine.token_losses`. ``beat``
    is called after each share.
    """
    n_rows, tokens = batch.targets.shape
    losses = torch.zeros(n_rows, tokens, dtype=torch.float64)
    correct = torch.zeros(n_rows, tokens, dtype=torch.float64)
    # Every rank takes part in all chunks, as ZeRO-3's gathers need.
    for start in range(0, n_rows, rows_at_once):
        stop = min(start + rows_at_once, n_rows)
        own = slice(*(start + (stop - start) * rank // group.size for rank in (group.rank, group.rank + 1)))
        rows = own if own.stop > own.start else slice(start, start + 1)  # a rank without a row still takes part
        found, predicted = token_losses(*to_device(batch.rows(rows), group))
        if rows == own:
            losses[rows], correct[rows] = found.double().cpu(), predicted.double().cpu()
        beat()
    losses, correct = sum_over_ranks(losses, group), sum_over_ranks(correct, group)
    scored = torch.from_numpy(batch.targets >= 0)
    edges = [tokens * (index + 1) // POSITION_BINS for index in range(POSITION_BINS)]
    by_position, kept = [], []
    for low, high in zip([0, *edges[:-1]], edges, strict=True):
        count = int(scored[:, low:high].sum())
        if count:
            by_position.append(float(losses[:, low:high].sum()) / count)
            kept.append(high)
    return ValidationResult(
        loss=float((losses.sum(dim=1) / scored.sum(dim=1)).mean()),
        by_position=tuple(by_position),
        edges=tuple(kept),
        losses=losses.numpy(),
        correct=(correct > 0.5).numpy(),
    )


def sum_over_ranks(values: Tensor, group: RankGroup) -> Tensor:
    """Return the sum over ranks, on the CPU. Every rank must call this."""
    if group.size == 1:
        return values
    values = values.to(group.device)  # NCCL reduces on GPUs only
    torch.distributed.all_reduce(values)
    return values.cpu()


def to_device(batch: Batch, group: RankGroup) -> tuple[Tensor, ...]:
    """Return tokens, targets and the task's marks, if there are any, (B, T) each, on the rank's device."""
    return tuple(torch.from_numpy(x).to(group.device) for x in batch if x is not None)
