"""The attention work of one sequence in a model: of the layers that schedules speak of, and of its other attention."""

from __future__ import annotations

from dataclasses import dataclass

from layersearch.config.model import ModelConfig
from layersearch.config.recipe import Recipe
from layersearch.errors import located, require
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
    others: tuple[tuple[str, int], ...] = ()
    """Attention that schedules do not speak of, by name, with its pairs over all heads."""
    stack: str = "attention"
    """Name of the attention that schedules speak of."""

    @classmethod
    def of(cls, recipe: Recipe) -> Work:
        """Return the work of a recipe's trials."""
        model, training = recipe.model, recipe.training
        if model.kind == "encoder_decoder":
            return cls._of_two_stacks(recipe)
        segment = None if training.segments is None else training.seq_len // training.segments
        return cls(seq_len=training.seq_len, n_heads=model.n_heads, bidirectional=model.bidirectional, segment=segment)

    @classmethod
    def _of_two_stacks(cls, recipe: Recipe) -> Work:
        model, (source, target) = recipe.model, recipe.source_and_target
        encoder, heads = model.bidirectional, model.n_heads
        other = cls(seq_len=target if encoder else source, n_heads=heads, bidirectional=not encoder)
        schedule = other_stack(model)
        with located("model.other_schedule"):
            for layer, span in enumerate(schedule):
                with located(f"layer {layer}"):
                    other.check(span)
        names = ("encoder", "decoder") if encoder else ("decoder", "encoder")
        cross = ("cross", model.stack_layers[1] * source * target * heads)
        return cls(
            seq_len=recipe.schedule_tokens,
            n_heads=heads,
            bidirectional=encoder,
            others=((names[1], other.total(schedule)), cross),
            stack=names[0],
        )

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
        return sum(map(self.pairs, schedule)) + self.fixed

    def parts(self, schedule: Schedule) -> dict[str, int]:
        """Return the pairs of each stack, and of the cross attention between them."""
        return {self.stack: sum(map(self.pairs, schedule)), **dict(self.others)}

    @property
    def fixed(self) -> int:
        """The pairs of the attention that schedules do not speak of."""
        return sum(pairs for _, pairs in self.others)

    def ratio(self, schedule: Schedule) -> float:
        """Return the pairs of all attention relative to those of the all-full schedule."""
        return self.total(schedule) / (len(schedule) * self.pairs(FULL) + self.fixed)


def other_stack(model: ModelConfig) -> Schedule:
    """Return the schedule of an encoder_decoder's stack that schedules do not speak of.

    Raises:
        LayersearchError: it has another number of layers.
    """
    layers = model.other_layers or model.n_layers
    if model.other_schedule is None:
        return Schedule((FULL,) * layers)
    with located("model.other_schedule"):
        found = Schedule.parse(model.other_schedule)
        require(len(found) == layers, f"{len(found)} layers for a stack of {layers}; give one span per layer")
    return found


def stacks(model: ModelConfig, schedule: Schedule) -> tuple[Schedule, Schedule]:
    """Return the schedules of an encoder_decoder's encoder and decoder."""
    other = other_stack(model)
    return (schedule, other) if model.bidirectional else (other, schedule)
