"""Time attention and whole training steps of one recipe on one device, beside their exact FLOPs and memory estimate."""

from __future__ import annotations

import functools
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

WARM_UP, REPEATS = 3, 15
SPARSE = "window:256"


def schedules(n_layers: int, sparse: str) -> dict[str, Any]:
    """Return the schedules that are compared, by name. MASFormer's full layers are the lowest."""
    from layersearch.schedule import Span, presets

    span = Span.parse(sparse)
    return {
        "all-full": presets.all_full(n_layers),
        "MASFormer, 4 full": presets.place(n_layers, range(min(4, n_layers - 1)), span),
        f"all {sparse}": presets.all_sparse(n_layers, span),
    }


def milliseconds(call: Callable[[], Any], device: str, repeats: int) -> float:
    """Return the median time of a call. On a GPU it is the time between two events on its stream."""
    for _ in range(WARM_UP):
        call()
    found = []
    for _ in range(repeats):
        if device == "cpu":
            begun = time.perf_counter()
            call()
            found.append(1e3 * (time.perf_counter() - begun))
            continue
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        first.record()
        call()
        last.record()
        torch.cuda.synchronize()
        found.append(first.elapsed_time(last))
    return statistics.median(found)


def attention(recipe: Any, device: str, *, sparse: str = SPARSE, repeats: int = REPEATS) -> dict[str, Any]:
    """Time each span's attention, forward and backward, at the recipe's size; add up each schedule's layers.

    The yardstick ``torch`` is `scaled_dot_product_attention` with its own choice of kernel.
    """
    from layersearch.model.attention.dispatch import attend, kernel_for
    from layersearch.schedule.cost import budget_ratio

    model, training = recipe.model, recipe.training
    dtype = torch.bfloat16 if device != "cpu" else torch.float32
    shape = (training.batch_size, training.seq_len)
    torch.manual_seed(0)
    heads = (model.n_heads, model.n_kv_heads, model.n_kv_heads, model.n_heads)
    q, k, v, grad = (torch.randn(*shape, h, model.head_dim, device=device, dtype=dtype).transpose(1, 2) for h in heads)
    leaves = [x.requires_grad_() for x in (q, k, v)]

    def passes(forward: Callable[[], Tensor]) -> Callable[[], Any]:
        return lambda: torch.autograd.grad(forward(), leaves, grad)

    grouped = model.n_heads != model.n_kv_heads
    whole = passes(lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped))
    found: dict[str, Any] = {"batch_size": shape[0], "tokens": shape[1], "dtype": str(dtype).removeprefix("torch.")}
    by_span, kernels = {}, {}
    compared = schedules(model.n_layers, sparse)
    for span in dict.fromkeys(span for schedule in compared.values() for span in schedule):
        by_span[span] = milliseconds(passes(lambda span=span: attend(q, k, v, span)), device, repeats)
        kernels[str(span)] = kernel_for(span, device, dtype=dtype, head_dim=model.head_dim)
    total = {name: sum(by_span[span] for span in schedule) for name, schedule in compared.items()}
    rows = {}
    for name, schedule in compared.items():
        cost = budget_ratio(schedule, seq_len=training.seq_len, n_heads=model.n_heads)
        share = total[name] / total["all-full"]
        rows[name] = {"cost": cost, "time": share, "time_over_cost": share / cost, "milliseconds": total[name]}
    found["milliseconds"] = {str(span): value for span, value in by_span.items()}
    found |= {"torch": milliseconds(whole, device, repeats), "kernels": kernels, "schedules": rows}
    return found


