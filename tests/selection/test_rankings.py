"""Rankings against brute force, and on a model in which one layer's attention decides."""

from __future__ import annotations

import itertools
import random
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from layersearch.model.hf_decoder import HFDecoder
from layersearch.schedule import Schedule, Span, presets
from layersearch.selection.layerwise import Layerwise
from layersearch.selection.measure import Scorer
from layersearch.selection.rankings import (
    Ranking,
    block_influence,
    gate_gradient,
    remove_one,
    restore_greedy,
    restore_one,
)
from tests.helpers.hf_models import make
from tests.helpers.selections import LAYERS, TASKS, TOKENS, layerwise, units

torch.set_num_threads(1)
WINDOW = Span(kind="window", size=3)
N = 6


class Table:
    """A score with effects of single layers and of pairs, that counts what it was asked."""

    def __init__(self, seed: int) -> None:
        rng = random.Random(seed)
        self.alone = [rng.gauss(1.0, 0.5) for _ in range(N)]
        self.pairs = {pair: rng.gauss(0.0, 0.6) for pair in itertools.combinations(range(N), 2)}
        self.asked: list[Schedule] = []

    def of(self, full: Any) -> float:
        kept = set(full)
        return (
            10.0
            - sum(self.alone[layer] for layer in kept)
            - sum(value for pair, value in self.pairs.items() if kept >= set(pair))
        )

    def __call__(self, schedule: Schedule) -> float:
        assert all(span in (WINDOW, presets.FULL) for span in schedule)
        self.asked.append(schedule)
        return self.of(schedule.full_layers)


@pytest.mark.parametrize("seed", range(5))
def test_restore_one_and_remove_one_rank_as_brute_force(seed: int) -> None:
    score = Table(seed)
    restored, removed = restore_one(N, WINDOW, score), remove_one(N, WINDOW, score)
    assert len(score.asked) == len(set(score.asked)) == 2 * N
    assert list(restored.layers) == sorted(range(N), key=lambda layer: score.of({layer}))
    assert list(removed.layers) == sorted(range(N), key=lambda layer: -score.of(set(range(N)) - {layer}))
    assert restored.scores == pytest.approx([-score.of({layer}) for layer in restored.layers])
    assert (restored.name, removed.name) == ("restore_one", "remove_one")


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("most", [None, 0, 3, N, N + 4])
def test_restore_greedy_ranks_as_brute_force(seed: int, most: int | None) -> None:
    score = Table(seed)
    found = restore_greedy(N, WINDOW, score, most)
    count = N if most is None else min(most, N)
    kept: list[int] = []
    for _ in range(count):
        kept.append(min((layer for layer in range(N) if layer not in kept), key=lambda at: score.of({*kept, at})))
    assert list(found.layers) == kept
    assert found.scores == pytest.approx([score.of(kept[: at + 1]) for at in range(count)])
    assert len(score.asked) == sum(N - step for step in range(count))


def test_ranking_of_equal_layers_takes_the_lower_first() -> None:
    flat = [rank(N, WINDOW, lambda _: 1.0).layers for rank in (restore_one, remove_one, restore_greedy)]
    assert flat == [tuple(range(N))] * 3


def test_ranking_schedule_keeps_its_first_layers_full() -> None:
    ranking = Ranking(name="any", layers=(2, 0, 1, 3), scores=(4.0, 3.0, 2.0, 1.0))
    assert str(ranking.schedule(2, 4, WINDOW)) == "full window:3 full window:3"
    assert str(ranking.schedule(0, 4, WINDOW)) == "window:3*4"


@pytest.fixture(scope="module", params=[1, 3])
def decisive(request: pytest.FixtureRequest) -> tuple[int, Scorer]:
    """Return a model whose layers but one attend to nothing: their output projection is 0."""
    layer = request.param
    model = make("llama", num_hidden_layers=LAYERS)
    with torch.no_grad():
        for at, block in enumerate(model.model.layers):
            block.self_attn.o_proj.weight.mul_(float(at == layer))
    return layer, Scorer(Layerwise(HFDecoder(model)), units(2), TASKS, 0.25)


@pytest.mark.slow
def test_ranking_of_a_model_with_one_deciding_layer_finds_it(decisive: tuple[int, Scorer]) -> None:
    layer, scorer = decisive
    full = scorer.model.run(scorer.units[0].text[:-1], presets.all_full(LAYERS)).last

    def divergence(schedule: Schedule) -> float:
        other = scorer.model.run(scorer.units[0].text[:-1], schedule).last
        return float(scorer.model.divergence(full, other).mean())

    for rank in (restore_one, remove_one, restore_greedy):
        assert rank(LAYERS, WINDOW, divergence).layers[0] == layer
    needs = gate_gradient(scorer, WINDOW)
    assert needs.name == "gate_gradient"
    by_layer = dict(zip(needs.layers, needs.scores, strict=True))
    assert abs(by_layer[layer]) > 1e-3
    assert all(by_layer[other] == 0.0 for other in range(LAYERS) if other != layer)
    assert sorted(needs.layers) == list(range(LAYERS))
    assert list(needs.scores) == sorted(needs.scores, reverse=True)


@pytest.mark.slow
def test_gate_gradient_is_the_slope_of_the_loss_from_sparse_to_full() -> None:
    """A small step of one gate lowers the loss by its need."""
    from layersearch.selection.gates import gated

    scorer, step = Scorer(layerwise("gpt2"), units(2), TASKS, 0.25), 2.0**-6
    found = gate_gradient(scorer, WINDOW)
    choices = [(WINDOW, presets.FULL)] * LAYERS

    def loss(layer: int, by: float) -> float:
        weights = [torch.tensor([1 - by, by] if at == layer else [1.0, 0.0]) for at in range(LAYERS)]
        with torch.no_grad(), gated(scorer.model, choices, weights):
            return sum(float(scorer.loss_with_graph(unit)) for unit in range(2))

    for layer, need in zip(found.layers, found.scores, strict=True):
        assert need == pytest.approx((loss(layer, -step) - loss(layer, step)) / (2 * step), rel=0.02, abs=2e-3)


@pytest.mark.parametrize("stride", [1, 2])
def test_block_influence_is_one_minus_the_cosine_of_a_blocks_ends(stride: int) -> None:
    model = layerwise(stride=stride)
    scorer = Scorer(model, units(2), TASKS, 0.25)
    needs = torch.zeros(LAYERS)
    ends: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def hook(layer: int) -> Any:
        def seen(_: Any, given: Any, out: Any) -> None:
            ends[layer] = (given[0][0], (out if torch.is_tensor(out) else out[0])[0])

        return seen

    hooks = [block.register_forward_hook(hook(layer)) for layer, block in enumerate(model.blocks)]
    for unit in scorer.units:
        model.run(unit.text[:-1], presets.all_full(LAYERS))
        for layer, (before, after) in ends.items():
            assert before.shape == (TOKENS, 32)
            needs[layer] += 1 - F.cosine_similarity(before, after, dim=-1).mean()
    for each in hooks:
        each.remove()
    found = block_influence(scorer)
    assert found.name == "block_influence"
    assert list(found.layers) == sorted(range(LAYERS), key=lambda layer: -float(needs[layer]))
    assert found.scores == pytest.approx([float(needs[layer]) for layer in found.layers], rel=1e-4)
