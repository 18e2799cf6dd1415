"""``cost`` and ``schedule`` of model files: the same numbers as of the schedule that they hold."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from layersearch.cli.main import main
from tests.helpers.refusals import Refuses, write

GEMMA3 = {"model_type": "gemma3_text", "hidden_size": 64, "num_hidden_layers": 8, "num_attention_heads": 4,
          "num_key_value_heads": 1, "head_dim": 16, "intermediate_size": 96, "sliding_window": 32, "vocab_size": 99,
          "sliding_window_pattern": 3, "max_position_embeddings": 256}  # fmt: skip
SIZES = ["--heads", "4", "--kv-heads", "1", "--head-dim", "16"]


def printed(line: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main(line) == 0
    return capsys.readouterr().out


def test_cost_of_a_model_file_is_that_of_the_schedule_that_it_prints(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "config.json", json.dumps(GEMMA3))
    schedule = printed(["schedule", str(tmp_path)], capsys).strip()
    assert schedule == "window:32*2 full window:32*2 full window:32*2"
    for name in (str(tmp_path), str(tmp_path / "config.json")):
        found = json.loads(printed(["cost", name, "--json"], capsys))
        assert (found.pop("model"), found.pop("model_type")) == (str(tmp_path / "config.json"), "gemma3_text")
        assert found == json.loads(printed(["cost", schedule, "--seq-len", "256", *SIZES, "--json"], capsys))
    short = json.loads(printed(["cost", str(tmp_path), "--seq-len", "20", "--json"], capsys))
    assert short["ratio"] == 1.0  # a window that is longer than the text is no mistake of the file


def test_cost_model_flops_add_the_other_products_of_the_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "config.json", json.dumps(GEMMA3))
    found: dict[str, Any] = json.loads(printed(["cost", path, "--model-flops", "--json"], capsys))["model_flops"]
    assert found["projections"] == 256 * 8 * 64 * 16 * (2 * 4 + 2 * 1)
    assert found["mlp"] == 256 * 8 * 3 * 64 * 96
    assert found["head"] == 256 * 64 * 99
    assert found["total"] == sum(count for part, count in found.items() if part != "total")
    shown = printed(["cost", path, "--model-flops"], capsys)
    assert f"model FLOPs      {found['total']:,} a sequence" in shown
    assert "attention (QK^T and AV)" in shown


def test_cost_of_an_encoder_counts_both_directions(capsys: pytest.CaptureFixture[str]) -> None:
    schedule = "full window:4+global:first:2 block:8~4"
    found = json.loads(printed(["cost", schedule, "--seq-len", "64", "--heads", "1", "--encoder", "--json"], capsys))
    # 64^2; 64 * 9 - 4 * 5 near pairs, and for each of 2 global tokens those that are not near; 64 * 8 - 8^2 / 2.
    pairs = [64**2, 556 + 2 * (59 + 58), 480]
    assert [layer["pairs"] for layer in found["layers"]] == pairs
    assert found["ratio"] == pytest.approx(sum(pairs) / (3 * 64**2))
    assert found["kv_cache_bytes"] == sum(layer["cache_bytes"] for layer in found["layers"]) == 0


def test_schedule_json_is_one_mapping_per_layer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "config.json", json.dumps(GEMMA3 | {"num_hidden_layers": 3}))
    layers = json.loads(printed(["schedule", path, "--json"], capsys))
    assert layers == [{"kind": "window", "size": 32}] * 2 + [{"kind": "full"}]
    again = write(tmp_path / "schedule.json", json.dumps(layers))
    assert "window:32*2 full\n" in printed(["cost", again, "--seq-len", "64"], capsys)


@pytest.mark.parametrize(
    ("fields", "more", "words"),
    [
        ({}, ["--heads", "4"], ("--heads is the model file's to say", "leave it out")),
        ({}, ["--kv-heads", "4"], ("--kv-heads is the model file's to say",)),
        ({"model_type": "gemmma3"}, [], ("no model_type 'gemmma3'", "did you mean")),
        ({"layer_types": ["linear_attention"] * 8}, [], ("layer 0 is linear_attention", "which no span says")),
    ],
)
def test_cost_model_file_that_cannot_be_counted_is_refused(
    fields: dict[str, Any], more: list[str], words: tuple[str, ...], refuses: Refuses
) -> None:
    refuses(lambda at, run: ["cost", write(at / "config.json", json.dumps(GEMMA3 | fields)), *more], *words)


def test_cost_of_an_encoder_decoder_counts_its_parts(capsys: pytest.CaptureFixture[str]) -> None:
    line = ["cost", "full window:4", "--seq-len", "64", "--target-len", "16", "--heads", "2", "--head-dim", "8"]
    found = json.loads(printed([*line, "--decoder", "full*3", "--json"], capsys))
    pairs = {"encoder": 64**2 + 64 * 9 - 4 * 5, "decoder": 3 * 16 * 17 // 2, "cross": 3 * 64 * 16}
    assert found["attention_parts"] == {name: 2 * 2 * 8 * count for name, count in pairs.items()}
    assert found["attention_flops"] == sum(found["attention_parts"].values())
    whole = 2 * 64**2 + pairs["decoder"] + pairs["cross"]
    assert found["ratio"] == pytest.approx(sum(pairs.values()) / whole)
    # Keys and values of 3 layers, 2 bytes each.
    assert found["kv_cache_bytes"] == 3 * 2 * 16 * 2 * 8 * 2
    assert found["cross_cache_bytes"] == 3 * 2 * 64 * 2 * 8 * 2
    assert "cross" in printed(line, capsys)


def test_cost_model_flops_of_a_schedule_are_refused(refuses: Refuses) -> None:
    refuses(["cost", "full*2", "--seq-len", "8", "--model-flops"], "--model-flops needs a model's sizes")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nothing", ("nothing: nothing is missing", "give a config.json")),
        ("none.gguf", ("none.gguf cannot be read", "No such file")),
    ],
)
def test_schedule_of_no_model_file_is_refused(name: str, words: tuple[str, ...], refuses: Refuses) -> None:
    refuses(["schedule", name], *words)
