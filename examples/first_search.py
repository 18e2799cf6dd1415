"""Run a first search and print its conclusion.

It shows the Python call behind ``layersearch run``: a recipe, a search space, a budget and a run folder. The recipe
``smoke`` trains 2 layers for 8 steps, so the search takes seconds on 2 CPU cores and its losses mean nothing.

    python examples/first_search.py runs/first
"""

from __future__ import annotations

import sys
from pathlib import Path

from layersearch import Result, attention_flops, load_recipe, load_space, search


def main(out: Path) -> Result:
    """Search within 60% of the all-full attention FLOPs, and print the frontier and the winner."""
    recipe = load_recipe("smoke")
    result = search(recipe, load_space("smoke"), budget=0.6, out=out)  # call it again to resume

    print("schedule                  l   cost   loss, nats")
    for entry in result.entries:
        mark = "*" if entry.schedule in result.frontier else " "
        print(f"{mark} {entry.schedule!s:22}  {entry.n_full}  {entry.cost:.3f}  {entry.loss:.3f}")
    assert result.winner is not None
    print(result.verdict)

    model = recipe.model
    flops = attention_flops(
        result.winner.schedule,
        seq_len=recipe.training.seq_len,
        n_heads=model.n_heads,
        head_dim=model.head_dim,
    )
    print(f"The winner needs {flops:,} attention FLOPs per sequence. One multiply-add counts as one FLOP.")
    return result


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/first"))
