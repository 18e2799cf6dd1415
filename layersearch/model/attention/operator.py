"""Attention whose work and memory grow with the span: one torch operator, its own backward, any device and precision.

The operator ``layersearch::attend`` carries the span as text, so a traced graph shows the span of each layer.

Shape legend: B batch, H query heads, G key-value heads, T tokens, D head width, R residues of a dilated window.
"""

import functools
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from layersearch.model.attention import las_both_ways, strips, tiled, union
from layersearch.model.attention.residues import deal, gather
from layersearch.schedule import Span

# Measured, see analysis/span_speed. Below this length in tokens, the CPU's flash kernel is slower backward in bf16 than
# in float32, so float32 is used.
NARROW_BACKWARD_TOKENS = 2048
# From these windows or blocks (tokens) on, tiles run a pass faster than strips.
TILED_FORWARD_SIZE, TILED_BACKWARD_SIZE = 512, 256
# Values of one tensor processed together: fresh pages cost more than the arithmetic of a short window on them.
PIECE_VALUES = 1 << 17


ENCODER = "encoder "
"""Begins the operator's text of a span in an encoder."""


def read_text(text: str) -> tuple[Span, bool]:
    """Return the span of the operator's text, and whether the model is an encoder."""
    return Span.parse(text.removeprefix(ENCODER)), text.startswith(ENCODER)


@functools.lru_cache(maxsize=1024)
def effective_span(text: str, seq_len: int) -> Span:
    """Return the span that sees the same in a text of ``seq_len`` tokens, full where it covers all of it."""
    span, bidirectional = read_text(text)
    if span.covers(seq_len, bidirectional=bidirectional):
        return Span(kind="full", decay=span.decay, pool=span.pool)
    return span


def runs_flash(span: Span, device: torch.device, softcap: float = 0.0) -> bool:
    """Tell whether torch's flash kernel serves the forward pass of ``span``, as `effective_span` returns it."""
    return span.is_full and span.decay == 0 and softcap == 0 and device.type == "cpu"


def pool_values(v: Tensor, width: int) -> Tensor:
    """Return causal means of ``width`` values, with zeros before the first: (..., T, D) -> same.

    Pooling attention rows after the softmax equals pooling the values once:
    sum_j (1/P sum_p A_{i,j+p}) V_j = sum_m A_im (1/P sum_p V_{m-p}).
    """
    pooled = v.clone()
    for back in range(1, min(width, v.shape[-2])):
        pooled[..., back:, :] += v[..., :-back, :]
    return pooled.div_(width)


def pooled(v: Tensor, span: Span, bidirectional: bool) -> Tensor:
    """Return the values as a span pools them, in an encoder toward both sides."""
    if span.pool == 1:
        return v
    return las_both_ways.center_values(v, span.pool) if bidirectional else pool_values(v, span.pool)


