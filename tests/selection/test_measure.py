"""Measurements against the stock model's whole logits."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.nn.functional as F

from layersearch.selection.measure import BINS, Measurement, Scorer, by_task, position_edges
from tests.helpers.selections import SCHEDULES, TASKS, TOKENS, layerwise, units

torch.set_num_threads(1)
WEIGHT = 0.25


@pytest.fixture(scope="module")
def scorer() -> Scorer:
    return Scorer(layerwise(), units(3), TASKS, WEIGHT)


def measurement(text: float, answer: float, **accuracy: float) -> Measurement:
    return Measurement(text_loss=text, answer_loss=answer, accuracy=accuracy, by_position=())


@pytest.mark.parametrize("schedule", SCHEDULES[:2])
def test_measurement_equals_the_losses_of_whole_logits(scorer: Scorer, schedule: object) -> None:
    unit, decoder = scorer.units[1], scorer.model.decoder
    found = scorer.measure(schedule, 1)  # type: ignore[arg-type]
    decoder.set_schedule(schedule)  # type: ignore[arg-type]
    with torch.no_grad():
        text = F.cross_entropy(decoder.logits(unit.text[None, :-1])[0], unit.text[1:], reduction="none")
        logits = decoder.logits(unit.example.tokens[None])[0]
    assert found.text_loss == pytest.approx(float(text.mean()), rel=1e-5)
    by_answer = []
    for answer in unit.example.answers:
        targets, before = unit.example.tokens[answer.start : answer.stop], logits[answer.start - 1 : answer.stop - 1]
        by_answer.append(float(F.cross_entropy(before, targets)))
        assert found.accuracy[answer.task] == pytest.approx(float((before.argmax(-1) == targets).float().mean()))
    assert found.answer_loss == pytest.approx(sum(by_answer) / 2, rel=1e-5)
    assert found.quality(WEIGHT) == pytest.approx(0.75 * found.text_loss + 0.25 * found.answer_loss)
    assert len(found.by_position) == BINS
    edges = [0, *position_edges(TOKENS)]
    assert edges[-1] == TOKENS
    bins = [float(text[a:b].mean()) for a, b in itertools.pairwise(edges)]
    assert found.by_position == pytest.approx(bins, rel=1e-5)


def test_measurement_accuracy_counts_the_tokens_that_the_model_predicts() -> None:
    """The answer's first and last token are what the model says next, the middle one is not."""
    model, (unit,) = layerwise(), units(1)
    tokens, answer = unit.example.tokens, unit.example.answers[0]
    full = SCHEDULES[0]
    for position in range(answer.start, answer.stop):
        best = int(model.logits(model.run(tokens[:position], full).last[-1:]).argmax())
        tokens[position] = best if position != answer.start + 1 else (best + 1) % 61
    found = Scorer(model, [unit], TASKS, WEIGHT).measure(full, 0)
    assert found.accuracy["first"] == pytest.approx(2 / 3)
    assert set(found.accuracy) == set(TASKS)


def test_measurement_without_weight_of_retrieval_is_the_text_loss() -> None:
    assert measurement(2.0, math.nan).quality(0.0) == 2.0
    assert measurement(2.0, 6.0).quality(0.5) == 4.0


def test_scorer_ignores_answers_of_tasks_that_do_not_count(scorer: Scorer) -> None:
    model, schedule = scorer.model, SCHEDULES[1]
    both, first = scorer.measure(schedule, 0), Scorer(model, scorer.units, ("first",), WEIGHT).measure(schedule, 0)
    second = Scorer(model, scorer.units, ("second",), WEIGHT).measure(schedule, 0)
    assert set(first.accuracy) == {"first"}
    assert first.text_loss == second.text_loss == both.text_loss
    assert both.answer_loss == pytest.approx((first.answer_loss + second.answer_loss) / 2)
    assert first.answer_loss != second.answer_loss


def test_scorer_without_tasks_measures_the_text_alone(scorer: Scorer) -> None:
    alone = Scorer(scorer.model, scorer.units, (), WEIGHT)
    found = alone.measure(SCHEDULES[1], 0)
    assert math.isnan(found.answer_loss)
    assert found.accuracy == {}
    assert alone.quality(SCHEDULES[1]) == pytest.approx(sum(m.text_loss for m in alone.measure_all(SCHEDULES[1])) / 3)
    alone.model.decoder.set_schedule(SCHEDULES[1])
    assert float(alone.loss_with_graph(0)) == pytest.approx(found.text_loss, rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("begin", SCHEDULES)
def test_scorer_start_from_changes_no_value_and_runs_fewer_layers(scorer: Scorer, begin: object) -> None:
    model = scorer.model
    plain = {schedule: scorer.measure_all(schedule) for schedule in SCHEDULES}
    started = Scorer(model, scorer.units, TASKS, WEIGHT)
    assert started.nbytes == 0
    for schedule in (SCHEDULES[1], begin):
        started.start_from(schedule)  # type: ignore[arg-type]
    assert started.nbytes == 3 * (2 * TOKENS - 1) * 5 * 32 * 4  # text and example of 3 units; 4 inputs and the last
    assert {schedule: started.measure_all(schedule) for schedule in SCHEDULES} == plain
    before = model.tokens_spent
    started.measure_all(begin)  # type: ignore[arg-type]
    assert model.tokens_spent == before


def test_scorer_quality_is_the_mean_over_units(scorer: Scorer) -> None:
    found = [m.quality(WEIGHT) for m in scorer.measure_all(SCHEDULES[1])]
    assert scorer.quality(SCHEDULES[1]) == pytest.approx(sum(found) / 3)
    assert len(set(found)) == 3


@pytest.mark.parametrize("weight", [0.0, WEIGHT])
def test_scorer_loss_with_graph_is_the_quality(scorer: Scorer, weight: float) -> None:
    other = Scorer(scorer.model, scorer.units, TASKS, weight)
    for number in range(3):
        wanted = other.measure(SCHEDULES[1], number).quality(weight)
        scorer.model.decoder.set_schedule(SCHEDULES[1])
        assert float(other.loss_with_graph(number)) == pytest.approx(wanted, rel=1e-5)


def test_by_task_is_the_mean_accuracy_over_units() -> None:
    assert by_task([measurement(1, 1, a=1.0, b=0.0), measurement(1, 1, a=0.5, b=0.2)]) == {"a": 0.75, "b": 0.1}
    assert by_task([]) == {}
