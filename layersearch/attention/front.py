"""The front door: one call that runs a span by the kernel that serves its device."""

from __future__ import annotations

from torch import Tensor

from layersearch.attention.reference import reference_attention
from layersearch.schedule import Span


def attend(q: Tensor, k: Tensor, v: Tensor, span: Span, kernel: str | None = None) -> Tensor:
    """Return causal attention over ``span``.

    Args:
        q: queries, (B, H, T, D).
        k: keys, (B, G, T, D), G dividing H.
        v: values, (B, G, T, D).
        span: what each query sees.
        kernel: the kernel to run.

    Returns:
        (B, H, T, D).
    """
    return reference_attention(q, k, v, span)


def kernel_for(span: Span, device: object) -> str:
    """Return the name of the kernel that really runs ``span`` on ``device``."""
    return "reference"
