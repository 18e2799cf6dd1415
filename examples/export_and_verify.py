"""Export a schedule to Hugging Face transformers, and verify by experiment that transformers obeys it.

It shows three things: an export that fits, the verification of each layer, and the refusal of a schedule that the
target cannot represent. Nothing is trained and nothing is downloaded.

    python examples/export_and_verify.py exported
"""

from __future__ import annotations

import sys
from pathlib import Path

from layersearch import Schedule, UserError, load_recipe
from layersearch.export import export
from layersearch.export.verify import Proof, verify


def main(out: Path) -> Proof:
    """Write a Qwen3 configuration with one window layer and one full layer; return what transformers did with it."""
    recipe = load_recipe("smoke")
    size = {"model": recipe.model, "vocab_size": recipe.data.vocab_size, "seq_len": recipe.training.seq_len}

    files = export(Schedule.parse("window:8 full"), "hf", family="qwen3", out=out, **size)
    print("written:", ", ".join(file.name for file in files))

    proof = verify(out)
    for layer in proof.layers:
        print(f"layer {layer.layer}: {'as scheduled' if layer.proven else 'DIFFERENT'}")
    print(f"{proof.architecture}: {'verified' if proof.proven else proof.problem}")

    try:
        export(Schedule.parse("window:8 block:12"), "hf", family="qwen3", out=out.with_name(out.name + "-2"), **size)
    except UserError as error:
        print("refused:", error)
    return proof


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "exported"))
