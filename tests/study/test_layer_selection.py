"""Selectors on scores whose best layers are known, and the score itself on a real model."""

from __future__ import annotations

import pytest
import torch

from layersearch.model.hf_decoder import HFDecoder
from layersearch.schedule import Schedule, Span
from layersearch.schedule.bound_space import BoundSpace
from layersearch.schedule.presets import place
from layersearch.schedule.space import Space
from layersearch.selection.rankings import remove_one, restore_greedy
from layersearch.study.layer_selection import kl_to_original, select_layers
from tests.helpers.hf_models import VOCAB, make

torch.set_num_threads(1)
WINDOW = Span(kind="window", size=3)


def test_selected_layers_that_matter_alone_are_found_in_order() -> None:
    weights = (0.1, 0.5, 0.0, 0.3)
    asked: list[Schedule] = []

    def score(schedule: Schedule) -> float:
        asked.append(schedule)
        return 1.0 - sum(weights[layer] for layer in schedule.full_layers)

    found = restore_greedy(4, WINDOW, score)
    assert found.layers == (1, 3, 0, 2)
    assert found.scores == pytest.approx((0.5, 0.2, 0.1, 0.1))
    assert len(asked) == len(set(asked)) == 4 + 3 + 2 + 1
    assert restore_greedy(4, WINDOW, score, most=2).layers == (1, 3)
    assert remove_one(4, WINDOW, score).layers == (1, 3, 0, 2)
    assert str(found.schedule(2, 4, WINDOW)) == "window:3 full window:3 full"


def test_restore_greedy_sees_that_two_layers_do_the_same_work() -> None:
    """Either of layers 0 and 1 suffices, so removing one of them shows nothing; restoring one does."""

    def score(schedule: Schedule) -> float:
        full = set(schedule.full_layers)
        return 1.0 - 0.6 * bool(full & {0, 1}) - 0.3 * (2 in full)

    assert restore_greedy(4, WINDOW, score, most=2).layers == (0, 2)
    assert remove_one(4, WINDOW, score).layers == (2, 0, 1, 3)


def test_kl_to_original_is_zero_for_all_full_and_falls_with_restored_layers() -> None:
    decoder = HFDecoder(make("llama"))
    score = kl_to_original(decoder, torch.randint(VOCAB, (4, 24), generator=torch.Generator().manual_seed(0)))
    assert score(decoder.original) == pytest.approx(0.0, abs=1e-6)
    sparse, one = score(place(3, (), WINDOW)), score(place(3, (0, 1), WINDOW))
    assert sparse > one > 1e-3
    assert decoder.schedule == decoder.original


def test_selected_budget_sets_how_many_layers() -> None:
    bound = BoundSpace(Space(name="s", choices=("full", "window:3")), n_layers=4, seq_len=24, n_heads=2)

    def score(schedule: Schedule) -> float:
        return 1.0 - 0.5 * (2 in schedule.full_layers) - 0.1 * (1 in schedule.full_layers)

    for budget, names in ((0.5, {"restore_greedy(1)", "remove_one(1)"}), (0.7, {"restore_greedy(2)", "remove_one(2)"})):
        found = select_layers(bound, budget, score)
        assert set(found) == names
        for schedule, ranking in found.values():
            assert bound.cost(schedule) <= budget
            assert schedule.full_layers == tuple(sorted(ranking.layers[: schedule.n_full]))
            assert 2 in schedule.full_layers
    assert select_layers(bound, 0.3, score) == {}
