"""The attention dispatcher: one call runs a span by the kernel that serves its device."""

from typing import Literal, get_args

import torch
from torch import Tensor

from layersearch.errors import LayersearchError, did_you_mean
from layersearch.model.attention.operator import chunked_attention, runs_flash
from layersearch.model.attention.reference import reference_attention
from layersearch.schedule import Span

Kernel = Literal["reference", "chunked", "flex"]


def attend(q: Tensor, k: Tensor, v: Tensor, span: Span, kernel: Kernel | None = None) -> Tensor:
    """Return causal attention over ``span``, differentiable in q, k and v.

    Args:
        q: queries, (B, H, T, D).
        k: keys, (B, G, T, D), G dividing H.
        v: values, (B, G, T, D).
        span: the keys that each query sees.
        kernel: ``reference`` (every pair in memory), ``chunked`` (work and memory grow with the span) or ``flex``
            (FlexAttention; without a backward pass on CPU). None means flex on CUDA, else chunked.

    Returns:
        (B, H, T, D), in the widest precision of q, k and v, or in autocast's where that is on.

    Raises:
        LayersearchError: the shapes do not match, the kernel is unknown, or flex needs gradients on CPU.

    Example:
        >>> import torch
        >>> from layersearch import Span, attend
        >>> q, k, v = torch.randn(1, 4, 16, 8), torch.randn(1, 2, 16, 8), torch.randn(1, 2, 16, 8)
        >>> attend(q, k, v, Span.parse("window:4+sink:1")).shape
        torch.Size([1, 4, 16, 8])
    """
    tracing = torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
    if not tracing:  # under tracing shapes are tensors, which a branch would freeze
        _check(q, k, v, span)
    if not q.is_meta and torch.is_autocast_enabled(q.device.type) and q.dtype != torch.float64:
        common = torch.get_autocast_dtype(q.device.type)
    else:
        common = torch.promote_types(torch.promote_types(q.dtype, k.dtype), v.dtype)
    q, k, v = q.to(common), k.to(common), v.to(common)
    if kernel is None:
        # A traced graph must show the operator that names the span, and FlexAttention cannot be traced.
        kernel = "flex" if q.device.type == "cuda" and not tracing else "chunked"
    if kernel == "chunked":
        return chunked_attention(q, k, v, span)
    if kernel == "flex":
        from layersearch.model.attention.flex import flex_span_attention

        return flex_span_attention(q, k, v, span)
    if kernel == "reference":
        return reference_attention(q, k, v, span)
    raise LayersearchError(f"attention kernel {kernel!r} is not known{did_you_mean(str(kernel), get_args(Kernel))}")


def _check(q: Tensor, k: Tensor, v: Tensor, span: Span) -> None:
    if k.shape != v.shape or q.ndim != 4 or k.ndim != 4 or q.shape[::2] != k.shape[::2] or q.shape[3] != k.shape[3]:
        raise LayersearchError(
            f"q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}: expected (B, H|G, T, D) alike"
        )
    if q.shape[1] % k.shape[1]:
        raise LayersearchError(f"{q.shape[1]} query heads are no multiple of {k.shape[1]} key-value heads")
    if (span.dilated_heads or 0) > q.shape[1]:
        raise LayersearchError(f"{span} dilates more heads than the {q.shape[1]} there are; lower @H")


def kernel_for(span: Span, device: torch.device | str) -> str:
    """Return the name of the kernel that `attend` runs on a device, for records.

    It is ``flex``, ``chunked-flash`` (torch's CPU flash kernel over every earlier token) or ``chunked-span``.
    """
    where = torch.device(device)
    return "flex" if where.type == "cuda" else "chunked-flash" if runs_flash(span, where) else "chunked-span"
