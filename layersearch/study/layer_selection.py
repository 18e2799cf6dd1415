"""Selectors: which layers of a pre-trained model keep full attention, judged without training.

Both judge a schedule by how far the model's next-token distributions move from the original's: KL(original || switched)
in nats a token, on sequences of the training data. The order of layers, not the number kept, is what they find:

- `restore_greedy` starts all-sparse and gives full attention back to one layer after another, each time to the one that
  brings the model nearest to the original. KL-guided layer selection (2512.20569) restores each layer once, distils
  and ranks; here nothing is trained, and layers are judged beside those already restored.
- `remove_one` starts from the original and makes one layer sparse at a time: the layers that hurt most are kept. That
  paper's sensitivity baseline, with KL in the place of its MSE and perplexity.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

from layersearch.config.recipe import Recipe
from layersearch.data.source import Source
from layersearch.errors import RunFolderError
from layersearch.files import write_text
from layersearch.model.hf_decoder import HFDecoder, token_kl
from layersearch.model.pretrained import load_pretrained
from layersearch.schedule import Schedule, Span
from layersearch.schedule.bound_space import BoundSpace

Score = Callable[[Schedule], float]
"""How far a schedule moves the model from the original; lower is better."""
FULL = Span(kind="full")


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """Layers in the order in which they are to keep full attention."""

    name: str
    """``restore_greedy`` or ``remove_one``."""
    layers: tuple[int, ...]
    """Most needed first."""
    scores: tuple[float, ...]
    """Of the schedule that put each layer where it stands, nats a token."""

    def schedule(self, n_full: int, n_layers: int, span: Span) -> Schedule:
        """Return the schedule in which the first ``n_full`` of them are full."""
        return place(self.layers[:n_full], n_layers, span)


def place(full: Iterable[int], n_layers: int, span: Span) -> Schedule:
    """Return the schedule that is full in these layers and ``span`` elsewhere."""
    chosen = set(full)
    return Schedule(tuple(FULL if layer in chosen else span for layer in range(n_layers)))


def restore_greedy(n_layers: int, span: Span, score: Score, most: int | None = None) -> Ranking:
    """Return the layers in the order in which giving full attention back helps most.

    Args:
        n_layers: of the model.
        span: of the layers that are not full.
        score: of a schedule; asked some ``n_layers * most`` times.
        most: layers to rank; None: all.
    """
    kept: list[int] = []
    scores: list[float] = []
    for _ in range(n_layers if most is None else min(most, n_layers)):
        tried = {layer: score(place([*kept, layer], n_layers, span)) for layer in range(n_layers) if layer not in kept}
        best = min(tried, key=lambda layer: (tried[layer], layer))
        kept.append(best)
        scores.append(tried[best])
    return Ranking(name="restore_greedy", layers=tuple(kept), scores=tuple(scores))


def remove_one(n_layers: int, span: Span, score: Score) -> Ranking:
    """Return the layers by how much it hurts to make each of them sparse alone, the most first."""
    tried = {layer: score(place(set(range(n_layers)) - {layer}, n_layers, span)) for layer in range(n_layers)}
    order = sorted(tried, key=lambda layer: (-tried[layer], layer))
    return Ranking(name="remove_one", layers=tuple(order), scores=tuple(tried[layer] for layer in order))


def kl_to_original(routed: HFDecoder, tokens: torch.Tensor) -> Score:
    """Return the score of schedules on a model's own weights: the mean KL(original || switched) of its tokens.

    Args:
        routed: the pre-trained model; its schedule is the original again after each call.
        tokens: (B, T) token ids, of training data.
    """

    @torch.no_grad()
    def logits(schedule: Schedule) -> torch.Tensor:
        routed.set_schedule(schedule)
        try:
            return routed.logits(tokens).float()
        finally:
            routed.set_schedule(routed.original)

    aim = logits(routed.original)

    def score(schedule: Schedule) -> float:
        return float(token_kl(aim, logits(schedule)).mean())

    return score


def selected(space: BoundSpace, budget: float, score: Score) -> dict[str, tuple[Schedule, Ranking]]:
    """Return what each selector chooses within a budget, by name, at the most full layers that the budget allows.

    Args:
        space: the bound space; its baselines' span is that of the layers that are not full.
        budget: largest cost, as a share of the all-full schedule's.
        score: as `kl_to_original` returns it.

    Returns:
        ``restore_greedy(l)`` and ``remove_one(l)``, each with its ranking; none where the space has no sparse span or
        no such schedule.
    """
    span = space.baseline_span
    if span is None:
        return {}
    sizes = range(1, space.n_layers)
    within = [count for count in sizes if space.cost(place(range(count), space.n_layers, span)) <= budget]
    if not within:
        return {}
    most = max(within)
    rankings = (restore_greedy(space.n_layers, span, score, most), remove_one(space.n_layers, span, score))
    found = {f"{ranking.name}({most})": (ranking.schedule(most, space.n_layers, span), ranking) for ranking in rankings}
    return {name: chosen for name, chosen in found.items() if space.encode(chosen[0]) is not None}


SEQUENCES = 32
"""Of the training data, on which selectors score."""


def selected_baselines(
    recipe: Recipe, space: BoundSpace, budget: float, source: Source, seed: int, folder: Path
) -> dict[str, Schedule]:
    """Return the schedules that the selectors choose, by name; found once, then kept in ``selectors.json``.

    Args:
        recipe: with a pre-trained model.
        space: the bound space.
        budget: of the search.
        source: the opened data. Sequences come from beyond the steps that trials train on.
        seed: of the search.
        folder: the run folder.

    Raises:
        RunFolderError: if the model cannot be loaded or routed, or the file is damaged.
    """
    assert recipe.pretrained is not None
    file = folder / "selectors.json"
    if file.exists():
        try:
            held = json.loads(file.read_text(encoding="utf-8"))
            return {name: Schedule.parse(chosen["schedule"]) for name, chosen in held.items()}
        except (ValueError, TypeError, KeyError, AttributeError):
            raise RunFolderError(f"{file}: damaged; restore it, or start anew with another --out") from None
    routed = load_pretrained(recipe.pretrained, tokens=recipe.training.seq_len)
    tokens = source.train(seed=seed, step=recipe.training.steps, batch_size=SEQUENCES).tokens
    found = selected(space, budget, kl_to_original(routed, torch.from_numpy(tokens)))
    facts = {
        name: {"schedule": str(schedule), "layers": ranking.layers, "kl": ranking.scores}
        for name, (schedule, ranking) in found.items()
    }
    write_text(file, json.dumps(facts, indent=1) + "\n")
    return {name: schedule for name, (schedule, _) in found.items()}
