"""What is answered for a constraint from a run's records: the lowest of all predictions, against what was confirmed."""

from __future__ import annotations

import itertools
import json
import math
import shlex
import shutil
from collections.abc import Mapping
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest

from layersearch.cli.main import main
from layersearch.config.model import ModelConfig
from layersearch.errors import ConfigError, RunFolderError
from layersearch.results.analyze import analyze
from layersearch.schedule import Schedule, Span
from layersearch.schedule.bound_space import BoundSpace
from layersearch.schedule.space import Space
from layersearch.study.benchmark import load_bench
from layersearch.surrogate import fit
from layersearch.surrogate.constraint import cache_limit, cost_limit, latency_limit
from layersearch.surrogate.gp import Surrogate
from layersearch.surrogate.local_search import SHORTLIST, shortlist
from layersearch.surrogate.solve import compare_to_best, solve
from layersearch.training.record import TrialRecord
from tests.helpers.synthetic import confirmed, record

LAYERS = 4
CHOICES = ("full", "window:4", "window:16")
MODEL = ModelConfig(n_layers=LAYERS, d_model=32, n_heads=2, n_kv_heads=1, d_ff=64)
Losses = Mapping[Schedule, float]


def bound(choices: tuple[str, ...] = CHOICES) -> BoundSpace:
    return BoundSpace(Space(name="four", choices=choices), n_layers=LAYERS, seq_len=64, n_heads=2)


def every(space: BoundSpace) -> list[Schedule]:
    return [
        space.decode(dict(zip(space.variables, chosen, strict=True)))
        for chosen in itertools.product(*space.variables.values())
    ]


def truth(space: BoundSpace, seed: int) -> dict[Schedule, float]:
    """Return a loss of every schedule that is a sum over layers and pairs of layers."""
    rng = np.random.default_rng(seed)
    size = {span: at for at, span in enumerate(map(Span.parse, ("window:4", "window:16", "full")))}
    single = -0.1 * rng.random(LAYERS)
    pair = 0.02 * rng.normal(size=(LAYERS, LAYERS))

    def loss(schedule: Schedule) -> float:
        at = np.array([size[span] for span in schedule])
        return float(3 + single @ at + sum(pair[v, w] * at[v] * at[w] for v in range(LAYERS) for w in range(v)))

    return {schedule: loss(schedule) for schedule in every(space)}


def trials(losses: Losses, *, searched: int, finalists: int, noise: float, seed: int) -> list[TrialRecord]:
    """Return a run: so many schedules at the search's seed, the best of them and all-full at three fresh ones."""
    rng = np.random.default_rng(seed)
    full = Schedule.parse("full*4")
    every_one = list(losses)
    order = [every_one[at] for at in rng.permutation(len(every_one))]
    chosen = [full, *(schedule for schedule in order if schedule != full)][:searched]
    found = [record(schedule, losses[schedule] + float(rng.normal(0, noise))) for schedule in chosen]
    best = sorted(found[1:], key=lambda r: r.loss or 0.0)[:finalists]
    for schedule in [full, *(r.schedule for r in best)]:
        found += confirmed(schedule, [losses[schedule] + float(error) for error in rng.normal(0, noise, 3)])
    return found


