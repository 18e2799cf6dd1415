"""Two baselines of a search that trains a pre-trained model, chosen without training by KL divergence.

The score of a schedule is KL(original || switched) of the next-token distributions, in nats per token, on training
data. `restore_greedy` and `remove_one` of `layersearch.selection.rankings` rank the layers by it.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch

from layersearch.config.recipe import Recipe
from layersearch.data.source import Source
from layersearch.errors import RunFolderError
from layersearch.files import parse_json, write_text
from layersearch.model.hf_decoder import HFDecoder, token_kl
from layersearch.model.pretrained import load_pretrained
from layersearch.schedule import Schedule
from layersearch.schedule.bound_space import BoundSpace
from layersearch.schedule.presets import place
from layersearch.selection.rankings import Ranking, Score, remove_one, restore_greedy


def kl_to_original(decoder: HFDecoder, tokens: torch.Tensor) -> Score:
    """Return the score on a pre-trained model: the mean KL(original || switched) over tokens (B, T) of training data.

    The model has its original schedule again after each call.
    """

    @torch.no_grad()
    def logits(schedule: Schedule) -> torch.Tensor:
        decoder.set_schedule(schedule)
        try:
            return decoder.logits(tokens).float()
        finally:
            decoder.set_schedule(decoder.original)

    target = logits(decoder.original)

    def score(schedule: Schedule) -> float:
        return float(token_kl(target, logits(schedule)).mean())

    return score


def select_layers(space: BoundSpace, budget: float, score: Score) -> dict[str, tuple[Schedule, Ranking]]:
    """Return ``restore_greedy(l)`` and ``remove_one(l)`` with their rankings, at the largest l within the budget.

    Other layers have the span of the space's baselines. The result is empty if the space has no sparse span or no such
    schedule. The budget is a share of the all-full schedule's cost.
    """
    span = space.baseline_span
    if span is None:
        return {}
    sizes = range(1, space.n_layers)
    most = max((n for n in sizes if space.cost(place(space.n_layers, range(n), span)) <= budget), default=0)
    if not most:
        return {}
    rankings = (restore_greedy(space.n_layers, span, score, most), remove_one(space.n_layers, span, score))
    found = {f"{ranking.name}({most})": (ranking.schedule(most, space.n_layers, span), ranking) for ranking in rankings}
    return {name: chosen for name, chosen in found.items() if space.holds(chosen[0])}


SEQUENCES = 32
"""Training sequences to score on."""


def selected_baselines(
    recipe: Recipe, space: BoundSpace, budget: float, source: Source, seed: int, folder: Path
) -> dict[str, Schedule]:
    """Return the schedules of `select_layers` by name; ``selectors.json`` in the run folder keeps them.

    The recipe has a pre-trained model. Sequences come after those that trials train on.

    Raises:
        LayersearchError: if the model cannot be loaded or the file is damaged.
    """
    assert recipe.pretrained is not None
    file = folder / "selectors.json"
    if file.exists():
        try:
            held = parse_json(file.read_text(encoding="utf-8"))
            return {name: Schedule.parse(chosen["schedule"]) for name, chosen in held.items()}
        except (ValueError, TypeError, KeyError, AttributeError):
            raise RunFolderError(f"{file}: damaged; restore it, or start anew with another --out") from None
    decoder = load_pretrained(recipe.pretrained, tokens=recipe.training.seq_len)
    tokens = source.train(seed=seed, step=recipe.training.steps, batch_size=SEQUENCES).tokens
    found = select_layers(space, budget, kl_to_original(decoder, torch.from_numpy(tokens)))
    facts = {
        name: {"schedule": str(schedule), "layers": ranking.layers, "kl": ranking.scores}
        for name, (schedule, ranking) in found.items()
    }
    write_text(file, json.dumps(facts, indent=1) + "\n")
    return {name: schedule for name, (schedule, _) in found.items()}
