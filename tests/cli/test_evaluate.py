"""evaluate on a random Llama with its tokenizer: its numbers are those of the measurements, paired by document."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import re
import textwrap
from pathlib import Path
from statistics import fmean

import pytest
import torch
import torch.nn.functional as F

from layersearch.cli.main import main
from layersearch.config.recipe import load_recipe
from layersearch.data.tokenizer import open_tokenizer
from layersearch.model.pretrained import load_pretrained
from layersearch.model.pretrained_recipe import recipe_for
from layersearch.schedule import Schedule
from layersearch.schedule.cost import budget_ratio
from layersearch.study.model_evaluation import ModelEvaluation, evaluate_model
from layersearch.study.selection_units import make_units
from tests.helpers.refusals import Refuses
from tests.helpers.selections import save_model

TOKENS = 320
SPARSE = "full window:8*4"
KEYS = [
    *(f"training.seq_len={TOKENS}", "selection.confirm_units=3", "selection.precision=float32"),
    "selection.tasks=[pass_key]",
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    texts = [Path(module.__file__ or "").read_text() for module in (json.decoder, textwrap)]
    return save_model(tmp_path_factory.mktemp("model") / "tiny", texts)


@pytest.fixture(autouse=True)
def _cache(cache_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAYERSEARCH_CACHE", str(cache_dir))


def words(model: Path, *more: str) -> list[str]:
    return ["evaluate", str(model), *(word for key in KEYS for word in ("--set", key)), *more]


@pytest.mark.slow
def test_evaluate_loss_is_that_of_the_stock_logits_and_differences_are_paired(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words(model, "--schedule", SPARSE, "--json")) == 0
    found = json.loads(capsys.readouterr().out)
    recipe = recipe_for(load_recipe("pretrained", [*KEYS, "selection.calibration_units=1"]), str(model))
    recipe = dataclasses.replace(recipe, selection=dataclasses.replace(recipe.selection, selection_units=2))
    units, _ = make_units(recipe, 512, 0, None)
    decoder, losses = load_pretrained(str(model), tokens=TOKENS), {}
    for schedule in map(Schedule.parse, ("full*5", SPARSE)):
        decoder.set_schedule(schedule)
        with torch.no_grad():
            losses[str(schedule)] = [
                float(F.cross_entropy(decoder.logits(unit.text[None, :-1])[0], unit.text[1:]))
                for unit in units["confirmation"]
            ]
    own, sparse = found["schedules"]
    assert (own["schedule"], own["own"], own["text_loss_to_own"]) == ("full*5", True, None)
    assert own["text_loss"]["mean"] == pytest.approx(fmean(losses["full*5"]), rel=1e-5)
    assert own["text_loss"]["n"] == found["documents"] == 3
    pairs = zip(losses[SPARSE], losses["full*5"], strict=True)
    assert sparse["text_loss_to_own"]["mean"] == pytest.approx(fmean(a - b for a, b in pairs), abs=1e-5)
    assert sparse["cost"] == budget_ratio(Schedule.parse(SPARSE), seq_len=TOKENS, n_heads=4)
    assert found["position_edges"][-1] == TOKENS
    assert len(sparse["loss_by_position"]) == len(found["position_edges"])
    assert set(found["chance"]) == set(sparse["by_task"]) == {"pass_key"}
    lengths = [cell["length"] for cell in sparse["retrieval"]]
    assert lengths == sorted(lengths)
    assert TOKENS // 2 in lengths
    own_length = [cell["accuracy"] for cell in sparse["retrieval"] if cell["length"] == TOKENS]
    assert sum(cell["n"] for cell in own_length) == 3
    mean = sum(cell["mean"] * cell["n"] for cell in own_length) / 3
    assert mean == pytest.approx(sparse["by_task"]["pass_key"]["mean"])
    assert sorted(found) == sorted(field.name for field in dataclasses.fields(ModelEvaluation))


@pytest.mark.slow
def test_evaluate_prints_a_row_per_schedule_and_the_chance_level(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words(model, "--set", "selection.tasks=[pass_key]")) == 0
    out = capsys.readouterr().out
    assert "full*5 (own)" in out
    assert "chance" in out
    assert re.search(r"Digits right by tokens of the text and depth.*\n.*tokens +depth +1", out)
    assert "±" in out


def test_evaluate_without_retrieval_measures_the_text_alone(model: Path) -> None:
    keys = [*KEYS[:3], "selection.retrieval_weight=0", "selection.calibration_units=1"]
    found = evaluate_model(recipe_for(load_recipe("pretrained", keys), str(model)))
    (row,) = found.schedules
    assert (row.accuracy, row.by_task, row.retrieval, found.chance) == (None, {}, (), {})


TASK = """
task: own_choice
dataset_path: json
dataset_kwargs: {data_files: {test: FILE}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: "{{answer}}"
metric_list: [{metric: acc}]
"""


def test_evaluate_lm_eval_task_chooses_by_the_loss_under_each_schedule(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("lm_eval", reason="needs the extra lm-eval")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    question, choices = "def parse(text):", [" return 1", " while raise import"]
    decoder = load_pretrained(str(model), tokens=TOKENS)
    tokenizer, _ = open_tokenizer(str(model))

    def best(schedule: str) -> int:
        decoder.set_schedule(Schedule.parse(schedule))
        context, losses = len(tokenizer.encode(question).ids), []
        for choice in choices:
            ids = torch.tensor(tokenizer.encode(question + choice).ids)
            with torch.no_grad():
                logits = decoder.logits(ids[None, :-1])[0]
            losses.append(float(F.cross_entropy(logits[context - 1 :], ids[context:], reduction="sum")))
        return losses.index(min(losses))

    rows = [{"question": question, "choices": choices, "answer": answer} for answer in (best("full*5"), 0)]
    (tmp_path / "own.json").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (tmp_path / "own.yaml").write_text(TASK.replace("FILE", str(tmp_path / "own.json")), encoding="utf-8")
    more = ("--lm-eval", "own_choice", "--lm-eval-folder", str(tmp_path), "--schedule", SPARSE, "--json")
    assert main(words(model, *more)) == 0
    own, sparse = json.loads(capsys.readouterr().out)["schedules"]
    for row, schedule in ((own, "full*5"), (sparse, SPARSE)):
        wanted = fmean(float(best(schedule) == one["answer"]) for one in rows)
        assert row["lm_eval"]["own_choice"]["acc"] == wanted
    assert own["lm_eval"]["own_choice"]["acc"] >= 0.5


@pytest.mark.parametrize(
    ("more", "said"),
    [
        pytest.param(["--schedule", "full*3"], ("3 layers", "the model 5"), id="layers"),
        pytest.param(["--schedule", "full*4 window:9999"], ("layer 4", "longer than the text"), id="span"),
        pytest.param(["--lm-eval-limit", "3"], ("--lm-eval-limit 3", "needs --lm-eval"), id="limit of no task"),
        pytest.param(
            ["--lm-eval", "own", "--lm-eval-folder", "nowhere"],
            ("--lm-eval-folder nowhere", "no such folder")
            if importlib.util.find_spec("lm_eval")
            else ("needs its extra", "pip install 'layersearch[lm-eval]'"),
            id="folder or extra",
        ),
        pytest.param(["--recipe", "smoke"], ("no section selection",), id="recipe"),
    ],
)
def test_evaluate_wrong_input_is_refused_in_one_line(
    model: Path, more: list[str], said: tuple[str, ...], refuses: Refuses
) -> None:
    refuses(["evaluate", str(model), "--seq-len", str(TOKENS), *more], *said)
