"""Time spans against torch's full causal attention, forward and backward, and measure their memory.

Command:  python analysis/span_speed/bench.py
Time:     about 3 minutes on one core
Shows:    whether, at 8,192 tokens, head dimension 64, float32, one thread, window:512 takes at most 1.6 times its
          share (0.121) of the full attention's time (exit status 1 if not).

The goal is timed on its own, full attention and window:512 in turn, in blocks spread over the whole run, since other
guests of the host disturb a stretch of it now and then; the median is over all blocks. The other spans are timed in
rounds, one after another, each against the full attention of its round. Every timed pass follows an untimed one of the
same kind, as in training, where the same layer runs step after step. Times are CPU time of the one thread: waiting for
other programs is not counted, though their use of memory and caches still tells.
Writes record.json and span_speed.png beside itself.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from layersearch.model.attention.dispatch import attend
from layersearch.schedule import Span
from layersearch.schedule.cost import span_pairs
from layersearch.schedule.span import FULL
from layersearch.training.workers.process import KEEP_FREED_MEMORY

HERE = Path(__file__).resolve().parent
LIMIT = 1.6
LONG = {"batch": 1, "heads": 1, "tokens": 8192, "head_dim": 64, "dtype": "float32"}
LONG_SPANS = ["window:64", "window:128", "window:256", "window:512", "window:1024", "window:2048"]
LONG_SPANS += ["block:256", "block:512", "block:1024", "window:512/2", "window:512/4", "window:512+sink:4"]
LONG_SPANS += ["window:512+las:0.01", "window:512+las:0.01/3", "block:1024+sink:4", "full"]
PROXY_SPANS = ["full", "window:16", "window:32", "window:64", "block:32", "block:64", "window:16/4", "window:16/4@1"]
PROXY_SPANS += ["window:32+sink:4", "window:32+las:0.1/3"]
GOAL = "window:512"
GOAL_PAIRS = 9
CASES: list[tuple[dict[str, Any], list[str], int]] = [(LONG, LONG_SPANS, 11)]
for tokens in (256, 512):
    for dtype in ("bfloat16", "float32"):
        shape = {"batch": 8, "heads": 4, "tokens": tokens, "head_dim": 32, "dtype": dtype}
        CASES.append((shape, PROXY_SPANS, 21))
MEMORY = ["sdpa", "reference", "full", "window:64", "window:512", "window:512+las:0.01/3", "full+las:0.01"]


def inputs(batch: int, heads: int, tokens: int, head_dim: int, dtype: str) -> list[Tensor]:
    """Return q, k, v and the output's gradient, laid out as a projection leaves them."""
    torch.manual_seed(0)
    made = [torch.randn(batch, tokens, heads, head_dim).to(getattr(torch, dtype)).transpose(1, 2) for _ in range(4)]
    return [*(x.requires_grad_() for x in made[:3]), made[3]]


