"""Time the spans that join two parts, and staggered blocks, against torch's full causal attention.

Command:  python analysis/span_speed/patterns.py
Time:     a minute or two on one core
Shows:    each span's share of the time of full attention beside its share of the FLOPs, at 8,192 tokens, head
          dimension 64, float32, one thread. 1.6 times the share is asked.

Each span is timed as in `bench.py`: against the full attention of its own repetition, after an untimed pass of the same
kind, in CPU time of the one thread. Writes patterns.json beside itself.
"""

from __future__ import annotations

import json
import os
import platform
import sys

import torch
from bench import HERE, LIMIT, LONG, summary, timed

from layersearch.training.workers.process import KEEP_FREED_MEMORY

SPANS = ["block:1024", "block:1024~512", "window:512", "strided:128", "strided:512", "fixed:128/32", "fixed:512/64"]
SPANS += ["bigbird:64/3", "bigbird:256/3", "memory:512/512", "window:512+summary:64", "strided:512@1", "fixed:512/64@1"]
ENCODER = ["window:256", "window:256+global:first:64", "window:256+global:mask:64", "window:256+summary:64"]
ENCODER += ["block:1024", "block:1024~512", "bigbird:64/3", "bigbird:256/3"]
"""Spans of an encoder, against its full attention."""
REPETITIONS = 5


def main() -> None:
    """Time every span, write the record and print it."""
    if not KEEP_FREED_MEMORY.items() <= os.environ.items():  # the C library reads it when a process starts
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | KEEP_FREED_MEMORY)
    torch.set_num_threads(1)
    found = {
        "decoder": summary(LONG, timed(LONG, SPANS, REPETITIONS)),
        "encoder": summary(LONG, timed(LONG, ENCODER, REPETITIONS, True), True),
    }
    record = {"torch": torch.__version__, "cpu": platform.processor() or platform.machine(), "limit": LIMIT, **found}
    (HERE / "patterns.json").write_text(json.dumps(record, indent=1) + "\n")
    for model, timing in found.items():
        for name, row in timing["spans"].items():
            print(f"  {model} {name:26s}", "  ".join(f"{key} {value}" for key, value in row.items()))


if __name__ == "__main__":
    main()