def kernel_times(recipe: Any, device: str, batch_sizes: Sequence[int], spans: Sequence[str], repeats: int) -> list[Any]:
    """Return forward and backward of one attention layer: the whole call, and its kernels on the device alone, ms.

    What the call takes beyond its kernels is the time in which the device waits for Python.
    """
    from layersearch.model.attention.dispatch import attend
    from layersearch.schedule import Span

    model, tokens, rows = recipe.model, recipe.training.seq_len, []
    dtype = torch.bfloat16 if device != "cpu" else torch.float32
    kernels = [("full", "flash"), *((text, "flex") for text in spans)] if device != "cpu" else [("full", "chunked")]
    for batch in batch_sizes:
        torch.manual_seed(0)
        made = [torch.randn(batch, tokens, model.n_heads, model.head_dim, device=device, dtype=dtype) for _ in range(4)]
        leaves, grad = [x.transpose(1, 2).requires_grad_() for x in made[:3]], made[3].transpose(1, 2)
        for text, kernel in kernels:
            call = functools.partial(_pass, attend, leaves, grad, Span.parse(text), kernel)
            whole, on_device = milliseconds(call, device, repeats), _on_device(call, device, repeats)
            rows.append({"batch_size": batch, "span": text, "kernel": kernel, "call": whole, "kernels": on_device})
    return rows


def _pass(attend: Any, leaves: Sequence[Tensor], grad: Tensor, span: Any, kernel: str) -> Any:
    return torch.autograd.grad(attend(*leaves, span, kernel=kernel), leaves, grad)


def _on_device(call: Callable[[], Any], device: str, repeats: int) -> float:
    """Return the sum of a call's kernels, ms, by torch's profiler."""
    from torch.profiler import ProfilerActivity, profile

    kind = ProfilerActivity.CPU if device == "cpu" else ProfilerActivity.CUDA
    with profile(activities=[kind]) as found:
        for _ in range(repeats):
            call()
        if device != "cpu":
            torch.cuda.synchronize()
    name = "self_cpu_time_total" if device == "cpu" else "self_device_time_total"
    return sum(float(getattr(event, name)) for event in found.key_averages()) / repeats / 1e3


def training_steps(recipe: Any, device: str, *, sparse: str = SPARSE, repeats: int = REPEATS) -> list[dict[str, Any]]:
    """Time whole training steps through DeepSpeed; compare the peak of memory with the estimate."""
    from layersearch.schedule.cost import budget_ratio
    from layersearch.training.engine import RankGroup, join, leave

    os.environ.setdefault("DS_ACCELERATOR", "cpu" if device == "cpu" else "cuda")
    group = RankGroup(device=device)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        join(group, str(Path(folder) / "rendezvous"))
        try:
            for name, schedule in schedules(recipe.model.n_layers, sparse).items():
                cost = budget_ratio(schedule, seq_len=recipe.training.seq_len, n_heads=recipe.model.n_heads)
                rows.append({"schedule": name, "cost": cost, **_one(recipe, schedule, group, repeats)})
        finally:
            leave()
    return rows


def _one(recipe: Any, schedule: Sequence[Any], group: Any, repeats: int) -> dict[str, Any]:
    from layersearch.config.recipe import deepspeed_file
    from layersearch.model.decoder import Decoder
    from layersearch.training.deepspeed_config import deepspeed_config
    from layersearch.training.engine import Engine, can_compile
    from layersearch.training.memory import activation_bytes, model_bytes, peak_memory, reset_peak_memory

    training, vocabulary, device = recipe.training, recipe.data.vocab_size, group.device
    estimated = model_bytes(recipe, vocabulary) + activation_bytes(recipe, vocabulary, schedule)  # type: ignore[arg-type]
    torch.manual_seed(0)
    compiled = training.compile and can_compile(device)
    model = Decoder(recipe.model, vocabulary, schedule, compiled)  # type: ignore[arg-type]
    tokens = torch.randint(vocabulary, (training.batch_size, training.seq_len)).to(device)
    targets = tokens.roll(-1, 1)
    began = time.perf_counter()
    engine = Engine(model, training, deepspeed_config(training, deepspeed_file(recipe)), group)
    try:
        engine.step(tokens, targets)
        float(engine.step(tokens, targets))  # waits for the device
        first = time.perf_counter() - began
        reset_peak_memory(device)
        taken = milliseconds(lambda: engine.step(tokens, targets), device, repeats)
        peak = peak_memory(device)
    finally:
        engine.close()
    return {
        "compiled": compiled,
        "first_two_steps_seconds": round(first, 1),
        "step_milliseconds": round(taken, 2),
        "tokens_per_second": round(tokens.numel() / taken * 1e3),
        "peak_bytes": peak,
        "estimated_bytes": estimated,
    }
