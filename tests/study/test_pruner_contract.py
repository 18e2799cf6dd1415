"""What every rule that stops trials early must hold."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

import pytest

from layersearch.schedule import Schedule
from layersearch.schedule.bound_space import BoundSpace
from layersearch.schedule.space import Space
from layersearch.study.pruning import ExpectedGainPruner, SuccessiveHalvingPruner
from layersearch.training.record import TrialRecord
from tests.helpers.synthetic import record

SPACE = BoundSpace(Space(name="small", choices=("full", "window:4", "window:2")), n_layers=5, seq_len=32, n_heads=2)
STEPS, RUNG = 400, 200
NEW = Schedule.parse("window:4 full*2 window:4*2")


class Pruner(Protocol):
    def keep_going(self, schedule: Schedule, step: int, loss: float) -> bool: ...


PRUNERS: dict[str, Callable[[Iterable[TrialRecord]], Pruner]] = {
    "halving": lambda records: SuccessiveHalvingPruner(SPACE, records, 2),
    "foresight": lambda records: ExpectedGainPruner(SPACE, 0.8, records, [NEW], STEPS),
}


def earlier() -> list[TrialRecord]:
    """Return trials of an earlier generation whose loss falls with each full layer."""
    found = []
    for schedule in [s for s in SPACE.schedules() if s != NEW and SPACE.cost(s) <= 0.8][::6]:
        loss = 3.0 - 0.2 * sum(span.is_full for span in schedule)
        curve = ((RUNG, loss + 0.5), (STEPS, loss))
        found.append(record(schedule, loss, cost=SPACE.cost(schedule), curve=curve))
    return found


@pytest.fixture(params=PRUNERS)
def pruner(request: pytest.FixtureRequest) -> Callable[[Iterable[TrialRecord]], Pruner]:
    return PRUNERS[request.param]


def test_pruner_without_earlier_trials_stops_nothing(pruner: Callable[[Iterable[TrialRecord]], Pruner]) -> None:
    assert pruner([]).keep_going(NEW, RUNG, 99.0)


def test_pruner_lowest_loss_so_far_goes_on(pruner: Callable[[Iterable[TrialRecord]], Pruner]) -> None:
    assert pruner(earlier()).keep_going(NEW, RUNG, 2.0)


def test_pruner_hopeless_loss_is_stopped(pruner: Callable[[Iterable[TrialRecord]], Pruner]) -> None:
    assert not pruner(earlier()).keep_going(NEW, RUNG, 6.0)


@pytest.mark.slow
@pytest.mark.parametrize("loss", [2.0, 2.9, 3.1, 3.3, 6.0])
def test_pruner_answer_does_not_depend_on_record_order(
    loss: float, pruner: Callable[[Iterable[TrialRecord]], Pruner]
) -> None:
    answers = {pruner(records).keep_going(NEW, RUNG, loss) for records in (earlier(), earlier()[::-1])}
    assert len(answers) == 1


def test_pruner_failed_trials_count_for_nothing(pruner: Callable[[Iterable[TrialRecord]], Pruner]) -> None:
    failed = [record(r.schedule, None, cost=r.cost, state="failed") for r in earlier()]
    assert pruner(failed).keep_going(NEW, RUNG, 99.0)
