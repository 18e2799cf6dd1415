"""Training throughput of proxies against a plain float32 eager decoder of the same size (nanoGPT's).

Command:  python analysis/throughput/bench.py --nanogpt PATH_TO_A_NANOGPT_CHECKOUT
Time:     about 8 minutes on two cores, once torch.compile's cache is warm
Shows:    tokens per second of each way to train, as ratios to nanoGPT's on its CPU settings (float32, eager, SDPA), all
          interleaved in one run: on one thread each, and on the whole machine (nanoGPT on two threads, which is how it
          runs there by itself, against two of our trials side by side on one thread each, which is how a search runs);
          and what share of a step's time its matrix products alone would need in bf16. Writes record.json. Nothing of
          nanoGPT is part of this repository: give a checkout of github.com/karpathy/nanoGPT (its model.py is loaded
          from there).
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from layersearch.config.recipe import Recipe, deepspeed_file, load_recipe
from layersearch.model.decoder import Decoder
from layersearch.schedule import Schedule
from layersearch.training.deepspeed_config import deepspeed_config
from layersearch.training.engine import Engine, RankGroup, join
from layersearch.training.workers.process import KEEP_FREED_MEMORY

HERE = Path(__file__).resolve().parent
ROUNDS, STEPS = 15, 5
COMPILED = "nanoGPT, bf16, compiled"
SHAPES: dict[str, list[str]] = {
    "the default recipe": [],
    "the default recipe, width 128": ["model.d_model=128", "model.d_ff=320"],
    "the default recipe, width 256": ["model.d_model=256", "model.n_heads=4", "model.n_kv_heads=4", "model.d_ff=640"],
    "512 tokens, batch 4": ["training.seq_len=512", "training.batch_size=4"],
    "512 tokens, batch 4, width 256": [
        *("training.seq_len=512", "training.batch_size=4", "model.d_model=256", "model.n_heads=4"),
        *("model.n_kv_heads=4", "model.d_ff=640"),
    ],
}
"""Sizes that are timed, as changes of the default recipe."""


def nanogpt_step(
    folder: Path, recipe: Recipe, precision: str = "float32", compiled: bool = False
) -> Callable[[Tensor, Tensor], None]:
    """Return one training step of nanoGPT at the recipe's size, with its own optimizer and clipping.

    float32 and eager are its settings for a CPU; compiled and in bf16 is how its train.py runs on a GPU.
    """
    spec = importlib.util.spec_from_file_location("nanogpt_model", folder / "model.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = recipe.model
    model = module.GPT(
        module.GPTConfig(
            block_size=recipe.training.seq_len,
            vocab_size=recipe.data.vocab_size,
            n_layer=config.n_layers,
            n_head=config.n_heads,
            n_embd=config.d_model,
            dropout=0.0,
            bias=False,
        )
    )
    optimizer = model.configure_optimizers(0.1, 1e-3, (0.9, 0.95), "cpu")
    run = torch.compile(model) if compiled else model

    def step(tokens: Tensor, targets: Tensor) -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            _, loss = run(tokens, targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def our_step(
    recipe: Recipe, schedule: str, *, precision: str, compiled: bool, optimizer: str = "adamw"
) -> Callable[[Tensor, Tensor], None]:
    """Return one training step of ours through DeepSpeed."""
    training = replace(recipe.training, precision=precision, optimizer=optimizer)
    torch.manual_seed(0)
    model = Decoder(recipe.model, recipe.data.vocab_size, Schedule.parse(schedule), compiled)
    engine = Engine(model, training, deepspeed_config(training, deepspeed_file(recipe)), RankGroup())

    def step(tokens: Tensor, targets: Tensor) -> None:
        engine.step(tokens, targets)

    return step


def products_seconds(recipe: Recipe) -> tuple[float, float]:
    """Return the seconds of a step's matrix products alone in bf16 (attention's left out), and their FLOP rate."""
    model, tokens = recipe.model, recipe.training.batch_size * recipe.training.seq_len
    kv = model.n_kv_heads * model.head_dim
    layer = [(model.d_model, model.d_model)] * 2 + [(model.d_model, kv)] * 2
    layer += [(model.d_model, model.d_ff)] * 2 + [(model.d_ff, model.d_model)]
    shapes = layer * model.n_layers + [(model.d_model, recipe.data.vocab_size)]
    operands = [
        tuple(torch.randn(shape).bfloat16() for shape in ((tokens, inner), (outer, inner), (tokens, outer)))
        for inner, outer in shapes
    ]

    def products() -> None:
        for x, weight, grad in operands:
            torch.mm(x, weight.t())
            torch.mm(grad, weight)
            torch.mm(grad.t(), x)

    seconds = min(_timed(products) for _ in range(ROUNDS))
    return seconds, sum(3 * 2 * tokens * inner * outer for inner, outer in shapes) / seconds


def _timed(function: Callable[[], None]) -> float:
    function()
    begun = time.perf_counter()
    for _ in range(STEPS):
        function()
    return (time.perf_counter() - begun) / STEPS


def batch(recipe: Recipe) -> tuple[Tensor, Tensor]:
    """Return tokens and targets (B, T) of the recipe's size."""
    generator = torch.Generator().manual_seed(0)
    size = (recipe.training.batch_size, recipe.training.seq_len)
    tokens = torch.randint(recipe.data.vocab_size, size, generator=generator)
    return tokens, tokens.roll(-1, 1)


