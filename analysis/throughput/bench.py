"""Training throughput of the laptop proxy against a plain float32 eager decoder of the same size (nanoGPT's).

Command:  python analysis/throughput/bench.py --nanogpt PATH_TO_A_NANOGPT_CHECKOUT
Time:     about 3 minutes on one core, once torch.compile's cache is warm
Shows:    tokens per second of each way to train, as ratios to nanoGPT's on its CPU settings (float32, eager, SDPA), all
          interleaved in one process on one thread; and what share of a step's time its matrix products alone would
          need in bf16. Writes record.json. Nothing of nanoGPT is part of this repository: give a checkout of
          github.com/karpathy/nanoGPT (its model.py is loaded from there).
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from layersearch.allocator import keep_freed_memory
from layersearch.engine import Engine, RankGroup, deepspeed_config, join
from layersearch.model import Decoder
from layersearch.recipe import Recipe, deepspeed_file, load_recipe
from layersearch.schedule import Schedule

HERE = Path(__file__).resolve().parent
ROUNDS, STEPS = 7, 5


def nanogpt_step(folder: Path, recipe: Recipe) -> Callable[[Tensor, Tensor], None]:
    """Return one training step of nanoGPT at the recipe's size: float32, eager, its own optimiser and clipping."""
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

    def step(tokens: Tensor, targets: Tensor) -> None:
        _, loss = model(tokens, targets)
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


def main() -> None:
    """Time all ways in turn and write the record."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--nanogpt", type=Path, required=True)
    parser.add_argument("--recipe", default="laptop")
    options = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    recipe = load_recipe(options.recipe)
    join(RankGroup(), Path(tempfile.mkdtemp()) / "rendezvous")
    layers = recipe.model.n_layers
    full, hybrid = f"full*{layers}", f"window:{recipe.training.seq_len // 16}*{layers - 1} full"
    ways = {"nanoGPT, float32, eager, all-full": nanogpt_step(options.nanogpt, recipe)}
    for schedule, name in ((full, "all-full"), (hybrid, hybrid)):
        for precision, compiled in (("float32", False), ("bf16", False), ("bf16", True)):
            label = f"ours, {precision}, {'compiled' if compiled else 'eager'}, {name}"
            ways[label] = our_step(recipe, schedule, precision=precision, compiled=compiled)
    if recipe.training.optimizer != "adamw":
        label = f"ours, bf16, compiled, {recipe.training.optimizer}, {hybrid}"
        ways[label] = our_step(recipe, hybrid, precision="bf16", compiled=True, optimizer=recipe.training.optimizer)
    generator = torch.Generator().manual_seed(0)
    size = (recipe.training.batch_size, recipe.training.seq_len)
    tokens = torch.randint(recipe.data.vocab_size, size, generator=generator)
    targets = tokens.roll(-1, 1)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for round_ in range(ROUNDS + 1):
        for name, step in ways.items():
            taken = _timed(lambda step=step: step(tokens, targets))  # type: ignore[misc]
            if round_:  # the first round compiles and warms up
                seconds[name].append(taken)
    base = seconds[next(iter(ways))]
    rows = []
    for name, taken in seconds.items():
        ratios = sorted(a / b for a, b in zip(base, taken, strict=True))
        rows.append(
            {
                "way": name,
                "tokens_per_second": round(tokens.numel() / statistics.median(taken)),
                "ratio_to_nanogpt": round(statistics.median(ratios), 3),
                "ratio_range": [round(ratios[0], 3), round(ratios[-1], 3)],
            }
        )
    alone, rate = products_seconds(recipe)
    best = statistics.median(seconds[f"ours, bf16, compiled, {hybrid}"])
    record = {
        "torch": torch.__version__,
        "recipe": recipe.to_dict(),
        "threads": 1,
        "rounds": ROUNDS,
        "rows": rows,
        "products_alone_ms": round(alone * 1e3, 2),
        "products_alone_gflops_per_second": round(rate / 1e9, 1),
        "products_share_of_the_compiled_hybrid_step": round(alone / best, 3),
    }
    (HERE / "record.json").write_text(json.dumps(record, indent=1) + "\n")
    width = max(len(name) for name in ways)
    for row in rows:
        low, high = row["ratio_range"]
        speed = f"{row['tokens_per_second']:8,d} tokens/s"
        print(f"{row['way']:{width}s} {speed} {row['ratio_to_nanogpt']:6.2f} ({low}-{high})")
    share = f"{alone / best:.0%} of the compiled hybrid's step"
    print(f"matrix products alone: {alone * 1e3:.1f} ms, {rate / 1e9:.0f} GFLOP/s, {share}")


if __name__ == "__main__":
    main()
