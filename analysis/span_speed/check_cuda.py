"""Hold FlexAttention on CUDA to the dense reference: forward and all three gradients, every span kind.

Command:  python analysis/span_speed/check_cuda.py
Time:     a few minutes on one GPU, nearly all of it compilation
Shows:    one line a span with the relative errors of out, dq, dk and dv, all below 2e-3 (float32 in, products in
          TF32 or better), and the same for the chunked kernels in float64, below 1e-10; exit status 1 otherwise.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch
from torch import Tensor

from layersearch.model.attention.dispatch import attend
from layersearch.model.attention.reference import reference_attention
from layersearch.schedule import Span

SPANS = ["full", "window:37", "window:40/2", "window:8/4@1", "block:64", "block:50", "window:37+sink:4"]
SPANS += ["window:8/4@1+sink:4", "block:50+sink:4", "full+las:0.05", "full+las:0/3", "window:37+las:0.05/3"]
SPANS += ["window:8/4@1+sink:4+las:0.05/3", "block:50+las:0.05"]
FLEX_TOLERANCE, CHUNKED_TOLERANCE = 2e-3, 1e-10


def outcome(attention: Callable[..., Tensor], case: list[Tensor]) -> list[Tensor]:
    """Return the output and the gradients of q, k and v."""
    out = attention(*case[:3])
    return [out.detach(), *torch.autograd.grad(out, case[:3], case[3])]


def errors(span: Span, kernel: str, dtype: torch.dtype, tokens: int, kv_heads: int) -> list[float]:
    """Return the relative errors of out, dq, dk and dv against the reference in float64."""
    torch.manual_seed(0)
    case = [torch.randn(2, heads, tokens, 32, device="cuda", dtype=dtype) for heads in (4, kv_heads, kv_heads, 4)]
    exact = [x.double().requires_grad_() for x in case]
    found = outcome(lambda q, k, v: attend(q, k, v, span, kernel=kernel), [x.requires_grad_() for x in case])  # type: ignore[arg-type]
    truth = outcome(lambda q, k, v: reference_attention(q, k, v, span), exact)
    return [float((x - y).norm() / y.norm()) for x, y in zip(found, truth, strict=True)]


def main() -> None:
    """Check every span by both kernels and report."""
    print(torch.__version__, torch.cuda.get_device_name())
    all_fine = True
    for text in SPANS:
        for kernel, dtype, limit in (
            ("flex", torch.float32, FLEX_TOLERANCE),
            ("chunked", torch.float64, CHUNKED_TOLERANCE),
        ):
            for tokens, kv_heads in ((256, 4), (333, 2)):
                found = errors(Span.parse(text), kernel, dtype, tokens, kv_heads)
                fine = max(found) < limit
                all_fine &= fine
                numbers = " ".join(f"{error:.1e}" for error in found)
                print(f"{'ok  ' if fine else 'FAIL'} {kernel:8s}{text:34s}{tokens:5d} tokens {numbers}", flush=True)
    sys.exit(not all_fine)


if __name__ == "__main__":
    main()
