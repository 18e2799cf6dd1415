"""Spans of every kind, and how attention kernels are set against the reference."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from layersearch.schedule import Span

BASES = [
    "full",
    "window:1",
    "window:5",
    "window:37",
    "window:300",
    "block:1",
    "block:7",
    "block:64",
    "block:300",
    "block:7~3",
]
DILATED = ["window:5/3", "window:40/2", "window:4/2@1", "window:4/7@3", "window:3/400"]
SINKS = [f"{base}+sink:3" for base in BASES[1:] + DILATED] + [
    "window:4+sink:50",
    "window:300+sink:9",
    "block:6+sink:17",
    "block:64~60+sink:9",
    "window:3/5+sink:20",
]
PLAIN = BASES + DILATED + SINKS
LAS = [f"{span}+las:{las}" for span in PLAIN for las in ("0.3", "0.9/3", "0/4")]
UNIONS = ["strided:5", "strided:64", "fixed:8/3", "fixed:16/1", "fixed:70/9", "bigbird:4/2", "bigbird:16/1/7"]
UNIONS += ["memory:9/4", "memory:50/64", "bigbird:6/0"]
BY_HEAD = ["strided:5@2", "strided:9@4", "fixed:8/3@1", "fixed:20/9@4"]
UNIONS += BY_HEAD
KINDS = [*PLAIN, *LAS, *UNIONS]

ENCODER = [
    "full",
    "window:1",
    "window:37",
    "window:5+global:first:3",
    "window:3+global:first:20",
    "block:7~3",
    "block:300",
]
ENCODER += ["block:64", "block:64~60+global:first:9", "block:3~1+global:first:11", "window:60+global:first:2"]
ENCODER += ["bigbird:4/0", "bigbird:6/2", "bigbird:9/1/5", "bigbird:40/2"]
EXTRA = [
    ("window:5+summary:7", True),
    ("block:9~2+global:first:2+summary:4", True),
    ("window:4+global:mask:3", True),
    ("block:16+global:mask:1+summary:20", True),
    ("window:6+summary:4", False),
    ("block:8~3+summary:5+sink:2", False),
    ("window:4/2@1+summary:9", False),
]
"""Spans with keys beside the text's, or with tokens that the task marks, and whether the model is an encoder."""

AUX = torch.tensor([0.3, -2.0, 4.0, 1.0], dtype=torch.float64)
"""Learned sinks of four heads."""


def tensors(batch: int, heads: int, kv_heads: int, tokens: int, width: int, **options: Any) -> list[Tensor]:
    """Return q, k, v and a gradient of the output, with tokens outermost in memory as a projection leaves them."""
    generator = torch.Generator().manual_seed(tokens)

    def one(count: int) -> Tensor:
        values = torch.randn(batch, tokens, count, width, generator=generator, dtype=torch.float64)
        return values.transpose(1, 2).to(options.get("dtype", torch.float64))

    q, k, v, grad = one(heads), one(kv_heads), one(kv_heads), one(heads)
    return [q.requires_grad_(), k.requires_grad_(), v.requires_grad_(), grad]


def outcome(
    attention: Callable[..., Tensor], span: Span, q: Tensor, k: Tensor, v: Tensor, grad: Tensor
) -> list[Tensor]:
    out = attention(q, k, v, span)
    return [out.detach(), *torch.autograd.grad(out, (q, k, v), grad)]


def differences(found: list[Tensor], truth: list[Tensor]) -> list[float]:
    """Return ||found - truth|| / ||truth||; a gradient that is 0 but for rounding is measured against 1."""
    norms = [((x - y).double().norm(), y.double().norm()) for x, y in zip(found, truth, strict=True)]
    # No maximum passes over infinity, as it may over what is not a number.
    return [float((off / (norm if norm > 1e-12 else 1.0)).nan_to_num(nan=torch.inf)) for off, norm in norms]


def extra_case(text: str, tokens: int) -> tuple[Span, list[Tensor], Tensor, dict[str, Any]]:
    """Return a span, its q, k, v and summaries, a gradient, and its marks."""
    span, (*case, grad) = Span.parse(text), tensors(3, 4, 2, tokens, 5)
    generator = torch.Generator().manual_seed(1)
    if count := span.summaries(tokens):
        more = torch.randn(2, 3, 2, count, 5, generator=generator, dtype=torch.float64)
        case += [x.requires_grad_() for x in more.unbind()]
    marked = None
    if span.global_marked:
        marked = torch.zeros(3, tokens, dtype=torch.bool)
        for row in marked:
            row[torch.randperm(tokens, generator=generator)[: span.global_marked]] = True
    return span, case, grad, {"marked": marked}
