"""The attention work of one sequence in a model: of the layers that schedules speak of, and of its other attention."""

from __future__ import annotations

from dataclasses import dataclass

from layersearch.config.recipe import Recipe
from layersearch.errors import require
from layersearch.schedule.cost import check_cost, span_pairs
from layersearch.schedule.schedule import Schedule
from layersearch.schedule.span import FULL, Span


@dataclass(frozen=True, kw_only=True)
class Work:
    """Counts visible (query, key) pairs over all query heads, exactly.

    Example:
        >>> from layersearch import Schedule
        >>> from layersearch.schedule.work import Work
        >>> work = Work(seq_len=64, n_heads=2, segment=16)
        >>> work.ratio(Schedule.parse("full memory:16/16"))  # the full layer sees the 48 tokens before each segment
        0.717391304347826
    """

    seq_len: int
    """Tokens in a sequence."""
    n_heads: int
    """Query heads."""
    bidirectional: bool = False
    """Whether tokens see later ones."""
    segment: int | None = None
    """Tokens of a segment of Transformer-XL's recurrence; each has its whole memory before it. None: no recurrence."""

    @classmethod
    def of(cls, recipe: Recipe) -> Work:
        """Return the work of a recipe's trials."""
        model, training = recipe.model, recipe.training
        segment = None if training.segments is None else training.seq_len // training.segments
        return cls(seq_len=training.seq_len, n_heads=model.n_heads, bidirectional=model.bidirectional, segment=segment)

    def check(self, span: Span) -> None:
        """Refuse a span that does not fit the text or the model."""
        span.check(seq_len=self.seq_len, n_heads=self.n_heads, bidirectional=self.bidirectional)
        check_cost([span], self.seq_len, bidirectional=self.bidirectional)
        if self.segment is not None:
            self.memory(span)

    def memory(self, span: Span) -> int:
        """Return the tokens before a segment that a layer sees; a full layer has all but one segment of a sequence.

        Raises:
            LayersearchError: a span of another kind, or with another segment.
        """
        assert self.segment is not None
        longest = self.seq_len - self.segment
        if span.is_full and not span.is_las:
            return longest
        plain = span.kind in ("block", "memory") and not (span.sink or span.offset or span.summary or span.is_las)
        require(
            plain and span.size == self.segment,
            f"{span}: with training.segments, layers have full, block:{self.segment} or memory:M/{self.segment}",
        )
        require(
            span.memory <= longest,
            f"{span}: with training.segments, a memory has at most {longest} tokens, the sequence but for one segment; "
            "shorten it, or raise training.segments and training.seq_len",
        )
        return span.memory

    def pairs(self, span: Span) -> int:
        """Return the pairs of one layer."""
        if self.segment is None:
            return span_pairs(span, self.seq_len, self.n_heads, bidirectional=self.bidirectional)
        size = self.segment
        return self.n_heads * (self.seq_len // size) * (size * self.memory(span) + size * (size + 1) // 2)

    def total(self, schedule: Schedule) -> int:
        """Return the pairs of all attention."""
        return sum(map(self.pairs, schedule))

    def ratio(self, schedule: Schedule) -> float:
        """Return the pairs of all attention relative to those of the all-full schedule."""
        return self.total(schedule) / (len(schedule) * self.pairs(FULL))
