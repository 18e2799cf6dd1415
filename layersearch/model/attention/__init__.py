"""Attention over a span: one dispatcher, a dense reference, and kernels whose work grows with the span."""

from layersearch.model.attention.dispatch import attend, kernel_for
from layersearch.model.attention.reference import reference_attention, span_mask

__all__ = ["attend", "kernel_for", "reference_attention", "span_mask"]
