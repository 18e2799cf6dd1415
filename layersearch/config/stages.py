"""Stages of a training: sequence length, learning rate and size of the windows, and their share of the steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, NamedTuple

from pydantic import Field


@dataclass(frozen=True, kw_only=True)
class StageConfig:
    """One stage of a staged training: a sequence length, its learning rate and its share of the steps."""

    __pydantic_config__ = {"extra": "forbid", "allow_inf_nan": False}

    seq_len: Annotated[int, Field(ge=2, le=100_000_000)]
    """Tokens in a sequence."""
    learning_rate: Annotated[float, Field(gt=0)]
    """Peak learning rate of the stage."""
    share: Annotated[float, Field(gt=0)]
    """Weight of the stage when the optimizer steps are divided among the stages."""
    window: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Size of the schedule's windows and blocks, as a share of the final ones."""


class Steps(NamedTuple):
    """The optimizer steps of a stage."""

    first: int
    """Steps of the stages before it."""
    number: int
    """Its own steps."""


def divide(shares: Sequence[float], steps: int) -> list[Steps]:
    """Divide steps among stages by their shares: they add up, and each stage has at least one.

    ``steps`` must be as many as the stages.

    Example:
        >>> [stage.number for stage in divide([3, 1], 8)]
        [6, 2]
    """
    total, share, first = sum(shares), 0.0, 0
    found: list[Steps] = []
    for later, own in zip(reversed(range(len(shares))), shares, strict=True):
        share += own
        end = min(max(round(steps * share / total), first + 1), steps - later)
        found.append(Steps(first, end - first))
        first = end
    return found
