"""Keys beside a span's plain ones: summaries of blocks, and tokens that the task marks to see all and be seen by all.

Products add them to the plain span's own sum of exponentials. Where these do not serve, both join the output of the
plain span by log-sum-exp, and take their gradients from the joined one, as in `union`.

Shape legend: B batch, H query heads, N rows (batch and head), T tokens, M summaries, G marked tokens, D head width.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from layersearch.model.attention import products, strips, union
from layersearch.model.attention.product_tiles import Tiles
from layersearch.model.attention.products import Source
from layersearch.model.attention.strips import StripGroup
from layersearch.schedule import Span


@dataclass(frozen=True)
class Extras:
    """Tensors of a span's further keys; empty for most spans."""

    keys: Tensor | None = None  # of summaries, (B, H, M, D)
    values: Tensor | None = None
    marked: Tensor | None = None  # places of the marked tokens, (B, G)

    def piece(self, rows: slice) -> Extras:
        """Return the tensors of some of the batch."""
        return Extras(*(None if x is None else x[rows] for x in (self.keys, self.values, self.marked)))


def marked_places(span: Span, marked: Tensor) -> Tensor:
    """Return where the tokens stand that a task marks, (B, G), of its mask (B, T)."""
    return marked.nonzero()[:, 1].view(len(marked), span.global_marked)


def summary_plan(span: Span, tokens: int, bidirectional: bool) -> tuple[StripGroup, ...]:
    """Cut the pairs of tokens and summaries into strips."""
    if bidirectional:
        return (StripGroup(0, 1, tokens, 0, span.summaries(tokens), 0, None, False),)
    return union.steps(span.summary, 1, tokens)


def join_summaries(
    q: Tensor, sums: Source, out: Tensor, lse: Tensor, scale: float, cap: float
) -> tuple[Tensor, Tensor]:
    """Join summaries to the output (N, T, D) and log-sum-exp (N, T) of queries (N, T, D)."""
    some, some_lse = strips.forward(q, sums.keys, sums.values, sums.plan, scale, softcap=cap, covered=False)
    return union.join(out, lse, some, some_lse)


def summary_gradients(rows: Rows, sums: Source, scale: float, cap: float, dq: Tensor) -> None:
    """Add the summaries' share of the gradients of queries to ``dq``, and their own gradients to those of ``sums``."""
    assert sums.gradients is not None
    given = rows.grad, rows.q, sums.keys, sums.values, rows.out, rows.lse
    some_q, *found = strips.backward(*given, sums.plan, scale, softcap=cap, covered=False)
    dq += some_q
    for into, some in zip(sums.gradients, found, strict=True):
        into += some


def forward_products(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    whole: tuple[union.Far, ...],
    marks: Marked | None,
    sums: Source | None,
    scale: float,
    begun: tuple[Tensor, Tensor] | None,
) -> tuple[Tensor, Tensor] | None:
    """Attend over a plain span and further keys with one sum of exponentials; arguments and result as of `products`.

    ``whole`` are the plain span's keys. If it is empty, ``begun`` holds the output over them.
    """
    more = [] if sums is None else [sums]
    seen = [] if marks is None else [marks.seen(marks.pick(k), marks.pick(v))]
    found = products.forward(q, [*union.sources(whole, k, v), *seen, *more], scale, begun)
    if found is None or marks is None:
        return found
    own = products.forward(marks.pick(q), marks.all_keys(k, v, sums), scale)
    return None if own is None else marks.put(found, own)


