"""Exports of a finished run: every target holds the winner, and the evidence for it that the run's own records give."""

from __future__ import annotations

import json
import shutil
import statistics
from pathlib import Path

import pytest
import transformers
import yaml

from layersearch.cli.main import main
from layersearch.export import TARGETS
from layersearch.schedule import Schedule

FAMILY = {"hf": "ministral", "vllm": "llama", "sglang": "gemma3"}


def close(a: object, b: object) -> bool:
    """Tell whether plain data are equal; another release of scipy may differ in a float's last digits."""
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(close(a[key], b[key]) for key in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(close, a, b))
    return a == b or (isinstance(a, float) and a == pytest.approx(b, rel=1e-9))


@pytest.mark.parametrize("target", TARGETS)
def test_export_run_winner_is_written_with_its_evidence(
    target: str, saved_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    family = ["--family", FAMILY[target]] if target in FAMILY else []
    assert main(["export", str(saved_run), "--to", target, *family, "--out", str(tmp_path / "new")]) == 0
    paths = [Path(line) for line in capsys.readouterr().out.splitlines() if not line.startswith("note:")]
    assert {path.parent for path in paths} == {tmp_path / "new"}
    assert set(paths) == set((tmp_path / "new").iterdir())
    said = yaml.safe_load(paths[-1].read_text())  # JSON is YAML too
    winner = yaml.safe_load((saved_run / "winner.yaml").read_text())
    said["evidence"].pop("verdict")  # its sentence is made anew; that of the saved run is of an earlier commit
    assert winner["evidence"].pop("verdict")
    assert close(said, winner)
    assert Schedule.parse(said["schedule"]) == Schedule.from_dicts(said["layers"])
    records = [json.loads(line) for line in (saved_run / "trials.jsonl").read_text().splitlines()]
    confirmed = [
        one["loss"]
        for one in records
        if one["phase"] == "confirm"
        and one["schedule"] == said["schedule"]
        and one["seed"] in said["evidence"]["seeds"]
    ]
    assert len(confirmed) == len(said["evidence"]["seeds"]) > 1
    assert said["evidence"]["validation_loss"] == pytest.approx(statistics.fmean(confirmed))


@pytest.fixture
def pretrained_run(smoke_run: Path, tmp_path: Path) -> Path:
    """Return the finished run as one that searched on a Llama of its size, whose base and eps no recipe has."""
    run = Path(shutil.copytree(smoke_run, tmp_path / "run"))
    config = json.loads((run / "config.json").read_text())
    sizes = config["recipe"]["model"]
    model = transformers.LlamaConfig(
        vocab_size=99,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=sizes["n_layers"],
        num_attention_heads=sizes["n_heads"],
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 500_000.0},
        max_position_embeddings=256,
        eos_token_id=7,
    )
    model.save_pretrained(tmp_path / "llama")
    config["recipe"] |= {"pretrained": str(tmp_path / "llama")}
    config["recipe"]["training"]["optimizer"] = "adamw"
    (run / "config.json").write_text(json.dumps(config))
    return run


@pytest.mark.slow
@pytest.mark.parametrize("target", ["hf", "hf-remote"])
def test_export_of_a_run_on_a_model_writes_the_models_own_configuration(
    target: str, pretrained_run: Path, tmp_path: Path
) -> None:
    out = tmp_path / "new"
    assert main(["export", str(pretrained_run), "--to", target, "--out", str(out)]) == 0
    own, new = (json.loads((folder / "config.json").read_text()) for folder in (tmp_path / "llama", out))
    for key in ("vocab_size", "rms_norm_eps", "rope_parameters", "max_position_embeddings", "eos_token_id", "head_dim"):
        assert new[key] == own[key], key
    assert new["model_type"] == {"hf": "ministral", "hf-remote": "layersearch"}[target]
    assert main(["verify-export", str(out), "--trust-remote-code"]) == 0


@pytest.mark.slow
def test_export_of_a_run_on_a_model_to_litgpt_is_refused(
    pretrained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(pretrained_run), "--to", "litgpt", "--out", str(tmp_path / "new")]) == 2
    said = capsys.readouterr().err
    assert "--to hf --config" in said
    assert f"convert --run {pretrained_run} --model {tmp_path / 'llama'}" in said
    assert not (tmp_path / "new").exists()


def test_export_of_a_run_on_a_model_that_is_gone_is_refused(
    pretrained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(tmp_path / "llama")
    assert main(["export", str(pretrained_run), "--to", "hf", "--out", str(tmp_path / "new")]) == 2
    assert "whose configuration is needed" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
