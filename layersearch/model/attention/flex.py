"""FlexAttention for CUDA: the span's definition is the mask, LaS decay is a score modification.

FlexAttention skips blocks of 128 by 128 scores that no query sees, so work grows with the span.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import AuxRequest, BlockMask, create_block_mask, flex_attention

from layersearch.errors import LayersearchError
from layersearch.model.attention.plain import pooled
from layersearch.schedule import Span


def mask_mod(
    span: Span, bidirectional: bool = False, tokens: int | None = None, marked: Tensor | None = None
) -> Callable[[Any, Any, Any, Any], Any]:
    """Return FlexAttention's mask function, which is `Span.visible`.

    Keys beyond the text's ``tokens`` are the summaries. ``marked`` (B, T) are the tokens that the task marks.
    """
    own = span if marked is None else span.plain

    def visible(batch: Any, head: Any, i: Any, j: Any) -> Any:
        seen = own.visible(i, j, head, bidirectional=bidirectional, tokens=tokens)
        if marked is not None:
            # FlexAttention asks for positions up to the next multiple of its block.
            last = marked.shape[1] - 1
            seen = seen | marked[batch, torch.clamp(i, max=last)] | marked[batch, torch.clamp(j, max=last)]
        if not span.summary or tokens is None:
            return seen
        block = torch.clamp(j - tokens, min=0)
        return ((j < tokens) & seen) | ((j >= tokens) & span.sees_summary(i, block, bidirectional=bidirectional))

    return visible


def _score_mod(
    span: Span, n_heads: int, device: torch.device, softcap: float, bidirectional: bool = False
) -> Callable[..., Any] | None:
    """Return what caps scaled logits, then multiplies them by exp(-alpha_c |i-j|) (LaS, 2311.16620), or None."""

    def cap(score: Any) -> Any:
        return softcap * torch.tanh(score / softcap) if softcap else score

    if span.decay == 0:
        return (lambda score, batch, head, i, j: cap(score)) if softcap else None
    alphas = torch.tensor(span.alphas(n_heads), device=device, dtype=torch.float32)
    if bidirectional:
        return lambda score, batch, head, i, j: cap(score) * torch.exp(-alphas[head] * torch.abs(i - j))
    return lambda score, batch, head, i, j: cap(score) * torch.exp(-alphas[head] * (i - j))


@functools.lru_cache(maxsize=256)
def _modifiers(
    span: Span, seq_len: int, n_heads: int, device: torch.device, softcap: float, bidirectional: bool
) -> tuple[BlockMask, Callable[..., Any] | None]:
    heads = n_heads if span.dilated_heads is not None or span.far_heads is not None else None
    keys = seq_len + span.summaries(seq_len)
    sizes: Any = {"B": None, "H": heads, "Q_LEN": seq_len, "KV_LEN": keys, "device": str(device)}
    mask = create_block_mask(mask_mod(span, bidirectional, seq_len), **sizes)
    return mask, _score_mod(span, n_heads, device, softcap, bidirectional)


@functools.cache
def _compiled() -> Callable[..., Any]:
    # Each span and length is compiled anew. Past dynamo's limits (8 and 256 forms) it would silently run uncompiled,
    # with every pair in memory; fullgraph makes that an error.
    limits: Any = torch._dynamo.config
    limits.recompile_limit = max(limits.recompile_limit, 1024)
    limits.accumulated_recompile_limit = max(limits.accumulated_recompile_limit, 4096)
    return torch.compile(flex_attention, dynamic=False, fullgraph=True)


def flex_span_attention(
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
    """Return attention over ``span``; arguments as in `reference_attention`, one precision for q, k and v.

    Raises:
        LayersearchError: gradients are wanted on CPU, where FlexAttention has none.
    """
    if q.device.type == "cpu" and torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad):
        raise LayersearchError("FlexAttention has no backward pass on CPU; use kernel='chunked'")
    wide = torch.promote_types(v.dtype, torch.float32)
    values, tokens = pooled(v.to(wide), span, bidirectional).to(v.dtype), q.shape[2]
    mask, score_mod = _modifiers(span, tokens, q.shape[1], q.device, softcap, bidirectional)
    if marked is not None:  # another mask for every batch
        sizes: Any = {"B": len(q), "H": None, "Q_LEN": tokens, "KV_LEN": tokens + span.summaries(tokens)}
        mask = create_block_mask(mask_mod(span, bidirectional, tokens, marked), **sizes, device=str(q.device))
    if summaries is not None:
        k, values = torch.cat((k, summaries[0]), dim=2), torch.cat((values, summaries[1]), dim=2)
    run: Any = flex_attention if q.device.type == "cpu" else _compiled()
    grouped = k.shape[1] != q.shape[1]
    aux = None if s_aux is None else AuxRequest(lse=True)
    found = run(q, k, values, score_mod=score_mod, block_mask=mask, enable_gqa=grouped, return_aux=aux)
    if s_aux is None:
        return found
    out, sums = found
    return (out * torch.sigmoid(sums.lse - s_aux.to(sums.lse.dtype)[:, None]).unsqueeze(-1)).to(out.dtype)
