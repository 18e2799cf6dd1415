"""Engine files: expanded to masks as each engine's source does it, they equal the schedule's masks."""

from __future__ import annotations

import runpy
import shlex
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from layersearch.cli.main import main
from layersearch.config.model import ModelConfig
from layersearch.errors import ExportError
from layersearch.export import TARGETS, export
from layersearch.export.engines import ENGINES, SERVING_FAMILIES
from layersearch.schedule import Schedule, Span

TOKENS = 23
AT, KEY = torch.arange(TOKENS)[:, None], torch.arange(TOKENS)[None, :]
MIXED = Schedule.parse("window:5 full window:5*2 full")
Masks = list[Tensor]


def size(schedule: Schedule, **given: Any) -> ModelConfig:
    return ModelConfig(n_layers=len(schedule), **{"d_model": 32, "n_heads": 4, "n_kv_heads": 2, "d_ff": 48} | given)


def write(schedule: Schedule, target: str, out: Path, family: str | None = None, **given: Any) -> Path:
    request: dict[str, Any] = {"model": size(schedule), "vocab_size": 61, "seq_len": TOKENS, "out": out} | given
    path, schedule_file = export(schedule, target, family=family, **request)
    assert (path.name, schedule_file.name) == (ENGINES[target].file, "schedule.yaml")
    return path


def banded(left: int, right: int) -> Tensor:
    """Return flash-attn's mask: keys i-left ... i+right; -1 means no bound."""
    distance = AT - KEY
    seen = torch.ones(TOKENS, TOKENS, dtype=torch.bool)
    if left >= 0:
        seen &= distance <= left
    if right >= 0:
        seen &= distance >= -right
    return seen


# One function per engine: from its file to masks, as the source that the file names does it.


def megatron(path: Path, n_layers: int) -> Masks:
    words = shlex.split(path.read_text(), comments=True)
    given = dict(zip(words[::2], words[1::2], strict=True))
    if not given:
        return [AT >= KEY] * n_layers
    left, right = tuple(int(number) for number in given["--window-size"].strip("()").split(","))
    windowed = yaml.safe_load(given["--window-attn-skip-freq"])  # a list of digits, which is YAML too
    everything = torch.ones(TOKENS, TOKENS)
    window = torch.tril(torch.triu(everything, diagonal=-left), diagonal=right).bool()
    return [window if windowed[number - 1] else AT >= KEY for number in range(1, n_layers + 1)]


def flash(path: Path, n_layers: int) -> Masks:
    return [banded(left, right) & (AT >= KEY) for left, right in runpy.run_path(str(path))["WINDOW_SIZES"]]


def torchtitan(path: Path, n_layers: int) -> Masks:
    import dataclasses

    varlen = dataclasses.make_dataclass("VarlenConfig", [("window_size", tuple, (-1, 0))])
    attention = dataclasses.make_dataclass("AttentionConfig", ["inner_attention", ("dim", int, 8)])
    layer = dataclasses.make_dataclass("LayerConfig", ["attention"])
    model = dataclasses.make_dataclass("ModelConfig", ["layers"])
    config = model([layer(attention(varlen())) for _ in range(n_layers)])
    found = runpy.run_path(str(path))["with_windows"](config)
    assert all(one.attention.inner_attention.window_size == (-1, 0) for one in config.layers)  # its own is left alone
    return [banded(*one.attention.inner_attention.window_size) for one in found.layers]


def litgpt(path: Path, n_layers: int) -> Masks:
    config = yaml.safe_load(path.read_text())
    masks = []
    for layer in range(n_layers):
        mask = (AT >= KEY).clone()
        if config.get("sliding_window_size") is not None and config["sliding_window_indices"][layer]:
            for i in range(TOKENS):
                mask[i, : max(0, i - config["sliding_window_size"] + 1)] = False
        masks.append(mask)
    return masks


def serving(key: str, window: Callable[[int], tuple[int, int]]) -> Callable[[Path, int], Masks]:
    def masks(path: Path, n_layers: int) -> Masks:
        config = yaml.safe_load(path.read_text())[key]
        assert len(config["layer_types"]) == n_layers
        return [
            banded(*window(config["sliding_window"])) if kind == "sliding_attention" else banded(-1, 0)
            for kind in config["layer_types"]
        ]

    return masks