@dataclass(frozen=True)
class NanoGPT:
    """One way to train nanoGPT."""

    precision: str
    compiled: bool


def in_process(pipe: Connection, recipe: Recipe, way: str | NanoGPT, nanogpt: Path, threads: int) -> None:
    """Train a schedule or nanoGPT in a process of its own: time `STEPS` steps whenever told to, until told to stop."""
    torch.set_num_threads(threads)
    tokens, targets = batch(recipe)
    if isinstance(way, NanoGPT):
        step = nanogpt_step(nanogpt, recipe, way.precision, way.compiled)
    else:
        join(RankGroup(), str(Path(tempfile.mkdtemp()) / "rendezvous"))
        step = our_step(recipe, way, precision="bf16", compiled=True, optimizer=recipe.training.optimizer)
    for _ in range(2 * STEPS):
        step(tokens, targets)
    pipe.send("ready")
    while pipe.recv():
        for _ in range(STEPS):
            step(tokens, targets)
        pipe.send("done")


def on_the_machine(recipe: Recipe, schedule: str, nanogpt: Path) -> dict[str, list[float]]:
    """Return the tokens per second, round by round, of each way to keep two cores busy."""
    # Tokens of a step count once a process: two of ours train two trials.
    eager, compiled = NanoGPT("float32", False), NanoGPT("bf16", True)
    ways: dict[str, list[tuple[str | NanoGPT, int]]] = {
        "nanoGPT, float32, eager, one process on two threads": [(eager, 2)],
        "nanoGPT, float32, eager, two processes on one thread": [(eager, 1), (eager, 1)],
        "nanoGPT, bf16, compiled, one process on two threads": [(compiled, 2)],
        "nanoGPT, bf16, compiled, two processes on one thread": [(compiled, 1), (compiled, 1)],
        "nanoGPT, float32, compiled, two processes on one thread": [(NanoGPT("float32", True), 1)] * 2,
        "ours, one process on two threads": [(schedule, 2)],
        "ours, two processes on one thread": [(schedule, 1), (schedule, 1)],
    }
    spawn = multiprocessing.get_context("spawn")
    pipes: dict[str, list[Any]] = {}
    for way, processes in ways.items():
        pipes[way] = []
        for trained, threads in processes:
            here, there = spawn.Pipe()
            spawn.Process(target=in_process, args=(there, recipe, trained, nanogpt, threads), daemon=True).start()
            pipes[way].append(here)
        for pipe in pipes[way]:
            pipe.recv()
    rates: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(ROUNDS):
        for way, ends in pipes.items():
            begun = time.perf_counter()
            for pipe in ends:
                pipe.send(True)
            for pipe in ends:
                pipe.recv()
            tokens = len(ends) * STEPS * recipe.training.batch_size * recipe.training.seq_len
            rates[way].append(tokens / (time.perf_counter() - begun))
    for ends in pipes.values():
        for pipe in ends:
            pipe.send(False)
    return rates


