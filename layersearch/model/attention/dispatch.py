"""The attention dispatcher: one call runs a span by the kernel that serves its device."""

from typing import Literal, get_args

import torch
from torch import Tensor

from layersearch.errors import LayersearchError, did_you_mean
from layersearch.model.attention.operator import chunked_attention, runs_flash
from layersearch.model.attention.reference import reference_attention
from layersearch.schedule import Span

Kernel = Literal["reference", "chunked", "flex"]


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    span: Span,
    kernel: Kernel | None = None,
    *,
    softcap: float = 0.0,
    s_aux: Tensor | None = None,
) -> Tensor:
    """Return causal attention over ``span``, differentiable in q, k, v and s_aux.

    Args:
        q: queries, (B, H, T, D).
        k: keys, (B, G, T, D), G dividing H.
        v: values, (B, G, T, D).
        span: the keys that each query sees.
        kernel: ``reference`` (every pair in memory), ``chunked`` (work and memory grow with the span) or ``flex``
            (FlexAttention; without a backward pass on CPU). None means flex on CUDA, else chunked.
        softcap: scaled logits z become softcap tanh(z / softcap), as in Gemma 2; 0: they stay.
        s_aux: a learned logit per head, (H,), of one more key that every query sees and whose value is 0, as in
            gpt-oss; None: no such key.

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
        if softcap < 0 or (s_aux is not None and s_aux.shape != q.shape[1:2]):
            raise LayersearchError(
                f"softcap {softcap}, s_aux {None if s_aux is None else tuple(s_aux.shape)}: expected 0 or more, and "
                f"one number for each of the {q.shape[1]} heads"
            )
    if not q.is_meta and torch.is_autocast_enabled(q.device.type) and q.dtype != torch.float64:
        common = torch.get_autocast_dtype(q.device.type)
    else:
        common = torch.promote_types(torch.promote_types(q.dtype, k.dtype), v.dtype)
    q, k, v = q.to(common), k.to(common), v.to(common)
    if kernel is None:
        # A traced graph must show the operator that names the span, and FlexAttention cannot be traced.
        kernel = "flex" if q.device.type == "cuda" and not tracing else "chunked"
    if kernel == "chunked":
        return chunked_attention(q, k, v, span, softcap, s_aux)
    if kernel == "flex":
        from layersearch.model.attention.flex import flex_span_attention

        return flex_span_attention(q, k, v, span, softcap, s_aux)
    if kernel == "reference":
        return reference_attention(q, k, v, span, softcap, s_aux)
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


def kernel_for(span: Span, device: torch.device | str, *, softcap: float = 0.0) -> str:
    """Return the name of the kernel that `attend` runs on a device, for records.

    It is ``flex``, ``chunked-flash`` (torch's CPU flash kernel over every earlier token, which has no ``softcap``) or
    ``chunked-span``.
    """
    where = torch.device(device)
    if where.type == "cuda":
        return "flex"
    return "chunked-flash" if runs_flash(span, where, softcap) else "chunked-span"
