"""Hold the kernels of one device to the dense reference in float64: output and gradients, every kind of span.

On CUDA: FlexAttention in float32 and bf16, torch's flash kernel in bf16, and the chunked kernels in float64. On a CPU
FlexAttention has no gradient, so only its output is compared. Cases run in worker processes, since nearly all of their
time is compilation.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

SPANS = ["full", "window:37", "window:40/2", "window:8/4@1", "block:64", "block:50", "window:37+sink:4"]
SPANS += ["window:8/4@1+sink:4", "block:50+sink:4", "full+las:0.05", "full+las:0/3", "window:37+las:0.05/3"]
SPANS += ["window:8/4@1+sink:4+las:0.05/3", "block:50+las:0.05"]
SPANS += ["block:50~20", "strided:40", "fixed:50/8", "bigbird:32/2", "memory:40/64"]
ENCODER = ["full", "window:37", "window:20+global:first:5", "window:40", "block:50", "block:50~20"]
"""Spans of encoders, where tokens see later ones."""
TOLERANCE = {"float64": 1e-10, "float32": 2e-3, "bfloat16": 2e-2}
"""Largest relative error by type: products of float32 run in TF32 or better on a GPU."""
PROCESSES = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """One comparison. Queries have 4 heads of 32, in 2 sequences."""

    span: str
    kernel: str
    dtype: str
    device: str
    tokens: int
    kv_heads: int
    softcap: float = 0.0
    sinks: bool = False
    """A learned sink per head."""
    bidirectional: bool = False
    """Whether the model is an encoder."""


def cases(device: str, *, few: bool = False) -> list[Case]:
    """Return the cases of a device; ``few``: one span of each kernel, and those with a cap and sinks."""
    found = []
    for kernel, dtype in (("flex", "float32"), ("flex", "bfloat16"), ("chunked", "float64")):
        for number, span in enumerate(SPANS[1:2] if few else SPANS):
            # Grouped heads and a length that no block divides, for every other span each.
            shape: dict[str, Any] = {"tokens": 333, "kv_heads": 2} if number % 2 else {"tokens": 256, "kv_heads": 4}
            found.append(Case(span=span, kernel=kernel, dtype=dtype, device=device, **shape))
        for number, span in enumerate(ENCODER[1:2] if few else ENCODER):
            shape = {"tokens": 256, "kv_heads": 4} if number % 2 else {"tokens": 333, "kv_heads": 2}
            found.append(Case(span=span, kernel=kernel, dtype=dtype, device=device, bidirectional=True, **shape))
        for span in ("full", "window:37+sink:4"):
            more: dict[str, Any] = {"tokens": 333, "kv_heads": 2, "softcap": 20.0, "sinks": True}
            found.append(Case(span=span, kernel=kernel, dtype=dtype, device=device, **more))
    if device != "cpu":
        for tokens, kv_heads in ((333, 2), (256, 4)):
            shape = {"tokens": tokens, "kv_heads": kv_heads}
            found.append(Case(span="full", kernel="flash", dtype="bfloat16", device=device, **shape))
    return found


def errors(case: Case) -> dict[str, float]:
    """Return the relative errors of the output and of the gradients of q, k, v and the learned sinks."""
    from layersearch.model.attention.dispatch import attend
    from layersearch.model.attention.reference import reference_attention
    from layersearch.schedule import Span

    torch.manual_seed(0)
    dtype, span = getattr(torch, case.dtype), Span.parse(case.span)
    heads = (4, case.kv_heads, case.kv_heads, 4)
    made = [torch.randn(2, h, case.tokens, 32, device=case.device, dtype=dtype) for h in heads]
    sinks = torch.randn(4, device=case.device, dtype=dtype) if case.sinks else None
    with_gradients = case.device != "cpu" or case.kernel != "flex"

    def outcome(attention: Callable[..., Tensor], kind: torch.dtype) -> list[Tensor]:
        given = [x.to(kind).requires_grad_(with_gradients) for x in made[:3]]
        own = None if sinks is None else sinks.to(kind).requires_grad_(with_gradients)
        out = attention(*given, span, softcap=case.softcap, s_aux=own, bidirectional=case.bidirectional)
        leaves = given if own is None else [*given, own]
        found = torch.autograd.grad(out, leaves, made[3].to(kind)) if with_gradients else ()
        return [out.detach(), *found]

    found = outcome(lambda *a, **n: attend(*a, kernel=case.kernel, **n), dtype)  # type: ignore[arg-type]
    truth = outcome(reference_attention, torch.float64)
    names = ("out", "dq", "dk", "dv", "ds")
    return {name: float((x.double() - y).norm() / y.norm()) for name, x, y in zip(names, found, truth, strict=False)}


def check(device: str, *, few: bool = False) -> dict[str, Any]:
    """Run every case; return the largest error of each kernel and type, and the cases beyond `TOLERANCE`."""
    wanted = cases(device, few=few)
    workers = min(PROCESSES, os.cpu_count() or 1, 1 if few else len(wanted))
    if workers == 1:
        found = [errors(case) for case in wanted]
    else:
        with multiprocessing.get_context("spawn").Pool(workers) as pool:
            found = pool.map(errors, wanted, chunksize=1)
    largest: dict[str, float] = {}
    beyond = []
    for case, by in zip(wanted, found, strict=True):
        name, most = f"{case.kernel} {case.dtype}", max(by.values())
        largest[name] = max(largest.get(name, 0.0), most)
        if not most < TOLERANCE[case.dtype]:  # a NaN is beyond too
            beyond.append(dataclasses.asdict(case) | {"errors": by})
    return {"cases": len(wanted), "largest_error": largest, "tolerance": TOLERANCE, "beyond": beyond}
