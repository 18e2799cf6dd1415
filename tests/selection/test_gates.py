"""Gates: their gradients, their budget, their descent, and the schedules they round to."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from torch import Tensor

from layersearch.model.hf_decoder import ATTENTION_NAME
from layersearch.schedule import Schedule, Span
from layersearch.selection.gates import (
    Array,
    descend,
    gate_gradients,
    gated,
    keep_to_budget,
    round_to_schedules,
)
from layersearch.selection.layerwise import Layerwise
from layersearch.selection.measure import Scorer
from tests.helpers.selections import LAYERS, SCHEDULES, TASKS, layerwise, token_ids, units

torch.set_num_threads(1)
SPANS = tuple(map(Span.parse, ("full", "window:4", "window:9+sink:2", "block:8")))
CHOICES = (SPANS[:3], SPANS[2:3], SPANS, (SPANS[0], SPANS[3]))
"""By layer: three, one, four and two choices."""
COSTS = tuple(np.array([{"full": 1.0, "window:4": 0.2, "window:9+sink:2": 0.5, "block:8": 0.3}[str(s)] for s in layer])
              for layer in CHOICES)  # fmt: skip
EVEN = tuple(np.full(len(layer), 1 / len(layer)) for layer in CHOICES)


def draw(seed: int) -> list[Array]:
    rng = np.random.default_rng(seed)
    return [np.log(rng.dirichlet(np.ones(len(layer)))) for layer in CHOICES]


def exact_loss(model: Layerwise) -> Tensor:
    """Return a loss in double precision, for finite differences."""
    hidden = model.hidden(token_ids(1))
    return torch.nn.functional.cross_entropy(model.decoder.model.get_output_embeddings()(hidden), token_ids(2))


# RMSNorm of transformers computes in float32, whatever the model's type: its differences need longer steps.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "step", "close"),
    [("gpt2", 2.0**-12, 1e-7), ("gpt_neox", 2.0**-12, 1e-7), ("llama", 2.0**-8, 1e-3), ("gemma", 2.0**-8, 1e-3)],
)
def test_gate_gradients_equal_central_finite_differences(family: str, step: float, close: float) -> None:
    model = layerwise(family, double=True)
    weights = [np.round(np.exp(layer) * 1024) / 1024 for layer in draw(0)]  # exact in float32
    loss, found = gate_gradients(model, CHOICES, weights, lambda: exact_loss(model))

    def at(layer: int, choice: int, by: float) -> float:
        moved = [torch.tensor(w, dtype=torch.float64) for w in weights]
        moved[layer][choice] += by
        with torch.no_grad(), gated(model, CHOICES, moved):
            return float(exact_loss(model))

    def slope(layer: int, choice: int) -> float:
        """Return a central difference, its error of second order removed (Richardson)."""
        wide, narrow = ((at(layer, choice, h) - at(layer, choice, -h)) / (2 * h) for h in (step, step / 2))
        return (4 * narrow - wide) / 3

    assert loss == pytest.approx(at(0, 0, 0.0), rel=1e-12)
    assert [len(layer) for layer in found] == [3, 1, 4, 2]
    for layer, gradient in enumerate(found):
        assert gradient == pytest.approx([slope(layer, c) for c in range(len(gradient))], rel=close, abs=close)
        assert np.abs(gradient).max() > 0.01
    assert all(parameter.grad is None for parameter in model.decoder.parameters())


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_gated_one_hot_mixture_equals_the_plain_forward_pass(family: str) -> None:
    model, tokens = layerwise(family), token_ids(3)
    for picks in ((0, 0, 3, 1), (2, 0, 0, 0), (1, 0, 1, 1)):
        mixtures = [
            torch.nn.functional.one_hot(torch.tensor(p), len(c)).float() for p, c in zip(picks, CHOICES, strict=True)
        ]
        schedule = Schedule(tuple(spans[pick] for spans, pick in zip(CHOICES, picks, strict=True)))
        with torch.no_grad(), gated(model, CHOICES, mixtures):
            found = model.hidden(tokens)
        torch.testing.assert_close(found, model.run(tokens, schedule).last, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("fails", [False, True])
def test_gated_model_attends_as_before_afterwards(fails: bool) -> None:
    model, tokens = layerwise(), token_ids(4)
    before = model.run(tokens, SCHEDULES[1])
    mixtures = [torch.tensor(w, dtype=torch.float32) for w in EVEN]
    try:
        with gated(model, CHOICES, mixtures):
            inside = model.hidden(tokens)
            if fails:
                raise RuntimeError("stopped here")
    except RuntimeError:
        assert fails
    assert not torch.equal(inside, before.last)
    assert model.decoder.model.config._attn_implementation == ATTENTION_NAME
    assert model.decoder.schedule == SCHEDULES[1]
    assert not [layer for layer in model.decoder.attention if hasattr(layer, "layersearch_gates")]
    assert not [block for block in model.blocks if "forward" in vars(block)]
    with torch.no_grad():
        assert torch.equal(model.hidden(tokens), before.last)  # without another set_schedule
    assert torch.equal(model.run(tokens, SCHEDULES[1]).last, before.last)


def test_gated_mixture_of_other_layers_is_refused_and_leaves_the_model_whole() -> None:
    model, tokens = layerwise(), token_ids(4)
    before = model.run(tokens, SCHEDULES[1]).last
    with pytest.raises(ValueError, match="zip"), gated(model, CHOICES[:2], [torch.ones(3), torch.ones(1)]):
        pass
    assert not [layer for layer in model.decoder.attention if hasattr(layer, "layersearch_gates")]
    assert torch.equal(model.run(tokens, SCHEDULES[1]).last, before)


def spent(weights: Sequence[Array]) -> float:
    return sum(float(w @ c) for w, c in zip(weights, COSTS, strict=True))


@settings(deadline=None, max_examples=50)
@given(seed=st.integers(0, 10**6), share=st.floats(0.01, 0.99), scale=st.sampled_from([0.1, 1.0, 30.0]))
def test_keep_to_budget_meets_the_budget_exactly(seed: int, share: float, scale: float) -> None:
    logs = [scale * layer for layer in draw(seed)]
    low, high = sum(c.min() for c in COSTS), sum(c.max() for c in COSTS)
    budget = low + share * (high - low)
    free, found = keep_to_budget(logs, COSTS, 1e9), keep_to_budget(logs, COSTS, budget)
    for layer, log in zip(free, logs, strict=True):
        assert layer == pytest.approx(np.exp(log - log.max()) / np.exp(log - log.max()).sum())
    assert all(layer.sum() == pytest.approx(1.0) and (layer >= 0).all() for layer in found)
    assert spent(found) == pytest.approx(min(budget, spent(free)), abs=1e-9)
    assert spent(found) <= budget + 1e-12


def test_keep_to_budget_at_the_cheapest_choices_takes_them() -> None:
    low = sum(c.min() for c in COSTS)
    found = keep_to_budget(draw(3), COSTS, low)
    for layer, cost in zip(found, COSTS, strict=True):
        assert layer[np.argmin(cost)] == pytest.approx(1.0, abs=1e-9)


def test_keep_to_budget_is_the_nearest_mixture_in_relative_entropy() -> None:
    logs, budget = draw(5), 1.4
    sizes = np.cumsum([0, *map(len, CHOICES)])
    flat = np.concatenate([np.exp(layer) for layer in logs])
    costs = np.concatenate(COSTS)

    def layers(x: Array) -> list[Array]:
        return [x[a:b] for a, b in itertools.pairwise(sizes)]

    def entropy(x: Array) -> float:
        return float(np.sum(x * np.log(np.maximum(x, 1e-12) / flat)))

    def slope(x: Array) -> Array:
        return np.log(np.maximum(x, 1e-12) / flat) + 1

    solved = minimize(
        entropy,
        np.concatenate(EVEN),
        jac=slope,
        method="SLSQP",
        bounds=[(1e-9, 1)] * len(flat),
        constraints=[
            {"type": "eq", "fun": lambda x: np.array([layer.sum() - 1 for layer in layers(x)])},
            {"type": "ineq", "fun": lambda x: budget - x @ costs},
        ],
        options={"ftol": 1e-14, "maxiter": 500},
    )
    assert solved.success
    assert spent([np.exp(layer) for layer in logs]) > budget + 0.1  # the budget binds
    assert np.concatenate(keep_to_budget(logs, COSTS, budget)) == pytest.approx(solved.x, abs=1e-5)


@pytest.mark.slow
@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_rounded_schedules_are_each_optimal_at_some_price_and_none_is_left_out(data: st.DataObject) -> None:
    """Brute force on 4 layers of 3 choices. The corners of the lower convex hull must all be there."""
    numbers = st.integers(-20, 20) if data.draw(st.booleans()) else st.floats(-5, 5)
    spans = [Span(kind="window", size=size) for size in (1, 2, 3)]
    choices = [spans] * 4
    scores = [np.array(data.draw(st.lists(numbers, min_size=3, max_size=3)), dtype=float) for _ in range(4)]
    costs = [np.array(data.draw(st.lists(st.integers(1, 9), min_size=3, max_size=3)), dtype=float) for _ in range(4)]
    found = round_to_schedules(choices, scores, costs)
    at = {
        Schedule(tuple(spans[i] for i in picks)): (
            sum(s[i] for s, i in zip(scores, picks, strict=True)),
            sum(c[i] for c, i in zip(costs, picks, strict=True)),
        )
        for picks in itertools.product(range(3), repeat=4)
    }
    # Between two prices at which a layer changes its mind, one point is best throughout.
    pairs = [(s[a] - s[b], c[b] - c[a]) for s, c in zip(scores, costs, strict=True) for a, b in
             itertools.permutations(range(3), 2) if c[b] > c[a]]  # fmt: skip
    edges = sorted({0.0, *(gain / cost for gain, cost in pairs if gain > 0)})
    prices = [*edges, *((a + b) / 2 for a, b in itertools.pairwise(edges)), edges[-1] + 1.0]
    lowest = {price: min(score + price * cost for score, cost in at.values()) for price in prices}
    for schedule in found:
        score, cost = at[schedule]
        assert any(score + price * cost <= best + 1e-9 for price, best in lowest.items())
    points = {at[schedule] for schedule in found}
    for price in prices[len(edges) :]:  # inside an interval: without ties but of equal layers
        assert any(score + price * cost <= lowest[price] + 1e-9 for score, cost in points)
    assert [at[s][1] for s in found] == sorted(at[s][1] for s in found)
    assert len(set(found)) == len(found)


def test_rounded_schedules_begin_at_the_cheapest_choices_and_end_at_the_lowest_scores() -> None:
    scores = [np.array([-3.0, 0.0, -1.0]), np.array([0.0]), np.array([-2.0, 0.0, -0.5, -1.9]), np.array([-0.1, 0.0])]
    found = round_to_schedules(CHOICES, scores, COSTS)
    assert str(found[0]) == "window:4 window:9+sink:2 window:4 block:8"
    assert str(found[-1]) == "full window:9+sink:2 full*2"


@pytest.fixture(scope="module")
def scorer() -> Scorer:
    return Scorer(layerwise(), units(2), TASKS, 0.25)


def run_descent(scorer: Scorer, **more: object) -> tuple[list[Array], list[tuple[int, float, list[Array]]]]:
    seen: list[tuple[int, float, list[Array]]] = []

    def on_step(step: int, loss: float, scores: Sequence[Array]) -> None:
        seen.append((step, loss, list(scores)))

    found = descend(scorer, CHOICES, COSTS, 1.5, on_step=on_step, **{"steps": 5, "rate": 0.5, **more})  # type: ignore[arg-type]
    return found, seen


@pytest.mark.slow
def test_descend_resumed_after_two_of_five_steps_gives_the_scores_of_five(scorer: Scorer) -> None:
    whole, seen = run_descent(scorer)
    _, first = run_descent(scorer, steps=2)
    resumed, rest = run_descent(scorer, begin=first[-1][2], first=2)
    assert [step for step, _, _ in seen] == [1, 2, 3, 4, 5]
    assert [(step, loss) for step, loss, _ in [*first, *rest]] == [(step, loss) for step, loss, _ in seen]
    assert all(np.array_equal(a, b) for a, b in zip(resumed, whole, strict=True))
    assert all(np.array_equal(a, b) for a, b in zip(seen[-1][2], whole, strict=True))
    again, none = run_descent(scorer, begin=whole, first=5)
    assert none == []
    assert all(np.array_equal(a, b) for a, b in zip(again, whole, strict=True))


@pytest.mark.slow
def test_descend_lowers_the_loss_of_the_relaxed_problem(scorer: Scorer) -> None:
    def loss(scores: Sequence[Array]) -> float:
        weights = keep_to_budget([-layer for layer in scores], COSTS, 1.5)
        values = [
            gate_gradients(scorer.model, CHOICES, weights, lambda n=n: scorer.loss_with_graph(n))[0]  # type: ignore[misc]
            for n in range(2)
        ]
        return sum(values) / 2

    start = [np.zeros(len(layer)) for layer in CHOICES]
    found, _ = run_descent(scorer, steps=8)
    assert loss(found) < loss(start) - 1e-3
    assert [len(layer) for layer in found] == [3, 1, 4, 2]
    assert found[1] == pytest.approx([0.0])  # a layer of one choice has nothing to learn


def test_descend_without_steps_gives_even_scores(scorer: Scorer) -> None:
    found, seen = run_descent(scorer, steps=0)
    assert seen == []
    assert all(np.array_equal(layer, np.zeros(len(layer))) for layer in found)
    assert len(found) == LAYERS