def backward_products(
    rows: Rows,
    whole: tuple[union.Far, ...],
    marks: Marked | None,
    sums: Source | None,
    scale: float,
    begun: tuple[Tensor, Tensor, Tensor] | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of q, k and v of `forward_products`; those of summaries are added to their own.

    ``begun`` are the gradients over near keys, if ``whole`` is empty.
    """
    grad, q, k, v, out, lse = rows.grad, rows.q, rows.k, rows.v, rows.out, rows.lse
    more = [] if sums is None else [sums]
    if marks is None:
        return union.whole_backward(grad, q, k, v, out, lse, whole, scale, begun, more)
    some_k, some_v = marks.pick(k), marks.pick(v)
    given = torch.zeros_like(some_k), torch.zeros_like(some_v)
    sources = [marks.seen(some_k, some_v, given), *more]
    dq, dk, dv = union.whole_backward(marks.silence(grad), q, k, v, out, lse, whole, scale, begun, sources)
    for target, some in zip((dk, dv), given, strict=True):
        marks.give(target, some)
    own_grad, own_q = marks.pick(grad), marks.pick(q)
    own = own_grad, own_q, marks.pick(out), lse.gather(1, marks.places)
    marks.give(dq, products.backward(*own, marks.all_keys(k, v, sums, (dk, dv)), scale))
    return dq, dk, dv


@dataclass(frozen=True)
class Rows:
    """What a backward pass reads: (N, T, D) each, and the log-sum-exp (N, T)."""

    grad: Tensor
    q: Tensor
    k: Tensor
    v: Tensor
    out: Tensor
    lse: Tensor


@dataclass(frozen=True)
class Marked:
    """Marked tokens of every row: their places, (N, G)."""

    places: Tensor
    span: Span  # which queries see them as near keys
    tokens: int

    @classmethod
    def of(cls, span: Span, places: Tensor, tokens: int, heads: int) -> Marked:
        """Return those of rows of batch and head; ``places`` is (B, G)."""
        return cls(places.repeat_interleave(heads, 0), span.plain, tokens)

    def _near_queries(self, place: int) -> tuple[int, int]:
        """Return the first query that sees a token as a near key, and the one after the last."""
        size, offset = self.span.size, self.span.offset
        assert size is not None
        if self.span.kind == "window":
            return place - size, place + size + 1
        start = (place + offset) // size * size - offset
        return start, start + size

    def _near(self) -> Tensor:
        """Return which queries see which marked tokens as near keys, (N, T, G)."""
        at = torch.arange(self.tokens, device=self.places.device, dtype=torch.int32)
        places = self.places[:, None].int()  # int32 takes half the time
        near: Tensor = self.span.visible(at[None, :, None], places, bidirectional=True, tokens=self.tokens)
        return near

    def seen(self, k: Tensor, v: Tensor, gradients: tuple[Tensor, Tensor] | None = None) -> Source:
        """Return the marked tokens, (N, G, D), as keys that all queries see which do not see them as near ones."""
        count, places = self.places.shape[1], self.places.tolist()

        def hide(tiles: Tiles, product: int, weights: Tensor) -> None:
            # The one strip is all queries: each tile of a product is of another row.
            row, first = divmod(tiles.first + product * tiles.onward, self.tokens)
            low = (tiles.low + product * tiles.along) % count
            for tile, of_row in enumerate(places[row : row + tiles.count]):
                for mark, place in enumerate(of_row[low : low + tiles.keys]):
                    # The queries near a token are neighbors: so few writes take less time than a mask of all pairs.
                    start, end = (min(max(x - first, 0), tiles.queries) for x in self._near_queries(place))
                    if start < end:
                        weights[tile, start:end, mark].zero_()

        plan = (StripGroup(0, 1, self.tokens, 0, count, 0, None, False, True),)
        return Source(plan, k, v, gradients=gradients, hide=hide)

    def all_keys(
        self, k: Tensor, v: Tensor, sums: Source | None, gradients: tuple[Tensor, Tensor] | None = None
    ) -> list[Source]:
        """Return all tokens, (N, T, D), and all summaries as keys of the marked ones."""
        count = self.places.shape[1]
        found = [Source((StripGroup(0, 1, count, 0, self.tokens, 0, None, False),), k, v, gradients=gradients)]
        if sums is not None:
            found.append(replace(sums, plan=(StripGroup(0, 1, count, 0, sums.keys.shape[1], 0, None, False),)))
        return found

    def put(self, into: tuple[Tensor, Tensor], own: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Write the marked queries' own outputs (N, G, D) and log-sum-exps (N, G) over those of all queries."""
        return into[0].scatter_(1, self._wide(own[0]), own[0]), into[1].scatter_(1, self.places, own[1])

    def pick(self, x: Tensor) -> Tensor:
        """Return the marked tokens' rows: (N, T, D) -> (N, G, D)."""
        return x.take_along_dim(self.places[..., None], 1)

    def give(self, into: Tensor, some: Tensor) -> None:
        """Add (N, G, D) to the marked tokens' rows of (N, T, D)."""
        into.scatter_add_(1, self._wide(some), some)

    def _wide(self, some: Tensor) -> Tensor:
        """Return the places of values (N, G, D)."""
        return self.places[..., None].expand_as(some)

    def join(self, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        """Join the marked tokens to near keys: each query sees them, and they see all."""
        scores = (q @ self.pick(k).mT * scale).masked_fill_(self._near(), -torch.inf)
        joined = torch.logaddexp(lse, scores.logsumexp(-1))
        out = out * (lse - joined).exp_().unsqueeze(-1)
        out = out.baddbmm_(scores.sub_(joined.unsqueeze(-1)).exp_(), self.pick(v))
        rows = self.pick(q) @ k.mT * scale
        sums = rows.logsumexp(-1)
        own = rows.sub_(sums.unsqueeze(-1)).exp_() @ v
        return self.put((out, joined), (own, sums))

    def silence(self, grad: Tensor) -> Tensor:
        """Return gradients of the output, (N, T, D), with 0 for the marked queries: no near key learns from them."""
        return grad.scatter(1, self._wide(grad[:, : self.places.shape[1]]), 0.0)

    def backward(self, rows: Rows, into: tuple[Tensor, Tensor, Tensor], scale: float) -> None:
        """Add the gradients of the pairs with a marked token to ``into``: those of q, k and v, (N, T, D) each."""
        grad, q, k, v, lse = rows.grad, rows.q, rows.k, rows.v, rows.lse
        dq, dk, dv = into
        quiet = self.silence(grad)
        some_k, some_v = self.pick(k), self.pick(v)
        scores = (q @ some_k.mT * scale).masked_fill_(self._near(), -torch.inf)
        weights = scores.sub_(lse.unsqueeze(-1)).exp_()
        delta = (quiet * rows.out).sum(-1, keepdim=True)
        scored = (quiet @ some_v.mT).sub_(delta).mul_(weights).mul_(scale)
        dq += scored @ some_k
        self.give(dk, scored.mT @ q)
        self.give(dv, weights.mT @ quiet)
        some_q, some_grad = self.pick(q), self.pick(grad)
        weights = (some_q @ k.mT * scale).sub_(lse.gather(1, self.places).unsqueeze(-1)).exp_()
        own = (some_grad * self.pick(rows.out)).sum(-1, keepdim=True)
        scored = (some_grad @ v.mT).sub_(own).mul_(weights).mul_(scale)
        self.give(dq, scored @ k)
        dk += scored.mT @ some_q
        dv += weights.mT @ some_grad
