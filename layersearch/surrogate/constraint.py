"""A constraint: the most a schedule may cost, as a sum over layers.

Attention FLOPs are counted in visible pairs and a KV cache in bytes, as whole numbers: these limits hold to the last
unit. Latency is a measured number of milliseconds; its limit holds up to a rounding error of `TOLERANCE`. A schedule
at exactly the limit is admitted.
"""

from __future__ import annotations

import bisect
import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Literal

from layersearch.config.loader import read_yaml
from layersearch.config.recipe import ModelConfig
from layersearch.errors import UserError, did_you_mean
from layersearch.schedule import Schedule, Span
from layersearch.schedule.bound_space import BoundSpace
from layersearch.schedule.cost import FULL, kv_cache_bytes, span_pairs

Kind = Literal["cost", "kv_cache", "latency"]

TOLERANCE = 1e-9
"""A sum of latencies is within the limit up to this share of it, far below what can be measured."""
MOST_MILLISECONDS = 10**6
"""Of one layer; more is a slip of the hand."""


@dataclass(frozen=True, kw_only=True)
class Constraint:
    """At most so much; made by `cost_limit`, `cache_limit` or `latency_limit`."""

    kind: Kind
    limit: float
    """As it was asked: a share of all-full's attention FLOPs, bytes, or milliseconds."""
    per_span: Mapping[Span, float]
    """What one layer of each span takes: visible pairs over all heads or bytes, whole numbers, or milliseconds."""
    most: float
    """The largest sum over layers that is admitted."""
    unit: int = 1
    """So many of those make one of the limit's."""

    def total(self, schedule: Schedule) -> float:
        """Return what a schedule takes, in the units of ``per_span``; whole numbers add up exactly."""
        return sum(self.per_span[span] for span in schedule)

    def measure(self, schedule: Schedule) -> float:
        """Return what a schedule takes, in the units of ``limit``."""
        return self.total(schedule) / self.unit

    def admits(self, schedule: Schedule) -> bool:
        """Tell whether a schedule is within the limit."""
        return self.total(schedule) <= self.most


def _spans(space: BoundSpace) -> list[Span]:
    return list(dict.fromkeys(span for options in space.options for span in options))


def cost_limit(space: BoundSpace, budget: float) -> Constraint:
    """Limit the attention FLOPs; admits what `BoundSpace.cost` puts at most at the budget.

    Args:
        space: the bound space.
        budget: the largest cost, as a share of the all-full schedule's.

    Raises:
        UserError: as `BoundSpace.check_budget`.
    """
    space.check_budget(budget)
    full = space.n_layers * span_pairs(FULL, space.seq_len, space.n_heads)
    # A cost is a rounded quotient, so the largest numerator that is within the budget is looked for, not computed.
    most = bisect.bisect_right(range(full + 1), budget, key=lambda pairs: pairs / full) - 1
    return Constraint(
        kind="cost",
        limit=budget,
        per_span={span: span_pairs(span, space.seq_len, space.n_heads) for span in _spans(space)},
        most=most,
        unit=full,
    )


def cache_limit(space: BoundSpace, size: int, model: ModelConfig, bytes_per_value: int = 2) -> Constraint:
    """Limit the bytes of keys and values that a decoder keeps for one sequence of the space's length.

    Args:
        space: the bound space.
        size: the largest cache, in bytes.
        model: its key-value heads and their width.
        bytes_per_value: 2 for bf16.

    Raises:
        UserError: if no schedule of the space is within the limit; names the least there is.
    """
    if size < 1:
        raise UserError(f"--kv-cache must be at least 1 byte, not {size}")
    if bytes_per_value < 1:
        raise UserError(f"--bytes must be at least 1, not {bytes_per_value}")
    per_span = {
        span: kv_cache_bytes(
            Schedule((span,)),
            seq_len=space.seq_len,
            n_heads=space.n_heads,
            n_kv_heads=model.n_kv_heads,
            head_dim=model.head_dim,
            bytes_per_value=bytes_per_value,
        )
        for span in _spans(space)
    }
    made = Constraint(kind="kv_cache", limit=size, per_span=per_span, most=size)
    least, schedule = _least(space, made)
    if least > size:
        raise UserError(
            f"--kv-cache {size} is below what search space {space.space.name!r} can reach: its smallest cache takes "
            f"{least} bytes ({schedule}); raise it to {least} or add a smaller span to choices"
        )
    return made