def on_one_thread(recipe: Recipe, schedule: str, nanogpt: Path) -> dict[str, list[float]]:
    """Return the tokens per second, round by round, of each way to train on one thread."""
    full = f"full*{recipe.model.n_layers}"
    ways = {
        f"nanoGPT, {precision}, {'compiled' if compiled else 'eager'}, all-full": nanogpt_step(
            nanogpt, recipe, precision, compiled
        )
        for precision in ("float32", "bf16")
        for compiled in (False, True)
    }
    for name in (full, schedule):
        for precision, compiled in (("float32", False), ("bf16", False), ("bf16", True)):
            label = f"ours, AdamW, {precision}, {'compiled' if compiled else 'eager'}, {name}"
            ways[label] = our_step(recipe, name, precision=precision, compiled=compiled)
    label = f"ours, {recipe.training.optimizer}, bf16, compiled, {schedule}"
    ways[label] = our_step(recipe, schedule, precision="bf16", compiled=True, optimizer=recipe.training.optimizer)
    tokens, targets = batch(recipe)
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for round_ in range(ROUNDS + 1):
        for name, step in ways.items():
            taken = _timed(lambda step=step: step(tokens, targets))  # type: ignore[misc]
            if round_:  # the first round compiles and warms up
                rates[name].append(tokens.numel() / taken)
    return rates


def rows(rates: dict[str, list[float]]) -> list[dict[str, Any]]:
    """Return each way's median rate, and its ratios, taken round by round: to the first way, and like for like.

    ``like`` is the ratio to nanoGPT compiled and in bf16 on as many processes and threads.
    """
    base, made = rates[next(iter(rates))], []
    for way, mine in rates.items():
        row = {"way": way, "tokens_per_second": round(statistics.median(mine))} | against(mine, base)
        arrangement = way.rpartition(", ")[2]
        like = next((r for w, r in rates.items() if COMPILED in w and w.endswith(arrangement)), None)
        if like is None and "process" not in way:
            like = next((rate for other, rate in rates.items() if COMPILED in other), None)
        if like is not None:
            row |= {f"like_{key}": value for key, value in against(mine, like).items()}
        made.append(row)
    return made


def against(mine: list[float], other: list[float]) -> dict[str, Any]:
    """Return the median ratio of two ways' rates, its least and its greatest."""
    ratios = sorted(rate / base for rate, base in zip(mine, other, strict=True))
    return {
        "ratio": round(statistics.median(ratios), 3),
        "ratio_range": [round(ratios[0], 3), round(ratios[-1], 3)],
    }


def main() -> None:
    """Time all ways at all shapes and write the record."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--nanogpt", type=Path, required=True)
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES))
    options = parser.parse_args()
    if not KEEP_FREED_MEMORY.items() <= os.environ.items():  # the C library reads it when a process starts
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | KEEP_FREED_MEMORY)
    torch.set_num_threads(1)
    join(RankGroup(), str(Path(tempfile.mkdtemp()) / "rendezvous"))
    record: dict[str, Any] = {"torch": torch.__version__, "rounds": ROUNDS, "steps_a_round": STEPS, "shapes": []}
    for shape in options.shapes:
        recipe = load_recipe("laptop", SHAPES[shape])
        schedule = f"window:{recipe.training.seq_len // 16}*{recipe.model.n_layers - 1} full"
        single = on_one_thread(recipe, schedule, options.nanogpt)
        alone, rate = products_seconds(recipe)
        label = next(name for name in single if name.startswith("ours, AdamW, bf16, compiled") and schedule in name)
        step = recipe.training.batch_size * recipe.training.seq_len / statistics.median(single[label])
        record["shapes"].append(
            {
                "shape": shape,
                "recipe": recipe.to_dict(),
                "one_thread": rows(single),
                "machine": rows(on_the_machine(recipe, schedule, options.nanogpt)),
                "products_alone_ms": round(alone * 1e3, 2),
                "products_gflops_per_second": round(rate / 1e9, 1),
                "products_share_of_the_compiled_hybrid_step": round(alone / step, 3),
            }
        )
        (HERE / "record.json").write_text(json.dumps(record, indent=1) + "\n")
        made = record["shapes"][-1]
        print(f"{shape}: products {alone * 1e3:.1f} ms, {rate / 1e9:.0f} GFLOP/s, {alone / step:.0%} of a step")
        for row in [*made["one_thread"], *made["machine"]]:
            low, high = row["ratio_range"]
            like = f"{row['like_ratio']:6.2f} {row['like_ratio_range']}" if "like_ratio" in row else ""
            print(
                f"  {row['way']:60s} {row['tokens_per_second']:8,d} tokens/s {row['ratio']:6.2f} ({low}-{high}) {like}",
                flush=True,
            )


if __name__ == "__main__":
    main()
