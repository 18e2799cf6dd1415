"""The local search on losses that are known: effects of single layers and of pairs, and noise by unit."""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping, Sequence
from statistics import fmean

import pytest

from layersearch.schedule import Schedule
from layersearch.schedule.bound_space import BoundSpace
from layersearch.schedule.space import Space
from layersearch.selection.local_search import LocalSearch, Measured
from layersearch.selection.measure import Measurement

BUDGET, N, UNITS = 0.55, 6, 4
SPACE = BoundSpace(Space(name="s", choices=("full", "window:8", "window:24")), n_layers=N, seq_len=64, n_heads=2)
FIRST = SPACE.cheapest()


class KnownScorer:
    """Has the interface of `Scorer`; its losses are effects of layers, of pairs, and of a unit and a schedule."""

    weight = 0.0

    def __init__(self, seed: int, noise: float = 0.0) -> None:
        rng = random.Random(seed)
        self.units = list(range(UNITS))
        self.alone = [{"full": 0.0, "window:8": rng.uniform(0.1, 1.5), "window:24": 0.0} for _ in range(N)]
        for effects in self.alone:
            effects["window:24"] = effects["window:8"] * rng.uniform(0.2, 0.9)
        self.pairs = {pair: rng.uniform(0, 0.3) for pair in itertools.combinations(range(N), 2)}
        self.noise, self.seed = noise, seed
        self.measured: list[tuple[Schedule, int]] = []
        self.starts: list[Schedule] = []

    def loss(self, schedule: Schedule) -> float:
        sparse = {layer for layer, span in enumerate(schedule) if not span.is_full}
        single = sum(effects[str(span)] for effects, span in zip(self.alone, schedule, strict=True))
        return 2.0 + single + sum(value for pair, value in self.pairs.items() if set(pair) <= sparse)

    def measure(self, schedule: Schedule, number: int) -> Measurement:
        self.measured.append((schedule, number))
        own = random.Random(f"{self.seed}/{schedule}/{number}").gauss(0.0, self.noise)
        loss = self.loss(schedule) + 0.5 * number + own
        return Measurement(text_loss=loss, answer_loss=float("nan"), accuracy={}, by_position=())

    def start_from(self, schedule: Schedule) -> None:
        self.starts.append(schedule)

    def prior(self, schedule: Schedule) -> float:
        return sum(effects[str(span)] for effects, span in zip(self.alone, schedule, strict=True))


def search(
    scorer: KnownScorer, known: Mapping[Schedule, Sequence[float]] | None = None, candidates: int = 14, seed: int = 0
) -> tuple[LocalSearch, list[Measured]]:
    seen: list[Measured] = []
    found = LocalSearch(scorer, SPACE, BUDGET, scorer.prior, seen.append, known or {}, seed)  # type: ignore[arg-type]
    found.run([FIRST], candidates)
    return found, seen


def optimum(scorer: KnownScorer) -> float:
    return min(scorer.loss(schedule) for schedule in SPACE.schedules() if SPACE.cost(schedule) <= BUDGET)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_local_search_finds_the_optimum_within_the_budget(seed: int) -> None:
    scorer = KnownScorer(seed)
    found, seen = search(scorer)
    assert scorer.loss(found.best[0].schedule) == pytest.approx(optimum(scorer), abs=1e-6)
    assert len(seen) == len(found.measured) <= 15  # of 729 schedules
    assert all(SPACE.cost(schedule) <= BUDGET for schedule, _ in scorer.measured)
    assert len(set(scorer.measured)) == len(scorer.measured)  # nothing is measured twice
    assert [m.estimate for m in found.best] == sorted(m.estimate for m in found.best)


@pytest.mark.slow
def test_local_search_candidates_that_stop_keep_the_paired_estimate() -> None:
    scorer = KnownScorer(1, noise=0.02)
    _, seen = search(scorer)
    stopped = [made for made in seen if not made.complete]
    assert stopped
    assert scorer.starts[0] == FIRST
    incumbents: list[Measured] = []
    for made in seen:
        if not made.complete:
            best = min(incumbents, key=lambda m: (m.estimate, SPACE.cost(m.schedule), m.schedule))
            count = len(made.losses)
            assert 2 <= count < UNITS
            paired = fmean(a - b for a, b in zip(made.losses, best.losses, strict=False))
            assert paired > 0
            assert made.estimate == pytest.approx(best.estimate + paired)
            # The units differ by half a nat each: a mean of the first few alone would be far too low.
            assert made.estimate == pytest.approx(scorer.loss(made.schedule) + 0.5 * fmean(range(UNITS)), abs=0.1)
        else:
            assert len(made.losses) == UNITS
            assert made.estimate == pytest.approx(fmean(made.losses))
            incumbents.append(made)


@pytest.mark.slow
def test_local_search_known_losses_are_not_measured_again_and_give_the_same_proposals() -> None:
    whole_scorer = KnownScorer(2, noise=0.02)
    whole, seen = search(whole_scorer, candidates=12)
    for cut in (2, 9):
        scorer = KnownScorer(2, noise=0.02)
        resumed, rest = search(scorer, {made.schedule: made.losses for made in seen[:cut]}, 12)
        assert [made.schedule for made in rest] == [made.schedule for made in seen[cut:]]
        assert not {schedule for schedule, _ in scorer.measured} & {made.schedule for made in seen[:cut]}
        assert list(resumed.measured) == list(whole.measured)
        assert [m.estimate for m in resumed.best] == [m.estimate for m in whole.best]


def test_local_search_losses_come_back_from_the_running_means_of_a_record() -> None:
    from layersearch.schedule.cost import budget_ratio
    from layersearch.study.model_selection import _losses
    from layersearch.training.record import TrialRecord

    rng = random.Random(0)
    for count in range(1, 24):
        losses = tuple(round(rng.uniform(0.1, 12.0), 9) for _ in range(count))
        curve = tuple((n, fmean(losses[:n])) for n in range(1, count + 1))
        record = TrialRecord(
            schedule=FIRST, seed=0, phase="search", role="proposed", state="complete", flops=1,
            cost=budget_ratio(FIRST, seq_len=64, n_heads=2), steps=count, full_steps=count, loss=curve[-1][1],
            curve=curve,
        )  # fmt: skip
        assert tuple(_losses(TrialRecord.from_json(record.to_json()))) == losses
    _, seen = search(KnownScorer(3, noise=0.02), candidates=3)
    assert all(made.losses == tuple(round(loss, 9) for loss in made.losses) for made in seen)


def test_local_search_of_a_space_without_neighbors_ends() -> None:
    space = BoundSpace(Space(name="s", choices=("full", "window:8")), n_layers=2, seq_len=64, n_heads=2)
    seen: list[Measured] = []
    scorer = KnownScorer(0)
    scorer.prior = lambda schedule: 0.0  # type: ignore[method-assign]
    scorer.alone, scorer.pairs = scorer.alone[:2], {}
    found = LocalSearch(scorer, space, 1.0, scorer.prior, seen.append, {}, 0)  # type: ignore[arg-type]
    found.run([space.cheapest()], 50)
    assert len(found.measured) == 4
