"""Attention over a plain span: heads dealt to the kernels that serve them, forward and backward.

Shape legend: B batch, H query heads, G key-value heads, T tokens, D head width, R residues of a dilated window.
"""

import functools
import math
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from layersearch.model.attention import las_both_ways, products, strips, tiled, two_sides, union
from layersearch.model.attention.residues import deal, gather
from layersearch.schedule import Span

# Measured, see analysis/span_speed. Below this length in tokens, the CPU's flash kernel is slower backward in bf16 than
# in float32, so float32 is used.
NARROW_BACKWARD_TOKENS = 2048
# From these windows or blocks (tokens) on, tiles run a pass faster than strips.
TILED_FORWARD_SIZE, TILED_BACKWARD_SIZE = 512, 256

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


def _row_keys(rows: Tensor, span: Span) -> tuple[union.Far, ...]:
    """Return all keys that dealt rows (N, T, D) see of a span, for products; empty where these do not serve."""
    if not products.serves(rows, 0.0):
        return ()
    tokens = rows.shape[1]
    return union.whole(effective_span(str(replace(span, dilation=1, pool=1)), tokens), tokens, False)


def _sinks(x: Tensor, span: Span) -> Tensor:
    """Return the sinks of every row: (B, H, T, D) -> (B*H*R, G, D)."""
    return x[:, :, : span.sink].flatten(0, 1).repeat_interleave(span.dilation, dim=0)


def expand(x: Tensor, heads: int) -> Tensor:
    """Return one key-value head for each query head: (B, G, T, D) -> (B, H, T, D)."""
    return x if x.shape[1] == heads else x.repeat_interleave(heads // x.shape[1], dim=1)


def backward_kind(q: Tensor) -> torch.dtype:
    """Return the precision in which the flash kernel runs the backward pass."""
    return q.dtype if q.shape[2] >= NARROW_BACKWARD_TOKENS else torch.promote_types(q.dtype, torch.float32)


def _forward_kind(span: Span, q: Tensor, softcap: float) -> torch.dtype:
    """Return the precision in which a span, as `effective_span` returns it, runs its forward pass."""
    # The flash kernel takes strips in bf16. Scores are joined and decayed in float32.
    by_strips = q.device.type == "cpu" and span.size is not None and span.dilated_heads is None
    if by_strips and softcap == 0 and span.decay == 0 and span.pool == 1 and span.sink == 0 and not span.is_union:
        return q.dtype
    return torch.promote_types(q.dtype, torch.float32)


def whole_keys(q: Tensor, text: str, softcap: float) -> tuple[union.Far, ...]:
    """Return all keys of a span that has further ones, for products that take both at once; empty where they do not."""
    span, both = effective_span(text, q.shape[2]), text.startswith(ENCODER)
    if span.is_las or q.dtype != torch.promote_types(q.dtype, torch.float32) or not products.serves(q, softcap):
        return ()
    return union.whole(span, q.shape[2], both)


def rows_of(x: Tensor) -> Tensor:
    """Return batch and heads as one dimension, contiguous: (B, H, T, ...) -> (B*H, T, ...)."""
    return x.flatten(0, 1).contiguous()


def forward_plain(q: Tensor, k: Tensor, v: Tensor, text: str, softcap: float) -> tuple[Tensor, Tensor]:
    batch, heads, tokens, width = q.shape
    span, both = effective_span(text, tokens), text.startswith(ENCODER)
    wide = torch.promote_types(q.dtype, torch.float32)
    if runs_flash(span, q.device, softcap):
        values = pooled(v.to(wide), span, both).to(v.dtype)
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, values, is_causal=not both)
        return out, lse
    scale = 1.0 / math.sqrt(width)
    if both:
        joins = softcap != 0 or span.global_first or span.kind == "bigbird" or span.is_las
        kind = q.dtype if q.device.type == "cpu" and not joins else wide
        mixed = expand(pooled(v.to(kind), span, both), heads)
        queries, keys, values = (rows_of(x) for x in (q.to(kind), expand(k.to(kind), heads), mixed))
        if span.decay > 0:
            alphas = _alphas(queries, span, batch)
            out, lse = las_both_ways.forward(queries, keys, values, span, alphas, scale, softcap)
            return out.view(q.shape), lse.view(q.shape[:3])
        if kind == wide and products.serves(queries, softcap) and (whole := union.whole(span, tokens, both)):
            found = products.forward(queries, union.sources(whole, keys, values), scale)
            if found is not None:
                return found[0].view(q.shape), found[1].view(q.shape[:3])
        out, lse = strips.forward(queries, keys, values, union.both_ways(span, tokens), scale, softcap=softcap)
        out, lse = union.forward(queries, keys, values, out, lse, union.both_ways_far(span, tokens), scale, softcap)
        return out.view(q.shape), lse.view(q.shape[:3])
    kind = _forward_kind(span, q, softcap)
    queries, keys, values = q.to(kind), k.to(kind), v.to(kind)
    if span.pool > 1:
        values = pool_values(values, span.pool)
    keys, values = expand(keys, heads), expand(values, heads)
    if kind == wide and products.serves(queries, softcap) and (whole := union.whole(span, tokens, both)):
        given = union.sources(whole, rows_of(keys), rows_of(values))
        found = products.forward(rows_of(queries), given, scale)
        if found is not None:
            return found[0].view(q.shape), found[1].view(q.shape[:3])
    near, far = union.near_span(span), union.far_keys(span, tokens)
    outs, sums = [], []
    for group, part, band, dealt, plan in _head_groups(queries, keys, values, near, softcap):
        whole, found = () if plan is None or kind != wide else _row_keys(dealt[0], part), None
        if whole:
            found = products.forward(dealt[0], union.sources(whole, *dealt[1:]), scale)
        if found is not None:
            out, lse = found
        elif plan is None or ((part.size or 0) >= TILED_FORWARD_SIZE and kind == wide):
            # Tiles accumulate in the precision of their input.
            sinks = _sinks(keys[:, group], part), _sinks(values[:, group], part)
            wq, wk, wv, sink_k, sink_v = (x.to(wide) for x in (*dealt, *sinks))
            out, lse = tiled.forward(wq, wk, wv, sink_k, sink_v, band, scale)
        else:
            out, lse = strips.forward(*dealt, plan, scale)
        outs.append(gather(out, batch, part.dilation, tokens))
        sums.append(gather(lse.unsqueeze(-1), batch, part.dilation, tokens).squeeze(-1))
    if far:
        queries, keys, values = (rows_of(x) for x in (queries, keys, values))
        out, lse = outs[0].flatten(0, 1), sums[0].flatten(0, 1)
        out, lse = union.forward(queries, keys, values, out, lse, far, scale, softcap)
        return out.view(q.shape), lse.view(q.shape[:3])
    if len(outs) == 1:
        return outs[0], sums[0]
    return torch.cat(outs, dim=1), torch.cat(sums, dim=1)


