"""The page of a conversion's folder, whatever its state."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from layersearch.errors import LayersearchError
from layersearch.report.conversion import MOST_STEPS, is_conversion, open_conversion
from layersearch.report.page import page_text
from layersearch.report.payload import page_data
from layersearch.schedule import Schedule
from layersearch.schedule.cost import budget_ratio
from tests.helpers.conversion_folders import SCHEDULE, STEPS, TOKENS, conversion_folder

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return conversion_folder(tmp_path_factory.mktemp("conversion") / "healed")


def data(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = page_data([open_conversion(path)])["runs"][0]
    return found


def test_conversion_page_says_what_the_schedule_costs_and_loses(finished: Path) -> None:
    found, cost = data(finished), budget_ratio(Schedule.parse(SCHEDULE), seq_len=TOKENS, n_heads=1)
    assert found["headline"] == (
        f"Keep full attention in 1 of 3 layers: 2. That is {cost:.1%} of the attention FLOPs of all-full, with 93% of "
        "the hidden digits right (original: 95%), +0.0500 nats of loss against the original model after "
        f"{STEPS} steps of training."
    )
    assert found["sureness"][1] == "The switch alone changed the loss by +1.0000 nats; training won back 95% of it."
    assert [one["moment"] for one in found["healed"]] == ["original", "switched", "training", "converted"]
    assert found["training"]["original"] == 2.0
    assert found["training"]["steps"] == [[step, pytest.approx(2.0 + 1 / step)] for step in range(1, STEPS + 1)]
    assert [line["label"] for line in found["positions"]["lines"]] == ["converted", "original", "switched"]
    assert found["retrieval"]["rows"][0] == {"label": "converted", "values": [0.93]}
    assert found["schedules"][0]["text"] == SCHEDULE
    assert found["schedules"][0]["kv"] is None  # the model is not here
    assert found["command"].startswith(f"layersearch convert --model lost-model --schedule '{SCHEDULE}' --recipe plain")
    assert f"--set training.steps={STEPS}" in found["command"]


def test_conversion_page_has_no_part_of_a_search(finished: Path) -> None:
    text = page_text([finished])
    assert len(text) < 3_000_000
    for words in ("Loss along the training", "Loss by position", "Evaluations", "What this evidence does not say"):
        assert f">{words}</h2>" in text
    for words in ("Loss against cost", "Measured schedules", "Another budget", "Search space"):
        assert f">{words}<" not in text


def test_conversion_stands_beside_a_run_with_what_differs(finished: Path) -> None:
    text = page_text([finished, ROOT / "tests" / "data_runs" / "killed"])
    assert "2 runs side by side" in text
    assert "<code>recipe.training.steps</code>" in text


@pytest.mark.parametrize(("kept", "words"), [(0, "Its loss is not measured yet."), (2, "before any training.")])
def test_unfinished_conversion_opens_and_says_so(kept: int, words: str, finished: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    lines = (run / "evaluations.jsonl").read_text().splitlines(keepends=True)
    (run / "evaluations.jsonl").write_text("".join(lines[:kept]))
    found = data(run)
    assert not found["finished"]
    assert found["headline"].endswith(words)
    assert found["not_said"][0] == "The conversion has not ended. Its answer may change."
    assert "<b>Not finished.</b>" in page_text([run])


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("convert.json", "{"),
        ("convert.json", "{}"),
        ("convert.json", '{"format": 1}'),
        ("evaluations.jsonl", "{}\n"),
        ("steps.jsonl", "no step\n"),
    ],
)
def test_damaged_conversion_is_refused_by_the_file_s_name(file: str, text: str, finished: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    (run / file).write_text(text)
    with pytest.raises(LayersearchError, match=file):
        page_text([run])


def test_many_steps_are_averaged_in_groups(tmp_path: Path) -> None:
    run = conversion_folder(tmp_path / "run", steps=2 * MOST_STEPS + 1)
    found = data(run)["training"]["steps"]
    assert len(found) == -(-(2 * MOST_STEPS + 1) // 3)
    assert found[0] == [3, pytest.approx(2.0 + (1 + 1 / 2 + 1 / 3) / 3)]
    assert found[-1][0] == 2 * MOST_STEPS + 1


def test_sizes_come_from_the_converted_model(finished: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    (run / "model").mkdir()
    (run / "model" / "config.json").write_text(
        '{"model_type": "llama", "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "head_dim": 8,'
        ' "num_key_value_heads": 2, "max_position_embeddings": 64}'
    )
    cache = {tile["label"]: tile["value"] for tile in data(run)["tiles"]}["KV cache"]
    assert cache == f"{(TOKENS + 2 * 8) * 2 * 2 * 8 * 2 / 1024:.3g} KiB"


def test_is_conversion_tells_a_conversion_from_a_run(finished: Path) -> None:
    assert is_conversion(finished)
    assert not is_conversion(ROOT / "tests" / "data_runs" / "killed")
