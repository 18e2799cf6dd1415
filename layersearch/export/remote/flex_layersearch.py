"""FlexAttention's ``mask_mod`` and ``score_mod`` of every layer. Needs only torch.

    from flex_layersearch import MASK_MODS, SCORE_MODS, attention

    block_mask = create_block_mask(MASK_MODS[layer], None, N_HEADS, tokens, tokens, device=...)
    out = flex_attention(q, k, average_values(v, layer), score_mod=SCORE_MODS[layer], block_mask=block_mask)

`attention` does the same. Query i sees key j <= i as the span's ``kind`` says:

- "full": always.
- "window": j = i - t * dilation, t = 0 ... size-1; only the first ``dilated_heads`` heads may be dilated.
- "block": both lie in the same block of ``size`` tokens, of which the first holds ``size`` - ``offset``.
- "strided": i - j is less than ``size`` or a multiple of it.
- "fixed": both lie in the same block of ``size`` tokens, or j is one of the last ``columns`` of its block.
  With ``far_heads`` the first heads see multiples (columns) and i alone, the others the rest.
- "memory": j is no more than ``memory`` tokens before i's segment of ``size`` tokens.
- "bigbird": j's block is i's, the one before, the first, or one of ``random_blocks`` (`random_block`).

It also sees the first ``sink`` tokens. ``decay`` and ``pool`` are LaS (arXiv:2311.16620): the logits of head h are
multiplied by exp(-alpha_h (i - j)); rows of attention weights are averaged over ``pool`` neighbors, which is the same
as averaging values first.

Empty blocks of 128 by 128 scores are skipped: in a compiled ``flex_attention`` on a GPU, work grows with the span. On a
CPU there is no backward pass (torch 2.13).
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

N_HEADS = 1
"""Query heads of the model."""

SPANS: list[dict[str, Any]] = [{"kind": "full"}]
"""One span per layer, bottom layer first."""


def random_block(span: dict[str, Any], block: Any, at: int) -> Any:
    """Return one random block of each block of queries, from the ``at``-th of equal parts; 0: there is none."""
    choices, count, prime = block - 2, span["random_blocks"], 46_337
    first = at * choices // count
    width = (at + 1) * choices // count - first
    salt = ((at + 1) * 7919 + span.get("seed", 0) * 10_007) % prime
    drawn = (block + salt) % prime
    for factor in (30_269, 20_011):
        drawn = (drawn * factor + salt) % prime
        drawn = drawn * drawn % prime
    return (1 + first + drawn % (width + (width == 0))) * ((choices > 0) & (width > 0))


def mask_mod(span: dict[str, Any]) -> Callable[..., Any]:
    """Return the function of (batch, head, query, key) that is true for visible keys."""
    kind, size = span["kind"], span.get("size", 0)
    dilation, heads, sink = span.get("dilation", 1), span.get("dilated_heads"), span.get("sink", 0)
    offset, far = span.get("offset", 0), span.get("far_heads")

    def joined(near: Any, other: Any, head: Any, i: Any, j: Any) -> Any:
        if far is None:
            return near | other
        return (near & (head >= far)) | ((other | (i == j)) & (head < far))

    def visible(batch: Any, head: Any, i: Any, j: Any) -> Any:
        if kind == "full":
            return j <= i
        if kind == "strided":
            return (j <= i) & joined(i - j < size, (i - j) % size == 0, head, i, j)
        if kind == "memory":
            return (j <= i) & (j >= i // size * size - span["memory"])
        if kind == "fixed":
            return (j <= i) & joined(j // size == i // size, j % size >= size - span["columns"], head, i, j)
        if kind == "bigbird":
            near = (i // size - j // size <= 1) | (j // size == 0)
            for at in range(span.get("random_blocks", 0)):
                near = near | (j // size == random_block(span, i // size, at))
            return (j <= i) & near
        if kind == "block":
            near = (j + offset) // size == (i + offset) // size
        else:
            near = i - j < size
            if dilation > 1:
                dilated = (i - j < size * dilation) & ((i - j) % dilation == 0)
                near = dilated if heads is None else (near & (head >= heads)) | (dilated & (head < heads))
        return (j <= i) & (near | (j < sink)) if sink else (j <= i) & near

    return visible


def score_mod(span: dict[str, Any]) -> Callable[..., Any] | None:
    """Return the function that multiplies logits by LaS's decay; None: no decay. Alpha is 0 for head 0, and doubles."""
    largest = span.get("decay", 0.0)
    if not largest:
        return None

    def decayed(score: Any, batch: Any, head: Any, i: Any, j: Any) -> Any:
        alpha = torch.where(head > 0, largest * torch.exp2((head - (N_HEADS - 1)).to(torch.float32)), 0.0)
        return score * torch.exp(-alpha * (i - j))

    return decayed


MASK_MODS = [mask_mod(span) for span in SPANS]
SCORE_MODS = [score_mod(span) for span in SPANS]


def average_values(v: Tensor, layer: int) -> Tensor:
    """Return the mean of ``pool`` values (B, G, T, D): each and its predecessors; before the text they are zero."""
    width = SPANS[layer].get("pool", 1)
    if width == 1:
        return v
    wide = v.to(torch.promote_types(v.dtype, torch.float32))
    padded = F.pad(wide, (0, 0, width - 1, 0))
    return (padded.unfold(2, width, 1).sum(-1) / width).to(v.dtype)


@functools.lru_cache(maxsize=64)
def _block_mask(layer: int, tokens: int, device: str) -> Any:
    by_head = any(SPANS[layer].get(name) is not None for name in ("dilated_heads", "far_heads"))
    heads = N_HEADS if by_head else None
    return create_block_mask(MASK_MODS[layer], None, heads, tokens, tokens, device=device)


def attention(q: Tensor, k: Tensor, v: Tensor, layer: int, flex: Callable[..., Any] = flex_attention) -> Any:
    """Return the layer's attention, (B, H, T, D) as q; k and v are (B, G, T, D), and G divides H.

    On a GPU give ``flex=compiled``, where ``compiled = torch.compile(flex_attention)`` is made once.
    """
    return flex(
        q,
        k,
        average_values(v, layer),
        score_mod=SCORE_MODS[layer],
        block_mask=_block_mask(layer, q.shape[2], str(q.device)),
        enable_gqa=k.shape[1] != q.shape[1],
    )
