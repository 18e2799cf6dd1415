from __future__ import annotations

import itertools
import json
import random
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest

from layersearch.config.loader import build
from layersearch.results.analyze import analyze
from layersearch.results.result import Result
from layersearch.results.sentences import ranking_warning
from layersearch.schedule import Schedule
from layersearch.schedule.bound_space import BoundSpace
from layersearch.schedule.space import Space
from layersearch.surrogate.fit import leave_one_out_losses
from layersearch.training.record import TrialRecord
from tests.helpers.synthetic import a_run, confirmed, record

FULL, SPARSE, TOP, BOTTOM, MIDDLE = map(
    Schedule.parse,
    (
        "full*4",
        "window:32*4",
        "window:32*3 full",
        "full window:32*3",
        "window:32 full window:32*2",
    ),
)


def test_analyse_significant_lead_wins_and_claims_say_by_how_much() -> None:
    records = [
        *confirmed(FULL, [2.50, 2.60, 2.55], role="all_full"),
        *confirmed(SPARSE, [2.900, 3.001, 2.949], role="all_sparse"),
        *confirmed(BOTTOM, [2.600, 2.701, 2.649], role="bottom(1)"),
        *confirmed(MIDDLE, [2.400, 2.501, 2.449]),
    ]
    result = analyze(records, 0.5)
    assert result.winner is not None
    assert (result.winner.schedule, result.winner.leader, result.winner.not_separated) == (MIDDLE, MIDDLE, 1)
    full, baseline = result.winner.to_all_full, result.winner.to_best_baseline
    assert full is not None
    assert baseline is not None
    assert (full.reference, full.comparisons) == ("all_full", 3)
    assert (baseline.reference, baseline.comparisons) == ("bottom(1)", 2)
    assert full.difference.mean == pytest.approx(-0.1)
    assert full.verdict == "better by 0.1000 ± 0.0028 nats"
    # Between these two every seed differs by the same, up to rounding.
    assert baseline.verdict.startswith("better by 0.2")
    assert "lowest loss, significantly below the other 2" in result.verdict
    assert result.frontier == (SPARSE, MIDDLE)
    assert result.frontier_of == "confirm"


def test_analyse_indistinguishable_candidates_name_the_leader_and_say_that_the_test_cannot_see() -> None:
    records = [
        *confirmed(TOP, [2.40, 2.44, 2.42], cost=0.30),
        *confirmed(MIDDLE, [2.43, 2.41, 2.43], cost=0.25),
        *confirmed(BOTTOM, [2.60, 2.64, 2.62], cost=0.20),
    ]
    result = analyze(records, 0.5)
    assert result.winner is not None
    assert (result.winner.schedule, result.winner.leader) == (TOP, TOP)
    assert (result.winner.candidates, result.winner.not_separated, result.winner.non_inferior) == (3, 2, 1)
    assert "lowest loss of 3 candidates on 3 fresh seeds. The test cannot tell whether 1 of the others is worse." in (
        result.verdict
    )
    lenient = analyze(records, 0.5, tolerance=0.01)
    assert lenient.winner is not None
    assert lenient.winner.schedule == TOP
    assert "more than 0.01 nats worse, and shows no other to lie within 0.01 nats of it." in lenient.verdict
    wide = analyze(records, 0.5, tolerance=0.1)
    assert wide.winner is not None
    assert wide.winner.schedule == MIDDLE
    assert wide.winner.to_leader is not None
    assert wide.winner.to_leader.mean == pytest.approx(0.01 / 3)
    assert "the cheapest of the 2 (of 3 candidates) shown to lie within 0.1 nats of the lowest loss" in wide.verdict