EXPANSIONS: dict[tuple[str, str | None], Callable[[Path, int], Masks]] = {
    ("megatron", None): megatron,
    ("flash-attn", None): flash,
    ("torchtitan", None): torchtitan,
    ("litgpt", None): litgpt,
    # flash_attn.py: (sliding_window - 1, 0); commandr.py adds 1 before.
    ("vllm", "llama"): serving("hf-overrides", lambda w: (w - 1, 0)),
    ("vllm", "mistral"): serving("hf-overrides", lambda w: (w - 1, 0)),
    ("vllm", "ministral"): serving("hf-overrides", lambda w: (w - 1, 0)),
    ("vllm", "cohere2"): serving("hf-overrides", lambda w: (w + 1 - 1, 0)),
    # gemma3_causal.py subtracts 1; flashattention_backend.py hands that on as it is, and -1, its word for none, for 0.
    ("sglang", "gemma3"): serving("json-model-override-args", lambda w: ((w - 1) or -1, 0)),
    # Gemma3ForCausalLM.get_context_mask: j > i - W
    ("tensorrt-llm", "gemma3"): serving("model_kwargs", lambda w: (w - 1, 0)),
}


def test_engines_all_are_expanded_by_a_test() -> None:
    assert {target for target, _ in EXPANSIONS} == set(ENGINES) == set(TARGETS) - {
        "hf", "hf-remote", "mlx", "gguf", "flex", "yaml", "json"
    }  # fmt: skip


