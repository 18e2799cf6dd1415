"""Which schedules an encoder family supports, and the nearest one that it does.

The **nearest** schedule keeps full layers and global tokens where the family has them, and summaries if all layers do.
Every other layer becomes a window with the exact attention FLOPs closest to the original's. Where one size holds for
all windows, or one span for all layers, it is the size closest in their sum. Where every size must divide the largest,
the largest stays, and the others become its divisors. A family without windows gets all-full.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Sequence

from layersearch.export.capabilities import UnsupportedSchedule
from layersearch.export.encoders.family import EncoderFamily
from layersearch.schedule import Schedule, Span
from layersearch.schedule.cost import attention_flops, span_pairs
from layersearch.schedule.span import FULL


def problem(schedule: Schedule, family: EncoderFamily) -> str | None:
    """Return the first unsupported span, with its layer and the reason; None if the schedule is supported."""
    first: tuple[int, Span] | None = None
    sizes = [span.size or 0 for span in schedule if span.kind == "window"]
    for layer, span in enumerate(schedule):
        where = f"layer {layer}: {span}"
        if span.kind not in ("full", "window") or (span.kind == "window" and family.form == "none"):
            if span.kind == "window":
                return f"{where}: family {family.name} holds no windows, as modernbert and longformer do"
            return f"{where}: family {family.name} holds no {span.kind} spans"
        if span.summary and family.summary is None:
            return f"{where}: family {family.name} is written without summaries"
        if span.is_las or span.dilation > 1:
            return f"{where}: family {family.name} holds plain windows only"
        if (span.global_first or span.global_marked) and not family.takes_globals:
            return f"{where}: family {family.name} has no global tokens"
        if family.form == "one" and (span.is_full, span.summary) != (schedule[0].is_full, schedule[0].summary):
            return f"{where}, but layer 0 has {schedule[0]}: family {family.name} has one span for all layers"
        if span.is_full:
            continue
        first = first or (layer, span)
        if _globals(span) != _globals(first[1]):
            return (
                f"{where}, but layer {first[0]} has {first[1]}: family {family.name} has the same global tokens in all "
                "layers"
            )
        if family.form in ("types", "one") and span.size != first[1].size:
            return f"{where}, but layer {first[0]} has {first[1]}: family {family.name} has one window size"
        if family.pads and len(sizes) == len(schedule) and max(sizes) % (span.size or 1):
            return (
                f"{where}: family {family.name} pads a text to a multiple of its largest window, {max(sizes)} keys on "
                f"each side, and {span.size} does not divide it"
            )
    return None


def check_supported(schedule: Schedule, family: EncoderFamily, *, seq_len: int, n_heads: int) -> None:
    """Refuse a schedule that a family does not support; FLOPs are compared at ``seq_len`` tokens.

    Raises:
        UnsupportedSchedule: names the layer, the reason, the nearest schedule and the ratio of their FLOPs.
    """
    found = problem(schedule, family)
    if found is None:
        return
    other = nearest(schedule, family, seq_len=seq_len, n_heads=n_heads)
    flops = [
        attention_flops(each, seq_len=seq_len, n_heads=n_heads, head_dim=1, bidirectional=True)
        for each in (other, schedule)
    ]
    raise UnsupportedSchedule(
        f"{found}; the nearest supported schedule is '{other}', with {flops[0] / flops[1]:.4f} times the attention "
        "FLOPs",
        other,
    )


def nearest(schedule: Schedule, family: EncoderFamily, *, seq_len: int, n_heads: int) -> Schedule:
    """Return the nearest schedule that a family supports, as the module's docstring defines it."""
    if problem(schedule, family) is None:
        return schedule
    if family.form == "none":
        return Schedule((FULL,) * len(schedule))
    summary = {span.summary for span in schedule}
    kept = summary.pop() if family.summary is not None and len(summary) == 1 else 0
    globals_ = max((_globals(span) for span in schedule), key=max) if family.takes_globals else (0, 0)
    whole = family.form == "one"  # full layers become windows too
    sparse = [layer for layer, span in enumerate(schedule) if whole or not span.is_full]
    groups = [[layer] for layer in sparse] if family.form == "list" else [sparse]

    def window(size: int) -> Span:
        return Span(kind="window", size=size, global_first=globals_[0], global_marked=globals_[1], summary=kept)

    def pairs(size: int) -> int:
        return span_pairs(window(size), seq_len, n_heads, bidirectional=True)

    wanted = [span_pairs(span, seq_len, n_heads, bidirectional=True) for span in schedule]
    sizes = {layer: 0 for layer in sparse}
    for group in groups:
        size = _closest(range(1, max(2, seq_len)), [wanted[layer] for layer in group], pairs)
        sizes |= dict.fromkeys(group, size)
    if family.pads and len(sparse) == len(schedule):
        largest = max(sizes.values())
        divisors = [size for size in range(1, largest + 1) if largest % size == 0]
        sizes = {layer: _closest(divisors, [wanted[layer]], pairs) for layer in sparse}
        sizes[max(sparse, key=lambda layer: wanted[layer])] = largest
    spans = [FULL] * len(schedule)
    for layer, size in sizes.items():
        spans[layer] = window(size)
    return Schedule(tuple(spans))


def _globals(span: Span) -> tuple[int, int]:
    return span.global_first, span.global_marked


def _closest(sizes: Sequence[int], wanted: Sequence[int], pairs: Callable[[int], int]) -> int:
    """Return the size, of rising ones, whose pairs in as many layers are closest to the sum; of two the smaller."""
    count, target = len(wanted), sum(wanted)
    at = bisect.bisect_right(sizes, target, key=lambda size: count * pairs(size))
    near = [sizes[index] for index in (at - 1, at) if 0 <= index < len(sizes)]
    return min(near, key=lambda size: (abs(count * pairs(size) - target), size))
