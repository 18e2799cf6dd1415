"""The plan of a selection: its space, its memory and its work, from the model's configuration alone."""

import dataclasses
from typing import Literal

import torch

from layersearch.config.recipe import Recipe
from layersearch.errors import ConfigError
from layersearch.model.pretrained import load_skeleton
from layersearch.schedule import Schedule, presets
from layersearch.schedule.bound_space import BoundSpace
from layersearch.schedule.cost import attention_flops
from layersearch.schedule.space import Space
from layersearch.selection.memory import MemoryBound, forward_passes, memory_bound
from layersearch.selection.templates import named_placements
from layersearch.training.memory import free_memory

STOCK = "stock"
"""The name of `stock_space` for ``--space``."""
_SHARES = (16, 8)
_SMALLEST = 16


def default_space(seq_len: int) -> Space:
    """Return the space of a selection that names none: full, and two windows with 4 sinks.

    The windows are 1/16 and 1/8 of the text, at least 16 tokens. On SmolLM2-135M this space gave the lowest loss of
    six; windows without sinks among the choices made it worse (`analysis/smollm2`).
    """
    sizes = dict.fromkeys(max(_SMALLEST, seq_len // share) for share in _SHARES)  # one for a short text
    choices = tuple(f"window:{size}+sink:4" for size in sizes)
    return Space(name="model", choices=("full", *choices), baseline_span=choices[0])


def stock_space(seq_len: int) -> Space:
    """Return the space of what stock families and serving engines load: full, and one window without sinks.

    Without sinks a model must be healed: the switch alone costs several times as much (`analysis/smollm2`).
    """
    window = f"window:{max(_SMALLEST, seq_len // _SHARES[0])}"
    return Space(name=STOCK, choices=("full", window), baseline_span=window)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SelectionPlan:
    """A selection before it starts."""

    parameters: int
    vocab_size: int
    precision: Literal["bfloat16", "float32"]
    device: str
    """``cpu`` or ``cuda:0``."""
    memory: MemoryBound
    placements: tuple[tuple[str, Schedule], ...]
    """Named placements that are confirmed beside the chosen schedules."""
    passes: float
    """Forward passes of one sequence through the whole depth, about."""
    flops: float
    """Multiply-adds of those passes, all-full, about."""


def plan_of(recipe: Recipe, space: BoundSpace, budget: float) -> SelectionPlan:
    """Return the plan of a selection, from the model's configuration alone."""
    config = recipe.selection
    assert config is not None
    skeleton = load_skeleton(str(recipe.pretrained), tokens=recipe.training.seq_len)
    parameters, vocab_size = sum(p.numel() for p in skeleton.parameters()), skeleton.num_embeddings
    device, seq_len = device_of(recipe), recipe.training.seq_len
    precision = weights_type(config.precision, device)
    memory = memory_bound(
        recipe.model,
        config,
        parameters=parameters,
        vocab_size=vocab_size,
        seq_len=seq_len,
        choices=max(map(len, space.options)),
        wide=precision == "float32",
    )
    named = {**uniform_schedules(space), **named_placements(space, budget)}
    passes = forward_passes(config, len(set(named.values())) + config.finalists + config.frontier + 1)
    full = presets.all_full(space.n_layers)
    attention = attention_flops(full, seq_len=seq_len, n_heads=recipe.model.n_heads, head_dim=recipe.model.head_dim)
    return SelectionPlan(
        parameters=parameters,
        vocab_size=vocab_size,
        precision=precision,
        device=device,
        memory=memory,
        placements=tuple(named.items()),
        passes=passes,
        flops=passes * (seq_len * parameters + attention),
    )


def device_of(recipe: Recipe) -> str:
    """Return where a pre-trained model is measured: ``cpu``, or ``cuda:0`` if the recipe asks for a GPU."""
    return "cuda:0" if recipe.training.gpus else "cpu"


def check_memory(recipe: Recipe, plan: SelectionPlan) -> None:
    """Raise ConfigError if the device is missing, or has less memory free than the bound."""
    free = free_memory(plan.device)
    if plan.memory.total > free:
        raise ConfigError(
            f"--model {recipe.pretrained}: a selection needs {plan.memory.total / 2**30:.1f} GiB (weights "
            f"{plan.memory.weights / 2**30:.1f}), and {free / 2**30:.1f} GiB are free; lower training.seq_len or "
            "selection.selection_units, set selection.precision=bf16, or give a smaller model"
        )


def weights_type(precision: str, device: str = "cpu") -> Literal["bfloat16", "float32"]:
    """Return the type of frozen weights, ``float32`` or ``bfloat16``; ``auto`` asks the processor or the GPU."""
    if precision == "auto":
        on_cpu = device == "cpu"
        fast = torch.ops.mkldnn._is_mkldnn_bf16_supported() if on_cpu else torch.cuda.is_bf16_supported()
        precision = "bf16" if fast else "float32"
    return "bfloat16" if precision == "bf16" else "float32"


def uniform_schedules(space: BoundSpace) -> dict[str, Schedule]:
    """Return one sparse span everywhere, for each sparse span of the space, by name."""
    spans = dict.fromkeys(span for options in space.options for span in options if not span.is_full)
    return {f"all {span}": presets.all_sparse(space.n_layers, span) for span in spans}
