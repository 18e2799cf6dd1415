"""Rankings of the layers of a pre-trained model by their need of full attention, from the literature.

Each method ranks layers under one sparse span, and the first l of its ranking keep full attention.

- `restore_one` makes every layer sparse and restores full attention in one layer at a time; the largest gain comes
  first. With answers only (weight 1) it is the criterion of NLL-guided selection (2606.27791).
- `remove_one` makes one layer of the original sparse at a time; the largest loss comes first. It is the sensitivity
  baseline of KL-guided selection (2512.20569), with KL or with loss.
- `restore_greedy` restores one layer after the other, each together with those restored before (2512.20569, without
  its distillation).
- `gate_gradient` takes one gradient of gates between the sparse span and full attention (cf. DASH, 2605.20936).
- `block_influence`: 1 - cosine of a block's input and output (ShortGPT, 2403.03853).
- `lazy_ratio`: attention mass on sinks and recent tokens, of the last queries (LightTransfer, 2410.13846). A lazy
  layer needs no full attention, so the lowest ratio comes first.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from layersearch.model.hf_decoder import ATTENTION_NAME, span_attention
from layersearch.schedule import Schedule, Span, presets
from layersearch.schedule.presets import FULL
from layersearch.selection.gates import gate_gradients
from layersearch.selection.measure import Scorer

Score = Callable[[Schedule], float]
"""Returns how bad a schedule is, nats; lower is better."""
WATCHING_NAME = "layersearch_watching"
"""The name in transformers of the attention that `lazy_ratio` watches."""
LAST_QUERIES = 64
"""Queries whose attention `lazy_ratio` looks at."""


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """Layers ranked by their need of full attention."""

    name: str
    layers: tuple[int, ...]
    """Most needed first."""
    scores: tuple[float, ...]
    """The score behind each rank: nats, a gradient, or a ratio."""

    def schedule(self, n_full: int, n_layers: int, span: Span) -> Schedule:
        """Return the schedule with the first ``n_full`` layers full and ``span`` in the others."""
        return presets.place(n_layers, self.layers[:n_full], span)


def _ranked(name: str, needs: Sequence[float]) -> Ranking:
    """Return layers by descending need; of equal needs, the lower layer first."""
    order = sorted(range(len(needs)), key=lambda layer: (-needs[layer], layer))
    return Ranking(name=name, layers=tuple(order), scores=tuple(needs[layer] for layer in order))


def restore_one(n_layers: int, span: Span, score: Score) -> Ranking:
    """Rank layers by the gain when full attention is restored in each alone; L scores."""
    return _ranked("restore_one", [-score(presets.place(n_layers, (layer,), span)) for layer in range(n_layers)])


def remove_one(n_layers: int, span: Span, score: Score) -> Ranking:
    """Rank layers by the score after each alone is made sparse; L scores."""
    every = set(range(n_layers))
    return _ranked("remove_one", [score(presets.place(n_layers, every - {layer}, span)) for layer in range(n_layers)])


def restore_greedy(n_layers: int, span: Span, score: Score, most: int | None = None) -> Ranking:
    """Rank the ``most`` most needed layers (None: all) layers, each restored with those before it; L x most scores."""
    kept: list[int] = []
    scores: list[float] = []
    for _ in range(n_layers if most is None else min(most, n_layers)):
        tried = {
            layer: score(presets.place(n_layers, [*kept, layer], span))
            for layer in range(n_layers)
            if layer not in kept
        }
        best = min(tried, key=lambda layer: (tried[layer], layer))
        kept.append(best)
        scores.append(tried[best])
    return Ranking(name="restore_greedy", layers=tuple(kept), scores=tuple(scores))


def gate_gradient(scorer: Scorer, span: Span) -> Ranking:
    """Rank layers by the gradient of a gate from ``span`` to full attention, at gates of zero, over all units."""
    n_layers = scorer.model.n_layers
    choices = [(span, FULL)] * n_layers
    weights = [torch.tensor([1.0, 0.0]).numpy()] * n_layers
    needs = [0.0] * n_layers
    for unit in range(len(scorer.units)):
        _, found = gate_gradients(scorer.model, choices, weights, functools.partial(scorer.loss_with_graph, unit))
        needs = [need + float(g[0] - g[1]) for need, g in zip(needs, found, strict=True)]
    return _ranked("gate_gradient", needs)


def block_influence(scorer: Scorer) -> Ranking:
    """Rank layers by 1 - cosine of a block's input and output under full attention, over the units' texts."""
    model, needs = scorer.model, [0.0] * scorer.model.n_layers

    def add(layer: int, given: Any, out: Any) -> None:
        before, after = given[0].float(), (out if isinstance(out, torch.Tensor) else out[0]).float()
        needs[layer] += float(1 - F.cosine_similarity(before, after, dim=-1).mean())

    hooks = [
        block.register_forward_hook(lambda _, given, out, layer=layer: add(layer, given, out))
        for layer, block in enumerate(model.blocks)
    ]
    try:
        for unit in scorer.units:
            model.run(unit.text[:-1], presets.all_full(model.n_layers))
    finally:
        for hook in hooks:
            hook.remove()
    return _ranked("block_influence", needs)


def lazy_ratio(scorer: Scorer, span: Span) -> Ranking:
    """Rank layers by the attention mass of the last `LAST_QUERIES` queries outside a span, most first.

    The mass is a mean over heads and the units' texts, under full attention.
    """
    from transformers import AttentionInterface

    model, needs = scorer.model, [0.0] * scorer.model.n_layers

    def watching(module: Any, query: Tensor, key: Tensor, value: Tensor, *given: Any, **named: Any) -> Any:
        tokens, heads = query.shape[2], query.shape[1]
        last = torch.arange(max(0, tokens - LAST_QUERIES), tokens, device=query.device)[:, None]
        keys = key.repeat_interleave(heads // key.shape[1], dim=1).float()
        scores = query[:, :, last[:, 0]].float() @ keys.transpose(2, 3) / math.sqrt(query.shape[3])
        every, h = torch.arange(tokens, device=query.device), torch.arange(heads, device=query.device)
        mass = scores.masked_fill(every > last, -torch.inf).softmax(-1)
        outside = ~span.visible(last, every, h[:, None, None])
        needs[module.layer_idx] += float((mass * outside).sum(-1).mean())
        return span_attention(module, query, key, value, *given, **named)

    AttentionInterface.register(WATCHING_NAME, watching)
    model.decoder.model.set_attn_implementation(WATCHING_NAME)
    try:
        for unit in scorer.units:
            model.run(unit.text[:-1], presets.all_full(model.n_layers))
    finally:
        model.decoder.model.set_attn_implementation(ATTENTION_NAME)
    return _ranked("lazy_ratio", needs)