def fold_heads(x: Tensor, kv_heads: int) -> Tensor:
    """Return the sum over the query heads of each key-value head: (B, H, T, D) -> (B, G, T, D)."""
    return x if x.shape[1] == kv_heads else x.view(len(x), kv_heads, -1, *x.shape[2:]).sum(dim=2)


def backward_plain(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, *, text: str, softcap: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of q (B, H, T, D), k and v (B, G, T, D) of `forward_plain`, ``lse`` over all keys."""
    heads, tokens, width = q.shape[1:]
    span, both = effective_span(text, tokens), text.startswith(ENCODER)
    kv_heads = k.shape[1]
    wide = torch.promote_types(q.dtype, torch.float32)
    keys = expand(k, heads)
    values = expand(pooled(v.to(wide), span, both) if span.pool > 1 else v, heads)
    if runs_flash(span, q.device, softcap):
        kind = backward_kind(q)
        dq, dk, dv = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            *(x.to(kind) for x in (grad, q, keys, values, out)), lse, 0.0, not both
        )
    elif both:
        grad, queries, held, mixed, outs, sums = (rows_of(x.to(wide)) for x in (grad, q, keys, values, out, lse))
        scale = 1.0 / math.sqrt(width)
        if span.decay > 0:
            alphas = _alphas(queries, span, len(q))
            found = las_both_ways.backward(grad, queries, held, mixed, outs, sums, span, alphas, scale, softcap)
        elif products.serves(queries, softcap) and (whole := union.whole(span, tokens, both)):
            found = union.whole_backward(grad, queries, held, mixed, outs, sums, whole, scale)
        elif two_sides.serves(span, tokens, TILED_BACKWARD_SIZE):
            found = two_sides.backward(grad, queries, held, mixed, outs, sums, span, scale, softcap)
        else:
            plan = union.both_ways(span, tokens)
            found = strips.backward(grad, queries, held, mixed, outs, sums, plan, scale, softcap=softcap)
            far = union.both_ways_far(span, tokens)
            union.backward(grad, queries, held, mixed, outs, sums, found, far, scale, softcap)
        dq, dk, dv = (x.view(q.shape) for x in found)
    else:
        dq, dk, dv = _sparse_backward(grad, q, keys, values, out, lse, span, softcap)
    dk, dv = fold_heads(dk, kv_heads), fold_heads(dv, kv_heads)
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
    if products.serves(q, softcap) and (whole := union.whole(span, tokens, False)):
        grad, queries, keys, values, out = (rows_of(x.to(wide)) for x in (grad, queries, keys, values, out))
        dq, dk, dv = union.whole_backward(grad, queries, keys, values, out, rows_of(lse.squeeze(-1)), whole, scale)
        return dq.view(q.shape), dk.view(q.shape), dv.view(q.shape)
    near, far = union.near_span(span), union.far_keys(span, tokens)
    gradients: list[tuple[Tensor, Tensor, Tensor]] = []
    for group, part, band, dealt, plan in _head_groups(queries, keys, values, near, softcap):
        stride = part.dilation
        dealt_lse, dealt_grad = deal(lse[:, group], stride).squeeze(-1), deal(grad[:, group], stride)
        lent = None
        whole = () if plan is None else _row_keys(dealt[0], part)
        if plan is not None and (whole or (part.size is not None and part.size < TILED_BACKWARD_SIZE)):
            dealt_out = deal(out[:, group].to(wide, memory_format=torch.contiguous_format), stride)
            given = dealt_grad, *dealt, dealt_out, dealt_lse
            if whole:
                found = list(union.whole_backward(*given, whole, scale))
            else:
                found = list(strips.backward(*given, plan, scale))
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
        grad, queries, keys, values = (rows_of(x) for x in (grad, queries, keys, values))
        out, lse = rows_of(out.to(wide)), rows_of(lse.squeeze(-1))
        union.backward(grad, queries, keys, values, out, lse, (dq, dk, dv), far, scale, softcap)
        return dq.view(q.shape), dk.view(q.shape), dv.view(q.shape)
    if len(gradients) == 1:
        return gradients[0]
    dq, dk, dv = (torch.cat(parts, dim=1) for parts in zip(*gradients, strict=True))
    return dq, dk, dv