def latency_limit(space: BoundSpace, milliseconds: float, table: Mapping[Span, float]) -> Constraint:
    """Limit the sum over layers of a measured latency.

    Args:
        space: the bound space.
        milliseconds: the largest sum.
        table: milliseconds of one layer, by span.

    Raises:
        UserError: if a span of the space is missing, a number is out of range, or no schedule is within the limit.
    """
    if not 0 < milliseconds < float("inf"):  # also false for nan
        raise UserError(f"--latency must be a positive number of milliseconds, not {milliseconds:g}")
    missing = [str(span) for span in _spans(space) if span not in table]
    if missing:
        raise UserError(
            f"--latency-table: no latency of {', '.join(missing)}, which search space {space.space.name!r} holds; "
            "add the milliseconds of one layer of each"
        )
    for span, value in table.items():
        if not 0 < value < MOST_MILLISECONDS:
            raise UserError(
                f"--latency-table: {span}: expected milliseconds of one layer in (0, {MOST_MILLISECONDS}), "
                f"not {value:g}"
            )
    per_span = {span: table[span] for span in _spans(space)}
    made = Constraint(kind="latency", limit=milliseconds, per_span=per_span, most=milliseconds * (1 + TOLERANCE))
    least, schedule = _least(space, made)
    if least > made.most:
        raise UserError(
            f"--latency {milliseconds:g} is below what search space {space.space.name!r} can reach: its fastest "
            f"schedule ({schedule}) takes {least:g} ms; raise it to that or add a faster span to choices"
        )
    return made


def read_latencies(path: Path) -> dict[Span, float]:
    """Read milliseconds of one layer by the span's text form, for example ``{full: 0.31, "window:32": 0.08}``.

    Raises:
        UserError: if it is no such mapping; names the file and the key.
    """
    held = read_yaml(path)
    if not isinstance(held, dict) or not held:
        raise UserError(f"{path}: expected milliseconds of one layer by span, such as full: 0.31, found {held!r}")
    table: dict[Span, float] = {}
    for key, value in held.items():
        try:
            span = Span.parse(str(key))
        except UserError as error:
            raise UserError(f"{path}: {error}") from None
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise UserError(f"{path}: {key}: expected milliseconds of one layer, found {value!r}")
        if span in table:
            raise UserError(f"{path}: {span} is named twice; name it once")
        table[span] = float(value)
    return table


def parse_bytes(text: str) -> int:
    """Read a number of bytes such as ``65536``, ``64KiB`` or ``1.5 GiB``.

    Raises:
        UserError: if it is none.
    """
    units = {"": 1, "B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}
    match = re.fullmatch(r"(\d{1,18}(?:\.\d{1,12})?) ?([A-Za-z]*)", text, re.ASCII)
    if match is None:
        raise UserError(f"--kv-cache {text!r}: expected bytes such as 65536 or 64KiB")
    number, unit = match.groups()
    if unit not in units:
        known = [name for name in units if name]
        raise UserError(f"--kv-cache {text!r}: unknown unit {unit!r}{did_you_mean(unit, known)}")
    return int(Decimal(number) * units[unit])


def _least(space: BoundSpace, constraint: Constraint) -> tuple[float, Schedule]:
    found = []
    for part in space.subspaces:
        spans: dict[int, Span] = {}
        for group, options in zip(space.groups, part, strict=True):
            span = min(options, key=constraint.per_span.__getitem__)
            spans |= dict.fromkeys(group, span)
        schedule = Schedule(tuple(spans[layer] for layer in range(space.n_layers)))
        found.append((constraint.total(schedule), schedule))
    return min(found, key=lambda pair: pair[0])
