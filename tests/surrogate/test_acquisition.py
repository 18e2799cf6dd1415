"""The acquisition function equals its simulation; the sampler keeps to the budget and never repeats a schedule."""

from __future__ import annotations

import warnings
from random import Random

import numpy as np
import optuna
import pytest

from layersearch.results.pareto import hypervolume, nondominated
from layersearch.schedule import Schedule
from layersearch.schedule.bound_space import BoundSpace
from layersearch.schedule.space import Space
from layersearch.surrogate import acquisition
from layersearch.surrogate.acquisition import EXPLORATION, ExpectedImprovement, Observation, initial_schedules
from layersearch.surrogate.sampler import CURVE, ScheduleSampler

SPACE = Space(name="small", choices=("full", "window:4", "window:2"))


def bound(n_layers: int = 5, space: Space = SPACE) -> BoundSpace:
    return BoundSpace(space, n_layers=n_layers, seq_len=32, n_heads=2)


def planted(schedule: Schedule) -> float:
    """One full layer above a window of 4 is what the task wants; every other full layer helps a little."""
    spans = list(schedule)
    useful = any(span.is_full and any(below.size == 4 for below in spans[:at]) for at, span in enumerate(spans))
    return (0.5 if useful else 2.5) - 0.01 * sum(span.is_full for span in spans)


def observed(schedule: Schedule, *, share: float = 1.0) -> Observation:
    loss = planted(schedule)
    curve = ((0.5, 1.0 + 0.8 * loss), (1.0, loss))
    return Observation(schedule=schedule, seed=0, curve=curve if share == 1.0 else curve[:1])


def test_gain_of_many_trials_learns_from_the_frontier_and_an_even_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(acquisition, "MOST_OBSERVED", 30)
    space, rng = bound(), Random(1)
    seen = []
    for schedule in space.schedules():
        early, loss = (1.0 + 0.8 * planted(schedule), planted(schedule) + rng.gauss(0.0, 0.02))
        curve = ((0.5, early), (1.0, loss)) if rng.random() < 0.7 else ((0.5, early),)
        seen.append(Observation(schedule=schedule, seed=0, curve=curve))
    found = ExpectedImprovement(space, 0.8, seen)._seen
    assert len(found) == 30
    assert found == [one for one in seen if one in found]
    points = [(one.curve[-1][1], space.cost(one.schedule)) for one in seen if one.complete]
    ended = [one for one in seen if one.complete]
    assert len(nondominated(points)) < 15
    assert all(ended[at] in found for at in nondominated(points))
    assert {one.complete for one in found} == {True, False}


def test_gain_equals_the_simulated_expected_hypervolume() -> None:
    """Closed form against hypervolumes of drawn losses."""
    space, rng = bound(), Random(0)
    seen = [observed(schedule) for schedule in rng.sample(list(space.schedules()), 14)]
    gain_of = ExpectedImprovement(space, 0.8, seen)
    candidates = [s for s in rng.sample(list(space.schedules()), 6) if space.cost(s) <= 0.8]
    assert candidates
    assert gain_of._surrogate is not None
    schedules = [o.schedule for o in seen]
    means, _ = gain_of._surrogate.predict(schedules)
    worst = float(means.max())
    points = [(float(m), space.cost(s)) for m, s in zip(means, schedules, strict=True) if space.cost(s) <= 0.8]
    front = [points[at] for at in nondominated(points)]
    area = hypervolume(front, (worst, 0.8))
    draws = np.random.default_rng(0).standard_normal(4000)
    for candidate, gain in zip(candidates, gain_of.improvement(candidates), strict=True):
        (mean,), (std,) = gain_of._surrogate.predict([candidate], calibrated=False)
        losses = np.maximum(mean + EXPLORATION * std * draws, 0.0)
        drawn = [hypervolume([*front, (float(loss), space.cost(candidate))], (worst, 0.8)) - area for loss in losses]
        assert gain == pytest.approx(np.mean(drawn), abs=4 * np.std(drawn) / len(draws) ** 0.5 + 1e-5)


@pytest.mark.slow
def test_propose_exhausts_the_space_once_and_then_returns_none() -> None:
    space, seen = bound(3), []
    for _ in range(space.size):
        schedule = ExpectedImprovement(space, 1.0, seen).propose({o.schedule for o in seen}, Random(0))
        assert schedule is not None
        seen.append(observed(schedule))
    assert {o.schedule for o in seen} == set(space.schedules())
    acquisition, taken = ExpectedImprovement(space, 1.0, seen), {o.schedule for o in seen}
    assert acquisition.propose(taken, Random(0)) is None
    assert acquisition.best_improvement(taken, Random(0)) == 0.0


def test_anchors_of_small_spaces_are_known() -> None:
    """The least that recalls, then no full layer, then the preset; what budget or space forbid is left out."""
    space = Space(name="small", choices=("full", "window:4", "window:2"), baseline_span="window:4")
    first = [str(s) for s in initial_schedules(bound(space=space), 1.0)]
    assert first == ["window:2 window:4 full window:2*2", "window:4*5", "window:4*2 full window:4*2"]
    cheap = bound(space=space)
    assert [str(s) for s in initial_schedules(cheap, cheap.cost(Schedule.parse("window:4*5")))] == ["window:4*5"]
    assert [str(s) for s in initial_schedules(bound(1, space), 1.0)] == ["full", "window:4"]
    no_full = Space(name="small", choices=("window:4", "window:2"), baseline_span="window:4")
    assert [str(s) for s in initial_schedules(bound(space=no_full), 1.0)] == ["window:4*5"]


