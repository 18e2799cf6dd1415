"""Keys beside a span's plain ones: summaries of blocks, and tokens that the task marks to see all and be seen by all.

Both join the output of the plain span by log-sum-exp, and take their gradients from the joined one, as in `union`.

Shape legend: B batch, H query heads, N rows (batch and head), T tokens, M summaries, G marked tokens, D head width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from layersearch.model.attention import products, strips, union
from layersearch.model.attention.product_tiles import Tiles
from layersearch.model.attention.products import Source
from layersearch.model.attention.strips import StripGroup
from layersearch.schedule import Span

HIDDEN = 1e4
"""Added to a log-sum-exp, it makes all weights of a query 0, in double precision too."""


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
    q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, plan: tuple[StripGroup, ...], scale: float, cap: float
) -> tuple[Tensor, Tensor]:
    """Join summaries (N, M, D) to the output (N, T, D) and log-sum-exp (N, T) of queries (N, T, D)."""
    if products.serves(q, cap):
        found = products.forward(q, [Source(plan, k, v)], scale, (out, lse))
        if found is not None:
            return found
    some, sums = strips.forward(q, k, v, plan, scale, softcap=cap, covered=False)
    return union.join(out, lse, some, sums)


def summary_gradients(
    rows: Rows, k: Tensor, v: Tensor, plan: tuple[StripGroup, ...], scale: float, cap: float, dq: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the gradients of the summaries' keys and values, (N, M, D), and add those of queries to ``dq``."""
    if products.serves(rows.q, cap):
        given = torch.zeros_like(k), torch.zeros_like(v)
        products.backward(rows.grad, rows.q, products.deltas(rows.grad, rows.out), rows.lse, [Source(plan, k, v, gradients=given)], scale, dq)
        return given
    some_q, dk, dv = strips.backward(
        rows.grad, rows.q, k, v, rows.out, rows.lse, plan, scale, softcap=cap, covered=False
    )
    dq += some_q
    return dk, dv


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

    def near(self, rows: slice, queries: slice, marks: slice) -> Tensor:
        """Return which queries see which marked tokens as near keys, (N, C, G)."""
        at = torch.arange(queries.start, queries.stop, device=self.places.device, dtype=torch.int32)
        places = self.places[rows, None, marks].int()  # int32 takes half the time
        near: Tensor = self.span.visible(at[None, :, None], places, bidirectional=True, tokens=self.tokens)
        return near

    def _every_near(self) -> Tensor:
        return self.near(slice(None), slice(0, self.tokens), slice(None))

    def _seen(self, k: Tensor, v: Tensor, gradients: tuple[Tensor, Tensor] | None = None) -> Source:
        """Return the marked tokens, (N, G, D), as keys that all queries see which do not see them as near ones."""
        count = self.places.shape[1]

        def hide(tiles: Tiles, product: int, weights: Tensor) -> None:
            # The one strip is all queries: each tile of a product is of another row.
            row, first = divmod(tiles.first + product * tiles.onward, self.tokens)
            low = (tiles.low + product * tiles.along) % count
            place = slice(row, row + tiles.count), slice(first, first + tiles.queries), slice(low, low + tiles.keys)
            weights.masked_fill_(self.near(*place), 0.0)

        plan = (StripGroup(0, 1, self.tokens, 0, count, 0, None, False),)
        return Source(plan, k, v, gradients=gradients, hide=hide)

    def _all(self, k: Tensor, v: Tensor, gradients: tuple[Tensor, Tensor] | None = None) -> Source:
        """Return all tokens, (N, T, D), as keys of the marked ones."""
        plan = (StripGroup(0, 1, self.places.shape[1], 0, self.tokens, 0, None, False),)
        return Source(plan, k, v, gradients=gradients)

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
        if products.serves(q, 0.0):
            found = products.forward(q, [self._seen(self.pick(k), self.pick(v))], scale, (out, lse))
            rows_found = products.forward(self.pick(q), [self._all(k, v)], scale)
            if found is not None and rows_found is not None:
                own, sums = rows_found
                return found[0].scatter_(1, self._wide(own), own), found[1].scatter_(1, self.places, sums)
        scores = (q @ self.pick(k).mT * scale).masked_fill_(self._every_near(), -torch.inf)
        joined = torch.logaddexp(lse, scores.logsumexp(-1))
        out = out * (lse - joined).exp_().unsqueeze(-1)
        out = out.baddbmm_(scores.sub_(joined.unsqueeze(-1)).exp_(), self.pick(v))
        rows = self.pick(q) @ k.mT * scale
        sums = rows.logsumexp(-1)
        own = rows.sub_(sums.unsqueeze(-1)).exp_() @ v
        out.scatter_(1, self._wide(own), own)
        return out, joined.scatter_(1, self.places, sums)

    def hide(self, lse: Tensor) -> Tensor:
        """Return the log-sum-exp with which the marked tokens' queries have no near keys."""
        return lse.scatter(1, self.places, lse.gather(1, self.places) + HIDDEN)

    def backward(self, rows: Rows, into: tuple[Tensor, Tensor, Tensor], scale: float) -> None:
        """Add the gradients of the pairs with a marked token to ``into``: those of q, k and v, (N, T, D) each."""
        grad, q, k, v, lse = rows.grad, rows.q, rows.k, rows.v, rows.lse
        dq, dk, dv = into
        if products.serves(q, 0.0):
            some_k, some_v = self.pick(k), self.pick(v)
            given = torch.zeros_like(some_k), torch.zeros_like(some_v)
            products.backward(grad, q, products.deltas(grad, rows.out), self.hide(lse), [self._seen(some_k, some_v, given)], scale, dq)
            for target, some in zip((dk, dv), given, strict=True):
                self.give(target, some)
            own = self.pick(grad), self.pick(q), products.deltas(self.pick(grad), self.pick(rows.out)), lse.gather(1, self.places)
            self.give(dq, products.backward(*own, [self._all(k, v, (dk, dv))], scale))
            return
        delta = (grad * rows.out).sum(-1, keepdim=True)
        some_k, some_v = self.pick(k), self.pick(v)
        scores = (q @ some_k.mT * scale).masked_fill_(self._every_near(), -torch.inf)
        weights = scores.sub_(self.hide(lse).unsqueeze(-1)).exp_()
        scored = (grad @ some_v.mT).sub_(delta).mul_(weights).mul_(scale)
        dq += scored @ some_k
        self.give(dk, scored.mT @ q)
        self.give(dv, weights.mT @ grad)
        some_q, some_grad = self.pick(q), self.pick(grad)
        weights = (some_q @ k.mT * scale).sub_(lse.gather(1, self.places).unsqueeze(-1)).exp_()
        scored = (some_grad @ v.mT).sub_(self.pick(delta)).mul_(weights).mul_(scale)
        self.give(dq, scored @ k)
        dk += scored.mT @ some_q
        dv += weights.mT @ some_grad
