"""Attention whose work and memory grow with the span: one torch operator, its own backward, any device and precision.

The operator ``layersearch::attend`` carries the span as text, so a traced graph shows the span of each layer.

Shape legend: B batch, H query heads, G key-value heads, T tokens, D head width.
"""

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from layersearch.model.attention import products
from layersearch.model.attention.extras import (
    Extras,
    Marked,
    Rows,
    backward_products,
    forward_products,
    join_summaries,
    marked_places,
    summary_gradients,
    summary_plan,
)
from layersearch.model.attention.plain import (
    ENCODER,
    backward_kind,
    backward_plain,
    effective_span,
    expand,
    fold_heads,
    forward_plain,
    read_text,
    rows_of,
    runs_flash,
    whole_keys,
)
from layersearch.model.attention.products import Source
from layersearch.schedule import Span

# Values of one tensor processed together: fresh pages cost more than the arithmetic of a short window on them.
PIECE_VALUES = 1 << 17


def _batches(q: Tensor, text: str, kind: torch.dtype, softcap: float) -> list[slice]:
    """Cut the batch into pieces whose working copies, in precision ``kind``, stay in the cache and in reused memory.

    CUDA needs no pieces. torch's flash kernel needs them only for copies in another precision.
    """
    flash = runs_flash(effective_span(text, q.shape[2]), q.device, softcap) and kind == q.dtype
    if q.device.type != "cpu" or flash:
        return [slice(None)]
    size = max(1, PIECE_VALUES // q[0].numel())
    return [slice(first, first + size) for first in range(0, q.shape[0], size)]


def _empty(like: Tensor) -> Tensor:
    """Return (B, H, T, D) with all heads of a token side by side, as the output projection reads them."""
    batch, heads, tokens, width = like.shape
    return like.new_empty((batch, tokens, heads, width)).transpose(1, 2)


def _settle(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Return ``x`` in the layout of `_empty`, copied only where its own differs."""
    return x.to(dtype).transpose(1, 2).contiguous().transpose(1, 2)


def _empty_lse(q: Tensor) -> Tensor:
    return q.new_empty(q.shape[:3], dtype=torch.promote_types(q.dtype, torch.float32))


def _forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    text: str,
    softcap: float = 0.0,
    s_aux: Tensor | None = None,
    more_k: Tensor | None = None,
    more_v: Tensor | None = None,
    marked: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the output (B, H, T, D) and the log-sum-exp of each query's logits (B, H, T)."""
    pieces, extras = _batches(q, text, q.dtype, softcap), Extras(more_k, more_v, marked)
    if len(pieces) == 1:
        out, lse = _forward_piece(q, k, v, text, softcap, extras)
        out, lse = _settle(out, q.dtype), lse.contiguous()
    else:
        out, lse = _empty(q), _empty_lse(q)
        for piece in pieces:
            some, sums = _forward_piece(q[piece], k[piece], v[piece], text, softcap, extras.piece(piece))
            out[piece].copy_(some)
            lse[piece].copy_(sums)
    if s_aux is not None:  # one more key, whose value is 0: it joins the sum only
        joined = torch.logaddexp(lse, s_aux.to(lse.dtype)[:, None])
        out, lse = _settle(out * (lse - joined).exp_().unsqueeze(-1), q.dtype), joined
    return out, lse


def _plain_text(span: Span, both: bool, marked: bool) -> str:
    """Return the text of a span without its summaries; tokens that nobody marked are the first ones."""
    first = span.global_first or (0 if marked else span.global_marked)
    return f"{ENCODER if both else ''}{replace(span.plain, global_first=first)}"


def _by_heads(span: Span, heads: int, tokens: int) -> list[tuple[slice, Span]] | None:
    """Return the spans of heads that see strides or columns and of the others; None: all heads are alike."""
    if span.far_heads is None or (span.kind == "fixed" and span.far_heads >= heads):
        return None
    cut = min(span.far_heads, heads)
    far, near = span, Span(kind="block", size=span.size)
    if span.kind == "strided":
        assert span.size is not None
        far = Span(kind="window", size=-(-tokens // span.size), dilation=span.size)
        near = Span(kind="window", size=span.size)
    return [part for part in ((slice(0, cut), far), (slice(cut, heads), near)) if part[0].start < part[0].stop]


def _forward_piece(q: Tensor, k: Tensor, v: Tensor, text: str, softcap: float, extras: Extras) -> tuple[Tensor, Tensor]:
    heads, tokens, width = q.shape[1:]
    span, both = read_text(text)
    groups, wide = _by_heads(span, heads, tokens), torch.promote_types(q.dtype, torch.float32)
    if groups is not None:
        keys, values = expand(k, heads), expand(v, heads)
        found = [forward_plain(q[:, at], keys[:, at], values[:, at], str(part), softcap) for at, part in groups]
        return torch.cat([out for out, _ in found], dim=1), torch.cat([lse for _, lse in found], dim=1)
    plain = _plain_text(span, both, extras.marked is not None)
    if extras.keys is None and extras.marked is None:
        return forward_plain(q, k, v, plain, softcap)
    scale = 1.0 / math.sqrt(width)
    queries, keys, values = (rows_of(x.to(wide)) for x in (q, expand(k, heads), expand(v, heads)))
    marks = None if extras.marked is None else Marked.of(span, extras.marked, tokens, heads)
    sums = _summaries(span, both, tokens, heads, extras, wide)
    whole = whole_keys(q, plain, softcap)
    begun = None if whole else _near_rows(q, k, v, plain, softcap)
    if products.serves(queries, softcap):
        joined = forward_products(queries, keys, values, whole, marks, sums, scale, begun)
        if joined is not None:
            return joined[0].view(q.shape), joined[1].view(q.shape[:3])
    out, lse = begun or _near_rows(q, k, v, plain, softcap)
    if marks is not None:
        out, lse = marks.join(queries, keys, values, out, lse, scale)
    if sums is not None:
        out, lse = join_summaries(queries, sums, out, lse, scale, softcap)
    return out.view(q.shape), lse.view(q.shape[:3])


def _near_rows(q: Tensor, k: Tensor, v: Tensor, plain: str, softcap: float) -> tuple[Tensor, Tensor]:
    """Return `forward_plain`'s output (B*H, T, D) and log-sum-exp (B*H, T), in float32 or wider."""
    wide = torch.promote_types(q.dtype, torch.float32)
    out, lse = forward_plain(q, k, v, plain, softcap)
    return rows_of(out.to(wide)), rows_of(lse.to(wide))


def _summaries(
    span: Span, both: bool, tokens: int, heads: int, extras: Extras, wide: torch.dtype, *, gradients: bool = False
) -> Source | None:
    """Return a span's summaries, if it has any, one row for each head, with gradients of 0 where these are asked."""
    if extras.keys is None or extras.values is None or not extras.keys.shape[2]:
        return None
    keys, values = (rows_of(expand(x, heads).to(wide)) for x in (extras.keys, extras.values))
    empty = (torch.zeros_like(keys), torch.zeros_like(values)) if gradients else None
    return Source(summary_plan(span, tokens, both), keys, values, gradients=empty)


def _backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    text: str,
    softcap: float = 0.0,
    more_k: Tensor | None = None,
    more_v: Tensor | None = None,
    marked: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of q (B, H, T, D), k and v (B, G, T, D), and of summaries, empty where there are none."""
    extras = Extras(more_k, more_v, marked)
    pieces = _batches(q, text, backward_kind(q), softcap)
    if len(pieces) == 1:
        gradients, more = _backward_piece(grad, q, k, v, out, lse, text, softcap, extras)
        dq, dk, dv = (x.to(q.dtype).contiguous() for x in gradients)
        sums = [x.to(q.dtype) for x in more] or [q.new_zeros(0 if x is None else x.shape) for x in (more_k, more_v)]
        return dq, dk, dv, sums[0], sums[1]
    dq, dk, dv = q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)
    d_more = [q.new_zeros(0 if x is None else x.shape) for x in (more_k, more_v)]
    for piece in pieces:
        some = grad[piece], q[piece], k[piece], v[piece], out[piece], lse[piece]
        gradients, more = _backward_piece(*some, text, softcap, extras.piece(piece))
        for into, found in zip((dq, dk, dv), gradients, strict=True):
            into[piece].copy_(found)
        for into, found in zip(d_more, more, strict=False):
            into[piece].copy_(found)
    return dq, dk, dv, d_more[0], d_more[1]


def _backward_piece(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    text: str,
    softcap: float,
    extras: Extras,
) -> tuple[tuple[Tensor, Tensor, Tensor], list[Tensor]]:
    """Return the gradients of q, k and v, and those of the summaries' keys and values, if there are any."""
    batch, heads, tokens, width = q.shape
    span, both = read_text(text)
    wide, kv_heads = torch.promote_types(q.dtype, torch.float32), k.shape[1]
    groups, more = _by_heads(span, heads, tokens), list[Tensor]()
    keys, values = expand(k, heads), expand(v, heads)  # key-value heads are summed up at the end
    if groups is not None:
        found = [
            backward_plain(*(x[:, at] for x in (grad, q, keys, values, out, lse)), text=str(part), softcap=softcap)
            for at, part in groups
        ]
        dq, dk, dv = (torch.cat([one[part] for one in found], dim=1) for part in range(3))
        return (dq, fold_heads(dk, kv_heads), fold_heads(dv, kv_heads)), more
    plain = _plain_text(span, both, extras.marked is not None)
    if extras.keys is None and extras.marked is None:
        return backward_plain(grad, q, k, v, out, lse, text=plain, softcap=softcap), more
    scale = 1.0 / math.sqrt(width)
    rows = Rows(*(rows_of(x.to(wide)) for x in (grad, q, keys, values, out, lse)))
    marks = None if extras.marked is None else Marked.of(span, extras.marked, tokens, heads)
    sums = _summaries(span, both, tokens, heads, extras, wide, gradients=True)
    whole, begun = whole_keys(rows.q.view(q.shape), plain, softcap), None
    if not whole:
        quiet = grad if marks is None else marks.silence(rows.grad).view(grad.shape)
        near = backward_plain(quiet, q, keys, values, out, lse, text=plain, softcap=softcap)
        begun = rows_of(near[0].to(wide)), rows_of(near[1].to(wide)), rows_of(near[2].to(wide))
    if begun is None or products.serves(rows.q, softcap):
        dq, dk, dv = backward_products(rows, whole, marks, sums, scale, begun)
    else:
        dq, dk, dv = begun
        if marks is not None:
            marks.backward(rows, begun, scale)
        if sums is not None:
            summary_gradients(rows, sums, scale, softcap, dq)
    if sums is not None and sums.gradients is not None:
        more = [fold_heads(x.view(batch, heads, -1, width), kv_heads) for x in sums.gradients]
    return (dq.view(q.shape), fold_heads(dk.view(q.shape), kv_heads), fold_heads(dv.view(q.shape), kv_heads)), more


_LIBRARY = torch.library.Library("layersearch", "DEF")  # type: ignore[no-untyped-call]
for _name, _kernel in (("attend", _forward), ("attend_backward", _backward)):
    _LIBRARY.define(_name + torch.library.infer_schema(_kernel, mutates_args=()))  # type: ignore[no-untyped-call]
    _LIBRARY.impl(_name, _kernel, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]


def _fake_forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    span: str,
    softcap: float = 0.0,
    s_aux: Tensor | None = None,
    more_k: Tensor | None = None,
    more_v: Tensor | None = None,
    marked: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    return _empty(q), _empty_lse(q)


def _fake_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    span: str,
    softcap: float = 0.0,
    more_k: Tensor | None = None,
    more_v: Tensor | None = None,
    marked: Tensor | None = None,
) -> tuple[Tensor, ...]:
    more = [q.new_empty(0 if x is None else x.shape) for x in (more_k, more_v)]
    return (q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape), *more)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, ctx.span, ctx.softcap, s_aux, *extras = inputs
    out, lse = output
    ctx.save_for_backward(q, k, v, out, lse, s_aux, *extras)
    ctx.mark_non_differentiable(lse)


def _autograd(ctx: Any, grad: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    *saved, s_aux, more_k, more_v, marked = ctx.saved_tensors
    extras = more_k, more_v, marked
    *gradients, dk, dv = torch.ops.layersearch.attend_backward(grad, *saved, ctx.span, ctx.softcap, *extras)
    aux = None
    if s_aux is not None:
        # The softmax's backward pass for a key whose value is 0: its weight times -(output . gradient).
        out, lse = saved[3:]
        weight = (s_aux.to(lse.dtype)[:, None] - lse).exp()
        aux = -(weight * (grad * out).sum(-1, dtype=lse.dtype)).sum((0, 2)).to(s_aux.dtype)
    more = (None, None) if more_k is None else (dk, dv)
    return (*gradients, None, None, aux, *more, None)


torch.library.register_fake("layersearch::attend", _fake_forward, lib=_LIBRARY)
torch.library.register_fake("layersearch::attend_backward", _fake_backward, lib=_LIBRARY)
torch.library.register_autograd("layersearch::attend", _autograd, setup_context=_setup, lib=_LIBRARY)


def chunked_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    span: Span,
    softcap: float = 0.0,
    s_aux: Tensor | None = None,
    *,
    bidirectional: bool = False,
    summaries: tuple[Tensor, Tensor] | None = None,
    marked: Tensor | None = None,
) -> Tensor:
    """Return attention over ``span``; arguments as in `reference_attention`, one precision for q, k and v."""
    text = f"{ENCODER if bidirectional else ''}{span}"
    places = None if marked is None else marked_places(span, marked)
    out: Tensor = torch.ops.layersearch.attend(q, k, v, text, softcap, s_aux, *(summaries or (None, None)), places)[0]
    return out
