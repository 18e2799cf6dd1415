"""Spans: which keys one layer's attention may see.

The forward pass, the cost count and every exporter read this object. Nothing else in the package decides which keys are
visible. docs/concepts.md explains the terms of the text form, `Span.visible` defines them.
"""

from __future__ import annotations

import functools
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from layersearch.errors import located, require
from layersearch.schedule import span_keys
from layersearch.schedule.span_text import KINDS, read_fields

_ENCODER_TERMS = (
    "full, window:W, block:B, block:B~O, bigbird:B/R, +global:first:G, +global:mask:G, +summary:G and +las:B"
)
SpanKind = Literal["full", "window", "block", "strided", "fixed", "bigbird", "memory"]

_WHOLE = (
    "size",
    "dilation",
    "dilated_heads",
    "offset",
    "columns",
    "random_blocks",
    "seed",
    "memory",
    "far_heads",
    "summary",
    "global_first",
    "global_marked",
    "sink",
    "pool",
)
_MAY_LACK = ("size", "dilated_heads", "far_heads")
_LARGEST = 10**18  # As the text form reads: more tokens or heads are a typo, too long for a float


@dataclass(frozen=True, kw_only=True)
class Span:
    """The keys that one attention layer may see, and how it weighs them.

    Raises:
        LayersearchError: a field is out of range or does not belong to the kind.

    Example:
        >>> from layersearch import Span
        >>> str(Span(kind="window", size=512, sink=4))
        'window:512+sink:4'
        >>> Span.parse("block:8").visible(9, 7)
        False
    """

    kind: SpanKind
    """``full``, ``window`` (sliding), ``block`` (block-diagonal), ``strided`` and ``fixed`` (Sparse Transformer),
    ``bigbird`` or ``memory`` (Transformer-XL); all of them causal."""
    size: int | None = None
    """Window W in keys (the token itself counted), block size B, the Sparse Transformer's L or the segment of a memory
    in tokens; None for ``full``."""
    dilation: int = 1
    """Distance D between neighboring keys of a window, in tokens."""
    dilated_heads: int | None = None
    """The first H query heads are dilated, the others not; None: every head."""
    offset: int = 0
    """Tokens O by which the blocks begin earlier: the first block holds B - O tokens."""
    columns: int = 0
    """``fixed``: the last C tokens of each block, which all later tokens see."""
    random_blocks: int = 0
    """``bigbird``: the number R of random blocks that each block sees."""
    seed: int = 0
    """``bigbird``: what the random blocks are drawn from."""
    memory: int = 0
    """``memory``: the number M of tokens before its segment that a token sees."""
    far_heads: int | None = None
    """``strided``, ``fixed``: the first H query heads see the strides or columns, the others the window or block; None:
    every head sees both."""
    summary: int = 0
    """Each G tokens are summed up into one more key (LongT5), which all see; in a causal model those after them."""
    global_first: int = 0
    """Encoders only: the number G of first tokens that see all and are seen by all."""
    global_marked: int = 0
    """Encoders only: the number G of tokens that the task marks to see all and be seen by all; unmarked, the first."""
    sink: int = 0
    """The number G of first tokens that stay visible."""
    decay: float = 0.0
    """LaS: the largest decay B per token, in [0, 1)."""
    pool: int = 1
    """LaS: width P of the average pooling of attention rows, in tokens: causal, in an encoder around each token."""

    def __post_init__(self) -> None:
        require(self.kind in KINDS, f"span kind {self.kind!r} is not known", self.kind, KINDS)
        for name in _WHOLE:
            value = getattr(self, name)
            absent = value is None and name in _MAY_LACK
            whole = absent or (isinstance(value, int) and not isinstance(value, bool))
            require(whole, f"span {name} must be a whole number, not {value!r}")
            require(absent or abs(value) < _LARGEST, f"span {name} must be below 10^18, not {reprlib.repr(value)}")
        number = isinstance(self.decay, int | float) and not isinstance(self.decay, bool)
        require(number, f"span decay must be a number, not {self.decay!r}")
        in_range = 0.0 <= self.decay < 1.0
        require(in_range, f"the LaS decay must lie in [0, 1), not {reprlib.repr(self.decay)}")
        object.__setattr__(self, "decay", float(self.decay) + 0.0)  # -0.0 is 0.0, in the text too

        size, heads = self.size, self.dilated_heads
        if self.kind == "full":
            require(size is None, "a full span has no size; write 'full'")
            require(not self.sink, "a full span already sees the first tokens; drop '+sink'")
            require(not (self.global_first or self.global_marked), "a full span already sees all; drop '+global'")
            require(not self.summary, "a full span already sees all tokens; drop '+summary'")
        else:
            require(size is not None and size >= 1, f"{self._noun} needs a size of at least 1 token, not {size}")
        dilated = self.dilation != 1 or heads is not None
        require(self.kind == "window" or not dilated, f"only a window can be dilated, not {self.kind}")
        require(self.dilation >= 1, f"dilation must be at least 1 token, not {self.dilation}")
        require(heads is None or heads >= 1, f"the number of dilated heads must be at least 1, not {heads}")
        require(self.kind == "block" or not self.offset, f"only blocks have an offset, not {self.kind}")
        inside = 0 <= self.offset < (size or 1)
        require(inside, f"the offset of a block must be 0 to {(size or 1) - 1} tokens, not {self.offset}")
        self._check_union()
        for name in ("global_first", "global_marked", "summary", "sink"):
            require(getattr(self, name) >= 0, f"{name} must be at least 0 tokens, not {getattr(self, name)}")
        require(not (self.global_first and self.global_marked), "global tokens are the first or the marked; drop one")
        require(not (self.summary and self.is_las), "summaries have no distance for LaS; drop '+las' or '+summary'")
        require(self.summary != 1, "'+summary:1' repeats every key; give 2 tokens or more")
        require(self.pool >= 1, f"the LaS pooling width must be at least 1 token, not {self.pool}")
        # One object per meaning: a dilation of 1 is none, and a window of one key has nothing to dilate.
        if self.size == 1:
            object.__setattr__(self, "dilation", 1)
        if self.dilation == 1:
            object.__setattr__(self, "dilated_heads", None)

    def _check_union(self) -> None:
        size = self.size or 0
        for name, kind in (
            ("columns", "fixed"),
            ("random_blocks", "bigbird"),
            ("seed", "bigbird"),
            ("memory", "memory"),
        ):
            value = getattr(self, name)
            require(self.kind == kind or not value, f"only {kind} has {name.replace('_', ' ')}, not {self.kind}")
            require(value >= 0, f"{name} must be at least 0, not {value}")
        if self.kind == "strided":
            require(size >= 2, "strided:1 sees every token; write 'full'")
        if self.kind == "fixed":
            inside = 1 <= self.columns < size
            require(inside, f"fixed:L/C needs 1 <= C < L columns, not {self.columns} of {size}")
        strided = self.kind in ("strided", "fixed")
        heads = self.far_heads
        require(strided or heads is None, f"only strided and fixed differ by head in this way, not {self.kind}")
        require(heads is None or heads >= 1, f"the number of heads must be at least 1, not {heads}")
        require(self.random_blocks or not self.seed, "bigbird:B/0 draws no blocks; drop its seed")
        if self.kind == "memory":
            require(self.memory >= 1, f"memory:0/{size} is a block; write 'block:{size}'")
        plain = not (self.sink or self.is_las or self.global_first or self.global_marked or self.summary)
        taken = "'+sink', '+global', '+summary' or '+las'"
        require(plain or not self.is_union, f"{self._noun} takes no {taken}; drop it")

    @property
    def _noun(self) -> str:
        return f"a {self.kind} span" if self.is_union else f"a {self.kind}"

    @property
    def is_union(self) -> bool:
        """Whether the span is a window or block and, disjoint from it, keys farther back."""
        return self.kind in ("strided", "fixed", "bigbird", "memory")

    @property
    def is_full(self) -> bool:
        """Whether every earlier token is visible (a layer that counts toward l)."""
        return self.kind == "full"

    @property
    def is_las(self) -> bool:
        """Whether logits decay or attention rows are smoothed."""
        return self.decay > 0 or self.pool > 1

    def check_direction(self, bidirectional: bool) -> None:
        """Refuse a span that has no meaning in a causal model, or in an encoder (``bidirectional``)."""
        first = self.global_first or self.global_marked
        if not bidirectional:
            require(not first, f"{self}: in a causal model, first tokens that all see are '+sink:{first}'")
            return
        require(not self.sink, f"{self}: in an encoder, first tokens that all see are '+global:first:{self.sink}'")
        plain = self.kind in ("full", "window", "block", "bigbird") and self.dilation == 1
        require(plain, f"{self} is for causal models; an encoder has {_ENCODER_TERMS}")
        require(
            self.pool % 2 == 1,
            f"{self}: an encoder smooths rows around a token, so the pooling width is odd: give {self.pool + 1}",
        )
        require(not (self.is_las and self.global_marked), f"{self}: LaS takes '+global:first:G' only; drop one")

    def check(self, *, seq_len: int, n_heads: int | None = None, bidirectional: bool = False) -> None:
        """Refuse a span that does not fit a text of ``seq_len`` tokens, ``n_heads`` heads or the model's direction."""
        self.check_direction(bidirectional)
        keys = 0 if self.size is None else (self.size - 1) * self.dilation + 1
        fits = max(keys, self.sink, self.memory, self.global_first, self.global_marked, self.summary) <= seq_len
        require(fits, f"{self} is longer than the text of {seq_len} tokens; use a smaller span or 'full'")
        enough = n_heads is None or (self.dilated_heads or 0) <= n_heads
        require(enough, f"{self} dilates more heads than the model's {n_heads}")
        enough = n_heads is None or (self.far_heads or 0) <= n_heads
        require(enough, f"{self} names more heads than the model's {n_heads}")

    def visible(self, i: Any, j: Any, head: Any = 0, *, bidirectional: bool = False, tokens: int | None = None) -> Any:
        """Tell whether query ``i`` may see key ``j`` in query head ``head``, all counted from 0.

        ``bidirectional`` is the direction of the model: an encoder's window has W keys on each side of the token.
        ``tokens`` is the length of the text, which BigBird needs there. Tokens that the task marks are taken to be the
        first ones. Summaries are no tokens: `sees_summary` has them.

        This is the definition of the span. It uses operators only, so it serves Python integers, NumPy arrays, torch
        tensors and FlexAttention's ``mask_mod``. The result has the broadcast shape of the arguments.
        """
        if bidirectional:
            return span_keys.both_ways(self, i, j, tokens)
        causal = j <= i
        if self.kind == "full":
            return causal
        assert self.size is not None
        if self.is_union:
            return causal & span_keys.union(self, i, j, head)
        if self.kind == "block":
            near = ((j + self.offset) // self.size) == ((i + self.offset) // self.size)
        else:
            near = (i - j) < self.size
            if self.dilation > 1:
                dilated = ((i - j) < self.size * self.dilation) & ((i - j) % self.dilation == 0)
                if self.dilated_heads is None:
                    near = dilated
                else:
                    near = (near & (head >= self.dilated_heads)) | (dilated & (head < self.dilated_heads))
        if self.sink:
            near = near | (j < self.sink)
        return causal & near

    def sees_summary(self, i: Any, block: Any, *, bidirectional: bool = False) -> Any:
        """Tell whether query ``i`` sees the summary of a block of ``summary`` tokens; arguments as in `visible`.

        A causal model's query sees the blocks that are finished before its own. An encoder's sees all.
        """
        return (i == i) & (block == block) if bidirectional else block < i // self.summary

    def summaries(self, seq_len: int) -> int:
        """Return how many summaries a text has; a rest shorter than a block joins the last one in an encoder."""
        return seq_len // self.summary if self.summary else 0

    @property
    def plain(self) -> Span:
        """The same span without summaries and without the task's marks."""
        return replace(self, summary=0, global_marked=0) if self.summary or self.global_marked else self

    def moves(self, i: Any, j: Any, head: Any = 0, *, bidirectional: bool = False, tokens: int | None = None) -> Any:
        """Tell whether key ``j`` can change query ``i``'s output: it is visible, or pooled into a visible one.

        Row-wise pooling of width P mixes the value of ``j`` into the rows of ``j`` ... ``j+P-1``, in an encoder into
        those up to (P-1)/2 from ``j``. Arguments and result are as in `visible`.
        """
        moved, side = self.visible(i, j, head, bidirectional=bidirectional, tokens=tokens), self.pool // 2
        for ahead in range(-side, side + 1) if bidirectional else range(1, self.pool):
            moved = moved | self.visible(i, j + ahead, head, bidirectional=bidirectional, tokens=tokens)
        if self.summary:
            moved = moved | self.sees_summary(i, j // self.summary, bidirectional=bidirectional)
        return moved

    def reach(self) -> int | None:
        """Return the largest distance i-j, in tokens, over which this layer moves information; None: any distance.

        Sinks do not count: they only carry the first tokens.
        """
        if self.kind == "full" or self.summary or (self.is_union and not self.memory):
            return None
        assert self.size is not None
        return self.memory + (self.size - 1) * self.dilation + self.pool - 1

    def covers(self, seq_len: int, *, bidirectional: bool = False) -> bool:
        """Tell whether a text of ``seq_len`` tokens is seen as by a full span."""
        if self.summaries(seq_len) or self.far_heads is not None:
            return False
        if bidirectional:
            if self.size is None or max(self.global_first, self.global_marked) >= seq_len:
                return True
            if self.kind == "bigbird":
                return (seq_len - 1) // self.size <= max(2, self.random_blocks + 3)
            return self.size - self.offset + (self.kind == "window") >= seq_len
        if self.size is None or self.sink >= seq_len:
            return True
        if self.kind == "bigbird":
            return (self.random_blocks + 3) * self.size >= seq_len
        if self.kind == "memory":
            return self.memory >= (seq_len - 1) // self.size * self.size
        return self.dilation == 1 and self.size - self.offset >= seq_len

    def scaled(self, share: float) -> Span:
        """Return the span with a window or block of ``share`` times its size: rounded, at least 1 token."""
        if self.size is None:
            return self
        size = max(1, round(self.size * share))
        if self.kind == "strided":
            return replace(self, size=max(2, size))
        if self.kind == "memory":
            return replace(self, size=size, memory=max(1, round(self.memory * share)))
        if self.kind == "fixed":
            size = max(2, size)
            return replace(self, size=size, columns=min(max(1, round(self.columns * share)), size - 1))
        return replace(self, size=size, offset=min(round(self.offset * share), size - 1))

    def alphas(self, n_heads: int) -> tuple[float, ...]:
        """Return LaS's decay per head, in 1/token: 0 for head 0, then doubling from head to head up to B.

        LaS (2311.16620) fixes alpha_0 = 0 and spreads the others exponentially in (0, B]. The paper does not publish
        the ratio between neighbors; ours is 2, as between ALiBi's slopes.
        """
        return (0.0, *(self.decay * 2.0 ** (head - n_heads + 1) for head in range(1, n_heads)))

    _text = ""  # Made at the first use: spans are keys of many tables, and a run writes few of them very often

    def __str__(self) -> str:
        if not self._text:
            object.__setattr__(self, "_text", self._written())
        return self._text

    def __hash__(self) -> int:
        return hash(self._text or str(self))

    def _written(self) -> str:
        text: str = self.kind
        if self.kind == "memory":
            text += f":{self.memory}/{self.size}"
        elif self.size is not None:
            text += f":{self.size}"
        if self.kind == "bigbird":
            text += f"/{self.random_blocks}" + (f"/{self.seed}" if self.seed else "")
        if self.columns:
            text += f"/{self.columns}"
        if self.dilation > 1:
            text += f"/{self.dilation}"
        if self.dilated_heads is not None:
            text += f"@{self.dilated_heads}"
        if self.far_heads is not None:
            text += f"@{self.far_heads}"
        if self.offset:
            text += f"~{self.offset}"
        if self.global_first:
            text += f"+global:first:{self.global_first}"
        if self.global_marked:
            text += f"+global:mask:{self.global_marked}"
        if self.summary:
            text += f"+summary:{self.summary}"
        if self.sink:
            text += f"+sink:{self.sink}"
        if self.is_las:
            text += f"+las:{self.decay!r}"
            if self.pool > 1:
                text += f"/{self.pool}"
        return text

    @classmethod
    @functools.lru_cache(maxsize=4096)  # a thousand records of 48 layers name a handful of spans
    def parse(cls, text: str) -> Span:
        """Read one span from its text form, for example ``window:512/2@2+sink:4``.

        Raises:
            LayersearchError: the term is wrong; the message names the expected form.
        """
        values = read_fields(text)
        with located(repr(text)):
            return cls(**values)

    @classmethod
    def from_dict(cls, mapping: Mapping[str, Any]) -> Span:
        """Read one span from the mapping that `to_dict` writes.

        Raises:
            LayersearchError: a key is unknown or a value out of range.
        """
        plain = isinstance(mapping, Mapping)
        require(plain, f"a span is a mapping such as {{kind: window, size: 32}}, not {mapping!r}")
        known = [field.name for field in fields(cls)]
        for key in mapping:
            require(key in known, f"a span has no key {key!r}", key, known)
        require("kind" in mapping, f"a span needs the key 'kind': one of {', '.join(KINDS)}")
        return cls(**mapping)

    def to_dict(self) -> dict[str, Any]:
        """Return the mapping for files: the kind and every field that differs from its default."""
        return {"kind": self.kind} | {
            field.name: getattr(self, field.name)
            for field in fields(self)
            if field.name != "kind" and getattr(self, field.name) != field.default
        }


FULL = Span(kind="full")
