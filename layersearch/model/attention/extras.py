"""Keys beside a span's plain ones: summaries of blocks, and tokens that the task marks to see all and be seen by all.

Both join the output of the plain span by log-sum-exp, and take their gradients from the joined one, as in `union`.

Shape legend: B batch, H query heads, N rows (batch and head), T tokens, M summaries, G marked tokens, D head width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from layersearch.model.attention import strips, union
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
    some, sums = strips.forward(q, k, v, plan, scale, softcap=cap, covered=False)
    return union.join(out, lse, some, sums)


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
    """Marked tokens of every row: their places (N, G), and which queries see them as near keys, (N, T, G)."""

    places: Tensor
    near: Tensor

    @classmethod
    def of(cls, span: Span, places: Tensor, tokens: int, heads: int) -> Marked:
        """Return those of rows of batch and head; ``places`` is (B, G)."""
        at = torch.arange(tokens, device=places.device)[None, :, None]
        near = span.plain.visible(at, places[:, None, :], bidirectional=True, tokens=tokens)
        return cls(places.repeat_interleave(heads, 0), near.repeat_interleave(heads, 0))

    def pick(self, x: Tensor) -> Tensor:
        """Return the marked tokens' rows: (N, T, D) -> (N, G, D)."""
        return x.take_along_dim(self.places[..., None], 1)

    def give(self, into: Tensor, some: Tensor) -> None:
        """Add (N, G, D) to the marked tokens' rows of (N, T, D)."""
        into.scatter_add_(1, self.places[..., None].expand_as(some), some)

    def join(self, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        """Join the marked tokens to near keys: each query sees them, and they see all."""
        scores = (q @ self.pick(k).mT * scale).masked_fill_(self.near, -torch.inf)
        joined = torch.logaddexp(lse, scores.logsumexp(-1))
        out = out * (lse - joined).exp_().unsqueeze(-1)
        out = out.baddbmm_(scores.sub_(joined.unsqueeze(-1)).exp_(), self.pick(v))
        rows = self.pick(q) @ k.mT * scale
        sums = rows.logsumexp(-1)
        own = rows.sub_(sums.unsqueeze(-1)).exp_() @ v
        out.scatter_(1, self.places[..., None].expand_as(own), own)
        return out, joined.scatter_(1, self.places, sums)

    def hide(self, lse: Tensor) -> Tensor:
        """Return the log-sum-exp with which the marked tokens' queries have no near keys."""
        return lse.scatter(1, self.places, lse.gather(1, self.places) + HIDDEN)

    def backward(self, rows: Rows, into: tuple[Tensor, Tensor, Tensor], scale: float) -> None:
        """Add the gradients of the pairs with a marked token to ``into``: those of q, k and v, (N, T, D) each."""
        grad, q, k, v, lse = rows.grad, rows.q, rows.k, rows.v, rows.lse
        dq, dk, dv = into
        delta = (grad * rows.out).sum(-1, keepdim=True)
        some_k, some_v = self.pick(k), self.pick(v)
        scores = (q @ some_k.mT * scale).masked_fill_(self.near, -torch.inf)
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