def _alphas(rows: Tensor, span: Span, batch: int) -> Tensor:
    """Return the decay of every batch row, (B*H, 1, 1)."""
    return rows.new_tensor(span.alphas(rows.shape[0] // batch)).repeat(batch)[:, None, None]


def _head_groups(
    q: Tensor, k: Tensor, v: Tensor, span: Span, softcap: float
) -> Iterator[tuple[slice, Span, tiled.Band, tuple[Tensor, Tensor, Tensor], tuple[strips.StripGroup, ...] | None]]:
    """Split the heads into those that the span dilates and the others.

    Yields:
        Heads, their span, their band, q, k and v dealt into rows (N, T, D), and the strips that serve the rows, or
        None where tiles do.
    """
    batch, heads = q.shape[:2]
    cut = heads if span.dilated_heads is None else min(span.dilated_heads, heads)
    for group, dilation in ((slice(0, cut), span.dilation), (slice(cut, heads), 1)):
        if group.start == group.stop:
            continue
        part = replace(span, dilation=dilation, dilated_heads=None)
        decay = None
        if span.decay > 0:
            alphas = q.new_tensor(span.alphas(heads)[group])
            decay = alphas.repeat_interleave(dilation).repeat(batch)[:, None, None]
        base = Span(kind=span.kind, size=span.size, offset=span.offset)
        band = tiled.Band(span=base, stride=dilation, alphas=decay, sinks=part if span.sink else None, softcap=softcap)
        dealt = (deal(q[:, group], dilation), deal(k[:, group], dilation), deal(v[:, group], dilation))
        plan = None
        if q.device.type == "cpu" and span.size is not None and softcap == 0 and not (dilation > 1 and span.sink):
            tokens = dealt[0].shape[1]
            plan = strips.strip_groups(effective_span(str(replace(part, dilation=1, pool=1)), tokens), tokens)
        yield group, part, band, dealt, plan


def _sinks(x: Tensor, span: Span) -> Tensor:
    """Return the sinks of every row: (B, H, T, D) -> (B*H*R, G, D)."""
    return x[:, :, : span.sink].flatten(0, 1).repeat_interleave(span.dilation, dim=0)


def _batches(q: Tensor, text: str, kind: torch.dtype, softcap: float) -> list[slice]:
    """Cut the batch into pieces whose working copies, in precision ``kind``, stay in the cache and in reused memory.

    CUDA needs no pieces. torch's flash kernel needs them only for copies in another precision.
    """
    flash = runs_flash(effective_span(text, q.shape[2]), q.device, softcap) and kind == q.dtype
    if q.device.type != "cpu" or flash:
        return [slice(None)]
    size = max(1, PIECE_VALUES // q[0].numel())
    return [slice(first, first + size) for first in range(0, q.shape[0], size)]


def _expand(x: Tensor, heads: int) -> Tensor:
    """Return one key-value head for each query head: (B, G, T, D) -> (B, H, T, D)."""
    return x if x.shape[1] == heads else x.repeat_interleave(heads // x.shape[1], dim=1)


def _backward_kind(q: Tensor) -> torch.dtype:
    """Return the precision in which the flash kernel runs the backward pass."""
    return q.dtype if q.shape[2] >= NARROW_BACKWARD_TOKENS else torch.promote_types(q.dtype, torch.float32)


def _forward_kind(span: Span, q: Tensor, softcap: float) -> torch.dtype:
    """Return the precision in which a span, as `effective_span` returns it, runs its forward pass."""
    # The flash kernel takes strips in bf16. Scores are joined and decayed in float32.
    by_strips = q.device.type == "cpu" and span.size is not None and span.dilated_heads is None
    if by_strips and softcap == 0 and span.decay == 0 and span.pool == 1 and span.sink == 0 and not span.is_union:
        return q.dtype
    return torch.promote_types(q.dtype, torch.float32)


def _rows(x: Tensor) -> Tensor:
    """Return batch and heads as one dimension, contiguous: (B, H, T, ...) -> (B*H, T, ...)."""
    return x.flatten(0, 1).contiguous()


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
    q: Tensor, k: Tensor, v: Tensor, text: str, softcap: float = 0.0, s_aux: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return the output (B, H, T, D) and the log-sum-exp of each query's logits (B, H, T)."""
    pieces = _batches(q, text, q.dtype, softcap)
    if len(pieces) == 1:
        out, lse = _forward_piece(q, k, v, text, softcap)
        out, lse = _settle(out, q.dtype), lse.contiguous()
    else:
        out, lse = _empty(q), _empty_lse(q)
        for piece in pieces:
            some, sums = _forward_piece(q[piece], k[piece], v[piece], text, softcap)
            out[piece].copy_(some)
            lse[piece].copy_(sums)
    if s_aux is not None:  # one more key, whose value is 0: it joins the sum only
        joined = torch.logaddexp(lse, s_aux.to(lse.dtype)[:, None])
        out, lse = _settle(out * (lse - joined).exp_().unsqueeze(-1), q.dtype), joined
    return out, lse


def _forward_piece(q: Tensor, k: Tensor, v: Tensor, text: str, softcap: float) -> tuple[Tensor, Tensor]:
    batch, heads, tokens, width = q.shape
    span, both = effective_span(text, tokens), text.startswith(ENCODER)
    wide = torch.promote_types(q.dtype, torch.float32)
    if runs_flash(span, q.device, softcap):
        values = pooled(v.to(wide), span, both).to(v.dtype)
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, values, is_causal=not both)
        return out, lse
    scale = 1.0 / math.sqrt(width)
    if both:
        plain = softcap == 0 and span.global_first == 0 and not span.is_las
        kind = q.dtype if q.device.type == "cpu" and plain else wide
        queries, keys, values = (
            _rows(x) for x in (q.to(kind), _expand(k.to(kind), heads), _expand(pooled(v.to(kind), span, both), heads))
        )
        if span.decay > 0:
            alphas = _alphas(queries, span, batch)
            out, lse = las_both_ways.forward(queries, keys, values, span, alphas, scale, softcap)
            return out.view(q.shape), lse.view(q.shape[:3])
        out, lse = strips.forward(queries, keys, values, union.both_ways(span, tokens), scale, softcap=softcap)
        return out.view(q.shape), lse.view(q.shape[:3])
    kind = _forward_kind(span, q, softcap)
    queries, keys, values = q.to(kind), k.to(kind), v.to(kind)
    if span.pool > 1:
        values = pool_values(values, span.pool)
    keys, values = _expand(keys, heads), _expand(values, heads)
    near, far = union.near_span(span), union.far_keys(span, tokens)
    outs, sums = [], []
    for group, part, band, dealt, plan in _head_groups(queries, keys, values, near, softcap):
        if plan is None or ((part.size or 0) >= TILED_FORWARD_SIZE and kind == wide):
            # Tiles accumulate in the precision of their input.
            sinks = _sinks(keys[:, group], part), _sinks(values[:, group], part)
            wq, wk, wv, sink_k, sink_v = (x.to(wide) for x in (*dealt, *sinks))
            out, lse = tiled.forward(wq, wk, wv, sink_k, sink_v, band, scale)
        else:
            out, lse = strips.forward(*dealt, plan, scale)
        outs.append(gather(out, batch, part.dilation, tokens))
        sums.append(gather(lse.unsqueeze(-1), batch, part.dilation, tokens).squeeze(-1))
    if far:
        queries, keys, values = (_rows(x) for x in (queries, keys, values))
        out, lse = outs[0].flatten(0, 1), sums[0].flatten(0, 1)
        out, lse = union.forward(queries, keys, values, out, lse, far, scale, softcap)
        return out.view(q.shape), lse.view(q.shape[:3])
    if len(outs) == 1:
        return outs[0], sums[0]
    return torch.cat(outs, dim=1), torch.cat(sums, dim=1)


def _backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, text: str, softcap: float = 0.0
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of q (B, H, T, D), k and v (B, G, T, D)."""
    pieces = _batches(q, text, _backward_kind(q), softcap)
    if len(pieces) == 1:
        gradients = _backward_piece(grad, q, k, v, out, lse, text, softcap)
        dq, dk, dv = (x.to(q.dtype).contiguous() for x in gradients)
        return dq, dk, dv
    dq, dk, dv = q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)
    for piece in pieces:
        some_grad, some_out, some_lse = grad[piece], out[piece], lse[piece]
        gradients = _backward_piece(some_grad, q[piece], k[piece], v[piece], some_out, some_lse, text, softcap)
        for into, some in zip((dq, dk, dv), gradients, strict=True):
            into[piece].copy_(some)
    return dq, dk, dv


def _backward_piece(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, text: str, softcap: float
) -> tuple[Tensor, Tensor, Tensor]:
    batch, heads, tokens, width = q.shape
    span, both = effective_span(text, tokens), text.startswith(ENCODER)
    kv_heads = k.shape[1]
    wide = torch.promote_types(q.dtype, torch.float32)
    keys = _expand(k, heads)
    values = _expand(pooled(v.to(wide), span, both) if span.pool > 1 else v, heads)
    if runs_flash(span, q.device, softcap):
        kind = _backward_kind(q)
        dq, dk, dv = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            *(x.to(kind) for x in (grad, q, keys, values, out)), lse, 0.0, not both
        )
    elif both:
        grad, queries, held, mixed, outs, sums = (_rows(x.to(wide)) for x in (grad, q, keys, values, out, lse))
        scale = 1.0 / math.sqrt(width)
        if span.decay > 0:
            alphas = _alphas(queries, span, batch)
            found = las_both_ways.backward(grad, queries, held, mixed, outs, sums, span, alphas, scale, softcap)
        else:
            plan = union.both_ways(span, tokens)
            found = strips.backward(grad, queries, held, mixed, outs, sums, plan, scale, softcap=softcap)
        dq, dk, dv = (x.view(q.shape) for x in found)
    else:
        dq, dk, dv = _sparse_backward(grad, q, keys, values, out, lse, span, softcap)
    dk = dk.reshape(batch, kv_heads, -1, tokens, width).sum(dim=2) if kv_heads != heads else dk
    dv = dv.reshape(batch, kv_heads, -1, tokens, width).sum(dim=2) if kv_heads != heads else dv
    if span.pool > 1:
        # The transpose of causal pooling looks ahead.
        dv = las_both_ways.center_values(dv, span.pool) if both else pool_values(dv.flip(-2), span.pool).flip(-2)
    return dq, dk, dv


def _sparse_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, span: Span, softcap: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return gradients (B, H, T, D) of queries, expanded keys and expanded, pooled values, in float32 or wider."""
    batch, _, tokens, width = q.shape
    wide = torch.promote_types(q.dtype, torch.float32)
    scale = 1.0 / math.sqrt(width)
    # Copied once: to the wider precision and, heads apart, to the layout that rows are dealt from.
    grad, queries, keys, values = (x.to(wide, memory_format=torch.contiguous_format) for x in (grad, q, k, v))
    lse = lse.to(wide).unsqueeze(-1)
    near, far = union.near_span(span), union.far_keys(span, tokens)
    gradients: list[tuple[Tensor, Tensor, Tensor]] = []
    for group, part, band, dealt, plan in _head_groups(queries, keys, values, near, softcap):
        stride = part.dilation
        dealt_lse, dealt_grad = deal(lse[:, group], stride).squeeze(-1), deal(grad[:, group], stride)
        lent = None
        if plan is not None and part.size is not None and part.size < TILED_BACKWARD_SIZE:
            dealt_out = deal(out[:, group].to(wide, memory_format=torch.contiguous_format), stride)
            found = list(strips.backward(dealt_grad, *dealt, dealt_out, dealt_lse, plan, scale))
        else:
            delta = deal((grad[:, group] * out[:, group]).sum(dim=-1, keepdim=True), stride).squeeze(-1)
            sinks = _sinks(keys[:, group], part), _sinks(values[:, group], part)
            *found, dsk, dsv = tiled.backward(
                *dealt, *sinks, lse=dealt_lse, delta=delta, grad=dealt_grad, band=band, scale=scale
            )
            lent = (dsk, dsv) if part.sink else None
        dq, dk, dv = (gather(x, batch, stride, tokens) for x in found)
        if lent is not None:
            for into, some in zip((dk, dv), lent, strict=True):
                # Each sink was lent to every residue's row.
                into[:, :, : part.sink] += some.view(batch, -1, stride, *some.shape[1:]).sum(dim=2)
        gradients.append((dq, dk, dv))
    if far:
        dq, dk, dv = (x.flatten(0, 1) for x in gradients[0])
        grad, queries, keys, values = (_rows(x) for x in (grad, queries, keys, values))
        out, lse = _rows(out.to(wide)), _rows(lse.squeeze(-1))
        union.backward(grad, queries, keys, values, out, lse, (dq, dk, dv), far, scale, softcap)
        return dq.view(q.shape), dk.view(q.shape), dv.view(q.shape)
    if len(gradients) == 1:
        return gradients[0]
    dq, dk, dv = (torch.cat(parts, dim=1) for parts in zip(*gradients, strict=True))
    return dq, dk, dv


_LIBRARY = torch.library.Library("layersearch", "DEF")  # type: ignore[no-untyped-call]
for _name, _kernel in (("attend", _forward), ("attend_backward", _backward)):
    _LIBRARY.define(_name + torch.library.infer_schema(_kernel, mutates_args=()))  # type: ignore[no-untyped-call]
    _LIBRARY.impl(_name, _kernel, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]


def _fake_forward(
    q: Tensor, k: Tensor, v: Tensor, span: str, softcap: float = 0.0, s_aux: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    return _empty(q), _empty_lse(q)


def _fake_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, span: str, softcap: float = 0.0
) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _setup(
    ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, str, float, Tensor | None], output: tuple[Tensor, Tensor]
) -> None:
    q, k, v, ctx.span, ctx.softcap, s_aux = inputs
    out, lse = output
    ctx.save_for_backward(q, k, v, out, lse, s_aux)
    ctx.mark_non_differentiable(lse)


def _autograd(ctx: Any, grad: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    *saved, s_aux = ctx.saved_tensors
    gradients = torch.ops.layersearch.attend_backward(grad, *saved, ctx.span, ctx.softcap)
    aux = None
    if s_aux is not None:
        # The softmax's backward pass for a key whose value is 0: its weight times -(output . gradient).
        out, lse = saved[3:]
        weight = (s_aux.to(lse.dtype)[:, None] - lse).exp()
        aux = -(weight * (grad * out).sum(-1, dtype=lse.dtype)).sum((0, 2)).to(s_aux.dtype)
    return (*gradients, None, None, aux)


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
) -> Tensor:
    """Return attention over ``span``; arguments as in `reference_attention`, one precision for q, k and v."""
    text = f"{ENCODER if bidirectional else ''}{span}"
    out: Tensor = torch.ops.layersearch.attend(q, k, v, text, softcap, s_aux)[0]
    return out
