"""The memory of a selection and of a healing on models of three sizes, by what the commands print.

python analysis/smollm2/memory.py > analysis/smollm2/memory.md
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from layersearch.config.model import ModelConfig
from layersearch.config.selection import SelectionConfig
from layersearch.convert.config import ConvertRecipe, load_convert_recipe
from layersearch.convert.memory import MemoryEstimate, StepBytes, estimate_memory, step_bytes
from layersearch.model.hf_decoder import HFDecoder
from layersearch.model.kinds import skeleton
from layersearch.schedule import presets
from layersearch.selection.memory import LIBRARIES, memory_bound

SIZES = ("n_layers", "d_model", "n_heads", "n_kv_heads", "d_ff")
MODELS = {
    "SmolLM2-135M": (134_515_008, 49_152, (30, 576, 9, 3, 1536)),
    "Llama 3.2 1B": (1_235_814_400, 128_256, (16, 2048, 32, 8, 8192)),
    "Llama 3.1 8B": (8_030_261_248, 128_256, (32, 4096, 32, 8, 14336)),
}
"""Parameters, vocabulary and sizes, from the models' config.json."""
UNTIED = ("Llama 3.1 8B",)
MEASURED = Path(__file__).with_name("memory.json")
"""Measured peaks on a CPU: name -> keys of the recipe heal, ``whole_logits`` and ``peak`` in bytes."""
ON_GPU = Path(__file__).parents[1] / "gpu" / "h200" / "healing.json"
HEALING = """**Estimate, not measured.**

GiB of one rank on a GPU. Recipe `heal`: 1,024 tokens and one sequence a rank, half
of the loss from the original, AdamW, bf16 autocast. `copies` are weights in bf16; under ZeRO-3 they are those that are
gathered. `buffers` are DeepSpeed's. Its keys `stage3_max_live_parameters` and `reduce_bucket_size` lower both. The peak
counts gradients, or activations, copies and logits, whichever are more; under ZeRO-3 all of them.
"""
MEASUREMENTS = """SmolLM2-135M on one rank, GiB, recipe `heal`. Measured on a CPU: the peak of the process's resident
memory. Measured on the H200: the most that torch allocated. Libraries are not in it, nor in the estimate of that row.
`whole logits`: by the code before losses were made in pieces, and its estimate.
"""
PARTS = ("weights", "original", "gradients", "optimizer", "activations", "copies", "logits", "buffers")


def main() -> None:
    """Print the tables in Markdown."""
    print("# Memory of a selection\n")
    print("Bounds in GiB, bf16 weights. `every` is the stride of the layers whose inputs are kept. A selection runs on")
    print("one device, so a second GPU changes nothing.\n")
    print("| model | tokens | weights | kept | every | gates | logits | bound |\n|---|---|---|---|---|---|---|---|")
    for name, (parameters, vocab_size, sizes) in MODELS.items():
        for tokens in (1024, 4096, 8192):
            found = memory_bound(
                ModelConfig(**dict(zip(SIZES, sizes, strict=True))),
                SelectionConfig(),
                parameters=parameters,
                vocab_size=vocab_size,
                seq_len=tokens,
                choices=5,
                wide=False,
            )
            parts = [found.weights, found.kept, found.block, found.logits]
            cells = [f"{part / 2**30:.2f}" for part in parts]
            cells.insert(2, str(found.stride))
            print(f"| {name} | {tokens:,} | {' | '.join(cells)} | {found.total / 2**30:.1f} |")
    _print_healing({name: _skeleton(name) for name in MODELS})


def _print_healing(models: dict[str, HFDecoder]) -> None:
    print("\n# Memory of a healing\n")
    print(HEALING)
    print(f"| model | GPUs | ZeRO | {' | '.join(PARTS)} | peak |\n|{'---|' * (len(PARTS) + 4)}")
    for name, model in models.items():
        recipe = load_convert_recipe("heal")
        counted = step_bytes(model, recipe, presets.all_full(len(model.attention)))
        assert counted.parameters == MODELS[name][0]
        for gpus in (1, 8):
            given = dataclasses.replace(recipe.training, ranks=gpus, batch_size=gpus, gpus=1)
            for stage in (0, 2, 3):
                found = estimate_memory(
                    counted,
                    dataclasses.replace(recipe, training=given),
                    {"zero_optimization": {"stage": stage}},
                )
                print(f"| {name} | {gpus} | {stage} | {_cells(found)} | {found.training / 2**30:.1f} |")
    _print_measured(models["SmolLM2-135M"])


def _print_measured(model: HFDecoder) -> None:
    print("\n# Estimated and measured\n")
    print(MEASUREMENTS)
    head = f"| healing | {' | '.join(PARTS)} | estimate | measured | measured / estimate |"
    print(f"{head}\n|{'---|' * (len(PARTS) + 4)}")
    (on_gpu,) = json.loads(ON_GPU.read_text())["found"]["memory"]["peak"]
    measured = json.loads(MEASURED.read_text())
    measured["distillation, 40 steps, H200"] = {"keys": ["training.gpus=1"], "whole_logits": False, "peak": on_gpu}
    for label, one in measured.items():
        recipe = load_convert_recipe("heal", one["keys"])
        found = estimate_memory(_count(model, recipe, whole_logits=one["whole_logits"]), recipe, {})
        estimate = found.training - LIBRARIES if found.on_gpu else found.total
        cells = f"{estimate / 2**30:.2f} | {one['peak'] / 2**30:.2f} | {one['peak'] / estimate:.2f}"
        print(f"| {label} | {_cells(found)} | {cells} |")


def _cells(found: MemoryEstimate) -> str:
    return " | ".join(f"{getattr(found, part) / 2**30:.2f}" for part in PARTS)


def _count(model: HFDecoder, recipe: ConvertRecipe, *, whole_logits: bool) -> StepBytes:
    """Count a step with logits by pieces, or with whole ones, as the code before made them."""
    usual = model.in_pieces
    model.in_pieces = not whole_logits
    try:
        return step_bytes(model, recipe, presets.all_full(len(model.attention)))
    finally:
        model.in_pieces = usual


def _skeleton(name: str) -> HFDecoder:
    from transformers import LlamaConfig

    _, vocab_size, sizes = MODELS[name]
    n_layers, d_model, n_heads, n_kv_heads, d_ff = sizes
    values: dict[str, Any] = {"num_hidden_layers": n_layers, "hidden_size": d_model, "intermediate_size": d_ff}
    values |= {"num_attention_heads": n_heads, "num_key_value_heads": n_kv_heads}
    config = LlamaConfig(
        **values, vocab_size=vocab_size, tie_word_embeddings=name not in UNTIED, max_position_embeddings=8192
    )
    found = skeleton(name, config)
    assert found is not None
    return found


if __name__ == "__main__":
    main()