def test_analyse_schedule_that_failed_to_learn_replaces_no_leader_and_the_bound_is_said() -> None:
    records = [
        *confirmed(TOP, [2.40, 2.41, 2.40, 2.41, 2.40], cost=0.30),
        *confirmed(MIDDLE, [2.40, 2.40, 2.41, 2.41, 3.40], cost=0.10),
        *confirmed(BOTTOM, [2.60, 2.60, 2.61, 2.61, 2.60], cost=0.20),
    ]
    result = analyze(records, 0.5, tolerance=3.0)
    assert result.winner is not None
    assert result.winner.schedule == BOTTOM
    assert result.entry(MIDDLE).unlearned_seeds == (5,)
    assert (
        "The winner failed to learn at 0 of 5 fresh seeds: losses and differences are of seeds that learn, and up to "
        "45% of seeds may fail (95%)."
    ) in result.verdict
    assert result.winner.failure_bound == pytest.approx(1 - 0.05 ** (1 / 5))
    worse = [*confirmed(SPARSE, [5.0, 5.0, 5.01, 5.01, 5.0]), *confirmed(TOP, [6.0, 6.01, 6.0, 6.01, 6.0])]
    failing = analyze([*confirmed(MIDDLE, [2.40, 2.40, 2.41, 2.41, 3.40]), *worse], 0.5)
    assert "failed to learn at 1 of 5 fresh seeds: its loss includes them, and up to 66% of seeds" in failing.verdict
    assert "failed to learn" not in analyze(records, 0.5, unit="document").verdict


def test_analyse_within_tolerance_takes_the_cheapest() -> None:
    """A difference that every seed shows, and that is nothing to the user."""
    records = [*confirmed(TOP, [2.400, 2.401, 2.402], cost=0.30), *confirmed(SPARSE, [2.440, 2.442, 2.441], cost=0.10)]
    strict, lenient, barely = (analyze(records, 0.5, tolerance=nats).winner for nats in (0.0, 0.05, 0.03))
    assert strict is not None
    assert (strict.schedule, strict.not_separated) == (TOP, 1)
    assert lenient is not None
    assert (lenient.schedule, lenient.leader, lenient.not_separated) == (SPARSE, TOP, 2)
    assert barely is not None
    assert barely.schedule == TOP
    worse = confirmed(BOTTOM, [2.9, 2.901, 2.902], cost=0.05)
    verdict = analyze([*records, *worse], 0.5, tolerance=0.05).verdict
    assert "window:32*4 is the cheapest of the 2 (of 3 candidates) shown to lie within 0.05 nats of the" in verdict


def test_analyse_equal_cost_takes_the_lower_mean() -> None:
    records = [*confirmed(TOP, [2.42, 2.43, 2.41]), *confirmed(MIDDLE, [2.40, 2.44, 2.41])]
    winner = analyze(records, 0.5).winner
    assert winner is not None
    assert winner.schedule == MIDDLE
    tied = analyze([*confirmed(TOP, [2.4, 2.5]), *confirmed(MIDDLE, [2.4, 2.5])], 0.5).winner
    assert tied is not None
    assert tied.not_separated == 2


def test_analyse_over_the_budget_never_wins() -> None:
    records = [
        *confirmed(FULL, [1.0, 1.1, 1.05], role="all_full"),
        *confirmed("full*2 window:32*2", [1.2, 1.3, 1.25]),
        *confirmed(SPARSE, [2.9, 3.0, 2.95], role="all_sparse"),
    ]
    result = analyze(records, 0.5)
    assert result.winner is not None
    assert result.winner.schedule == SPARSE
    assert result.winner.to_best_baseline is None
    assert "worse by 1.9" in result.verdict
    assert "It is the best baseline itself." in result.verdict
    exact = analyze(records, result.entry(Schedule.parse("full*2 window:32*2")).cost)
    assert exact.winner is not None
    assert str(exact.winner.schedule) == "full*2 window:32*2"


def test_verdict_nothing_separated_says_so() -> None:
    records = [
        *confirmed(FULL, [2.4, 2.6, 2.5], role="all_full"),
        *confirmed(SPARSE, [2.5, 2.4, 2.6], role="all_sparse"),
        *confirmed(TOP, [2.6, 2.5, 2.39], role="top(1)"),
    ]
    result = analyze(records, 0.5)
    assert result.winner is not None
    assert result.winner.schedule == TOP
    assert result.verdict.startswith(
        "top(1) has the lowest loss of 2 candidates on 3 fresh seeds. The test cannot tell whether 1 of the others is "
        "worse."
    )
    assert "Against all_full: no significant difference (-0.00 ± 0.5" in result.verdict


