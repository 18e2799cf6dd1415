"""Real conversions of a small Llama: what is trained, what is saved, and what a kill leaves."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from layersearch.config.data import DataConfig
from layersearch.data import open_source
from layersearch.export.verify import verify
from layersearch.schedule import Schedule
from tests.helpers import conversions
from tests.helpers.hf_models import save
from tests.helpers.runs import wait_until

pytestmark = pytest.mark.integration

torch.set_num_threads(1)
DATA = DataConfig(source="stdlib", vocab_size=300, max_tokens=200_000)
Results = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, cache_dir: Path) -> Path:
    """Return a model folder as a user has it: configuration, weights, tokenizer."""
    folder = tmp_path_factory.mktemp("models") / "base"
    source = open_source(DATA, 32, cache_dir)
    save("llama", folder, vocab_size=source.vocab_size)
    assert source.tokenizer_file is not None
    shutil.copy(source.tokenizer_file, folder / "tokenizer.json")
    return folder


@pytest.fixture(scope="module")
def out(base: Path, cache_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of all finished conversions."""
    folder = tmp_path_factory.mktemp("converted")
    script = [sys.executable, "-P", conversions.__file__, str(base), str(folder), str(cache_dir)]
    done = subprocess.run(script, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def results(out: Path) -> Results:
    found: Results = json.loads((out / "results.json").read_text())
    return found


def test_convert_leaves_its_process_group_at_the_end_and_on_an_error(results: Results) -> None:
    """Each of these conversions made one, one after another; NCCL warns of a group that is there when Python ends."""
    stops = len(conversions.JOBS["broken"]["stops"])
    assert {name: found["groups"] for name, found in results.items()} == {
        name: [False] * (stops + 1 if name == "broken" else 1) for name in conversions.JOBS
    }


def evaluation(results: Results, name: str, moment: str) -> dict[str, Any]:
    return next(found for found in results[name]["evaluations"] if found["moment"] == moment)


def stock_loss(folder: Path, base: Path, cache: Path) -> float:
    """Return the validation loss that plain transformers gives a saved model."""
    from dataclasses import replace

    source = open_source(replace(DATA, tokenizer=str(base)), 32, cache)
    batch = source.validation(8)
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, attn_implementation=None).eval()
    with torch.no_grad():
        logits = model(input_ids=torch.from_numpy(batch.tokens), use_cache=False).logits
    return float(torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.from_numpy(batch.targets).flatten()))


def test_convert_evaluations_equal_transformers_losses(
    out: Path, results: Results, base: Path, cache_dir: Path
) -> None:
    original, converted = evaluation(results, "sparse", "original"), evaluation(results, "sparse", "converted")
    assert original["loss"] == pytest.approx(stock_loss(base, base, cache_dir), abs=1e-4)
    assert converted["loss"] == pytest.approx(stock_loss(out / "sparse/model", base, cache_dir), abs=1e-4)
    assert [found["moment"] for found in results["sparse"]["evaluations"]] == [
        "original", "switched", "training", "converted",
    ]  # fmt: skip
    assert (original["schedule"], converted["schedule"]) == ("full*3", conversions.SPARSE)
    assert converted["loss"] < evaluation(results, "sparse", "switched")["loss"] - 0.05
    assert len(converted["loss_by_position"]) == 8
    assert converted["position_edges"][-1] == 32


def test_convert_saved_folder_is_a_stock_model_with_schedule_and_evidence(out: Path, results: Results) -> None:
    config = json.loads((out / "sparse/model/config.json").read_text())
    assert results["sparse"]["family"] == config["model_type"] == "ministral"
    assert config["layer_types"] == ["sliding_attention", "full_attention", "sliding_attention"]
    assert config["sliding_window"] == 4
    text = (out / "sparse/model/schedule.yaml").read_text()
    assert conversions.SPARSE in text
    assert "validation_loss" in text
    assert (out / "sparse/model/tokenizer.json").is_file()
    weights = (out / "sparse/model/model.safetensors").read_bytes()
    checksums = json.loads((out / "sparse/model/weights.crc32.json").read_text())
    assert checksums == {"model.safetensors": f"{zlib.crc32(weights):08x}"}
    steps = [json.loads(line) for line in (out / "sparse/steps.jsonl").read_text().splitlines()]
    assert [step["step"] for step in steps] == list(range(1, 9))
    asked = json.loads((out / "sparse/convert.json").read_text())
    assert asked["versions"]["layersearch"]
    assert asked["recipe"]["training"]["steps"] == 8
    assert not (out / "sparse/checkpoint.pt").exists()


def test_convert_schedule_without_stock_family_brings_its_modeling_file(
    out: Path, results: Results, base: Path, cache_dir: Path
) -> None:
    assert results["blocks"]["family"] == "hf-remote"
    loss = evaluation(results, "blocks", "converted")["loss"]
    assert loss == pytest.approx(stock_loss(out / "blocks/model", base, cache_dir), abs=1e-4)


