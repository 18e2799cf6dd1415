"""Rows of held-out documents: paired with all_full, over the documents that every schedule has."""

from __future__ import annotations

import dataclasses

import pytest

from layersearch.results import stats
from layersearch.results.held_out import MeasureRow, measure_rows, ranking_agreements
from layersearch.schedule import Schedule
from layersearch.schedule.cost import attention_flops, budget_ratio
from layersearch.training.record import TrialRecord

FULL, SPARSE, MIXED = (Schedule.parse(text) for text in ("full*2", "window:4*2", "full window:4"))


def record(schedule: Schedule, document: int, text: float, digits: float | None, **changes: object) -> TrialRecord:
    metrics = {"text_loss": text}
    if digits is not None:
        metrics |= {"answer_accuracy": digits, "answer_loss": 1.0, "accuracy_pass_key": digits, "accuracy_several": 0.5}
    values = {
        "phase": "confirm",
        "role": {FULL: "all_full", SPARSE: "all window:4 = one window"}.get(schedule, "proposed"),
        "state": "complete",
        "loss": text,
    } | changes
    return TrialRecord(
        schedule=schedule,
        seed=document,
        flops=attention_flops(schedule, seq_len=32, n_heads=2, head_dim=8),
        cost=budget_ratio(schedule, seq_len=32, n_heads=2),
        steps=1,
        full_steps=1,
        metrics=tuple(sorted(metrics.items())),
        **values,  # type: ignore[arg-type]
    )


TEXTS = {FULL: (3.0, 2.0, 4.0), MIXED: (3.1, 2.3, 4.1), SPARSE: (3.5, 2.4, 4.9)}
DIGITS = {FULL: (1.0, 0.8, 0.6), MIXED: (0.8, 0.8, 0.4), SPARSE: (0.0, 0.2, 0.0)}


def records(digits: bool = True) -> list[TrialRecord]:
    return [
        record(schedule, document, texts[document], DIGITS[schedule][document] if digits else None)
        for document in range(3)
        for schedule, texts in TEXTS.items()
    ]


def by_schedule(rows: list[MeasureRow]) -> dict[Schedule, MeasureRow]:
    return {row.schedule: row for row in rows}


def test_measure_rows_are_the_means_and_paired_differences_cheapest_first() -> None:
    rows = measure_rows(records())
    assert [row.schedule for row in rows] == [SPARSE, MIXED, FULL]
    for schedule, row in by_schedule(rows).items():
        assert row.text == stats.mean_interval(TEXTS[schedule])
        assert row.text_to_full == stats.mean_interval(a - b for a, b in zip(TEXTS[schedule], TEXTS[FULL], strict=True))
        assert row.accuracy == stats.mean_interval(DIGITS[schedule])
        assert row.accuracy_to_full is not None
        assert row.accuracy_to_full.mean == pytest.approx(row.accuracy.mean - 0.8)
        assert row.by_task == {"pass_key": pytest.approx(row.accuracy.mean), "several": 0.5}
        assert (row.cost, row.n_full) == (budget_ratio(schedule, seq_len=32, n_heads=2), schedule.n_full)
    mixed = by_schedule(rows)[MIXED]
    assert mixed.text.half_width is not None
    assert mixed.text_to_full.half_width is not None
    assert mixed.text_to_full.half_width < mixed.text.half_width / 5  # documents differ more than schedules do
    assert by_schedule(rows)[FULL].text_to_full.mean == 0.0


def test_measure_rows_name_placements_and_not_proposals() -> None:
    rows = by_schedule(measure_rows(records()))
    assert rows[SPARSE].names == ("all window:4 = one window",)
    assert rows[SPARSE].label == "all window:4 = one window"
    assert (rows[MIXED].names, rows[MIXED].label) == ((), "full window:4")


def test_measure_rows_of_an_incomplete_run_use_the_documents_that_all_have() -> None:
    some = [r for r in records() if not (r.seed == 2 and r.schedule == MIXED)]
    for row in measure_rows(some):
        assert row.text == stats.mean_interval(TEXTS[row.schedule][:2])
    assert measure_rows([r for r in records() if r.schedule != FULL]) == []
    assert measure_rows([record(FULL, 0, 3.0, 1.0), record(SPARSE, 1, 3.0, 1.0)]) == []
    assert measure_rows([]) == []


def test_measure_rows_ignore_the_search_and_what_did_not_complete() -> None:
    more = [
        record(MIXED, 0, 99.0, 0.0, phase="search"),
        record(SPARSE, 7, 99.0, 0.0, state="stopped"),
        record(SPARSE, 8, 99.0, 0.0, state="failed", loss=None),
    ]
    assert measure_rows([*more, *records(), *more]) == measure_rows(records())


def test_measure_rows_without_retrieval_have_no_accuracy() -> None:
    for row in measure_rows(records(digits=False)):
        assert row.accuracy is None
        assert row.accuracy_to_full is None
        assert row.by_task == {}
        assert row.text.n == 3


RANKED = [Schedule.parse(f"window:{2 * size}*2") for size in range(1, 13)]


def ranked_records(answers: tuple[float, ...], far: tuple[float, ...]) -> list[TrialRecord]:
    """Return one document of schedules with rising text loss, and these losses of answers and of far positions."""
    found = [record(FULL, 0, 1.0, 1.0, loss_by_position=(1.0, 1.0), position_edges=(16, 32))]
    for at, schedule in enumerate(RANKED[: len(answers)]):
        metrics = {"text_loss": 2.0 + at, "answer_loss": answers[at], "answer_accuracy": 0.5, "accuracy_pass_key": 0.5}
        more = {"loss_by_position": (2.0 + at, far[at]), "position_edges": (16, 32)}
        changes = {"metrics": tuple(sorted(metrics.items()))} | more
        found.append(dataclasses.replace(record(schedule, 0, 2.0 + at, 0.5), **changes))
    return found


def test_ranking_agreements_say_whether_two_measures_rank_alike() -> None:
    alike = (2.0, 1.0, *map(float, range(3, 13)))
    differ = (10.0, 11.0, 5.0, 6.0, 9.0, 1.0, 7.0, 4.0, 12.0, 3.0, 2.0, 8.0)
    (perfect, _) = ranking_agreements(ranked_records(tuple(map(float, range(12))), differ))
    assert perfect.agrees
    text, position = ranking_agreements(ranked_records(alike, differ))
    assert text.correlation.spearman > 0.99
    assert (text.agrees, text.differs) == (True, False)
    assert "rank these 12 schedules alike" in str(text)
    assert (position.agrees, position.differs) == (False, True)
    assert "DIFFERENTLY" in str(position)
    assert text.correlation.n == 12  # all_full is left out: it would make any two measures agree


def test_ranking_agreements_of_five_schedules_say_that_nothing_is_shown() -> None:
    text, position = ranking_agreements(ranked_records((1.0, 2.0, 3.0, 4.0, 5.0), (5.0, 2.0, 3.0, 1.0, 4.0)))
    assert str(text) == (
        "It is not shown whether text loss and loss of the answers rank these 5 schedules alike (Spearman 1.00, too "
        "few trials)"
    )
    assert position.correlation.spearman == pytest.approx(-0.3)
    assert (position.agrees, position.differs) == (False, False)


def test_ranking_agreements_of_few_schedules_are_none() -> None:
    assert ranking_agreements(records()) == []