def test_analyse_lead_explained_by_selection_is_not_claimed() -> None:
    losses = [2.400, 2.404, 2.402]
    many = [f"window:{16 + size}*3 full" for size in range(8)]
    records = [*confirmed(FULL, [2.410, 2.410, 2.413], role="all_full"), *confirmed(TOP, losses)]
    alone = analyze(records, 0.5).winner
    assert alone is not None
    assert alone.to_all_full is not None
    assert alone.to_all_full.verdict.startswith("better by 0.009")
    for schedule in many:
        records += confirmed(schedule, [loss + 0.5 for loss in losses])
    among = analyze(records, 0.5).winner
    assert among is not None
    assert among.schedule == TOP
    assert among.to_all_full is not None
    assert among.to_all_full.difference == alone.to_all_full.difference
    assert among.to_all_full.comparisons == 9
    assert "no significant difference after correction for 9 possible choices" in among.to_all_full.verdict


@pytest.mark.slow
def test_analyse_claims_are_false_at_most_as_often_as_stated() -> None:
    rng = np.random.default_rng(5)
    schedules = [f"window:{16 + size}*3 full" for size in range(4)]
    false = 0
    runs = 300
    for _ in range(runs):
        records = confirmed(FULL, list(rng.normal(2.4, 0.01, 3)), role="all_full")
        for schedule in schedules:
            records += confirmed(schedule, list(rng.normal(2.4, 0.01, 3)))
        winner = analyze(records, 0.5).winner
        assert winner is not None
        assert winner.to_all_full is not None
        false += winner.to_all_full.corrected.excludes_zero
    assert false / runs <= 0.05 + 3 * (0.05 * 0.95 / runs) ** 0.5


def test_analyse_one_fresh_seed_gives_a_winner_without_interval() -> None:
    result = analyze([*confirmed(TOP, [2.4]), *confirmed(SPARSE, [2.5], role="all_sparse")], 0.5)
    assert result.winner is not None
    assert result.winner.schedule == TOP
    assert "no interval can be given" in result.verdict
    assert "lower by 0.1000 nats on one seed" in result.verdict
    assert (result.noise.seed_std, result.noise.paired_std, result.noise.floor) == (None, None, None)


def test_analyse_before_confirmation_has_no_winner() -> None:
    result = analyze([record(TOP, 2.4), record(SPARSE, 2.6, role="all_sparse"), record(FULL, 2.3)], 0.5)
    assert result.winner is None
    assert result.best_searched == TOP
    assert result.frontier_of == "search"
    assert result.frontier == (SPARSE, TOP, FULL)
    assert result.verdict.startswith("No winner yet")
    assert result.hypervolume_reference == (2.6, 1.0)
    assert [row.confirmed for row in result.best_per_l] == [None, None, None]


@pytest.mark.parametrize(
    ("records", "words"),
    [
        ([], "no trial has completed"),
        ([record(TOP, None, state="failed")], "no trial has completed"),
        ([record(FULL, 2.0, role="all_full")], "no schedule within the budget has completed"),
    ],
)
def test_analyse_no_complete_trial_says_so(records: list[TrialRecord], words: str) -> None:
    result = analyze(records, 0.5)
    assert result.winner is None
    assert words in result.verdict
    assert json.loads(json.dumps(result.to_dict(), allow_nan=False))["winner"] is None


def test_analyse_missing_values_are_unknown_and_named() -> None:
    result = analyze([*confirmed(TOP, [2.4, 2.5, 2.6]), *confirmed(MIDDLE, [2.9, 3.0, 3.1])], 0.5)
    assert result.winner is not None
    assert result.winner.to_all_full is None
    assert "Against all_full: unknown, none was trained." in result.verdict
    searched = analyze([record(FULL, 2.0, role="all_full"), *confirmed(TOP, [2.4, 2.5])], 0.5)
    assert "Against all_full: unknown, not confirmed on the same seeds." in searched.verdict


def test_analyse_schedule_failing_on_a_seed_is_no_candidate() -> None:
    failed = record(MIDDLE, None, seed=3, phase="confirm", state="failed")
    records = [
        *confirmed(TOP, [2.4, 2.5, 2.6]),
        *confirmed(SPARSE, [2.7, 2.8, 2.9], role="all_sparse"),
        *confirmed(BOTTOM, [2.6, 2.7, 2.8], role="bottom(1)"),
        *confirmed(MIDDLE, [2.0, 2.1]),
        failed,
    ]
    result = analyze(records, 0.5)
    assert result.winner is not None
    assert (result.winner.schedule, result.winner.candidates, result.winner.seeds) == (TOP, 3, (1, 2, 3))
    assert result.entry(MIDDLE).failed_seeds == (3,)
    assert MIDDLE not in result.frontier
    assert result.failed == 1