@pytest.mark.slow
@settings(max_examples=15, deadline=None)
@given(data=st.data())
@pytest.mark.parametrize(("target", "family"), EXPANSIONS)
def test_engine_file_expanded_equals_the_schedule_masks(
    target: str, family: str | None, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    smallest = 2 if (target, family) in (("sglang", "gemma3"), ("vllm", "cohere2")) else 1
    window = st.builds(Span, kind=st.just("window"), size=st.integers(smallest, TOKENS))
    if not ENGINES[target].size_per_layer:
        window = st.just(data.draw(window))
    schedule = Schedule(
        tuple(data.draw(st.lists(st.one_of(st.just(Span(kind="full")), window), min_size=1, max_size=6)))
    )
    path = write(schedule, target, tmp_path_factory.mktemp("engine") / "new", family)
    found = EXPANSIONS[target, family](path, len(schedule))
    assert len(found) == len(schedule)
    for layer, (mask, span) in enumerate(zip(found, schedule, strict=True)):
        assert torch.equal(mask, span.visible(AT, KEY)), f"layer {layer} of {schedule}"


@pytest.mark.parametrize(("target", "family"), EXPANSIONS)
def test_engine_file_names_release_sources_and_use(target: str, family: str | None, tmp_path: Path) -> None:
    engine = ENGINES[target]
    head = "".join(
        line for line in write(MIXED, target, tmp_path / "new", family).read_text().splitlines() if line[:1] == "#"
    )
    for said in (str(MIXED), engine.release, *engine.sources, engine.evidence, engine.convention, engine.usage):
        assert said in head
    if family is not None:
        assert SERVING_FAMILIES[target][family].source in head


def test_export_help_names_every_target(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["export", "--help"])
    said = capsys.readouterr().out.replace("\n", " ")
    assert all(f" {target}" in said for target in TARGETS)


def test_engine_file_known_schedule_equals_exact_text(tmp_path: Path) -> None:
    """The W of the schedule is 5."""

    def body(target: str, family: str | None = None) -> str:
        lines = write(MIXED, target, tmp_path / target / str(family), family).read_text().splitlines()
        return "\n".join(line for line in lines if not line.startswith("#"))

    assert body("megatron") == "--window-size 4,0\n--window-attn-skip-freq [1,0,1,1,0]"
    assert body("flash-attn") == "WINDOW_SIZES = [(4, 0), (-1, -1), (4, 0), (4, 0), (-1, -1)]"
    types = ["sliding_attention", "full_attention", *["sliding_attention"] * 2, "full_attention"]
    assert yaml.safe_load(body("vllm", "llama")) == {"hf-overrides": {"layer_types": types, "sliding_window": 5}}
    assert yaml.safe_load(body("vllm", "cohere2")) == {"hf-overrides": {"layer_types": types, "sliding_window": 4}}
    for family in ("smollm3", "qwen2", "qwen3"):
        assert yaml.safe_load(body("vllm", family)) == {
            "hf-overrides": {"layer_types": types, "sliding_window": 5, "use_sliding_window": True},
            "model-impl": "transformers",
        }
    assert yaml.safe_load(body("tensorrt-llm", "gemma3")) == {
        "model_kwargs": {"layer_types": types, "sliding_window": 5},
        "kv_cache_config": {"max_attention_window": [5, 23, 5, 5, 23]},
    }


@pytest.mark.parametrize(
    ("target", "family", "text", "words"),
    [
        ("megatron", None, "full block:8", ("layer 1: block:8: Megatron-core 0.19.2 supports no blocks", "nearest")),
        ("megatron", None, "window:4 window:8", ("Megatron-core 0.19.2 supports one window size", "nearest")),
        (
            "flash-attn",
            None,
            "window:4 window:4/2",
            ("flash-attn 2.8.3.post2 supports no dilation", "nearest"),
        ),
        ("litgpt", None, "full window:4+sink:2", ("LitGPT 0.5.13 supports no sinks", "nearest")),
        ("torchtitan", None, "full window:4+las:0.1", ("torchtitan 0.3.0 supports no LaS", "nearest")),
        ("vllm", None, "full window:4", ("--to vllm needs --family", "llama, mistral, ministral")),
        ("vllm", "lama", "full window:4", ("--family 'lama'", "did you mean 'llama'")),
        ("vllm", "gpt_oss", "full window:4", ("hard-coded as 'window full'", "llama")),
        ("vllm", "llama4", "full window:4", ("vLLM 0.33.0 does not start a llama4", "--family llama")),
        ("vllm", "modernbert-decoder", "full*2", ("does not start a modernbert-decoder",)),
        ("sglang", "llama", "full window:4", ("SGLang 0.5.23 runs llama all-full", "gemma3, olmo3")),
        ("sglang", "mistral", "full window:4", ("runs mistral all-full", "gemma3, olmo3")),
        ("sglang", "smollm3", "full window:4", ("with one key more in each window", "gemma3, olmo3")),
        ("sglang", "exaone4", "full window:4", ("reads sliding_window_pattern of exaone4", "gemma3, olmo3")),
        ("sglang", "qwen3", "full window:4", ("SGLang 0.5.23 runs qwen3 all-full", "gemma3, olmo3")),
        ("sglang", "cohere2", "full window:4", ("gives cohere2 no window", "gemma3, olmo3")),
        ("sglang", "gemma2", "window:4*2", ("hard-coded as 'window full'", "gemma3")),
        ("sglang", "gemma3", "full window:1", ("layer 1: window:1", "give window:2 or more")),
        ("vllm", "cohere2", "full window:1", ("layer 1: window:1", "give window:2 or more")),
        ("tensorrt-llm", "gemma3", "window:4 window:8", ("supports one window size", "nearest")),
        ("tensorrt-llm", "exaone4", "full window:4", ("reads sliding_window_pattern of exaone4", "--family gemma3")),
        ("tensorrt-llm", "granite_swa", "full*2", ("has no code for granite_swa", "--family gemma3")),
        ("megatron", "llama", "full*2", ("--family 'llama' has no meaning for --to megatron",)),
    ],
)
def test_engine_file_unsupported_schedule_is_refused(
    target: str, family: str | None, text: str, words: tuple[str, ...], tmp_path: Path
) -> None:
    with pytest.raises(ExportError) as error:
        write(Schedule.parse(text), target, tmp_path / "new", family)
    assert all(word in str(error.value) for word in words), str(error.value)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(("target", "family"), [("vllm", "gpt_oss"), ("sglang", "gemma2")])
def test_engine_schedule_equal_to_the_hard_coded_pattern_is_written(target: str, family: str, tmp_path: Path) -> None:
    config = yaml.safe_load(write(Schedule.parse("window:4 full window:4"), target, tmp_path, family).read_text())
    assert next(iter(config.values()))["sliding_window"] == 4


@pytest.mark.parametrize(("target", "family"), [("sglang", "qwen3"), ("vllm", "llama")])
def test_engine_all_full_schedule_is_written_for_all_full_families(target: str, family: str, tmp_path: Path) -> None:
    config = yaml.safe_load(write(Schedule.parse("full*2"), target, tmp_path, family).read_text())
    assert list(config.values()) == [{"layer_types": ["full_attention"] * 2}]


def test_torchtitan_other_back_end_or_depth_is_refused(tmp_path: Path) -> None:
    with_windows = runpy.run_path(str(write(MIXED, "torchtitan", tmp_path)))["with_windows"]
    layer = SimpleNamespace(attention=SimpleNamespace(inner_attention=SimpleNamespace()))
    with pytest.raises(ValueError, match="attn_backend='varlen'"):
        with_windows(SimpleNamespace(layers=[layer] * 5))
    with pytest.raises(ValueError, match="4 layers in the model, 5 in the schedule"):
        with_windows(SimpleNamespace(layers=[layer] * 4))


def test_litgpt_rope_base_is_an_integer(tmp_path: Path) -> None:
    model = size(MIXED, rope_theta=500.5)
    with pytest.raises(ExportError, match=r"set model\.rope_theta"):
        write(MIXED, "litgpt", tmp_path / "new", model=model)
