"""The attention dispatcher: one call runs a span by the kernel that serves its device."""

from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from layersearch.errors import LayersearchError, did_you_mean
from layersearch.model.attention.operator import chunked_attention
from layersearch.model.attention.plain import runs_flash
from layersearch.model.attention.reference import reference_attention
from layersearch.schedule import Span

Kernel = Literal["reference", "chunked", "flash", "flex"]
_FLASH_WIDTH = 256
"""The widest heads of torch's flash kernel on CUDA."""


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    span: Span,
    kernel: Kernel | None = None,
    *,
    softcap: float = 0.0,
    s_aux: Tensor | None = None,
    bidirectional: bool = False,
    summaries: tuple[Tensor, Tensor] | None = None,
    marked: Tensor | None = None,
) -> Tensor:
    """Return attention over ``span``, differentiable in q, k, v, s_aux and summaries.

    Args:
        q: queries, (B, H, T, D).
        k: keys, (B, G, T, D), G dividing H.
        v: values, (B, G, T, D).
        span: the keys that each query sees.
        kernel: ``reference`` (every pair in memory), ``chunked`` (work and memory grow with the span), ``flex``
            (FlexAttention; without a backward pass on CPU) or ``flash`` (torch's own on CUDA, for full attention in
            bf16 or float16). None means flash on CUDA where it serves, else flex there, and chunked on CPU.
        softcap: scaled logits z become softcap tanh(z / softcap), as in Gemma 2; 0: they stay.
        s_aux: a learned logit per head, (H,), of one more key that every query sees and whose value is 0, as in
            gpt-oss; None: no such key.
        bidirectional: whether the model is an encoder: tokens see later ones, and a window has W keys on each side.
        summaries: keys and values of a span's summaries, (B, G, M, D) each, where it has any.
        marked: the tokens that the task marks, (B, T) boolean, as many in each text as the span says. None: the first.

    Returns:
        (B, H, T, D), in the widest precision of q, k and v, or in autocast's where that is on.

    Raises:
        LayersearchError: the shapes do not match, the kernel is unknown, the span has no meaning in this direction, or
            flex needs gradients on CPU.

    Example:
        >>> import torch
        >>> from layersearch import Span, attend
        >>> q, k, v = torch.randn(1, 4, 16, 8), torch.randn(1, 2, 16, 8), torch.randn(1, 2, 16, 8)
        >>> attend(q, k, v, Span.parse("window:4+sink:1")).shape
        torch.Size([1, 4, 16, 8])
    """
    span.check_direction(bidirectional)
    tracing = torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
    if not tracing:  # under tracing shapes are tensors, which a branch would freeze
        _check(q, k, v, span)
        _check_extras(q, k, span, softcap, summaries, marked)
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
    if summaries is not None:
        summaries = summaries[0].to(common), summaries[1].to(common)
    more: Any = {"bidirectional": bidirectional, "summaries": summaries, "marked": marked}
    if kernel is None:
        # A traced graph must show the operator that names the span, and FlexAttention cannot be traced.
        kernel = "flex" if q.device.type == "cuda" and not tracing else "chunked"
        if kernel == "flex" and _serves_flash(span, q.device, common, q.shape[3], bool(softcap) or s_aux is not None):
            kernel = "flash"
    if kernel == "chunked":
        return chunked_attention(q, k, v, span, softcap, s_aux, **more)
    if kernel == "flex":
        from layersearch.model.attention.flex import flex_span_attention

        return flex_span_attention(q, k, v, span, softcap, s_aux, **more)
    if kernel == "flash":
        # Without a kernel of these torch would hold every pair in memory; here it raises an error instead.
        with sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION]):
            grouped = q.shape[1] != k.shape[1]
            return F.scaled_dot_product_attention(q, k, v, is_causal=not bidirectional, enable_gqa=grouped)
    if kernel == "reference":
        return reference_attention(q, k, v, span, softcap, s_aux, **more)
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


def _check_extras(
    q: Tensor,
    k: Tensor,
    span: Span,
    softcap: float,
    summaries: tuple[Tensor, Tensor] | None,
    marked: Tensor | None,
) -> None:
    count, (batch, _, tokens, width) = span.summaries(q.shape[2]), q.shape
    if (summaries is None) != (count == 0):
        raise LayersearchError(f"{span} needs the keys and values of {count} summaries; give `summaries`")
    for x in summaries or ():
        if x.shape != (batch, k.shape[1], count, width):
            raise LayersearchError(f"summaries {tuple(x.shape)}: expected {(batch, k.shape[1], count, width)}")
    if marked is None:
        return
    if not span.global_marked:
        raise LayersearchError(f"{span} takes no marked tokens; write '+global:mask:G'")
    if softcap:
        raise LayersearchError(f"{span} has no softcap; drop it, or take '+global:first:{span.global_marked}'")
    if marked.shape != (batch, tokens):
        raise LayersearchError(f"a mask of {tuple(marked.shape)} for texts of {(batch, tokens)}: give one mark a token")
    counts = marked.sum(1)
    if not bool((counts == span.global_marked).all()):
        found = sorted(set(counts.tolist()))
        raise LayersearchError(
            f"{span}: the task marks {', '.join(map(str, found))} tokens of a text, not {span.global_marked}; "
            f"write '+global:mask:{found[-1]}'"
        )


def _serves_flash(span: Span, device: torch.device, dtype: torch.dtype, width: int, more: bool) -> bool:
    """Return whether torch's flash kernel on CUDA attends over a span; ``more``: there is a softcap or a sink."""
    plain = span.is_full and span.decay == 0 and span.pool == 1 and not more
    fits = dtype in (torch.bfloat16, torch.float16) and width <= _FLASH_WIDTH and width % 8 == 0
    return plain and fits and torch.cuda.get_device_capability(device) >= (8, 0)


def kernel_for(
    span: Span,
    device: torch.device | str,
    *,
    dtype: torch.dtype = torch.float32,
    head_dim: int = 64,
    softcap: float = 0.0,
    sinks: bool = False,
) -> str:
    """Return the name of the kernel that `attend` runs on a device, for records.

    It is ``flash`` or ``flex`` on CUDA. On CPU it is ``chunked-flash`` (torch's CPU flash kernel over every earlier
    token, which has no ``softcap``) or ``chunked-span``.

    Args:
        span: the span.
        device: where it runs.
        dtype: of the matrix products: autocast's where that is on.
        head_dim: width of a head.
        softcap: as of `attend`.
        sinks: whether heads have learned sinks, the ``s_aux`` of `attend`.
    """
    where = torch.device(device)
    if where.type == "cuda":
        return "flash" if _serves_flash(span, where, dtype, head_dim, bool(softcap) or sinks) else "flex"
    return "chunked-flash" if runs_flash(span, where, softcap) else "chunked-span"