@pytest.mark.parametrize(
    ("counts", "seeds", "candidates"), [((3, 3, 1), (1, 2, 3), 2), ((3, 2, 2), (1, 2), 3), ((1, 0, 0), (1,), 1)]
)
def test_analyse_run_cut_in_confirmation_compares_on_shared_seeds(
    counts: tuple[int, ...], seeds: tuple[int, ...], candidates: int
) -> None:
    losses = {TOP: [2.4, 2.5, 2.6], MIDDLE: [2.9, 3.0, 3.1], BOTTOM: [2.7, 2.8, 2.9]}
    records = [
        made
        for (text, values), count in zip(losses.items(), counts, strict=True)
        for made in confirmed(text, values[:count])
    ]
    winner = analyze(records, 0.5).winner
    assert winner is not None
    assert (winner.seeds, winner.candidates) == (seeds, candidates)


def test_analyse_stopped_trial_never_counts_as_complete() -> None:
    stopped = record(TOP, 1.0, state="stopped", steps=100)
    result = analyze([stopped, record(SPARSE, 2.6, role="all_sparse")], 0.5)
    entry = result.entry(TOP)
    assert (entry.search_loss, entry.loss, entry.last_loss, entry.state) == (None, None, 1.0, "stopped")
    assert result.frontier == (SPARSE,)
    assert result.best_searched == SPARSE
    resumed = analyze([stopped, record(TOP, 0.9), stopped], 0.5).entry(TOP)
    assert (resumed.state, resumed.search_loss) == ("complete", 0.9)


def test_analyse_schedule_in_two_roles_is_one_entry_with_both_names() -> None:
    result = analyze([record(TOP, 2.4), record(TOP, 2.4, role="top(1)"), record(TOP, 2.4, role="greedy")], 0.5)
    assert [entry.names for entry in result.entries] == [("greedy", "top(1)")]


def test_best_per_l_keeps_search_and_confirmation_apart() -> None:
    records = [record(TOP, 2.1), record(BOTTOM, 2.3), *confirmed(BOTTOM, [2.4, 2.5]), record(SPARSE, 2.9)]
    none, one = analyze(records, 0.5).best_per_l
    assert (none.n_full, none.trained, none.confirmed) == (0, 1, None)
    assert (one.n_full, one.trained, one.search_schedule, one.search_loss, one.search_worst) == (1, 2, TOP, 2.1, 2.3)
    assert one.confirmed_schedule == BOTTOM
    assert one.confirmed is not None
    assert one.confirmed.mean == pytest.approx(2.45)


def test_noise_is_that_of_the_confirmed_seeds() -> None:
    records = [*confirmed(TOP, [1.0, 1.2]), *confirmed(MIDDLE, [2.0, 2.4]), record(BOTTOM, 9.0)]
    noise = analyze(records, 0.5).noise
    assert (noise.schedules, noise.seeds) == (2, 2)
    assert noise.seed_std == pytest.approx(((0.02 + 0.08) / 2) ** 0.5)
    assert noise.paired_std == pytest.approx(0.2 / 2**0.5)
    assert noise.seed_std_range == pytest.approx((0.02**0.5, 0.08**0.5))
    assert noise.floor is not None
    assert noise.floor == pytest.approx(12.7062 * 0.1, rel=1e-4)
    assert noise.resolvable is not None
    assert noise.resolvable > noise.floor


def searched(losses: Callable[[Schedule], float]) -> tuple[list[TrialRecord], BoundSpace]:
    """Return complete trials of half of the schedules of five layers, and the space they are of."""
    space = BoundSpace(Space(name="small", choices=("full", "window:8")), n_layers=5, seq_len=64, n_heads=2)
    every = [Schedule.parse(" ".join(spans)) for spans in itertools.product(("full", "window:8"), repeat=5)]
    return [record(schedule, losses(schedule)) for schedule in every[::2]], space


