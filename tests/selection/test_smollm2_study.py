"""The committed study of SmolLM2-135M: its tables follow from its records, and the records from exact costs."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from layersearch.schedule import Schedule
from layersearch.schedule.cost import budget_ratio

FOLDER = Path(__file__).parents[2] / "analysis/smollm2"
HEADS, TOKENS, BUDGET = 9, 1024, 0.27
STUDIES = ("contest", "spaces-held-out", "layers-held-out", "heal", "heal-long")
MEASURED = [name for name in STUDIES if (FOLDER / f"records/{name}.jsonl").exists()]
MODULES = ("bench", "contest", "heal", "layers", "spaces", "study")


@pytest.fixture
def study(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(str(FOLDER))
    for name in MODULES:  # another study of analysis/ may have modules of these names
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield importlib.import_module("study")
    for name in MODULES:
        sys.modules.pop(name, None)


def records(name: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in (FOLDER / f"records/{name}.jsonl").read_text().splitlines()]


def test_smollm2_tables_are_those_of_the_committed_records(study: ModuleType) -> None:
    assert (FOLDER / "tables.md").read_text() == study.report()


@pytest.mark.parametrize("name", ["choices", "spaces"])
def test_smollm2_choices_have_exact_costs_within_the_budget(name: str) -> None:
    for record in records(name):
        schedule = Schedule.parse(str(record["schedule"]))
        assert record["cost"] == pytest.approx(budget_ratio(schedule, seq_len=TOKENS, n_heads=HEADS), abs=1e-12)
        assert budget_ratio(schedule, seq_len=TOKENS, n_heads=HEADS) <= BUDGET


@pytest.mark.parametrize("name", [*MEASURED])
def test_smollm2_measurements_are_paired_and_made_once(name: str) -> None:
    conditions = ("source", "seq_len", "moment")
    keys = [(r["schedule"], r["unit"], r.get("name"), *(r.get(key) for key in conditions)) for r in records(name)]
    assert len(keys) == len(set(keys))
    groups: dict[object, dict[object, set[object]]] = {}
    for schedule, unit, _, *condition in keys:
        groups.setdefault(tuple(condition), {}).setdefault(schedule, set()).add(unit)
    for by_schedule in groups.values():
        assert len(set(map(frozenset, by_schedule.values()))) == 1, "every schedule is measured on the same documents"
