"""Time the spans that join two parts, and staggered blocks, against torch's full causal attention.

Command:  python analysis/span_speed/patterns.py
Time:     about five minutes on one core
Shows:    each span's share of the time of full attention beside its share of the FLOPs, at 8,192 tokens, head
          dimension 64, float32, one thread. 1.6 times the share is asked. Beside it, the same of its bare matrix
          products, and the memory of one pass.

Each span is timed as the goal in `bench.py`: in turn with full attention, each pass after an untimed one of the same
kind, in CPU time of the one thread. Writes patterns.json beside itself.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import torch
from bench import HERE, LIMIT, LONG, full_attention, full_both_ways, inputs, peak_mb, seconds, summary, timed

from layersearch.model.attention import product_tiles, strips, union
from layersearch.model.attention.extras import summary_plan
from layersearch.schedule import Span
from layersearch.schedule.cost import span_pairs
from layersearch.training.workers.process import KEEP_FREED_MEMORY

SPANS = ["block:1024", "block:1024~512", "window:512", "strided:128", "strided:512", "fixed:128/32", "fixed:512/64"]
SPANS += ["bigbird:64/3", "bigbird:256/3", "memory:512/512", "window:512+summary:64", "strided:512@1", "fixed:512/64@1"]
ENCODER = ["window:256", "window:256+global:first:64", "window:256+global:mask:64", "window:256+summary:64"]
ENCODER += ["block:1024", "block:1024~512", "bigbird:64/3", "bigbird:256/3"]
"""Spans of an encoder, against its full attention."""
REPETITIONS, BARE_REPETITIONS = 9, 3


def plans(span: Span, tokens: int, bidirectional: bool) -> Iterator[tuple[tuple[strips.StripGroup, ...], int]]:
    """Yield the strips of a span of one head, and the keys of a block where these are not neighbors."""
    plain = span.plain
    if span.kind == "strided" and span.far_heads is not None:
        assert span.size is not None
        length = -(-tokens // span.size)
        yield (strips.StripGroup(0, span.size, length, 0, length, 1, None, True, stride=span.size),), 1
        return
    far = union.whole(plain, tokens, bidirectional)
    if not far:
        near = union.both_ways(plain, tokens) if bidirectional else strips.strip_groups(union.near_span(plain), tokens)
        assert near is not None
        yield near, 1
        far = () if bidirectional else union.far_keys(plain, tokens)
    for part in far:
        yield part.plan, part.blocks[0] if part.blocks else 1
    if span.summary:
        yield summary_plan(span, tokens, bidirectional), 1
    if span.global_marked:
        count = span.global_marked
        yield (strips.StripGroup(0, 1, tokens, 0, count, 0, None, False),), 1
        yield (strips.StripGroup(0, 1, count, 0, tokens, 0, None, False),), 1


def bare_products(span: Span, bidirectional: bool) -> float:
    """Return the CPU time of a span's seven matrix products alone, in its tiles' shapes and on data in the cache."""
    tokens, width = LONG["tokens"], LONG["head_dim"]
    buffers = torch.randn(7, product_tiles.CACHED_SCORES * 4)
    calls = []
    for plan, unit in plans(span, tokens, bidirectional):
        for part in plan:
            for tiles in product_tiles.cut(part, torch.float32, unit):
                together = max(1, product_tiles.CACHED_SCORES // (tiles.queries * tiles.keys))
                for at in range(0, tiles.count, together):
                    calls.append((min(together, tiles.count - at), tiles.queries, tiles.keys))
    with torch.inference_mode():
        start = time.process_time()
        for count, queries, keys in calls:
            sizes = [(queries, width)] * 2 + [(keys, width)] * 3 + [(queries, keys)] * 2
            q, out, k, v, into, p, ds = (
                flat[: count * rows * columns].view(count, rows, columns)
                for flat, (rows, columns) in zip(buffers, sizes, strict=True)
            )
            torch.bmm(q, k.mT, out=p)
            torch.bmm(p, v, out=out)
            torch.bmm(q, k.mT, out=p)
            torch.bmm(q, v.mT, out=ds)
            torch.bmm(p.mT, q, out=into)
            torch.bmm(ds, k, out=out)
            torch.bmm(ds.mT, q, out=into)
        return time.process_time() - start


def bare_over_flops(text: str, bidirectional: bool) -> float:
    """Return how many times its share of full attention's time a span's bare products take."""
    span, full = Span.parse(text), Span(kind="full")
    share = span_pairs(span, LONG["tokens"], 1, bidirectional=bidirectional) / span_pairs(
        full, LONG["tokens"], 1, bidirectional=bidirectional
    )
    case, yardstick, ratios = inputs(**LONG), full_both_ways if bidirectional else full_attention, []
    for _ in range(BARE_REPETITIONS):
        bare_products(span, bidirectional)
        ratios.append(bare_products(span, bidirectional) / sum(seconds(yardstick, *case)))
    return round(statistics.median(ratios) / share, 3)


def measured(spans: list[str], bidirectional: bool, usual: dict[str, str]) -> dict[str, Any]:
    """Return the times of spans, their bare products' and their memory."""
    full, rows = list[tuple[float, float]](), dict[str, Any]()
    for name in spans:  # in turn with full attention alone, so that other load on the machine meets both
        times = timed(LONG, [name], REPETITIONS, bidirectional)
        full += times["sdpa"]
        rows[name] = summary(LONG, times, bidirectional)["spans"][name]
    found = summary(LONG, {"sdpa": full}, bidirectional)
    found |= {"repetitions": REPETITIONS, "spans": found["spans"] | rows}
    for name, row in found["spans"].items():
        if name != "sdpa":
            row["bare_products_over_flops"] = bare_over_flops(name, bidirectional)
        command = [sys.executable, __file__, "--peak", name, *(["encoder"] if bidirectional else [])]
        row["peak_mb_of_one_pass"] = round(float(subprocess.check_output(command, env=usual)), 1)
    return found


def main() -> None:
    """Time every span, write the record and print it."""
    if "--peak" in sys.argv:
        print(peak_mb(sys.argv[2], bidirectional=sys.argv[-1] == "encoder"))
        return
    if not KEEP_FREED_MEMORY.items() <= os.environ.items():  # the C library reads it when a process starts
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | KEEP_FREED_MEMORY)
    torch.set_num_threads(1)
    usual = {name: value for name, value in os.environ.items() if name not in KEEP_FREED_MEMORY}
    found = {"decoder": measured(SPANS, False, usual), "encoder": measured(ENCODER, True, usual)}
    record = {"torch": torch.__version__, "cpu": platform.processor() or platform.machine(), "limit": LIMIT, **found}
    (HERE / "patterns.json").write_text(json.dumps(record, indent=1) + "\n")
    for model, timing in found.items():
        for name, row in timing["spans"].items():
            print(f"  {model} {name:26s}", "  ".join(f"{key} {value}" for key, value in row.items()))


if __name__ == "__main__":
    main()
