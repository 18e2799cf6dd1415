"""Two rounds of confirmation, and proposals that no pruner stops, in whole searches whose trials take no time."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import numpy as np
import pytest

from layersearch.config.recipe import Recipe, load_recipe
from layersearch.results.analyze import analyze
from layersearch.results.result import PROPOSED, Result
from layersearch.schedule import Schedule
from layersearch.schedule.bound_space import BoundSpace
from layersearch.schedule.space import load_space
from layersearch.study.confirmation import second_round
from layersearch.study.plan import Progress, make_plan
from layersearch.study.search import search
from layersearch.training.record import Trial, TrialRecord, blank_record, read
from layersearch.training.trial import KeepGoing
from layersearch.training.workers.pool import Pool
from tests.helpers.synthetic import confirmed

SETTINGS = [
    *("search.sampler=random", "search.pruner=successive_halving", "search.rungs=[0.5]", "search.trials=20"),
    *("search.confirm_seeds=2", "search.second_round_seeds=3", "search.finalists=3", "model.n_layers=5"),
]
RECIPE = load_recipe("smoke", SETTINGS)
BUDGET = 0.6


class Drawn:
    """A pool whose trials take no time: a loss drawn by schedule and seed, halfway and at the end."""

    def __init__(self, recipe: Recipe, trained: list[Trial]) -> None:
        self.recipe, self.trained = recipe, trained

    def submit(self, trial: Trial, keep_going: KeepGoing | None = None) -> Future[TrialRecord]:
        """Return the trial's record at once."""
        self.trained.append(trial)
        steps, digits = self.recipe.training.steps, [ord(letter) for letter in str(trial.schedule)]
        loss = 2 + float(np.random.default_rng(digits).normal(0, 0.3))
        loss += float(np.random.default_rng([*digits, trial.seed]).normal(0, 0.01))
        curve = tuple((at, loss + (1 - at / steps)) for at in sorted({*trial.checkpoints, steps}))
        stop = next((at for at in curve[:-1] if keep_going is not None and not keep_going(*at)), None)
        blank = blank_record(trial, self.recipe)
        found: Future[TrialRecord] = Future()
        if stop is not None:
            found.set_result(replace(blank, state="stopped", steps=stop[0], loss=stop[1], curve=(stop,)))
        else:
            found.set_result(replace(blank, state="complete", steps=steps, loss=loss, curve=curve))
        return found

    def close(self) -> None:
        """Nothing to end."""


def searched(out: Path, cut_after: int | None = None) -> tuple[Result, list[Trial]]:
    """Search, and return the result and what was trained; interrupt after so many records."""
    trained: list[Trial] = []

    def pool(recipe: Recipe, workers: int, logs: Path, cache: Path | None) -> Pool:
        return Drawn(recipe, trained)

    def listener(progress: Progress) -> None:
        if progress.done == cut_after:
            raise KeyboardInterrupt

    return search(RECIPE, load_space("smoke"), BUDGET, out, pool=pool, listener=listener), trained


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result, list[Trial]]:
    """A search that was not interrupted: its folder, its result, what it trained."""
    out = tmp_path_factory.mktemp("searched") / "run"
    return out, *searched(out)


def test_second_round_goes_to_all_full_and_the_two_that_decide(whole: tuple[Path, Result, list[Trial]]) -> None:
    out, result, trained = whole
    seeds: dict[Schedule, list[int]] = {}
    for trial in trained:
        if trial.phase == "confirm":
            seeds.setdefault(trial.schedule, []).append(trial.seed)
    further = {schedule for schedule, found in seeds.items() if found == [1, 2, 3, 4, 5]}
    assert all(found == [1, 2] for schedule, found in seeds.items() if schedule not in further)
    first = analyze([r for r in read(out / "trials.jsonl") if r.phase == "confirm" and r.seed <= 2], BUDGET)
    assert further == set(second_round(first))
    assert len(further) == 3
    winner = result.winner
    assert winner is not None
    assert winner.seeds == (1, 2, 3, 4, 5)
    assert winner.candidates - winner.set_aside == 2
    assert winner.to_all_full is not None
    assert winner.to_all_full.comparisons == winner.candidates  # those that were set aside were choices too
    assert "of them set aside after a first round" in result.verdict
    # The frontier and the signal are over the seeds that all share.
    common = {
        s: fmean(r.loss or 0.0 for r in read(out / "trials.jsonl") if r.schedule == s and r.seed in (1, 2))
        for s in seeds
    }
    points = sorted((result.entry(s).cost, loss, s) for s, loss in common.items())
    assert result.frontier == tuple(
        s for at, (_, loss, s) in enumerate(points) if all(loss < other for _, other, _ in points[:at])
    )
    assert result.signal.seeds == (1, 2)


def test_plan_says_the_most_trainings_of_two_rounds(whole: tuple[Path, Result, list[Trial]]) -> None:
    plan = make_plan(RECIPE, BoundSpace.of(load_space("smoke"), RECIPE), BUDGET, 0)
    assert plan.confirm_trials == sum(trial.phase == "confirm" for trial in whole[2])
    assert plan.confirm_trials == (3 + len(plan.baselines)) * 2 + 3 * 3


@pytest.mark.slow
def test_two_rounds_cut_in_the_second_resume_with_the_same_records(
    whole: tuple[Path, Result, list[Trial]], tmp_path: Path
) -> None:
    out, result, trained = whole
    with pytest.raises(KeyboardInterrupt):
        searched(tmp_path / "cut", len(trained) - 5)
    resumed, rest = searched(tmp_path / "cut")
    assert len(rest) == 5
    assert resumed == result
    again, before = ({r.key: r.loss for r in read(held / "trials.jsonl")} for held in (tmp_path / "cut", out))
    assert again == before


def test_kept_trials_are_never_stopped(whole: tuple[Path, Result, list[Trial]]) -> None:
    """At most a third of the proposals are kept."""
    plan = make_plan(RECIPE, BoundSpace.of(load_space("smoke"), RECIPE), BUDGET, 0)
    assert plan.kept_trials == min(6, plan.proposals // 3) > 1
    assert sum(map(plan.keeps, range(plan.proposals))) == plan.kept_trials
    states = {r.schedule: r.state for r in read(whole[0] / "trials.jsonl") if r.phase == "search"}
    proposed = [states[trial.schedule] for trial in whole[2] if trial.phase == "search" and trial.role == PROPOSED]
    assert len(proposed) == plan.proposals
    assert "stopped" in proposed
    assert {state for number, state in enumerate(proposed) if plan.keeps(number)} == {"complete"}


def test_second_round_begun_by_one_schedule_is_no_comparison_yet() -> None:
    records = [
        *confirmed("full*4", [2.5, 2.5], role="all_full"),
        *confirmed("window:32*4", [2.9, 2.91], role="all_sparse"),
        *confirmed("window:32*3 full", [2.40, 2.41, 2.40]),
    ]
    winner = analyze(records, 0.5, first_round=2).winner
    assert winner is not None
    assert (winner.seeds, winner.candidates, winner.set_aside) == ((1, 2), 2, 0)