def predictions(records: list[TrialRecord], space: BoundSpace, *, pairwise: bool = False) -> dict[Schedule, float]:
    """Return a surrogate's prediction of every schedule of the space, counted out."""
    ordered = sorted(records, key=lambda r: r.key)
    model = Surrogate(space, pairwise=pairwise).fit(
        [r.schedule for r in ordered], [r.loss or 0.0 for r in ordered], [r.seed for r in ordered]
    )
    schedules = every(space)
    return dict(zip(schedules, map(float, model.predict(schedules)[0]), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_solve_proposal_is_the_best_predicted_of_shortlist_and_unconfirmed(seed: int) -> None:
    """The shortlist is what counting out all schedules by the pairwise model gives."""
    space = bound()
    records = trials(truth(space, seed), searched=20, finalists=3, noise=0.005, seed=seed)
    predicted, pairs = predictions(records, space), predictions(records, space, pairwise=True)
    sure = {r.schedule for r in records if r.phase == "confirm"}
    searched = {r.schedule for r in records}
    trained = {r.schedule.n_full for r in records}
    for budget in (0.3, 0.45, 0.7, 1.0):
        found = solve(records, space, cost_limit(space, budget))
        free = {
            held: value
            for held, value in predicted.items()
            if space.cost(held) <= budget and held not in sure and held.n_full in trained
        }
        assert found.proposal is not None
        untrained = sorted((held for held in free if held not in searched), key=pairs.__getitem__)
        offered = [held for held in free if held in searched] + untrained[:SHORTLIST]
        assert found.shortlisted == min(SHORTLIST, len(untrained))
        assert found.proposal.predicted == pytest.approx(min(free[held] for held in offered), abs=1e-6)
        assert free[found.proposal.schedule] == pytest.approx(found.proposal.predicted, abs=1e-6)
        assert found.proposal.low < found.proposal.loss == found.proposal.predicted < found.proposal.high
        assert found.proposal.high > found.lowest == min(r.loss or 0.0 for r in records)
        states = {r.schedule for r in records}
        assert found.proposal.state == ("trained" if found.proposal.schedule in states else "untrained")
        near = min(
            sum(a != b for a, b in zip(found.proposal.schedule, r.schedule, strict=True))
            for r in records
            if space.cost(r.schedule) <= budget and r.schedule != found.proposal.schedule
        )
        assert found.changed == near


@pytest.mark.slow
@pytest.mark.parametrize("corpus", ["mix", "recall"])
@pytest.mark.parametrize("trained", [12, 48])
def test_shortlist_on_the_benchmarks_equals_exhaustive_enumeration(corpus: str, trained: int) -> None:
    """The local search is a heuristic; in spaces as small as these it must miss nothing."""
    bench = load_bench(corpus)
    space = bench.space
    for seed in range(3):
        learnt = [space.cheapest(), *Random(seed).sample(bench.schedules, trained)]
        model = Surrogate(space).fit(learnt, [bench.query(s, bench.seeds[0]) for s in learnt])
        n_full = {s.n_full for s in learnt}
        for budget in (0.2, 0.35, 0.5, 1.0):
            limit = cost_limit(space, budget)
            found = shortlist(model, space, limit, learnt, n_full)
            assert all(s not in learnt and s.n_full in n_full and space.cost(s) <= budget for s in found)
            left = [s for s in space.schedules() if s not in learnt and s.n_full in n_full and limit.admits(s)]
            wanted = sorted(model.predict(left)[0])[:SHORTLIST] if left else []
            assert model.predict(found)[0] == pytest.approx(wanted, abs=1e-9)


@pytest.mark.parametrize("part", ["tied", "one_sparse", "layers"])
def test_shortlist_of_a_restricted_space_equals_exhaustive_enumeration(part: str) -> None:
    shapes: dict[str, Any] = {
        "tied": {"tied": ((0, 1), (2, 5))},
        "one_sparse": {"one_sparse": True},
        "layers": {"layers": {0: ("full",), 3: ("window:16", "full")}},
    }
    choices = ("full", "window:4", "window:16", "block:8")
    space = BoundSpace(Space(name=part, choices=choices, **shapes[part]), n_layers=6, seq_len=64, n_heads=2)
    rng = Random(0)
    learnt = list(dict.fromkeys(space.sample(rng) for _ in range(20)))
    model = Surrogate(space).fit(learnt, [3 - space.cost(s) + rng.gauss(0, 0.2) for s in learnt])
    limit = cost_limit(space, 0.6)
    n_full = {1, 2, 3}
    left = [s for s in space.schedules() if s not in learnt and s.n_full in n_full and limit.admits(s)]
    found = shortlist(model, space, limit, learnt, n_full)
    assert model.predict(found)[0] == pytest.approx(sorted(model.predict(left)[0])[:SHORTLIST], abs=1e-9)
    assert shortlist(model, space, limit, learnt, n_full) == found


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_solve_answer_is_measured_unless_a_prediction_is_shown_better(seed: int) -> None:
    space = bound()
    records = trials(truth(space, seed), searched=30, finalists=6, noise=0.003, seed=seed)
    predicted = predictions(records, space)
    for budget in (0.4, 0.7, 1.0):
        found = solve(records, space, cost_limit(space, budget))
        within = [r for r in records if space.cost(r.schedule) <= budget]
        leader = analyze(within, 1.0).winner
        if leader is None:
            assert found.measured is None
            assert found.answer == found.proposal
            continue
        assert found.measured is not None
        assert found.proposal is not None
        assert found.difference is not None
        entry = analyze(within, 1.0).entry(leader.leader)
        assert found.measured.schedule == leader.leader
        assert entry.mean is not None
        assert (found.measured.loss, found.measured.low, found.measured.high) == (
            entry.mean.mean,
            entry.mean.low,
            entry.mean.high,
        )
        assert (found.cheaper is None) == (leader.schedule == leader.leader)
        gap = predicted[found.proposal.schedule] - predicted[found.measured.schedule]
        assert found.difference.mean == pytest.approx(gap, abs=1e-6)
        better = found.difference.mean < 0 and found.difference.shown
        assert found.answer == (found.proposal if better else found.cheaper or found.measured)
        assert found.difference.low < found.difference.mean < found.difference.high


@pytest.mark.slow
def test_solve_planted_sum_over_layers_and_pairs_is_found() -> None:
    """With little noise, proposals of nine truths are nearly always as good as the best of all untrained schedules."""
    space = bound()
    regrets, gains, covered = [], [], []
    for seed in range(9):
        losses = truth(space, seed)
        records = trials(losses, searched=30, finalists=3, noise=0.001, seed=seed)
        known = {r.schedule for r in records}
        sure = {r.schedule for r in records if r.phase == "confirm"}
        limit = cost_limit(space, 0.6)
        found = solve(records, space, limit)
        open_ = {s: loss for s, loss in losses.items() if limit.admits(s) and s not in sure}
        assert found.proposal is not None
        assert found.nearest is not None
        at = losses[found.proposal.schedule]
        regrets.append(at - min(open_.values()))
        gains.append(losses[found.nearest.schedule] - at)
        covered += [c.low <= losses[c.schedule] <= c.high for c in (found.proposal,)]
        assert len(known) == 30
    assert np.median(regrets) < 0.002
    assert np.median(gains) > 0
    assert sum(covered) >= 7


def test_solve_budget_equal_to_a_cost_admits_it() -> None:
    space = bound()
    losses = {schedule: 3 - space.cost(schedule) for schedule in every(space)}  # dearer is better, layer by layer
    records = [record(schedule, loss) for schedule, loss in list(losses.items())[::2]]
    at = space.cost(Schedule.parse("window:4 full window:16 full"))
    assert solve(records, space, cost_limit(space, at)).answer.cost == at
    below = max(cost for cost in map(space.cost, losses) if cost < at)
    assert solve(records, space, cost_limit(space, math.nextafter(at, 0.0))).answer.cost == below


def test_solve_cache_and_latency_hold_and_may_choose_otherwise() -> None:
    space = bound()
    records = trials(truth(space, 1), searched=25, finalists=3, noise=0.003, seed=1)
    size = {"seq_len": 64, "n_heads": 2, "n_kv_heads": 1, "head_dim": 16}
    most = kv_bytes(Schedule.parse("full window:16*3"), size)
    found = solve(records, space, cache_limit(space, most, MODEL))
    assert kv_bytes(found.answer.schedule, size) == found.answer.takes <= most
    assert (found.kind, found.limit) == ("kv_cache", most)
    # Where the long window is the slow one, full layers come for less.
    slow = {Span.parse("full"): 1.0, Span.parse("window:4"): 1.0, Span.parse("window:16"): 2.0}
    found = solve(records, space, latency_limit(space, 4.0, slow))
    assert found.proposal is not None
    assert "window:16" not in str(found.proposal.schedule)
    assert found.proposal.takes == 4.0


def kv_bytes(schedule: Schedule, size: Mapping[str, int]) -> int:
    from layersearch.schedule.cost import kv_cache_bytes

    return kv_cache_bytes(schedule, **size)


def test_solve_untrained_numbers_of_full_layers_are_not_proposed() -> None:
    space = bound()
    losses = truth(space, 2)
    records = [record(s, loss) for s, loss in list(losses.items())[::2] if s.n_full in (0, 1, 4)]
    found = solve(records, space, cost_limit(space, 1.0))
    assert found.n_full == (0, 1, 4)
    assert found.answer.n_full in (0, 1, 4)
    only = [r for r in records if r.schedule.n_full == 4] + [r for r in records if r.schedule.n_full == 1]
    with pytest.raises(ConfigError, match=r"l = 1, 4 full layers.*is over the limit of 0\.2; raise it"):
        solve(only, space, cost_limit(space, 0.2))


@pytest.mark.slow
def test_solve_saturating_loss_is_not_promised_below_what_was_seen() -> None:
    """A full layer above a window of 16 solves a task, more do not help: a sum over layers and pairs would fall on."""
    space = bound()
    rng = np.random.default_rng(1)

    def loss(schedule: Schedule) -> float:
        spans = list(map(str, schedule))
        solved = any(spans[at] == "full" and spans[at - 1] != "window:4" for at in range(1, LAYERS))
        return (0.01 if solved else 2.5) + float(rng.normal(0, 0.001))

    losses = {schedule: loss(schedule) for schedule in every(space)}
    held = 0
    for seed in range(6):
        chosen = np.random.default_rng(seed).permutation(len(losses))[:25]
        records = [record(schedule, losses[schedule]) for schedule in (list(losses)[at] for at in chosen)]
        found = solve(records, space, cost_limit(space, 0.7))
        assert found.proposal is not None
        assert 0 <= found.proposal.low <= found.proposal.loss
        assert found.proposal.high >= found.lowest
        held += losses[found.proposal.schedule] <= found.proposal.high
    assert held >= 4


@pytest.mark.slow
def test_solve_stopped_trial_is_learned_from_and_not_called_untrained() -> None:
    space = bound()
    losses = truth(space, 3)
    curve = {s: ((200, loss + 0.5), (400, loss)) for s, loss in losses.items()}
    schedules = list(losses)[::3]
    *whole, half = schedules
    records = [record(s, losses[s], curve=curve[s]) for s in whole]
    # So low half-way that it must be looked at, and at the most, of another's loss, at a step no other was looked at.
    stopped = record(half, 1.0, state="stopped", steps=200, curve=((200, 1.0),))
    lone = record(half, 1.0, state="stopped", steps=150, curve=((150, 1.0),))
    found = solve([*records, stopped], space, cost_limit(space, 1.0))
    assert found.stopped == 1
    assert found.proposal is not None
    assert (found.proposal.schedule, found.proposal.state) == (half, "stopped")
    assert found.proposal.predicted < min(losses.values())
    without = solve([*records, lone], space, cost_limit(space, 1.0))
    assert without == solve(records, space, cost_limit(space, 1.0))
    # Once it is trained to the end, the early loss of that trial is not asked again.
    done = record(half, losses[half], curve=curve[half])
    assert solve([*records, stopped, done], space, cost_limit(space, 1.0)) == solve(
        [*records, done], space, cost_limit(space, 1.0)
    )


def test_solve_record_order_and_foreign_schedules_change_nothing() -> None:
    space = bound(("window:4", "window:16"))
    rng = np.random.default_rng(0)
    inside = [record(s, 3 + float(rng.normal(0, 0.1))) for s in every(space)[::2]]
    inside += confirmed(inside[0].schedule, [3.0, 3.1, 3.2])
    outside = [record("full*4", 1.0, role="all_full"), *confirmed("full*4", [1.0, 1.1, 1.2], role="all_full")]
    limit = cost_limit(space, 0.5)
    found = solve(inside, space, limit)
    assert solve([*outside, *reversed(inside)], space, limit) == found
    assert found.answer.n_full == 0


def test_solve_without_fresh_seeds_calls_nothing_measured() -> None:
    space = bound()
    records = [r for r in trials(truth(space, 0), searched=20, finalists=3, noise=0.003, seed=0) if r.phase == "search"]
    found = solve(records, space, cost_limit(space, 0.6))
    assert (found.measured, found.cheaper, found.difference, found.noise) == (None, None, None, None)
    assert found.answer == found.proposal


def test_solve_all_confirmed_predicts_nothing() -> None:
    space = bound(("full", "window:4"))
    losses = {s: 3 - 0.1 * s.n_full for s in every(space)}
    records = [r for s, loss in losses.items() for r in confirmed(str(s), [loss, loss + 0.01, loss - 0.01])]
    found = solve(records, space, cost_limit(space, 1.0))
    assert (found.proposal, found.nearest, found.shortlisted, found.difference) == (None, None, 0, None)
    assert found.answer == found.measured
    assert str(found.answer.schedule) == "full*4"
    assert found.noise == pytest.approx(0.01)


def test_solve_too_few_schedules_are_refused_with_the_remedy() -> None:
    space = bound()
    records = [record(s, 3.0) for s in every(space)[:3]] + [record("full*4", None, state="failed")]
    with pytest.raises(RunFolderError, match=r"3 schedules .* too few .* go on, or search with more --trials"):
        solve(records, space, cost_limit(space, 1.0))


def test_compare_to_best_confirmed_schedule_is_compared_at_no_more_cost() -> None:
    records = [
        *confirmed("full*4", [2.0, 2.1, 2.2], role="all_full"),
        *confirmed("window:4*4", [2.5, 2.6, 2.7], role="all_sparse"),
        *confirmed("full window:4*3", [2.3, 2.4, 2.5]),
        *confirmed("window:4*3 full", [2.21, 2.30, 2.40]),
        record("window:4 full*3", 1.0),
    ]
    result = analyze(records, 1.0)
    rival, difference = compare_to_best(result, Schedule.parse("window:4*3 full"))
    assert rival is not None
    assert difference is not None
    assert str(rival.schedule) == "full window:4*3"
    assert difference.mean == pytest.approx(-0.29 / 3)
    assert compare_to_best(result, Schedule.parse("window:4*4")) == (None, None)
    assert compare_to_best(result, Schedule.parse("window:4 full*3")) == (None, None)


def test_solve_of_more_trials_than_are_learned_from_knows_every_trained_schedule(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    space = bound()
    records = trials(truth(space, 0), searched=40, finalists=3, noise=0.01, seed=0)
    monkeypatch.setattr(fit, "MOST_TRIALS", 25)
    kept = fit.thinned(fit.training_trials(reversed(records), space))
    assert kept == fit.thinned(fit.training_trials(records, space))
    assert len(kept) <= 25
    assert {r.key for r in records if r.phase == "confirm"} <= {r.key for r in kept}
    found = solve(records, space, cost_limit(space, 0.6))
    assert (found.fitted, found.trials) == (len(kept), len(records))
    assert found.proposal is not None
    searched = {r.schedule for r in records}
    assert (found.proposal.state == "untrained") == (found.proposal.schedule not in searched)


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(arguments) == 0
    return capsys.readouterr().out


@pytest.mark.slow
def test_solve_command_answer_can_be_run_as_printed(
    saved_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "a run"
    shutil.copytree(saved_run, run)
    before = (run / "trials.jsonl").read_text()
    out = printed(capsys, "solve", str(run), "--budget", "0.5")
    found = json.loads(printed(capsys, "solve", str(run), "--budget", "0.5", "--json"))
    assert (run / "trials.jsonl").read_text() == before
    assert out.splitlines()[-1] == f"Confirm with: {found['confirm_with']}"
    assert found["answer"]["schedule"] in out
    assert found["proposal"]["state"] != "confirmed"
    assert found["answer"]["cost"] <= 0.5
    assert max(len(line) for line in out.splitlines()[:-1]) <= 100
    assert len(out.splitlines()) <= 40

    command, *arguments = shlex.split(found["confirm_with"])
    assert command == "layersearch"
    said = printed(capsys, *arguments)
    assert said.startswith(found["proposal"]["schedule"])
    assert "the best confirmed at no higher cost" in said
    after = (run / "trials.jsonl").read_text()
    assert after.startswith(before)
    added = [TrialRecord.from_json(line) for line in after[len(before) :].splitlines()]
    assert {(str(r.schedule), r.seed, r.phase, r.state) for r in added} == {
        (found["proposal"]["schedule"], seed, "confirm", "complete") for seed in (1, 2)
    }
    again = json.loads(printed(capsys, "solve", str(run), "--budget", "0.5", "--json"))
    assert again["trials"] == found["trials"] + 2
    assert again["proposal"]["schedule"] != found["proposal"]["schedule"]
    # The same command once more trains nothing, and what it wrote is what `show` reads.
    result = json.loads(printed(capsys, *arguments, "--json"))
    assert (run / "trials.jsonl").read_text() == after
    assert result == json.loads(printed(capsys, "show", str(run), "--json"))
    entry = next(e for e in result["entries"] if e["schedule"] == found["proposal"]["schedule"])
    assert entry["mean"]["n"] == 2


@pytest.mark.slow
def test_solve_command_accepts_cache_and_latency(
    saved_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = json.loads(printed(capsys, "solve", str(saved_run), "--kv-cache", "6KiB", "--json"))
    assert (found["kind"], found["limit"]) == ("kv_cache", 6144)
    cost = ("--seq-len", "48", "--heads", "2", "--kv-heads", "1", "--head-dim", "16", "--json")
    counted = json.loads(printed(capsys, "cost", found["answer"]["schedule"], *cost))
    assert counted["kv_cache_bytes"] == found["answer"]["takes"] <= 6144
    assert counted["attention_flops"] == found["attention_flops"]
    assert "KV cache at most 6.0 KiB (6,144 bytes)" in printed(capsys, "solve", str(saved_run), "--kv-cache", "6KiB")
    table = tmp_path / "ms.yaml"
    table.write_text('full: 0.3\n"window:4": 0.1\n"window:8": 0.2\n"block:12": 0.4\n')
    limit = ("--latency", "0.3", "--latency-table", str(table))
    found = json.loads(printed(capsys, "solve", str(saved_run), *limit, "--json"))
    assert found["kind"] == "latency"
    assert found["answer"]["takes"] <= 0.3 * (1 + 1e-9)
    assert "latency at most 0.3 ms" in printed(capsys, "solve", str(saved_run), *limit)
