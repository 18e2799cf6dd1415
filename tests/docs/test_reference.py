"""The committed reference pages are those that the code generates."""

from __future__ import annotations

import dataclasses
import json
import runpy
from pathlib import Path

import pytest

import layersearch

ROOT = Path(__file__).parents[2]
REFERENCE = runpy.run_path(str(ROOT / "docs" / "generate_reference.py"))


@pytest.mark.parametrize("page", REFERENCE["PAGES"])
def test_reference_page_committed_equals_generated(page: str) -> None:
    committed = (ROOT / "docs" / page).read_text(encoding="utf-8")
    assert committed == REFERENCE["pages"]()[page], f"docs/{page} is out of date: run make docs-reference"


def test_export_guide_executed_column_is_the_record() -> None:
    committed = (ROOT / "docs" / "how-to" / "export.md").read_text(encoding="utf-8")
    assert committed == REFERENCE["guide"](), "docs/how-to/export.md is out of date: run make docs-reference"
    for target in ("hf", "mlx", "gguf", "vllm"):
        assert REFERENCE["executed_in"](target), f"no engine ran --to {target}: run make test-engines"
        assert f" {REFERENCE['executed_in'](target)} |" in committed


def test_executed_record_every_entry_is_a_job_that_ran_its_schedule() -> None:
    script = runpy.run_path(str(ROOT / "analysis" / "engines" / "executed.py"))
    record = json.loads((ROOT / "analysis" / "engines" / "executed.json").read_text(encoding="utf-8"))
    schedules = {tuple(job): str(job.schedule) for job in script["jobs"]()}
    assert {job[:2] for job in schedules} == {(entry["engine"], entry["target"]) for entry in record}
    for entry in record:
        asked = schedules[entry["engine"], entry["target"], entry["family"]]
        assert entry["verdict"] == "proven", entry
        assert (entry["schedule"], entry["ran"]) == (asked, asked)
        assert entry["equal"] == entry["generated"] > 0
        assert 4 * entry["error"] <= entry["next_error"]
    for entry in json.loads((ROOT / "analysis" / "engines" / "smollm2.json").read_text(encoding="utf-8")):
        assert (entry["verdict"], entry["ran"]) == ("proven", entry["schedule"]), entry
    limits = (ROOT / "docs" / "limits.md").read_text(encoding="utf-8")
    assert f"yes, in {len(record)} exports" in limits


def test_reference_folder_holds_generated_pages_only() -> None:
    found = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs" / "reference").iterdir()}
    assert found == set(REFERENCE["PAGES"])


def test_recipe_page_changed_default_differs() -> None:
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class SearchConfig:
        """How a search runs."""

        trials: int = 25
        """Distinct schedules trained."""

    assert "| `search.trials` | integer | `25` | Distinct schedules trained. |" in REFERENCE["keys_table"](
        SearchConfig, "search."
    )


def test_recipe_page_every_key_is_described() -> None:
    rows = [row for row in REFERENCE["recipe_page"]().splitlines() if row.startswith("| `")]
    assert len(rows) > 50
    assert [row for row in rows if row.split(" | ")[3].strip(" |") == ""] == []


def test_api_page_every_public_name_is_listed() -> None:
    page = REFERENCE["api_page"]()
    assert all(f"::: layersearch.{name}\n" in page for name in layersearch.__all__ if not name.startswith("__"))