def full_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Return torch's own causal attention: the yardstick."""
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def full_both_ways(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Return torch's own attention of an encoder."""
    return F.scaled_dot_product_attention(q, k, v)


def over(text: str, bidirectional: bool = False) -> Callable[..., Tensor]:
    """Return attention over a span; its summaries are some of the keys, and its marked tokens evenly spread."""
    span = Span.parse(text)

    def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        count, marked = span.summaries(q.shape[2]), None
        more = (k[:, :, :count], v[:, :, :count]) if count else None
        if span.global_marked:
            marked = (torch.arange(q.shape[2]) % (q.shape[2] // span.global_marked) == 0).expand(len(q), -1)
        return attend(q, k, v, span, bidirectional=bidirectional, summaries=more, marked=marked)

    return attention


def seconds(attention: Callable[..., Tensor], q: Tensor, k: Tensor, v: Tensor, grad: Tensor) -> tuple[float, float]:
    """Return the CPU time of one forward and one backward pass."""
    start = time.process_time()
    out = attention(q, k, v)
    middle = time.process_time()
    torch.autograd.grad(out, (q, k, v), grad)
    return middle - start, time.process_time() - middle


def timed(
    shape: dict[str, Any], spans: list[str], repetitions: int, bidirectional: bool = False
) -> dict[str, list[tuple[float, float]]]:
    """Return forward and backward seconds of full attention and each span, over interleaved repetitions."""
    case = inputs(**shape)
    full = full_both_ways if bidirectional else full_attention
    runs = {"sdpa": full} | {text: over(text, bidirectional) for text in spans}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    for repetition in range(repetitions + 1):
        for name, attention in runs.items():
            # A span is set against the full run of its own repetition, so that other load on the machine cancels.
            seconds(attention, *case)
            pair = seconds(attention, *case)
            if repetition:
                times[name].append(pair)
    return times


def summary(
    shape: dict[str, Any], times: dict[str, list[tuple[float, float]]], bidirectional: bool = False
) -> dict[str, Any]:
    """Return medians, and each span's ratio to its share of full attention."""

    def pairs_of(span: Span) -> int:
        return span_pairs(span, shape["tokens"], shape["heads"], bidirectional=bidirectional)

    full_pairs = pairs_of(FULL)
    rows = {}
    for name, pairs in times.items():
        share = 1.0 if name == "sdpa" else pairs_of(Span.parse(name)) / full_pairs
        ratios = [sum(pair) / sum(full) for pair, full in zip(pairs, times["sdpa"], strict=True)]
        relative = statistics.median(ratios)
        rows[name] = {
            "forward_ms": round(1e3 * statistics.median(forward for forward, _ in pairs), 3),
            "backward_ms": round(1e3 * statistics.median(backward for _, backward in pairs), 3),
            "share_of_flops": round(share, 5),
            "share_of_time": round(relative, 5),
            "time_over_flops": round(relative / share, 3),
            "time_over_flops_range": [round(ratio / share, 3) for ratio in (min(ratios), max(ratios))],
        }
    return {"shape": shape, "repetitions": len(times["sdpa"]), "spans": rows}


def peak_mb(name: str, bidirectional: bool = False) -> float:
    """Return how far one forward and backward pass lifts the peak memory of this fresh process, in MB."""
    from layersearch.model.attention.reference import reference_attention

    torch.set_num_threads(1)
    small, case = inputs(1, 1, 64, 64, "float32"), inputs(1, 1, 8192, 64, "float32")
    full = full_both_ways if bidirectional else full_attention
    run = {"sdpa": full, "reference": lambda q, k, v: reference_attention(q, k, v, FULL)}.get(name)
    run = run or over(name, bidirectional)
    seconds(run, *small)  # libraries and thread pools are in memory before the count starts
    # The kernel forgets the peak of the imports; what follows is the pass alone.
    Path("/proc/self/clear_refs").write_text("5")
    before = resident_mb("VmRSS")
    seconds(run, *case)
    return resident_mb("VmHWM") - before


def resident_mb(field: str) -> float:
    """Return a memory figure of this process (Linux), in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(field + ":"))) / 1024


def figure(record: dict[str, Any], path: Path) -> None:
    """Plot each span's share of time against its share of FLOPs."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    panels, axes = plt.subplots(1, 2, figsize=(11, 4.8), constrained_layout=True)
    groups = {"window": "o", "block": "s", "dilated": "^", "sink": "D", "LaS": "v", "full": "*"}
    titles = ("8,192 tokens, 1 head of 64, float32", "512 tokens, batch 8, 4 heads of 32, bf16")
    timings = (record["timings"][1], next(t for t in record["timings"] if t["shape"] == CASES[3][0]))
    for axis, timing, title in zip(axes, timings, titles, strict=True):
        for group, marker in groups.items():
            rows = [(n, r) for n, r in timing["spans"].items() if n != "sdpa" and kind(n) == group]
            axis.scatter(
                [r["share_of_flops"] for _, r in rows],
                [r["share_of_time"] for _, r in rows],
                marker=marker,
                label=group,
            )
        low = min(r["share_of_flops"] for r in timing["spans"].values()) * 0.8
        axis.plot([low, 1], [low, 1], color="0.3", lw=1, label="time = FLOPs")
        axis.plot([low, 1 / LIMIT], [low * LIMIT, 1], color="0.6", lw=1, ls="--", label=f"{LIMIT} × FLOPs")
        axis.set(xscale="log", yscale="log", title=title)
        axis.set(xlabel="share of full attention's FLOPs", ylabel="share of full attention's time")
        axis.grid(alpha=0.3)
    for name, row in timings[0]["spans"].items():
        if name in ("window:64", "window:512", "window:2048", "block:256"):
            axes[0].annotate(
                name,
                (row["share_of_flops"], row["share_of_time"]),
                (7, -13),
                textcoords="offset points",
                fontsize=8,
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5},
            )
    axes[0].legend(fontsize=8, loc="upper left")
    panels.savefig(path, dpi=130)


def kind(text: str) -> str:
    """Return the group that a span is drawn with."""
    span = Span.parse(text)
    if span.is_las:
        return "LaS"
    return "sink" if span.sink else "dilated" if span.dilation > 1 else str(span.kind)


def main() -> None:
    """Run every case and write the record and the figure."""
    if len(sys.argv) == 3 and sys.argv[1] == "--peak":
        print(peak_mb(sys.argv[2]))
        return
    if not KEEP_FREED_MEMORY.items() <= os.environ.items():  # the C library reads it when a process starts
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | KEEP_FREED_MEMORY)
    torch.set_num_threads(1)
    start = time.perf_counter()
    usual = {name: value for name, value in os.environ.items() if name not in KEEP_FREED_MEMORY}
    goal: dict[str, list[tuple[float, float]]] = {"sdpa": [], GOAL: []}
    timings = []
    for shape, spans, repetitions in CASES:
        for name, pairs in timed(LONG, [GOAL], GOAL_PAIRS).items():
            goal[name] += pairs
        timings.append(summary(shape, timed(shape, spans, repetitions)))
    timings.insert(0, summary(LONG, goal))
    memory = {
        name: round(float(subprocess.check_output([sys.executable, __file__, "--peak", name], env=usual)), 1)
        for name in MEMORY
    }
    record = {
        "torch": torch.__version__,
        "cpu": platform.processor() or platform.machine(),
        "threads": 1,
        "clock": "CPU time of the process",
        "freed_memory_kept": sys.platform == "linux",
        "seconds": round(time.perf_counter() - start, 1),
        "timings": timings,
        "peak_mb_of_one_pass_at_8192_tokens": memory,
    }
    (HERE / "record.json").write_text(json.dumps(record, indent=1) + "\n")
    figure(record, HERE / "span_speed.png")
    for timing in timings:
        print(timing["shape"])
        for name, row in timing["spans"].items():
            print(f"  {name:22s}", "  ".join(f"{key} {value}" for key, value in row.items()))
    print(memory)
    window = timings[0]["spans"][GOAL]
    found, (low, high) = window["time_over_flops"], window["time_over_flops_range"]
    print(f"{GOAL} at 8,192 tokens: {found} ({low} to {high}) times its share of full attention (limit {LIMIT})")
    sys.exit(found > LIMIT)


if __name__ == "__main__":
    main()
