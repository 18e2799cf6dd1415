"""Exports of a finished run: every target holds the winner, and the evidence for it that the run's own records give."""

from __future__ import annotations

import json
import shlex
import shutil
import statistics
from pathlib import Path

import pytest
import transformers
import yaml

from layersearch.cli.main import main
from layersearch.export import TARGETS
from layersearch.export.files import write_files
from layersearch.results.sentences import winner_evidence
from layersearch.schedule import Schedule
from layersearch.schedule.files import schedule_text
from layersearch.study.saved_run import load_result
from tests.helpers import hf_models

FAMILY = {"hf": "ministral", "vllm": "llama", "sglang": "gemma3", "tensorrt-llm": "gemma3"}


def close(a: object, b: object) -> bool:
    """Tell whether plain data are equal; another release of scipy may differ in a float's last digits."""
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(close(a[key], b[key]) for key in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(close, a, b))
    return a == b or (isinstance(a, float) and a == pytest.approx(b, rel=1e-9))


HELD = [target for target in TARGETS if target not in ("mlx", "gguf")]
"""Targets that hold the winner: MLX-LM wants a full layer, and a GGUF file weights."""


@pytest.mark.slow
@pytest.mark.parametrize("target", HELD)
def test_export_run_winner_is_written_with_its_evidence(
    target: str, saved_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    family = ["--family", FAMILY[target]] if target in FAMILY else []
    assert main(["export", str(saved_run), "--to", target, *family, "--out", str(tmp_path / "new")]) == 0
    paths = [Path(line) for line in capsys.readouterr().out.splitlines() if not line.startswith("note:")]
    assert {path.parent for path in paths} == {tmp_path / "new"}
    assert set(paths) == set((tmp_path / "new").iterdir())
    said = yaml.safe_load(paths[-1].read_text())  # JSON is YAML too
    result = load_result(saved_run)  # analyzed anew, as the export does: the saved files are of an earlier commit
    assert result.winner is not None
    winner = yaml.safe_load(schedule_text(result.winner.schedule, winner_evidence(result)))
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
def pretrained_run(saved_run: Path, tmp_path: Path) -> Path:
    """Return the finished run as one that searched on a Llama of its size, whose base and eps no recipe has."""
    run = Path(shutil.copytree(saved_run, tmp_path / "run"))
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
def test_export_of_a_run_on_a_model_to_litgpt_writes_the_models_own_configuration(
    pretrained_run: Path, tmp_path: Path
) -> None:
    out = tmp_path / "new"
    assert main(["export", str(pretrained_run), "--to", "litgpt", "--out", str(out)]) == 0
    own = json.loads((tmp_path / "llama" / "config.json").read_text())
    new = yaml.safe_load((out / "model_config.yaml").read_text())
    assert (new["rope_base"], new["norm_eps"]) == (500_000, own["rms_norm_eps"])
    assert (new["vocab_size"], new["block_size"]) == (99, 256)


def test_export_of_a_run_on_a_model_that_is_gone_is_refused(
    pretrained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(tmp_path / "llama")
    assert main(["export", str(pretrained_run), "--to", "hf", "--out", str(tmp_path / "new")]) == 2
    assert "give --model with the path where it lies now" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
@pytest.mark.parametrize("target", ["hf", "mlx", "gguf"])
def test_export_of_a_run_whose_model_has_weights_brings_them(
    target: str, pretrained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = transformers.AutoConfig.from_pretrained(tmp_path / "llama")
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / "llama")
    assert main(["export", str(pretrained_run), "--to", target, "--out", str(tmp_path / "new")]) == 0
    names = {path.name for path in (tmp_path / "new").iterdir()}
    assert ("model.gguf" if target == "gguf" else "model.safetensors") in names
    assert "schedule.yaml" in names
    if target == "hf":
        assert json.loads((tmp_path / "new" / "config.json").read_text())["model_type"] == "granite_swa"
        assert main(["verify-export", str(tmp_path / "new")]) == 0


def test_export_of_a_run_on_a_model_refused_offers_a_command_that_works(
    pretrained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = transformers.AutoConfig.from_pretrained(tmp_path / "llama")
    text = " ".join(["full+las:0.1", *["window:5"] * (model.num_hidden_layers - 1)])
    out = str(tmp_path / "new")
    assert main(["export", text, "--to", "mlx", "--model", str(tmp_path / "llama"), "--out", out]) == 2
    said = capsys.readouterr().err
    command = shlex.split(said[said.index("export it with: ") + len("export it with: ") :])
    assert command[0] == "layersearch"
    assert main(command[1:]) == 0
    assert json.loads((tmp_path / "new" / "config.json").read_text())["model_type"] == "llama"


def test_export_of_a_converted_model_takes_its_schedule_and_evidence(tmp_path: Path) -> None:
    folder = hf_models.save("llama", tmp_path / "healed" / "model")
    write_files(folder, {}, Schedule.parse("full window:5 window:5"), {"loss": 2.5})
    assert main(["export", str(tmp_path / "healed"), "--to", "mlx", "--out", str(tmp_path / "new")]) == 0
    said = yaml.safe_load((tmp_path / "new" / "schedule.yaml").read_text())
    assert (said["schedule"], said["evidence"]) == ("full window:5*2", {"loss": 2.5})
    assert (tmp_path / "new" / "model.safetensors").is_file()


@pytest.mark.parametrize("target", ["hf-remote", "mlx", "litgpt"])
def test_export_of_a_configuration_file_of_any_name_takes_nothing_that_lies_beside_it(
    target: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = {"num_hidden_layers": 3, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 48}
    given, other = (transformers.LlamaConfig(**sizes, vocab_size=size) for size in (61, 99))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "llama.json").write_text(json.dumps(given.to_dict()))
    (tmp_path / "mine" / "config.json").write_text(json.dumps(other.to_dict()))
    line = ["export", "full window:8*2", "--to", target, "--model", str(tmp_path / "mine" / "llama.json")]
    assert main([*line, "--out", str(tmp_path / "new")]) == 0
    file = "model_config.yaml" if target == "litgpt" else "config.json"
    assert yaml.safe_load((tmp_path / "new" / file).read_text())["vocab_size"] == 61
    assert "llama.json has no weights, so none were written" in capsys.readouterr().out
