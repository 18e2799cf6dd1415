"""Which of several schedules a model ran: the one whose reference is nearest to its outputs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

from layersearch.schedule import Schedule

MARGIN = 4
"""The schedule that ran must be so many times nearer than the next."""


@dataclass(frozen=True, kw_only=True)
class Nearness:
    """One schedule that a model may have run."""

    name: str
    schedule: str
    error: float
    """Largest difference of an output from the model's: in an engine of a log-probability in nats, else over the
    outputs' standard deviation."""


class Comparison(NamedTuple):
    """The schedule asked for, and those that are nearest to what ran."""

    asked: Nearness
    nearest: Nearness
    next_nearest: Nearness
    tried: int
    """How many schedules were compared."""

    @property
    def told_apart(self) -> bool:
        """False if the schedule asked for is the nearest, and another is as near."""
        return self.nearest.name != self.asked.name or self.asked.error * MARGIN <= self.next_nearest.error


def compare(others: Iterable[tuple[str, Schedule]], error: Callable[[Schedule], float]) -> Comparison:
    """Return the nearest of named schedules; the first is the one asked for, and ``error`` says how far one is."""
    found = [Nearness(name=name, schedule=str(other), error=error(other)) for name, other in others]
    nearest, following = sorted(found, key=lambda one: one.error)[:2]
    return Comparison(found[0], nearest, following, len(found))


class Compared:
    """What every proof by comparison says; the fields are its own."""

    asked: Nearness
    nearest: Nearness
    next_nearest: Nearness
    tried: int

    @property
    def problem(self) -> str | None:
        """The first difference, in one line; None if everything agrees."""
        raise NotImplementedError

    @property
    def told_apart(self) -> bool:
        """False if the schedule asked for is the nearest, and another is as near."""
        return Comparison(self.asked, self.nearest, self.next_nearest, self.tried).told_apart

    @property
    def proven(self) -> bool:
        """True if the schedule asked for ran."""
        return self.problem is None

    def to_dict(self) -> dict[str, Any]:
        """Return plain data, as ``--json`` prints it."""
        return dataclasses.asdict(cast(Any, self)) | {"proven": self.proven, "problem": self.problem}
