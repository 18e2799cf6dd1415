"""FLOPs counted in the traced graph of the proxy model: an independent check on `layersearch.schedule.cost`."""

from __future__ import annotations

import functools
import warnings
from collections import Counter
from typing import Any

import torch
from torch import nn

from layersearch.schedule import Span

OPERATOR = "layersearch::attend"


# Pairs looked at together when a span is counted.
PAIRS_AT_ONCE = 1 << 22


class UnknownAttentionError(RuntimeError):
    """The traced model attends through an operator whose FLOPs are not known."""


@functools.lru_cache(maxsize=256)
def _visible_pairs(text: str, tokens: int, heads: int) -> int:
    """Count a span's pairs by asking `Span.visible` about every one of them: no closed form is trusted here."""
    span = Span.parse(text)
    head, keys = torch.arange(heads)[:, None, None], torch.arange(tokens)
    rows = max(1, PAIRS_AT_ONCE // (heads * tokens))
    pairs = 0
    for first in range(0, tokens, rows):
        queries = torch.arange(first, min(first + rows, tokens))[:, None]
        pairs += int(span.visible(queries, keys, head).expand(heads, -1, -1).sum())
    return pairs


def _attend_flops(inputs: list[Any], outputs: list[Any]) -> Counter[str]:
    """Count one attention call from the traced graph alone: the span's text and the shapes of q and v."""
    queries, values = inputs[0].type().sizes(), inputs[2].type().sizes()
    batch, heads, tokens, width = queries
    pairs = _visible_pairs(inputs[3].toIValue(), tokens, heads)
    return Counter({OPERATOR.split("::")[1]: batch * pairs * (width + values[-1])})


def traced_flops(model: nn.Module, seq_len: int) -> dict[str, int]:
    """Return the multiply-adds of one sequence's forward pass by operator, as fvcore counts the traced graph.

    Args:
        model: a `layersearch.model.decoder.Decoder`, or a module called with the same arguments.
        seq_len: tokens in the sequence.

    Raises:
        UnknownAttentionError: names an attention operator that cannot be counted; fvcore alone would count it as 0.
    """
    from fvcore.nn import FlopCountAnalysis

    device = next(model.parameters()).device
    tokens = torch.zeros((1, seq_len), dtype=torch.long, device=device)
    analysis = FlopCountAnalysis(model, (tokens, tokens))
    analysis.set_op_handle(OPERATOR, _attend_flops)
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    with warnings.catch_warnings():
        # Tracing freezes Python numbers taken from shapes, which is what a count for one shape wants.
        warnings.simplefilter("ignore", torch.jit.TracerWarning)  # type: ignore[attr-defined]
        warnings.simplefilter("ignore", DeprecationWarning)
        counts = analysis.by_operator()
    unknown = sorted(
        name for name in analysis.unsupported_ops() if any(word in name for word in ("attention", "attend"))
    )
    if unknown:
        raise UnknownAttentionError(f"FLOPs of {', '.join(unknown)} are not known; attend through layersearch.attend")
    return {name: int(count) for name, count in counts.items()}
