"""What is proven of an encoder, or of a decoder beside one: its masks, and the schedule nearest to its outputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from layersearch.errors import ExportError
from layersearch.export.verify.mask_probe import MIN_TOKENS, LayerProof
from layersearch.export.verify.nearness import Compared, Nearness
from layersearch.schedule import Schedule, Span
from layersearch.schedule.span import FULL

TOLERANCE = 1e-4
"""Largest difference of an output over the outputs' standard deviation, in float32."""
MOST_TOKENS = 8192


@dataclass(frozen=True, kw_only=True)
class EncoderProof(Compared):
    """Result of both experiments on an exported encoder, or on the decoder of a model with two stacks."""

    architecture: str
    """The class that transformers built."""
    stack: Literal["encoder", "decoder"] = "encoder"
    """The stack that the schedule is of."""
    schedule: str
    """Text form of the expected schedule."""
    tokens: int
    """Length of the text."""
    keys: int
    """How many of its tokens were changed; each is compared with all queries."""
    shrunk: bool
    """Whether the model was made narrower for the mask experiment."""
    weights: str
    """Weights of the outputs that are compared: ``random``, or ``the folder's own``."""
    layers: tuple[LayerProof, ...]
    asked: Nearness
    nearest: Nearness
    next_nearest: Nearness
    tried: int
    """How many schedules were compared."""
    cache_error: float | None = None
    """A decoder's: largest difference of an output with its cache, token by token, from the one without, over the
    outputs' standard deviation. None: an encoder has no cache."""
    other: EncoderProof | None = None
    """The proof of the other stack; None: the folder says nothing of it."""

    @property
    def problem(self) -> str | None:
        """The first difference, in one line; None if everything agrees."""
        if (own := self._own_problem) is not None or self.other is None:
            return own
        found = self.other.problem
        return None if found is None else f"{self.other.stack}: {found}"

    @property
    def _own_problem(self) -> str | None:
        near = self.nearest
        ran = f"{self.architecture} ran {near.name} ('{near.schedule}')" if near.error <= TOLERANCE else None
        wrong = [layer for layer in self.layers if not layer.proven]
        if wrong:
            others = f" (and layers {', '.join(str(layer.layer) for layer in wrong[1:])})" if wrong[1:] else ""
            return f"{wrong[0].example}{others}{f': {ran}' if ran and near.name != self.asked.name else ''}"
        if ran and near.name != self.asked.name:
            return f"{ran}, not the schedule asked for"
        if self.asked.error > TOLERANCE:
            return f"its outputs differ by {self.asked.error:.2g} from those of its own modules under these masks"
        if not self.told_apart:
            return f"'{self.next_nearest.name}' is as near: these weights do not tell them apart"
        if self.cache_error is not None and not self.cache_error <= TOLERANCE:
            return f"with its cache its outputs differ by {self.cache_error:.2g}"
        return None


def candidates(
    asked: Schedule, tokens: int, written: Schedule | None = None, *, bidirectional: bool = True
) -> Iterator[tuple[str, Schedule]]:
    """Yield names and schedules that a stack may run instead of ``asked``, which comes first.

    They are the one that is ``written`` in a configuration, one key less and one more on each side, all-full, every
    layer sparse, each layer flipped, and where there are any: one global token less and more, the first tokens instead
    of the marked ones, other and fewer random blocks, longer summaries and none. Those that see the same in a text of
    ``tokens`` tokens are left out.
    """
    sparse = next((span for span in asked if not span.is_full), Span(kind="window", size=max(1, tokens // 4)))

    def each(change: Callable[[Span], Span]) -> Schedule:
        return Schedule(tuple(span if span.size is None else change(span) for span in asked))

    def resized(span: Span, by: int) -> Span:
        size = max(1, (span.size or 0) + by)
        return replace(span, size=size, offset=min(span.offset, size - 1))

    def regarded(span: Span, by: int) -> Span:
        return replace(span, global_first=max(0, span.global_first + by))

    side = " on each side" if bidirectional else ""
    others = [
        (f"one key less{side}", each(lambda span: resized(span, -1))),
        (f"one key more{side}", each(lambda span: resized(span, 1))),
        ("all-full", Schedule((FULL,) * len(asked))),
        ("every layer sparse", Schedule((sparse,) * len(asked))),
    ]
    if written is not None:
        others.insert(0, ("as config.json says", written))
    if any(span.global_first for span in asked):
        others += [
            ("one global token less", each(lambda span: regarded(span, -1))),
            ("one global token more", each(lambda span: regarded(span, 1))),
        ]
    if any(span.global_marked for span in asked):
        first = each(lambda span: replace(span, global_marked=0, global_first=span.global_marked or span.global_first))
        others += [
            ("no marked tokens", each(lambda span: replace(span, global_marked=0))),
            ("the first tokens, not the marked ones", first),
        ]
    if any(span.random_blocks for span in asked):
        drawn = [replace(span, seed=span.seed + 1) if span.random_blocks else span for span in asked]
        fewer = [replace(span, random_blocks=0, seed=0) if span.random_blocks else span for span in asked]
        others += [("other random blocks", Schedule(tuple(drawn))), ("no random blocks", Schedule(tuple(fewer)))]
    if any(span.summary for span in asked):
        longer = each(lambda span: replace(span, summary=span.summary + 1) if span.summary else span)
        others += [
            ("summaries of one token more", longer),
            ("no summaries", each(lambda span: replace(span, summary=0))),
        ]
    for layer, span in enumerate(asked):
        other = sparse if span.is_full else FULL
        flipped = Schedule(tuple(other if at == layer else one for at, one in enumerate(asked)))
        others.append((f"layer {layer} as {other}", flipped))

    def seen(schedule: Schedule) -> tuple[Span, ...]:
        return tuple(FULL if span.covers(tokens, bidirectional=bidirectional) else span for span in schedule)

    met = {seen(asked)}
    yield "as asked", asked
    for name, schedule in others:
        if seen(schedule) not in met:
            met.add(seen(schedule))
            yield name, schedule


def text_length(edges: Sequence[int], longest: int | None) -> int:
    """Return the tokens of a text that is longer than distances ``edges``, and no longer than ``longest``.

    Raises:
        ExportError: that is too long to test.
    """
    tokens = max([MIN_TOKENS] + [edge + 1 + max(4, min(64, edge // 2)) for edge in edges])
    tokens = min(tokens, longest or tokens)
    if tokens > MOST_TOKENS:
        raise ExportError(f"the spans need a text of {tokens} tokens; more than {MOST_TOKENS} are not tested")
    return tokens


def drawn_marks(schedule: Schedule, tokens: int, seed: int) -> Tensor | None:
    """Return which tokens (T,) a call marks: random ones, as many as the spans name; None: none.

    Raises:
        ExportError: the spans name different numbers.
    """
    counts = {span.global_marked for span in schedule if span.global_marked}
    if not counts:
        return None
    if len(counts) > 1:
        raise ExportError(f"the spans name {sorted(counts)} marked tokens, and a call marks one number; give one")
    drawn = torch.randperm(tokens, generator=torch.Generator().manual_seed(seed))[: counts.pop()]
    return torch.zeros(tokens, dtype=torch.bool).index_fill(0, drawn, True)