def test_fidelity_tells_how_well_the_surrogate_ranks_unseen_schedules() -> None:
    def additive(schedule: Schedule) -> float:
        return 3.0 - sum(0.1 * (at + 1) for at, span in enumerate(schedule) if span.is_full)

    records, space = searched(additive)
    elsewhere = record("window:32*5", 1.0)  # outside the space: the surrogate has nothing to say of it
    again = confirmed(records[0].schedule, [9.0, 9.1])  # fresh seeds are no part of the search
    (found,) = analyze(
        [*records, elsewhere, *again], 0.5, leave_one_out=leave_one_out_losses([*records, elsewhere, *again], space)
    ).trust[:1]
    assert (found.name, found.against) == ("surrogate, unseen", "last step")
    assert found.agreement is not None
    assert found.agreement.n == len(records)
    assert found.agreement.spearman > 0.95
    assert ranking_warning([found]) is None
    assert "surrogate, unseen" not in {other.name for other in analyze(records, 0.5).trust}
    assert "surrogate, unseen" not in {
        other.name for other in analyze(records[:3], 0.5, leave_one_out=leave_one_out_losses(records[:3], space)).trust
    }


def test_fidelity_surrogate_of_noise_is_not_called_a_ranking() -> None:
    rng = np.random.default_rng(2)
    records, space = searched(lambda schedule: float(rng.normal(3.0, 0.1)))
    (found,) = analyze(records, 0.5, leave_one_out=leave_one_out_losses(records, space)).trust
    assert found.agreement is not None
    assert found.agreement.spearman < 0.5
    said = ranking_warning([found])
    assert said is not None
    assert said.startswith("Not shown to rank schedules (lower Spearman bound below 0.5, or too few trials): ")
    assert said.endswith(": surrogate on unseen schedules.")


def test_fidelity_each_rung_is_compared_with_the_last_step() -> None:
    records = [
        record(
            f"window:{size}*4", 2.0 + size / 100, curve=((100, 5.0 - size), (200, 3.0 + size), (400, 2.0 + size / 100))
        )
        for size in range(8, 14)
    ]
    by_name = {found.name: found for found in analyze(records, 0.5).trust}
    assert by_name["step 100 of 400"].agreement.spearman == pytest.approx(-1)  # type: ignore[union-attr]
    assert by_name["step 200 of 400"].agreement.kendall == pytest.approx(1)  # type: ignore[union-attr]
    # Once the search ends trials at a rung, the rungs are what the user must trust.
    records.append(record(TOP, 3.0, state="stopped", steps=200))
    (rung,) = analyze(records, 0.5).trust
    assert (rung.name, rung.stopped) == ("step 200 of 400", 1)
    (few,) = analyze([*records[:3], records[-1]], 0.5).trust
    assert few.agreement is None


@pytest.mark.parametrize("kwargs", [{}, {"seeds": 0}, {"seeds": 1}, {"n_schedules": 60, "layers": 24, "budget": 0.27}])
def test_to_dict_of_a_run_is_plain_json(kwargs: dict[str, float]) -> None:
    result = analyze(a_run(**kwargs), 0.5)  # type: ignore[arg-type]
    plain = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert plain.pop("version") == 2
    assert build(Result, plain, "frontier.json") == result


def test_analyse_record_order_does_not_change_the_result() -> None:
    records = a_run(20)
    assert analyze(records, 0.5).entries == analyze(records[::-1], 0.5).entries
    assert analyze(records, 0.5).winner == analyze(records[::-1], 0.5).winner


@pytest.mark.slow
def test_analyse_imports_no_torch() -> None:
    code = "import sys, layersearch.results.analyze; sys.exit('torch' in sys.modules or 'matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_result_does_not_depend_on_the_order_of_the_records() -> None:
    records = a_run()
    first = analyze(records, 0.5, leave_one_out=[(1.0, 1.1), (1.2, 1.3), (1.4, 1.2), (1.5, 1.6)])
    for seed in range(3):
        mixed = random.Random(seed).sample(records, len(records))
        again = analyze(mixed, 0.5, leave_one_out=[(1.0, 1.1), (1.2, 1.3), (1.4, 1.2), (1.5, 1.6)])
        assert again.to_dict() == first.to_dict()
