"""Where does a training step's time go? torch's profiler on one thread, for ours and for nanoGPT, compiled and in bf16.

Command:  python analysis/throughput/profile_step.py --nanogpt PATH_TO_A_NANOGPT_CHECKOUT
Time:     a few minutes, mostly compiling
Writes:   profile.md

Every operator's own time counts once. *Python and dispatch* is what is left of the wall time: the interpreter,
autograd, DeepSpeed, and the calls themselves. The profiler slows small operators down: shares say more than times.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from bench import batch, nanogpt_step, our_step
from stacked import stacked_step
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from layersearch.config.recipe import load_recipe
from layersearch.training.engine import RankGroup, join
from layersearch.training.workers.process import KEEP_FREED_MEMORY

HERE = Path(__file__).resolve().parent
STEPS = 10
PARTS: dict[str, tuple[str, ...]] = {
    "matrix products": ("mm", "linear", "matmul", "gemm"),
    "attention": ("attention", "span", "flash", "strips", "softmax"),
    "compiled elementwise regions": ("cpp_fused", "kernel"),
    "optimizer": ("adam", "lerp", "foreach", "norm", "addcdiv", "addcmul", "sqrt"),
    "copies and casts": ("copy", "clone", "contiguous", "cat", "_to_copy", "fill", "zero", "empty"),
}
"""Words in an operator's name, the first part that fits."""


def part_of(name: str) -> str:
    """Return the part that an operator belongs to."""
    lower = name.lower()
    return next((part for part, words in PARTS.items() if any(word in lower for word in words)), "other operators")


def measure(step: Callable[[Tensor, Tensor], Any], tokens: Tensor, targets: Tensor) -> tuple[float, dict[str, float]]:
    """Return milliseconds of a step without the profiler, and each part's share with it."""
    for _ in range(STEPS):
        step(tokens, targets)
    times = []
    for _ in range(3 * STEPS):
        begun = time.process_time()
        step(tokens, targets)
        times.append(time.process_time() - begun)
    with profile(activities=[ProfilerActivity.CPU]) as found:
        begun = time.process_time()
        for _ in range(STEPS):
            step(tokens, targets)
        wall = time.process_time() - begun
    shares: dict[str, float] = {}
    for event in found.key_averages():
        part = part_of(event.key) if not event.key.startswith(WRAPPERS) else "Python and dispatch"
        shares[part] = shares.get(part, 0.0) + event.self_cpu_time_total / 1e6 / wall
    shares["Python and dispatch"] = shares.get("Python and dispatch", 0.0) + max(0.0, 1.0 - sum(shares.values()))
    return 1e3 * min(times), shares


WRAPPERS = (
    "autograd::",
    "Torch-Compiled",
    "CompiledFunction",
    "Optimizer",
    "AOTDispatcher",
    "TorchDynamo",
    "## ",
    "Call",
)
"""Names of what calls operators and does no arithmetic itself."""


def main() -> None:
    """Profile and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nanogpt", type=Path, required=True)
    options = parser.parse_args()
    if not KEEP_FREED_MEMORY.items() <= os.environ.items():
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | KEEP_FREED_MEMORY)
    torch.set_num_threads(1)
    from torch._inductor import config

    config.cpp.enable_kernel_profile = True
    join(RankGroup(), str(Path(tempfile.mkdtemp()) / "rendezvous"))
    recipe = load_recipe("laptop")
    schedule = f"window:4*{recipe.model.n_layers - 1} full"
    tokens, targets = batch(recipe)
    ways = {
        "nanoGPT, bf16, compiled": nanogpt_step(options.nanogpt, recipe, "bf16", True),
        "ours, AdamW": our_step(recipe, schedule, precision="bf16", compiled=True),
        "ours, Muon": our_step(recipe, schedule, precision="bf16", compiled=True, optimizer="muon"),
        "one graph, masks as inputs, AdamW": stacked_step(recipe, [schedule]),
    }
    found = {name: measure(step, tokens, targets) for name, step in ways.items()}
    names = [*PARTS, "other operators", "Python and dispatch"]
    lines = [
        "| | " + " | ".join(found) + " |",
        "|---|" + "---|" * len(found),
        "| least time of a step, ms | " + " | ".join(f"{least:.1f}" for least, _ in found.values()) + " |",
        *(f"| {part} | " + " | ".join(f"{s.get(part, 0.0):.0%}" for _, s in found.values()) + " |" for part in names),
    ]
    (HERE / "profile.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
