"""The winner of a selection on a GGUF file, healed: stock transformers load it, with its tokenizer."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from layersearch.cli.main import main
from tests.helpers import gguf_models
from tests.helpers.refusals import check_line

pytestmark = pytest.mark.integration

WORDS = ("the", "river", "runs", "to", "sea", "boats", "def", "read", "path", "return", "open", "line", "3", "1", "4")
TOKENS = 160
SETTINGS = ["training.seq_len=160", "selection.tasks=[pass_key]", "selection.min_accuracy=0", "selection.gate_steps=1",
            "selection.candidates=2", "selection.confirm_units=2", "selection.calibration_units=2",
            "selection.selection_units=2", "selection.frontier=1"]  # fmt: skip


def layersearch(*arguments: str, at: Path, code: int = 0) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-P", "-m", "layersearch", *arguments], cwd=at, capture_output=True, text=True, check=False
    )
    assert done.returncode == code, done.stderr
    return done


def search(at: Path, *more: str) -> list[str]:
    """Return the words of a selection of which only plain windows can win."""
    keys = [word for key in SETTINGS for word in ("--set", key)]
    return ["run", "--model", "tiny.gguf", "--budget", "0.6", "--data", "docs", "--space", "space.yaml", *keys, *more]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, cache_dir: Path) -> Path:
    """Return a folder with a model, texts and a finished run."""
    at = tmp_path_factory.mktemp("heal")
    gguf_models.save(at / "tiny.gguf", max_position_embeddings=512)
    rng = random.Random(0)
    (at / "docs").mkdir()
    for number in range(60):
        words = " ".join(rng.choice(WORDS) for _ in range(120))
        (at / "docs" / f"{number:02}.txt").write_text(f"{number} {words}\n")
    (at / "space.yaml").write_text(
        "name: mine\nchoices: [full, 'window:16', 'window:20']\nbaseline_span: 'window:16'\n"
    )
    layersearch(*search(at, "--out", "run"), at=at)
    return at


def converted(folder: Path, out: str, *more: str) -> dict[str, Any]:
    done = layersearch("convert", "--run", "run", "--out", out, "--steps", "2", "--json", *more, at=folder)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_convert_winner_of_a_selection_takes_its_model_text_and_length(folder: Path) -> None:
    """And the model, of a GGUF file, is stock with its tokenizer."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    found = converted(folder, "healed", "--set", "training.precision=float32")
    asked = json.loads((folder / "healed/convert.json").read_text())
    assert (asked["model"], asked["recipe"]["name"]) == ("tiny.gguf", "heal")
    assert asked["recipe"]["data"]["files"] == ["docs"]
    assert asked["recipe"]["training"]["seq_len"] == TOKENS
    winner = json.loads((folder / "run/frontier.json").read_text())["winner"]["schedule"]
    assert found["schedule"] == winner
    for evaluation in found["evaluations"]:
        metrics = dict(evaluation["metrics"])
        assert {"accuracy_pass_key", "answer_accuracy", "answer_loss"} <= metrics.keys()
        assert evaluation["seq_len"] == TOKENS
    assert [one["moment"] for one in found["evaluations"]] == ["original", "switched", "training", "converted"]
    model = AutoModelForCausalLM.from_pretrained(folder / "healed/model").eval()
    assert model.config.model_type == found["family"]
    tokenizer = AutoTokenizer.from_pretrained(folder / "healed/model")
    assert tokenizer.eos_token
    text = "the river runs to 3 1 4"
    assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text
    with torch.no_grad():
        assert model(**tokenizer(text, return_tensors="pt")).logits.isfinite().all()


def test_convert_flags_win_over_the_run(folder: Path) -> None:
    converted(folder, "other", "--set", "training.seq_len=128", "--data", "docs/0*.txt", "--set", "retrieval_tasks=[]",
              "--set", "training.val_sequences=1")  # fmt: skip
    asked = json.loads((folder / "other/convert.json").read_text())["recipe"]
    assert (asked["training"]["seq_len"], asked["data"]["files"]) == (128, ["docs/0*.txt"])


def test_convert_run_of_a_proxy_without_model_is_refused(
    folder: Path, saved_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    assert main(["convert", "--run", str(saved_run), "--out", "none"]) == 2
    check_line(capsys.readouterr().err, ("--model is missing", "name the pre-trained model"))
    assert main(["convert", "--schedule", "full*3", "--out", "none"]) == 2
    check_line(capsys.readouterr().err, ("--model is missing", "--schedule names none"))
    assert not (folder / "none").exists()


def test_run_heal_ends_with_a_healed_model_and_resumes(folder: Path) -> None:
    """The first command continues the finished selection; its repetition does nothing new."""
    found = [json.loads(layersearch(*search(folder, "--out", "run", "--heal", "--json"), at=folder).stdout)
             for _ in range(2)]  # fmt: skip
    healed = found[0]["healed"]
    assert healed["model"] == "run/healed/model"
    assert healed["schedule"] == found[0]["winner"]["schedule"]
    assert found[1]["healed"] == healed
    losses = {one["moment"]: one["loss"] for one in healed["evaluations"]}
    assert losses["converted"] < losses["switched"]
    steps = (folder / "run/healed/steps.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in steps] == list(range(1, 41))


def test_run_heal_dry_run_states_the_healing(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    assert main(search(folder, "--heal", "--dry-run", "--json")) == 0
    plan = json.loads(capsys.readouterr().out)
    assert (plan["heal"]["steps"], plan["heal"]["tokens"]) == (40, TOKENS)
    memory = plan["heal"]["memory"]
    assert memory["weights"] == memory["original"] == memory["gradients"] == 4 * plan["parameters"]
    assert memory["total"] > 20 * plan["parameters"]


def test_convert_dry_run_prints_the_memory_and_trains_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    words = ["convert", "--run", "run", "--out", "planned", "--dry-run"]
    assert main([*words, "--json"]) == 0
    memory = json.loads(capsys.readouterr().out)["memory"]
    assert memory["activations"] > 0 < memory["logits"]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "40 steps of 1 x 160 tokens, recipe heal" in said
    assert "activations" in said
    assert not (folder / "planned").exists()
