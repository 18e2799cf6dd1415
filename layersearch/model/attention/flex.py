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
from layersearch.model.attention.operator import pooled
from layersearch.schedule import Span


def mask_mod(span: Span, bidirectional: bool = False) -> Callable[[Any, Any, Any, Any], Any]:
    """Return FlexAttention's mask function, which is `Span.visible`."""
    return lambda batch, head, i, j: span.visible(i, j, head, bidirectional=bidirectional)


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
    heads = n_heads if span.dilated_heads is not None else None
    sizes: Any = {"B": None, "H": heads, "Q_LEN": seq_len, "KV_LEN": seq_len, "device": str(device)}
    mask = create_block_mask(mask_mod(span, bidirectional), **sizes)
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
) -> Tensor:
    """Return attention over ``span``; arguments as in `reference_attention`, one precision for q, k and v.

    Raises:
        LayersearchError: gradients are wanted on CPU, where FlexAttention has none.
    """
    if q.device.type == "cpu" and torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad):
        raise LayersearchError("FlexAttention has no backward pass on CPU; use kernel='chunked'")
    wide = torch.promote_types(v.dtype, torch.float32)
    values = pooled(v.to(wide), span, bidirectional).to(v.dtype)
    mask, score_mod = _modifiers(span, q.shape[2], q.shape[1], q.device, softcap, bidirectional)
    run: Any = flex_attention if q.device.type == "cpu" else _compiled()
    grouped = k.shape[1] != q.shape[1]
    aux = None if s_aux is None else AuxRequest(lse=True)
    found = run(q, k, values, score_mod=score_mod, block_mask=mask, enable_gqa=grouped, return_aux=aux)
    if s_aux is None:
        return found
    out, sums = found
    return (out * torch.sigmoid(sums.lse - s_aux.to(sums.lse.dtype)[:, None]).unsqueeze(-1)).to(out.dtype)