@pytest.mark.parametrize(
    ("name", "trained"),
    [
        ("whole", lambda name: True),
        ("attention", lambda name: ".self_attn." in name),
        ("lora", lambda name: name.endswith("_proj.weight")),
        ("both", lambda name: ".self_attn." in name),
        ("distil", lambda name: True),
    ],
)
def test_convert_partial_training_changes_only_the_chosen_weights(
    name: str, trained: Callable[[str], bool], out: Path, base: Path
) -> None:
    before, after = (load_file(folder / "model.safetensors") for folder in (base, out / name / "model"))
    assert before.keys() == after.keys()
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert changed == {key for key in before if trained(key)}


def test_convert_longer_texts_come_by_stages(out: Path, results: Results) -> None:
    """Length and window double and the learning rate halves at each stage; the RoPE is stretched for the last."""
    steps = [json.loads(line) for line in (out / "longer/steps.jsonl").read_text().splitlines()]
    assert [step["seq_len"] for step in steps] == [8] * 4 + [16] * 2 + [32] * 2 + [64, 128]
    first = {
        length: next(step["learning_rate"] for step in steps if step["seq_len"] == length) for length in (8, 16, 32)
    }
    assert first[8] == 2 * first[16] == 4 * first[32]
    assert {found["seq_len"] for found in results["longer"]["evaluations"]} == {128}
    config = json.loads((out / "longer/model/config.json").read_text())
    assert config["max_position_embeddings"] == 128
    assert config["rope_parameters"]["rope_type"] == "yarn"
    assert config["rope_parameters"]["factor"] == 2.0
    assert config["sliding_window"] == 16
    assert evaluation(results, "longer", "converted")["loss"] < evaluation(results, "longer", "switched")["loss"]


def test_convert_stopped_anywhere_in_its_stages_ends_as_unbroken(out: Path, results: Results) -> None:
    for name in ("loss", "step", "moment", "loss_by_position"):
        assert [found[name] for found in results["broken"]["evaluations"]] == [
            found[name] for found in results["longer"]["evaluations"]
        ]
    before, after = (load_file(out / name / "model/model.safetensors") for name in ("longer", "broken"))
    assert all(torch.equal(before[name], after[name]) for name in before)
    logged = [
        [(step["step"], step["loss"], step["learning_rate"]) for step in map(json.loads, lines)]
        for lines in ((out / name / "steps.jsonl").read_text().splitlines() for name in ("longer", "broken"))
    ]
    assert logged[0] == logged[1]


def command(base: Path, out: Path, *more: str) -> list[str]:
    job = conversions.JOBS["whole"]
    line = [sys.executable, "-P", "-m", "layersearch", "convert", "--model", str(base), "--out", str(out), "--json"]
    keys = [word for assignment in job["set"] for word in ("--set", assignment)]
    return [*line, "--schedule", job["schedule"], *keys, *more]


def test_convert_killed_ends_as_unbroken(
    out: Path, results: Results, base: Path, cache_dir: Path, tmp_path: Path
) -> None:
    environment = os.environ | {"LAYERSEARCH_CACHE": str(cache_dir)}
    folder = tmp_path / "killed"
    log = folder / "steps.jsonl"
    with subprocess.Popen(
        command(base, folder), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment, text=True
    ) as process:
        wait_until(lambda: log.exists() and log.read_text().count("\n") >= 5, process)
        process.send_signal(signal.SIGKILL)
    assert not (folder / "model").exists()
    with log.open("a") as file:
        file.write('{"step": 7, "lo')  # what a kill in the middle of a write leaves
    evaluations = folder / "evaluations.jsonl"
    lost, *kept = evaluations.read_text().splitlines(keepends=True)
    assert '"original"' in lost  # it is made again
    evaluations.write_text("".join(kept))
    done = subprocess.run(command(base, folder), capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["evaluations"][-1]["step"] == 30
    found = json.loads(done.stdout)["evaluations"]
    assert len(evaluations.read_text().splitlines()) == len(found)
    wanted = results["whole"]["evaluations"]
    assert [(one["moment"], one["step"], one["loss"]) for one in found] == [
        (one["moment"], one["step"], one["loss"]) for one in wanted
    ]
    steps = [json.loads(line) for line in log.read_text().splitlines()]
    assert [step["step"] for step in steps] == list(range(1, 31))
    before, after = (load_file(place / "model/model.safetensors") for place in (out / "whole", folder))
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("name", ["sparse", "blocks", "longer"])
def test_convert_saved_folder_is_proven_to_obey_its_schedule(name: str, out: Path) -> None:
    assert verify(out / name / "model", trust_remote_code=name == "blocks").proven


def test_convert_loaded_model_obeys_its_schedule(out: Path) -> None:
    """A token that no layer lets reach the last position does not move it."""
    model = AutoModelForCausalLM.from_pretrained(out / "sparse/model").eval()
    tokens = torch.randint(300, (1, 32), generator=torch.Generator().manual_seed(1))
    other = tokens.clone()
    other[0, 0] = (tokens[0, 0] + 1) % 300
    spans = Schedule.parse(conversions.SPARSE)
    seen: dict[int, torch.Tensor] = {}
    with torch.no_grad():
        for at, given in enumerate((tokens, other)):
            seen[at] = model.model(input_ids=given, output_hidden_states=True).hidden_states[1][0]
    reach = spans[0].reach()
    assert reach is not None
    moved = (seen[0] - seen[1]).abs().amax(-1) > 0
    assert moved.tolist() == [i <= reach for i in range(32)]
