"""What a target can hold, and the nearest schedule to one that it cannot.

**Nearest** means: the same layers are full. Every other layer loses what the target has no word for (LaS, sinks,
dilation), and a kind it does not know becomes the sparse kind it does know. Where anything of a layer changed, its size
is the one whose exact attention FLOPs come closest to those asked for (of two equally close, the smaller); a target of
one size for all layers gets the one size that is closest in the sum over those layers. A schedule that the target holds
is its own nearest.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from layersearch.errors import UserError
from layersearch.schedule import Schedule, Span, SpanKind
from layersearch.schedule.cost import attention_flops, span_pairs


@dataclass(frozen=True, kw_only=True)
class Capabilities:
    """What spans a target's files can express."""

    name: str
    """How errors call the target, for example ``family qwen3``."""
    kinds: tuple[SpanKind, ...] = ("full", "window")
    """The kinds it knows."""
    size_per_layer: bool = False
    """Every layer has a size of its own; otherwise one size for all layers of a kind."""
    dilation: bool = False
    dilated_heads: bool = False
    """Dilation on some heads only."""
    sinks: bool = False
    las: bool = False
    """LaS's decay and pooling."""

    def problem(self, schedule: Schedule) -> str | None:
        """Return the first thing that the target cannot hold, by layer and name; None if it holds the schedule."""
        first: dict[str, tuple[int, Span]] = {}
        for layer, span in enumerate(schedule):
            lacks = {
                f"no {span.kind} attention" if span.is_full else f"no {span.kind}s": span.kind not in self.kinds,
                "no dilation": span.dilation > 1 and not self.dilation,
                "no dilation of some heads only": span.dilated_heads is not None and not self.dilated_heads,
                "no sinks": span.sink > 0 and not self.sinks,
                "no LaS decay or pooling": span.is_las and not self.las,
            }
            for lack, found in lacks.items():
                if found:
                    return f"layer {layer}: {span}: {self.name} holds {lack}"
            at, before = first.setdefault(span.kind, (layer, span))
            if span.size != before.size and not self.size_per_layer:
                return (
                    f"layer {layer}: {span}, but layer {at} has {before}: "
                    f"{self.name} holds one {span.kind} size for all layers"
                )
        return None

    def strip(self, span: Span) -> Span:
        """Return the span without what the target cannot hold, its size as it was."""
        kept: dict[str, object] = {}
        if span.kind not in self.kinds:
            others: tuple[SpanKind, ...] = ("window", "block", "full")
            kept["kind"] = next(kind for kind in others if kind in self.kinds)
            kept |= {"dilation": 1, "dilated_heads": None}
            if kept["kind"] == "full":
                kept |= {"size": None, "sink": 0}
        if not self.dilation or (span.dilated_heads is not None and not self.dilated_heads):
            kept |= {"dilation": 1, "dilated_heads": None}
        if not self.sinks:
            kept["sink"] = 0
        if not self.las:
            kept |= {"decay": 0.0, "pool": 1}
        return dataclasses.replace(span, **kept)  # type: ignore[arg-type]


class CannotHold(UserError):
    """A schedule that a target cannot hold: what is in the way, the nearest schedule it holds, and its FLOPs."""

    def __init__(self, why: str, asked: Schedule, nearest: Schedule, ratio: float) -> None:
        super().__init__(
            f"{why}; the nearest schedule it holds is '{nearest}', of {ratio:.4f} times the attention FLOPs"
        )
        self.why, self.asked, self.nearest, self.ratio = why, asked, nearest, ratio


def nearest(schedule: Schedule, target: Capabilities, *, seq_len: int, n_heads: int) -> Schedule:
    """Return the nearest schedule that a target holds; the module's text defines it.

    Args:
        schedule: one span per layer.
        target: what can be held.
        seq_len: tokens of the text whose FLOPs are compared.
        n_heads: query heads.
    """
    if target.problem(schedule) is None:
        return schedule
    shapes = [target.strip(span) for span in schedule]
    groups = (
        [[layer] for layer in range(len(schedule))]
        if target.size_per_layer
        else [[at for at, shape in enumerate(shapes) if shape.kind == kind] for kind in ("window", "block")]
    )
    spans = list(shapes)
    for group in groups:
        asked = [schedule[layer] for layer in group]
        same = target.size_per_layer or len({span.size for span in asked}) <= 1
        if same and asked == [shapes[layer] for layer in group]:
            continue
        sized = _sized([shapes[layer] for layer in group], asked, seq_len, n_heads)
        for layer, span in zip(group, sized, strict=True):
            spans[layer] = span
    return Schedule(tuple(spans))


def _sized(shapes: Sequence[Span], asked: Sequence[Span], seq_len: int, n_heads: int) -> list[Span]:
    """Return the shapes with the one size whose FLOPs come closest to those asked for."""
    if all(shape.is_full for shape in shapes):
        return list(shapes)

    def spans(size: int) -> list[Span]:
        return [dataclasses.replace(shape, size=size) for shape in shapes]

    def pairs(size: int) -> int:
        return sum(span_pairs(span, seq_len, n_heads) for span in spans(size))

    wanted = sum(span_pairs(span, seq_len, n_heads) for span in asked)
    # Pairs grow with the size: the closest are the last size that is not over, and the one after it.
    low, high = 1, max(1, min((seq_len - 1) // shape.dilation + 1 for shape in shapes))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if pairs(middle) <= wanted else (low, middle - 1)
    after = min(low + 1, max(1, min((seq_len - 1) // shape.dilation + 1 for shape in shapes)))
    return spans(min((low, after), key=lambda size: (abs(pairs(size) - wanted), size)))


def check_held(schedule: Schedule, target: Capabilities, *, seq_len: int, n_heads: int) -> None:
    """Refuse a schedule that a target cannot hold.

    Args:
        schedule: one span per layer.
        target: what can be held.
        seq_len: tokens of the text whose FLOPs are compared.
        n_heads: query heads.

    Raises:
        CannotHold: names the layer, what is in the way, the nearest schedule and its FLOPs beside those asked for.
    """
    why = target.problem(schedule)
    if why is None:
        return
    other = nearest(schedule, target, seq_len=seq_len, n_heads=n_heads)
    flops = [attention_flops(each, seq_len=seq_len, n_heads=n_heads, head_dim=1) for each in (other, schedule)]
    raise CannotHold(why, schedule, other, flops[0] / flops[1])
