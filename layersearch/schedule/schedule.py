"""Schedules: one `Span` per layer.

The forward pass, the cost count and every exporter read these objects.
"""

from __future__ import annotations

import collections
import functools
import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, overload

from layersearch.errors import ConfigError, located, require
from layersearch.schedule.span import Span

MOST_LAYERS = 100_000  # Most layers of a schedule; more is a typo, and a list that fills the memory


@functools.lru_cache(maxsize=4096)
def _term(text: str) -> tuple[Span, int]:
    """Return the span of one term of a schedule, and for how many layers it stands."""
    term, star, times = text.partition("*")
    count = not star or (re.fullmatch(r"\d{1,6}", times) and 1 <= int(times) <= MOST_LAYERS)
    require(count, f"{text!r}: expected a whole number of layers, 1 to {MOST_LAYERS}, after '*'")
    return Span.parse(term), int(times) if star else 1


@dataclass(frozen=True)
class Schedule(Sequence[Span]):
    """One span per layer, bottom layer first.

    Raises:
        LayersearchError: there is no layer.

    Example:
        >>> from layersearch import Schedule
        >>> schedule = Schedule.parse("full*2 window:32*2")
        >>> len(schedule), schedule.n_full, str(schedule[3])
        (4, 2, 'window:32')
    """

    spans: tuple[Span, ...]
    """Layer 0 reads the embeddings."""

    _text: str = field(init=False, repr=False, compare=False)
    """The text form, made once: schedules are keys of every table of losses."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "spans", tuple(self.spans))
        require(self.spans, "a schedule needs at least one layer, for example 'full*2 window:32*2'")
        if set(map(type, self.spans)) != {Span}:
            for layer, span in enumerate(self.spans):
                if not isinstance(span, Span):
                    raise ConfigError(f"layer {layer} of a schedule must be a Span, not {span!r}")
        runs = ((str(span), sum(1 for _ in run)) for span, run in itertools.groupby(self.spans))
        text = " ".join(text if times == 1 else f"{text}*{times}" for text, times in runs)
        object.__setattr__(self, "_text", text)

    @classmethod
    def parse(cls, text: str) -> Schedule:
        """Read a schedule from its text form, for example ``"full*4 block:1024*20"``.

        Raises:
            LayersearchError: names the wrong term, its position and the expected form.
        """
        spans: list[Span] = []
        for number, match in enumerate(re.finditer(r"[^\s,]+", text), start=1):
            try:
                span, more = _term(match[0])
                require(len(spans) + more <= MOST_LAYERS, f"more than {MOST_LAYERS} layers; give fewer")
            except ConfigError as error:
                raise ConfigError(f"schedule term {number} at character {match.start() + 1}: {error}") from None
            spans += [span] * more
        require(spans, "an empty schedule: expected terms such as 'full*2 window:32*2'")
        return cls(tuple(spans))

    def __str__(self) -> str:
        return self._text

    def __hash__(self) -> int:
        return hash(self._text)

    def __lt__(self, other: object) -> bool:
        """Order by the text form, so that schedules of equal loss have one order everywhere."""
        return self._text < other._text if isinstance(other, Schedule) else NotImplemented

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> Any:
        """Let a pydantic field of this type take a schedule or its text form."""
        from pydantic import PlainValidator, TypeAdapter

        read = PlainValidator(lambda value: value if isinstance(value, cls) else cls.parse(str(value)))
        return TypeAdapter(Annotated[object, read]).core_schema

    @classmethod
    def from_dicts(cls, mappings: Iterable[Mapping[str, Any]]) -> Schedule:
        """Read a schedule from a list of mappings, one per layer, as in YAML and JSON files."""
        if isinstance(mappings, str | Mapping) or not isinstance(mappings, Iterable):
            raise ConfigError(f"a schedule in a file is a list with one mapping per layer, not {mappings!r}")
        spans = []
        for layer, mapping in enumerate(mappings):
            with located(f"layer {layer}"):
                spans.append(Span.from_dict(mapping))
        return cls(tuple(spans))

    def to_dicts(self) -> list[dict[str, Any]]:
        """Return the list of mappings for files, one per layer."""
        return [span.to_dict() for span in self.spans]

    @functools.cached_property
    def counts(self) -> Mapping[Span, int]:
        """How many layers have each span: sums over layers are sums over these few."""
        return collections.Counter(self.spans)

    @property
    def n_full(self) -> int:
        """The number l of full-attention layers."""
        return sum(times for span, times in self.counts.items() if span.is_full)

    @property
    def full_layers(self) -> tuple[int, ...]:
        """The layers with full attention, counted from 0."""
        return tuple(layer for layer, span in enumerate(self.spans) if span.is_full)

    def check(self, *, seq_len: int, n_heads: int | None = None, bidirectional: bool = False) -> None:
        """Refuse spans that do not fit a text of ``seq_len`` tokens, a model of ``n_heads`` heads or its direction.

        Raises:
            LayersearchError: a window, block or sink is longer than the text, or too many heads are dilated.
        """
        for layer, span in enumerate(self.spans):
            with located(f"layer {layer}"):
                span.check(seq_len=seq_len, n_heads=n_heads, bidirectional=bidirectional)

    def __len__(self) -> int:
        return len(self.spans)

    def __iter__(self) -> Iterator[Span]:
        return iter(self.spans)

    @overload
    def __getitem__(self, index: int) -> Span: ...
    @overload
    def __getitem__(self, index: slice) -> Schedule: ...
    def __getitem__(self, index: int | slice) -> Span | Schedule:
        return Schedule(self.spans[index]) if isinstance(index, slice) else self.spans[index]
