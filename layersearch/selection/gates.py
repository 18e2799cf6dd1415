"""Gates over all choices of every layer at once: the relaxed problem that a selection starts from.

Layer i attends by a mixture of its choices, out_i = sum_c w[i, c] * attention(span_c), with w[i] on the simplex and the
model's weights frozen. The mixture moves by dual averaging with entropy (Nesterov, "Primal-dual subgradient methods for
convex problems", Math. Program. 120, 2009): with g the sum of the gradients so far, each centered and scaled,

    w[i, c]  =  exp(-rate * g[i, c] - multiplier * cost[c]),  normalized by layer,

where the multiplier is the smallest one, at least 0, at which the expected cost sum(w * cost) keeps to the budget. DASH
(2605.20936) and FlashMorph (2606.30562) move gates between full and linear attention; here a layer has any number of
spans and the budget is of exact attention FLOPs.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from layersearch.model.hf_decoder import ATTENTION_NAME, span_attention
from layersearch.selection.layerwise import Layerwise
from layersearch.selection.measure import Scorer, finite
from layersearch.selection.rounding import Array, Choices, round_to_schedules

GATES_NAME = "layersearch_gates"
"""The name of `gated_attention` in transformers."""
__all__ = ["Array", "Choices", "descend", "gate_gradients", "gated", "keep_to_budget", "round_to_schedules"]


def gated_attention(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *rest: Any, **named: Any) -> Any:
    """Attend by a layer's mixture of spans. Called by transformers in place of its own attention."""
    gates: Any = module.layersearch_gates
    spans, weights = gates
    mixed = None
    for span, weight in zip(spans, weights.unbind(), strict=True):
        module.layersearch_span = span  # type: ignore[assignment]
        out = span_attention(module, query, key, value, *rest, **named)[0] * weight.to(query.dtype)
        mixed = out if mixed is None else mixed + out
    return mixed, None


@contextmanager
def gated(model: Layerwise, choices: Choices, weights: Sequence[Tensor]) -> Iterator[None]:
    """Let every layer attend by a mixture of its choices, one block's activations in memory at a time."""
    from transformers import AttentionInterface

    AttentionInterface.register(GATES_NAME, gated_attention)
    model.decoder.model.set_attn_implementation(GATES_NAME)
    try:
        for layer, spans, mixture in zip(model.decoder.attention, choices, weights, strict=True):
            layer.layersearch_gates = (spans, mixture)  # type: ignore[assignment]
        for block in model.blocks:
            block.forward = functools.partial(checkpoint, type(block).forward.__get__(block), use_reentrant=False)
        yield
    finally:
        for block in model.blocks:
            vars(block).pop("forward", None)
        for layer in model.decoder.attention:
            vars(layer).pop("layersearch_gates", None)
        model.decoder.model.set_attn_implementation(ATTENTION_NAME)
        model.decoder.set_schedule(model.decoder.schedule)


def keep_to_budget(log_weights: Sequence[Array], costs: Sequence[Array], budget: float) -> list[Array]:
    """Return the mixtures nearest in relative entropy whose expected cost keeps to a budget.

    Args:
        log_weights: by layer, unnormalized, (choices,).
        costs: by layer, shares of the all-full schedule's FLOPs, (choices,).
        budget: share of the all-full schedule's FLOPs; the cheapest choices must keep to it.

    Returns:
        By layer, on the simplex.
    """

    def tilted(multiplier: float) -> list[Array]:
        found = []
        for logs, cost in zip(log_weights, costs, strict=True):
            scores = logs - multiplier * cost
            raised = np.exp(scores - scores.max())
            found.append(raised / raised.sum())
        return found

    def spent(weights: Sequence[Array]) -> float:
        return float(sum(w @ c for w, c in zip(weights, costs, strict=True)))

    low, high = 0.0, 1.0
    if spent(tilted(low)) <= budget:
        return tilted(low)
    while spent(tilted(high)) > budget and high < 1e12:
        low, high = high, 2 * high
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if spent(tilted(middle)) > budget else (low, middle)
    return tilted(high)


def gate_gradients(
    model: Layerwise, choices: Choices, weights: Sequence[Array], loss: Callable[[], Tensor]
) -> tuple[float, list[Array]]:
    """Return a loss under the mixtures, nats, and its gradient by layer and choice.

    Args:
        model: its weights are frozen.
        choices: by layer.
        weights: by layer, on the simplex.
        loss: runs the model under the mixtures and returns a scalar with its graph.
    """
    gates = [torch.tensor(w, dtype=torch.float32, device=model.device, requires_grad=True) for w in weights]
    with gated(model, choices, gates):
        value = loss()
        value.backward()  # type: ignore[no-untyped-call]
    return finite(float(value.detach())), [
        gate.grad.cpu().numpy().astype(np.float64) for gate in gates if gate.grad is not None
    ]


def descend(
    scorer: Scorer,
    choices: Choices,
    costs: Sequence[Array],
    budget: float,
    *,
    steps: int,
    rate: float,
    begin: Sequence[Array] | None = None,
    first: int = 0,
    on_step: Callable[[int, float, Sequence[Array]], None] = lambda step, loss, scores: None,
) -> list[Array]:
    """Move gates down the quality of a schedule, one unit a step, and return their scores by layer and choice.

    Args:
        scorer: its units take turns.
        choices: by layer.
        costs: by layer and choice, shares of the all-full schedule's FLOPs.
        budget: largest expected cost.
        steps: of the descent.
        rate: change of a log weight by a gradient of root-mean-square size, per step.
        begin: scores after the ``first`` steps of an earlier process.
        on_step: called with the number of steps done, the loss of the relaxed problem in nats, and the scores so far.

    Returns:
        Negated log weights before the budget's multiplier: lower is better, as `round_to_schedules` takes them.
    """
    logs = [np.zeros(len(spans)) for spans in choices] if begin is None else [-scores for scores in begin]
    for step in range(first, steps):
        weights = keep_to_budget(logs, costs, budget)
        on_unit = functools.partial(scorer.loss_with_graph, step % len(scorer.units))
        loss, gradients = gate_gradients(scorer.model, choices, weights, on_unit)
        centered = [g - w @ g for w, g in zip(weights, gradients, strict=True)]
        scale = float(np.sqrt(np.mean(np.concatenate(centered) ** 2))) or 1.0
        logs = [log - rate * g / scale for log, g in zip(logs, centered, strict=True)]
        on_step(step + 1, loss, [-log for log in logs])
    return [-log for log in logs]
