"""What the selectors choose on a pre-trained model: further baselines of a search on it."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from layersearch.data import Source
from layersearch.errors import UserError
from layersearch.ladder.folder import write_text
from layersearch.pretrained import load_pretrained
from layersearch.recipe import Recipe
from layersearch.selectors import kl_to_original, selected
from layersearch.space import BoundSpace

SEQUENCES = 32
"""Of the training data, on which selectors score."""


def selected_baselines(
    recipe: Recipe, space: BoundSpace, budget: float, source: Source, seed: int, folder: Path
) -> dict[str, str]:
    """Return the schedules that the selectors choose, by name; found once, then kept in ``selectors.json``.

    Args:
        recipe: with a pre-trained model.
        space: the bound space.
        budget: of the search.
        source: the opened data. Sequences come from beyond the steps that trials train on.
        seed: of the search.
        folder: the run folder.

    Raises:
        UserError: if the model cannot be loaded or routed, or the file is damaged.
    """
    assert recipe.pretrained is not None
    file = folder / "selectors.json"
    if file.exists():
        try:
            held = json.loads(file.read_text(encoding="utf-8"))
            return {name: str(chosen["schedule"]) for name, chosen in held.items()}
        except (ValueError, TypeError, KeyError, AttributeError):
            raise UserError(f"{file}: damaged; restore it, or start anew with another --out") from None
    routed = load_pretrained(recipe.pretrained, tokens=recipe.training.seq_len)
    tokens = source.train(seed=seed, step=recipe.training.steps, batch_size=SEQUENCES).tokens
    found = selected(space, budget, kl_to_original(routed, torch.from_numpy(tokens)))
    facts = {
        name: {"schedule": str(schedule), "layers": ranking.layers, "kl": ranking.scores}
        for name, (schedule, ranking) in found.items()
    }
    write_text(file, json.dumps(facts, indent=1) + "\n")
    return {name: str(schedule) for name, (schedule, _) in found.items()}
