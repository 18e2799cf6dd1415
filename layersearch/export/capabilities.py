"""Which spans a target supports, and the nearest schedule that it supports.

The **nearest** schedule has the same full layers. Every other layer becomes a plain window or block, as the target has
it: without sinks, dilation, offset and LaS. Its size gives the exact attention FLOPs closest to the original's; of two
equally close sizes the smaller is taken. A target with one size for all layers gets the size that is closest in their
sum. A target with one span for all layers gets that size in its full layers too.
"""

import bisect
from collections.abc import Sequence
from dataclasses import dataclass

from layersearch.errors import ExportError
from layersearch.schedule import Schedule, Span, SpanKind
from layersearch.schedule.cost import attention_flops, span_pairs

_PLURAL: dict[str, str] = {
    "full": "full layers",
    "window": "windows",
    "block": "blocks",
    "strided": "strided spans",
    "fixed": "fixed columns",
    "bigbird": "BigBird spans",
    "memory": "memories",
}


class UnsupportedSchedule(ExportError):
    """A target does not support a schedule; ``nearest`` is the nearest one that it supports."""

    def __init__(self, message: str, nearest: Schedule) -> None:
        super().__init__(message)
        self.nearest = nearest


@dataclass(frozen=True, kw_only=True)
class Capabilities:
    """Which spans a target supports: full ones, and plain windows or blocks."""

    name: str
    """The target in errors, for example ``family qwen3``."""
    sparse: SpanKind = "window"
    """Kind of every layer that is not full."""
    size_per_layer: bool = False
    """Whether sparse layers may differ in size."""
    uniform: bool = False
    """Whether all layers have the same span."""

    def problem(self, schedule: Schedule) -> str | None:
        """Return the first unsupported span, with its layer and the reason; None if the schedule is supported."""
        first: tuple[int, Span] | None = None
        for layer, span in enumerate(schedule):
            lacks = {
                _PLURAL[span.kind]: span.kind not in ("full", self.sparse),
                "dilation": span.dilation > 1,
                "offset of blocks": span.offset > 0,
                "sinks": span.sink > 0,
                "global tokens": span.global_first > 0 or span.global_marked > 0,
                "summaries": span.summary > 0,
                "LaS decay or pooling": span.is_las,
            }
            for lack, found in lacks.items():
                if found:
                    return f"layer {layer}: {span}: {self.name} supports no {lack}"
            if self.uniform and span != schedule[0]:
                return f"layer {layer}: {span}, but layer 0 has {schedule[0]}: {self.name} has one span for all layers"
            if span.is_full or self.size_per_layer:
                continue
            first = first or (layer, span)
            if span.size != first[1].size:
                return (
                    f"layer {layer}: {span}, but layer {first[0]} has {first[1]}: "
                    f"{self.name} supports one {span.kind} size for all layers"
                )
        return None

    def check(self, schedule: Schedule, *, seq_len: int, n_heads: int) -> None:
        """Refuse a schedule that the target does not support; FLOPs are compared at ``seq_len`` tokens.

        Raises:
            UnsupportedSchedule: names the layer, the reason, the nearest schedule and the ratio of their FLOPs.
        """
        problem = self.problem(schedule)
        if problem is None:
            return
        other = nearest(schedule, self, seq_len=seq_len, n_heads=n_heads)
        flops = [attention_flops(each, seq_len=seq_len, n_heads=n_heads, head_dim=1) for each in (other, schedule)]
        raise UnsupportedSchedule(
            f"{problem}; the nearest supported schedule is '{other}', with {flops[0] / flops[1]:.4f} times the "
            "attention FLOPs",
            other,
        )


def nearest(schedule: Schedule, target: Capabilities, *, seq_len: int, n_heads: int) -> Schedule:
    """Return the nearest schedule that a target supports, as the module's docstring defines it."""
    if target.problem(schedule) is None:
        return schedule
    sparse = [layer for layer, span in enumerate(schedule) if target.uniform or not span.is_full]
    spans = [Span(kind="full")] * len(schedule)
    for group in [[layer] for layer in sparse] if target.size_per_layer else [sparse]:
        size = _closest_size(target.sparse, [schedule[layer] for layer in group], seq_len, n_heads)
        for layer in group:
            spans[layer] = Span(kind=target.sparse, size=size)
    return Schedule(tuple(spans))


def _closest_size(kind: SpanKind, spans: Sequence[Span], seq_len: int, n_heads: int) -> int:
    def pairs(size: int) -> int:
        return len(spans) * span_pairs(Span(kind=kind, size=size), seq_len, n_heads)

    wanted = sum(span_pairs(span, seq_len, n_heads) for span in spans)
    # Pairs grow with the size: the closest is the last size that is not over, or the one after it.
    below = max(1, bisect.bisect_right(range(1, seq_len + 1), wanted, key=pairs))
    return min((below, min(below + 1, seq_len)), key=lambda size: (abs(pairs(size) - wanted), size))