def test_initial_schedules_look_elsewhere_where_a_full_layer_in_the_middle_brings_nothing() -> None:
    """Then the full layer on top comes third; a full layer that helps, or an unknown loss, changes nothing."""
    space = bound(space=Space(name="small", choices=("full", "window:4", "window:2"), baseline_span="window:4"))
    recalls, alone, preset = usual = initial_schedules(space, 1.0)
    top = Schedule.parse("window:4*4 full")
    assert initial_schedules(space, 1.0, {recalls: 3.6, alone: 3.5}) == [recalls, alone, top]
    assert initial_schedules(space, 1.0, {recalls: 3.6, preset: 3.4, alone: 3.5}) == usual
    assert initial_schedules(space, 1.0, {recalls: 3.6}) == usual


def test_initial_schedules_of_tied_layers_are_full_together() -> None:
    tied = Space(name="tied", choices=("full", "window:4", "window:2"), tied=((0, 1), (2, 3), (4, 5)))
    patterned = Space(name="pattern", choices=("full", "window:4"), pattern=3)
    assert str(initial_schedules(bound(6, tied), 1.0)[0]) == "window:4*2 full*2 window:2*2"
    assert str(initial_schedules(bound(6, patterned), 1.0)[0]) == "window:4*2 full window:4*2 full"


def test_propose_after_baselines_starts_with_the_anchors() -> None:
    """However much was trained before; then the model of the trials proposes."""
    space = bound(space=Space(name="small", choices=("full", "window:4", "window:2"), baseline_span="window:4"))
    seen = [observed(s) for s in space.named_baselines(0.5).values()]
    assert ExpectedImprovement(space, 1.0, seen).ready
    open_ = [s for s in initial_schedules(space, 1.0) if s not in {o.schedule for o in seen}]
    assert str(open_[0]) == "window:2 window:4 full window:2*2"
    proposed: list[Schedule] = []
    for _ in range(len(open_) + 2):
        schedule = ExpectedImprovement(space, 1.0, seen).propose({o.schedule for o in seen}, Random(0))
        assert schedule is not None
        proposed.append(schedule)
        seen.append(observed(schedule))
    assert proposed[: len(open_)] == open_
    assert not {*proposed[len(open_) :]} & {*initial_schedules(space, 1.0)}


def test_keep_going_stops_the_worse_and_keeps_the_better() -> None:
    space, rng = bound(), Random(3)
    schedules = rng.sample([s for s in space.schedules() if space.cost(s) <= 0.7], 24)
    acquisition = ExpectedImprovement(space, 0.7, [observed(s) for s in schedules])
    fresh = acquisition.best_improvement(schedules, rng)
    target = Schedule.parse("window:4 full window:2*3")
    assert target not in schedules
    assert acquisition.keep_going(target, 0, [(0.5, 1.0 + 0.8 * planted(target))], 0.0)
    hopeless = Schedule.parse("full*2 window:2*2 full")
    assert not acquisition.keep_going(hopeless, 0, [(0.5, 1.0 + 0.8 * 2.5)], max(fresh, 1e-3))


@pytest.mark.slow
@pytest.mark.parametrize("budget", [0.35, 1.0])
def test_schedule_sampler_in_an_optuna_study_nears_the_cheapest_answer(budget: float) -> None:
    """On a study of Optuna's own it comes near the planted task's cheapest answer; stopped trials are learnt from."""
    space = bound()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        study = optuna.create_study(
            directions=["minimize", "minimize"], sampler=ScheduleSampler(space, budget=budget, seed=1)
        )
    found: list[Schedule] = []
    for number in range(24):
        trial = study.ask()
        schedule = space.decode({n: trial.suggest_categorical(n, c) for n, c in space.variables.items()})
        assert schedule not in found
        assert space.cost(schedule) <= budget
        found.append(schedule)
        if number in (9, 13):
            trial.set_user_attr(CURVE, [[0.5, 1.0 + 0.8 * planted(schedule)]])
            study.tell(trial, state=optuna.trial.TrialState.PRUNED)
        else:
            trial.set_user_attr(CURVE, list(observed(schedule).curve))
            study.tell(trial, [planted(schedule), space.cost(schedule)])
    solved = [space.cost(s) for s in found if planted(s) < 1.0]
    cheapest = min(space.cost(s) for s in space.schedules() if planted(s) < 1.0)
    assert min(solved) <= cheapest + 0.05


def test_schedule_sampler_running_trials_are_not_proposed_again() -> None:
    """Two asked at once differ, though neither has been told."""
    space = bound()
    sampler = ScheduleSampler(space, seed=0)
    study = optuna.create_study(directions=["minimize", "minimize"], sampler=sampler)
    for _ in range(6):
        trial = study.ask()
        schedule = space.decode({n: trial.suggest_categorical(n, c) for n, c in space.variables.items()})
        study.tell(trial, [planted(schedule), space.cost(schedule)])
    asked = [study.ask(), study.ask(), study.ask()]
    drawn = [space.decode({n: t.suggest_categorical(n, c) for n, c in space.variables.items()}) for t in asked]
    assert len(set(drawn)) == 3


def test_propose_large_space_is_not_enumerated() -> None:
    """48 layers of 6 spans, tied in places: a proposal within the budget, better than what was seen."""
    choices = ("full", "window:2", "window:4", "window:8", "window:16", "block:8")
    space = bound(48, Space(name="large", choices=choices, tied=((0, 1), (46, 47))))
    rng = Random(0)
    seen = [
        Observation(schedule=s, seed=0, curve=((1.0, 3.0 - 0.02 * sum(span.is_full for span in s)),))
        for s in (space.sample(rng) for _ in range(20))
    ]
    acquisition, taken = ExpectedImprovement(space, 0.5, seen), {o.schedule for o in seen}
    schedule = acquisition.propose(taken, rng)
    assert schedule is not None
    assert acquisition.improvement([schedule])[0] > 0
    assert space.cost(schedule) <= 0.5
