"""A schedule is one object from the plan to the result; text is read and written at the borders only."""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

import layersearch
from layersearch.config.recipe import load_recipe
from layersearch.results.analyze import analyze
from layersearch.schedule import Schedule
from layersearch.schedule.bound_space import BoundSpace
from layersearch.schedule.space import load_space
from layersearch.study.plan import make_plan
from layersearch.training.record import Trial, TrialRecord, blank_record
from tests.helpers import synthetic

PACKAGE = Path(layersearch.__file__).parent
SAVED = Path(__file__).parents[1] / "data_runs"
MOST_PARSED = 18
"""Places that may read the text of a schedule or a span: files, arguments and the choices of a space."""


def leaves(value: Any) -> Iterator[Any]:
    """Yield what a result holds; a schedule is one leaf."""
    if dataclasses.is_dataclass(value) and not isinstance(value, Schedule):
        value = [getattr(value, field.name) for field in dataclasses.fields(value)]
    if isinstance(value, Mapping):
        value = [*value, *value.values()]
    if isinstance(value, list | tuple):
        for held in value:
            yield from leaves(held)
    else:
        yield value


def parsed_in(source: str) -> list[int]:
    """Return the lines that use ``Schedule.parse`` or ``Span.parse``, called or handed on; not those of docstrings."""
    return [
        node.lineno
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Attribute) and node.attr == "parse" and _last_name(node.value) in ("Schedule", "Span")
    ]


def _last_name(node: ast.expr) -> str:
    return node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""


def test_schedule_from_plan_to_result_is_the_same_object() -> None:
    recipe = load_recipe("smoke")
    plan = make_plan(recipe, BoundSpace.of(load_space("smoke"), recipe), 0.6, 0)
    trials = [Trial(schedule=schedule, seed=plan.seed, role=name) for name, schedule in plan.baselines]
    records = [
        dataclasses.replace(blank_record(trial, recipe), state="complete", loss=3.0 - 0.1 * number)
        for number, trial in enumerate(trials)
    ]
    result = analyze(records, plan.budget)
    assert len(plan.baselines) > 2
    for (_, schedule), trial, record in zip(plan.baselines, trials, records, strict=True):
        assert type(schedule) is Schedule
        assert trial.schedule is record.schedule is record.key[0] is result.entry(schedule).schedule is schedule


def test_result_of_a_whole_run_holds_no_schedule_as_text() -> None:
    result = analyze(synthetic.a_run(), 0.5)
    texts = {str(entry.schedule) for entry in result.entries}
    held = list(leaves(result))
    assert result.winner is not None
    assert sum(type(leaf) is Schedule for leaf in held) > len(texts) > 20
    assert not texts.intersection(leaf for leaf in held if isinstance(leaf, str))


@pytest.mark.parametrize("run", ["finished", "killed"])
def test_record_of_a_saved_run_read_and_written_is_the_same_to_the_byte(run: str) -> None:
    lines = (SAVED / run / "trials.jsonl").read_text(encoding="utf-8").splitlines()
    records = [TrialRecord.from_json(line) for line in lines]
    assert {type(record.schedule) for record in records} == {Schedule}
    assert [record.to_json() for record in records] == lines


def test_parsed_in_calls_and_references_are_found_and_docstrings_not() -> None:
    source = '"""Schedule.parse(text)"""\nSchedule.parse(text)\nmap(schedule.Span.parse, texts)\nParser.parse(text)\n'
    assert parsed_in(source) == [2, 3]


@pytest.mark.slow
def test_package_parses_schedules_at_its_borders_only() -> None:
    own = PACKAGE / "schedule" / "schedule.py"
    files = [file for file in sorted(PACKAGE.rglob("*.py")) if file != own]
    found = [f"{file.relative_to(PACKAGE)}:{line}" for file in files for line in parsed_in(file.read_text("utf-8"))]
    assert 0 < len(found) <= MOST_PARSED, found
