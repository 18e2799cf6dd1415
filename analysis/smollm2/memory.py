"""The memory of a selection on models of three sizes, by the bound that the command prints.

python analysis/smollm2/memory.py > analysis/smollm2/memory.md
"""

from __future__ import annotations

from layersearch.config.recipe import ModelConfig
from layersearch.config.selection import SelectionConfig
from layersearch.selection.memory import memory_bound

SIZES = ("n_layers", "d_model", "n_heads", "n_kv_heads", "d_ff")
MODELS = {
    "SmolLM2-135M": (134_515_008, 49_152, (30, 576, 9, 3, 1536)),
    "Llama 3.2 1B": (1_235_814_400, 128_256, (16, 2048, 32, 8, 8192)),
    "Llama 3.1 8B": (8_030_261_248, 128_256, (32, 4096, 32, 8, 14336)),
}
"""Parameters, vocabulary and sizes, from the models' config.json."""


def main() -> None:
    """Print a table in Markdown."""
    print("# Memory of a selection\n")
    print("Bounds in GiB, bf16 weights. `every` is the stride of the layers whose inputs are kept.\n")
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


if __name__ == "__main__":
    main()
