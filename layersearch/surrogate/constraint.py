"""Constraints: the most a schedule may cost, as a sum over layers.

Attention FLOPs (counted in visible pairs) and KV cache bytes are integers, so these limits are exact. Latency is
measured in milliseconds; its limit has a rounding tolerance of `TOLERANCE`. A schedule at the limit is admitted.
"""

import bisect
import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from layersearch.config.loader import build, read_yaml
from layersearch.config.model import ModelConfig
from layersearch.errors import ConfigError, located, require
from layersearch.schedule.bound_space import BoundSpace
from layersearch.schedule.cost import kv_cache_bytes
from layersearch.schedule.schedule import Schedule
from layersearch.schedule.span import FULL, Span

Kind = Literal["cost", "kv_cache", "latency"]

TOLERANCE = 1e-9  # Relative tolerance of a sum of latencies, far below measurement error
Milliseconds = Annotated[float, Field(gt=0, lt=10**6, allow_inf_nan=False)]  # 1,000 seconds are a typing error


@dataclass(frozen=True, kw_only=True)
class Constraint:
    """An upper limit; made by `cost_limit`, `cache_limit` or `latency_limit`."""

    kind: Kind
    limit: float  # The limit as given: a ratio to all-full's attention FLOPs, bytes, or milliseconds
    per_span: Mapping[Span, float]  # Amount of one layer: visible pairs over all heads, bytes, or milliseconds
    max_total: float  # Largest admitted sum over layers, in the units of `per_span`
    unit: int = 1  # Number of those units in one unit of `limit`

    def total(self, schedule: Schedule) -> float:
        """Return a schedule's sum over layers, in the units of ``per_span``; integer sums are exact."""
        return sum(self.per_span[span] * times for span, times in schedule.counts.items())

    def measure(self, schedule: Schedule) -> float:
        """Return a schedule's sum over layers, in the units of ``limit``."""
        return self.total(schedule) / self.unit

    def admits(self, schedule: Schedule) -> bool:
        """Return whether a schedule is within the limit."""
        return self.total(schedule) <= self.max_total


def _spans(space: BoundSpace) -> list[Span]:
    return list(dict.fromkeys(span for options in space.options for span in options))


def cost_limit(space: BoundSpace, budget: float) -> Constraint:
    """Limit the attention FLOPs; admits every schedule whose `BoundSpace.cost` is at most the budget.

    Raises:
        ConfigError: as `BoundSpace.check_budget`.
    """
    space.check_budget(budget)
    full = space.n_layers * space.pairs(FULL)
    # A cost is a rounded quotient, so the largest numerator within the budget is searched, not computed.
    max_pairs = bisect.bisect_right(range(full + 1), budget, key=lambda pairs: pairs / full) - 1
    per_span = {span: space.pairs(span) for span in _spans(space)}
    return Constraint(kind="cost", limit=budget, per_span=per_span, max_total=max_pairs, unit=full)


def cache_limit(space: BoundSpace, size: int, model: ModelConfig, bytes_per_value: int = 2) -> Constraint:
    """Limit the KV cache of a decoder to ``size`` bytes for one sequence of the space's length.

    The model gives the number of key-value heads and their width; ``bytes_per_value`` is 2 for bf16.

    Raises:
        ConfigError: if no schedule of the space is within the limit; names the smallest cache.
    """
    require(not model.bidirectional, "an encoder keeps no KV cache; give --budget or --latency in place of --kv-cache")
    require(size >= 1, f"--kv-cache must be at least 1 byte, not {size}")
    require(bytes_per_value >= 1, f"--bytes must be at least 1, not {bytes_per_value}")
    heads = {"n_heads": space.n_heads, "n_kv_heads": model.n_kv_heads, "head_dim": model.head_dim}
    per_span = {
        span: kv_cache_bytes(Schedule((span,)), seq_len=space.seq_len, bytes_per_value=bytes_per_value, **heads)
        for span in _spans(space)
    }
    constraint = Constraint(kind="kv_cache", limit=size, per_span=per_span, max_total=size)
    return _reachable(space, constraint, f"--kv-cache {size}", "bytes")


def latency_limit(space: BoundSpace, milliseconds: float, table: Mapping[Span, float]) -> Constraint:
    """Limit the sum over layers of a measured latency; the table is that of `read_latencies`.

    Raises:
        ConfigError: if a span of the space is missing, or no schedule is within the limit.
    """
    if not 0 < milliseconds < float("inf"):  # also false for nan
        raise ConfigError(f"--latency must be a positive number of milliseconds, not {milliseconds:g}")
    missing = ", ".join(str(span) for span in _spans(space) if span not in table)
    held = f"no latency of {missing}, which search space {space.space.name!r} holds"
    require(not missing, f"--latency-table: {held}; add the milliseconds of one layer of each")
    per_span, limit = {span: table[span] for span in _spans(space)}, milliseconds * (1 + TOLERANCE)
    constraint = Constraint(kind="latency", limit=milliseconds, per_span=per_span, max_total=limit)
    return _reachable(space, constraint, f"--latency {milliseconds:g}", "ms")


def read_latencies(path: Path) -> dict[Span, float]:
    """Read milliseconds of one layer by the span's text form, for example ``{full: 0.31, "window:32": 0.08}``.

    Raises:
        ConfigError: if it is no such mapping; names the file and the key.
    """
    held, table = read_yaml(path), dict[Span, float]()
    if not isinstance(held, dict) or not held:
        raise ConfigError(f"{path}: expected milliseconds of one layer by span, such as full: 0.31, found {held!r}")
    for key, value in build(dict[str, Milliseconds], held, str(path)).items():
        with located(str(path)):
            span = Span.parse(key)
            require(span not in table, f"{span} is named twice; name it once")
        table[span] = value
    return table


def parse_bytes(text: str) -> int:
    """Read a number of bytes such as ``65536``, ``64KiB`` or ``1.5 GiB``.

    pydantic's ByteSize would also take ``64kb``, as 64,000 bytes.

    Raises:
        ConfigError: if it is none.
    """
    units = {"": 1, "B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}
    match = re.fullmatch(r"(\d{1,18}(?:\.\d{1,12})?) ?([A-Za-z]*)", text, re.ASCII)
    if match is None:
        raise ConfigError(f"--kv-cache {text!r}: expected bytes such as 65536 or 64KiB")
    number, unit = match.groups()
    require(unit in units, f"--kv-cache {text!r}: unknown unit {unit!r}", unit, filter(None, units))
    return int(Decimal(number) * units[unit])


def _reachable(space: BoundSpace, constraint: Constraint, asked: str, unit: str) -> Constraint:
    """Return the constraint if a schedule of the space satisfies it; otherwise raise ConfigError."""
    takes = constraint.per_span.__getitem__
    lowest = [space.schedule([min(options, key=takes) for options in part]) for part in space.subspaces]
    schedule = min(lowest, key=constraint.total)
    least = constraint.total(schedule)
    if least <= constraint.max_total:
        return constraint
    amount = str(least) if isinstance(least, int) else f"{least:g}"
    raise ConfigError(
        f"{asked} is below what search space {space.space.name!r} can reach: its lowest schedule ({schedule}) takes "
        f"{amount} {unit}; raise it to {amount} or add a smaller span to choices"
    )
