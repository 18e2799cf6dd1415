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

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch

from layersearch.routing import Routed, token_kl
from layersearch.schedule import Schedule, Span
from layersearch.space import BoundSpace

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


def kl_to_original(routed: Routed, tokens: torch.Tensor) -> Score:
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
