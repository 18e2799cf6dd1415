"""What an engine is compared with: the schedules, the dense reference, and a GGUF file read back."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from layersearch.cli.main import main
from layersearch.errors import ExportError
from layersearch.export import export_model, read_source
from layersearch.export.verify.engines import EngineProof
from layersearch.export.verify.engines import gguf_files as gguf
from layersearch.export.verify.engines.environments import DRIVERS, ENVIRONMENTS, checked, find_python, run_engine
from layersearch.export.verify.engines.references import Reference, candidates, load_state
from layersearch.export.verify.engines.small_models import narrow, randomize
from layersearch.export.verify.nearness import Nearness
from layersearch.schedule import Schedule
from tests.helpers.engine_models import POSITIONS, saved, values_of

ASKED = Schedule.parse("full window:6*2 full")
TEXT = torch.randint(256, (24,), generator=torch.Generator().manual_seed(5)).tolist()


def test_candidates_window_schedule_are_asked_resized_full_sparse_and_each_layer_flipped() -> None:
    found = dict(candidates(Schedule.parse("full window:6 full"), unused=9))
    assert list(found) == [
        "as asked",
        "one key less",
        "one key more",
        "all-full",
        "every layer sparse",
        "layer 0 as window:6",
        "layer 2 as window:6",
    ]  # layer 1 flipped is all-full
    assert str(found["one key more"]) == "full window:7 full"
    assert str(found["layer 2 as window:6"]) == "full window:6*2"


def test_candidates_all_full_flips_to_the_unused_size() -> None:
    found = [str(schedule) for _, schedule in candidates(Schedule.parse("full*2"), unused=9)]
    assert found == ["full*2", "window:9*2", "window:9 full", "full window:9"]


@pytest.mark.slow
@pytest.mark.parametrize("model_type", ["ministral", "gemma3_text", "granite_swa", "cohere2"])
def test_reference_equals_the_library_where_it_obeys(model_type: str) -> None:
    values = values_of(model_type, ASKED)
    model = load_state(values, None, "test")
    randomize(model)
    reference = Reference(values, model.state_dict(), "test")
    for _, schedule in list(candidates(ASKED, 6))[:6]:
        other = load_state(values_of(model_type, schedule), model.state_dict(), "test")
        with torch.no_grad():
            wanted = other(torch.tensor([TEXT])).logits[0].log_softmax(-1)
        torch.testing.assert_close(reference.logprobs(TEXT, schedule), wanted, atol=1e-5, rtol=0)


def test_reference_of_a_llama_obeys_though_the_library_does_not() -> None:
    model = load_state(values_of("llama"), None, "test")
    randomize(model)
    reference = Reference(values_of("llama"), model.state_dict(), "test")
    same = Reference(values_of("ministral", ASKED), model.state_dict(), "test")
    full = Schedule.parse("full*4")
    torch.testing.assert_close(reference.logprobs(TEXT, ASKED), same.logprobs(TEXT, ASKED), atol=1e-5, rtol=0)
    assert (reference.logprobs(TEXT, ASKED) - reference.logprobs(TEXT, full)).abs().max() > 0.1


@pytest.mark.slow
def test_reference_foreign_weights_are_refused() -> None:
    state = load_state(values_of("qwen3", ASKED), None, "test").state_dict()
    with pytest.raises(ExportError, match=r"here: the reference cannot be built \(tensor .*q_norm"):
        Reference(values_of("llama"), state, "here").logprobs(TEXT, ASKED)


def test_narrow_keeps_every_key_that_is_no_width() -> None:
    wide = values_of("ministral", ASKED) | {"hidden_size": 512, "num_attention_heads": 8, "head_dim": 64}
    wide |= {"rope_theta": 5e5, "eos_token_id": 900, "vocab_size": 1000, "quantization_config": {}}
    small = narrow(wide, 96, "test")
    assert (small["hidden_size"], small["num_attention_heads"], small["head_dim"]) == (128, 4, 32)
    assert (small["num_key_value_heads"], small["vocab_size"], small["eos_token_id"]) == (2, 256, None)
    assert small["max_position_embeddings"] == POSITIONS
    kept = ("layer_types", "sliding_window", "rope_theta", "num_hidden_layers", "rms_norm_eps")
    assert {key: small[key] for key in kept} == {key: wide[key] for key in kept}
    assert "quantization_config" not in small


@pytest.mark.parametrize(
    ("model_type", "architecture"), [("llama", "granite_swa"), ("olmo3", "olmo2"), ("gemma3_text", "gemma3")]
)
def test_gguf_read_back_computes_what_the_source_does(model_type: str, architecture: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    export_model(ASKED, "gguf", read_source(str(saved(model_type, tmp_path / "model"))), out=out)
    file = gguf.gguf_of(out)
    assert file.architecture == architecture
    from safetensors.torch import load_file

    source = Reference(values_of(model_type, ASKED), load_file(tmp_path / "model" / "model.safetensors"), "test")
    values = file.values()
    found = Reference(values, file.state(values), "test")
    torch.testing.assert_close(found.logprobs(TEXT, ASKED), source.logprobs(TEXT, ASKED), atol=1e-4, rtol=0)


def test_gguf_random_copy_keeps_the_schedule_and_reads_back(tmp_path: Path) -> None:
    out = tmp_path / "out"
    export_model(ASKED, "gguf", read_source(str(saved("llama", tmp_path / "model"))), out=out)
    file = gguf.gguf_of(out)
    made = file.make(tmp_path / "small", 96, own=False)
    again = gguf.gguf_of(made.path)
    for key in ("attention.sliding_window", "attention.sliding_window_pattern", "rope.freq_base", "attention.scale"):
        assert again.key(key) == file.key(key)
    assert made.weights == "random"
    state = again.state(again.values())
    assert {name: tensor.shape for name, tensor in state.items()} == {
        name: tensor.shape for name, tensor in made.state.items()
    }
    assert all(torch.equal(state[name], made.state[name]) for name in state)


def test_gguf_of_another_architecture_is_refused(tmp_path: Path) -> None:
    import gguf as library

    writer = library.GGUFWriter(tmp_path / "a.gguf", "mamba")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(ExportError, match="no reference for architecture 'mamba'"):
        gguf.gguf_of(tmp_path)
    (tmp_path / "a.gguf").write_bytes(b"GG")
    with pytest.raises(ExportError, match="no GGUF file"):
        gguf.gguf_of(tmp_path)


def test_gguf_file_without_the_package_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.gguf").touch()
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ExportError, match=r"pip install \"layersearch\[gguf\]\""):
        gguf.gguf_of(tmp_path)


def proof(**changes: Any) -> EngineProof:
    """Return a proof that holds, with these changes."""
    asked = Nearness(name="as asked", schedule="full window:6", error=1e-6)
    following = Nearness(name="one key more", schedule="full window:7", error=0.3)
    good = EngineProof(
        engine="mlx",
        version="mlx-lm 1",
        architecture="llama",
        schedule="full window:6",
        tokens=96,
        weights="random",
        asked=asked,
        nearest=asked,
        next_nearest=following,
        tried=6,
        generated=48,
        equal=48,
        cache_error=1e-6,
    )
    return dataclasses.replace(good, **changes)


def test_proof_problem_names_the_schedule_that_ran() -> None:
    assert proof().proven
    ran = Nearness(name="all-full", schedule="full*2", error=1e-6)
    wrong = proof(asked=Nearness(name="as asked", schedule="full window:6", error=0.5), nearest=ran)
    assert wrong.problem == "mlx ran all-full ('full*2'), not the schedule asked for"


def test_proof_problem_near_to_no_schedule_is_no_schedule() -> None:
    ran = Nearness(name="all-full", schedule="full*2", error=0.4)
    wrong = proof(asked=Nearness(name="as asked", schedule="full window:6", error=0.5), nearest=ran)
    assert "its weights or positions are read in another way" in str(wrong.problem)


def test_proof_problem_two_equally_near_are_not_told_apart() -> None:
    one = proof(next_nearest=Nearness(name="one key more", schedule="full window:7", error=2e-6))
    assert not one.told_apart
    assert "do not tell them apart" in str(one.problem)


def test_proof_problem_other_text_with_the_cache_is_named() -> None:
    assert "with its cache 47 of 48 tokens" in str(proof(equal=47).problem)
    assert "0.5 nats" in str(proof(cache_error=0.5).problem)


@pytest.mark.parametrize("engine", [name for name in ENVIRONMENTS if name != "hf"])
def test_find_python_missing_engine_names_its_install_command(
    engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(str(ENVIRONMENTS[engine].variable), raising=False)
    with pytest.raises(ExportError, match=f"install {engine}, or give --engine-python"):
        find_python(engine)
    python = tmp_path / ".engines" / engine / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.touch(mode=0o755)
    assert find_python(engine) == python
    assert (DRIVERS / f"{ENVIRONMENTS[engine].driver}_engine.py").is_file()


def test_find_python_wrong_paths_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAYERSEARCH_MLX", str(tmp_path / "nothing"))
    with pytest.raises(ExportError, match=r"\$LAYERSEARCH_MLX .* is no Python"):
        find_python("mlx")
    with pytest.raises(ExportError, match=r"--engine-python .* is no Python"):
        find_python("mlx", tmp_path)
    with pytest.raises(ExportError, match="did you mean 'vllm'"):
        find_python("vlm")


def test_run_engine_that_dies_is_one_line(tmp_path: Path) -> None:
    dying = tmp_path / "python"
    dying.write_text("#!/bin/sh\necho GGML_ASSERT failed >&2\nexit 134\n")
    dying.chmod(0o755)
    (result,) = run_engine("llama.cpp", dying, [{"model": "x", "text": [1]}])
    with pytest.raises(ExportError, match=r"llama.cpp does not run this model \(it ended .*: GGML_ASSERT failed\)"):
        checked("llama.cpp", result)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--engine", "mlz"], ("'mlz'", "did you mean 'mlx'")),
        (["--engine", "hf", "--attention", "sdpa"], ("--attention", "no meaning with --engine")),
        (["--engine-python", "p"], ("--engine-python p needs --engine",)),
        (["--engine", "hf"], ("schedule.yaml is missing",)),
        (["--engine", "hf", "--schedule", "full window:4+sink:1"], ("layer 1", "plain windows and blocks")),
        (["--engine", "hf", "--schedule", "full*2"], ("config.json is missing",)),
        (["--engine", "hf", "--schedule", "full", "--model", "m"], ("--model goes with", "vllm.yaml")),
    ],
)
def test_verify_export_engine_bad_input_is_one_line(
    arguments: list[str], words: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify-export", str(tmp_path), *arguments]) == 2
    line = capsys.readouterr().err
    assert line.startswith("layersearch: ")
    assert line.count("\n") == 1
    assert [word for word in words if word not in line] == []


def test_verify_export_vllm_overrides_without_a_model_names_the_flag(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LAYERSEARCH_VLLM", "/bin/sh")
    (tmp_path / "vllm.yaml").write_text("hf-overrides: {layer_types: [full_attention]}\n")
    assert main(["verify-export", str(tmp_path), "--engine", "vllm", "--schedule", "full"]) == 2
    assert "give --model, the folder of the served model" in capsys.readouterr().err
    (tmp_path / "vllm.yaml").write_text("3\n")
    assert main(["verify-export", str(tmp_path), "--engine", "vllm", "--schedule", "full"]) == 2
    assert "no overrides" in capsys.readouterr().err
