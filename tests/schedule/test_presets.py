"""Every preset against a schedule written by hand from its source."""

from __future__ import annotations

import inspect

import pytest

from layersearch.errors import UserError
from layersearch.schedule import Schedule, Span, presets
from layersearch.schedule.presets import PRESETS, make_preset

BY_HAND = [
    ("all_full", {"n_layers": 3}, "full full full"),
    ("all_sparse", {"n_layers": 2, "span": "window:32+sink:4"}, "window:32+sink:4 window:32+sink:4"),
    ("bottom", {"n_layers": 5, "l": 2, "span": "window:8"}, "full full window:8 window:8 window:8"),
    ("bottom", {"n_layers": 2, "l": 0, "span": "window:8"}, "window:8 window:8"),
    ("top", {"n_layers": 5, "l": 2, "span": "block:8"}, "block:8 block:8 block:8 full full"),
    ("top", {"n_layers": 2, "l": 0, "span": "window:8"}, "window:8 window:8"),
    ("top", {"n_layers": 2, "l": 2, "span": "window:8"}, "full full"),
    ("middle", {"n_layers": 6, "l": 2, "span": "window:8"}, "window:8 window:8 full full window:8 window:8"),
    ("middle", {"n_layers": 4, "l": 1, "span": "window:8"}, "window:8 full window:8 window:8"),
    ("interleaved", {"n_layers": 6, "l": 1, "span": "block:4"}, "block:4 block:4 block:4 full block:4 block:4"),
    ("interleaved", {"n_layers": 6, "l": 2, "span": "block:4"}, "block:4 full block:4 block:4 full block:4"),
    ("interleaved", {"n_layers": 6, "l": 3, "span": "block:4"}, "block:4 full block:4 full block:4 full"),
    ("interleaved", {"n_layers": 3, "l": 3, "span": "block:4"}, "full full full"),
    ("masformer", {"l": 4}, "full full full full " + "block:1024 " * 20),
    ("masformer", {"l": "1", "n_layers": "3", "block": "64"}, "full block:64 block:64"),
    ("zebra", {"n_layers": 6, "block": 8}, "full window:13 window:13 window:13 full window:13"),
    ("gemma3", {"n_layers": 8}, "window:1024 " * 5 + "full window:1024 window:1024"),
    ("gemma3", {"n_layers": 12, "window": 512}, ("window:512 " * 5 + "full ") * 2),
    (
        "longformer_increasing",
        {"n_layers": 5, "smallest": 32, "largest": 512},
        "window:32,window:64,window:128,window:256,window:512",
    ),
    (
        "longformer_increasing",
        {"n_layers": 12, "smallest": 16, "largest": 16, "dilated_heads": 2},
        "window:16*6 window:16/2@2 window:16/2@2 window:16/3@2 window:16/3@2 window:16/4@2 window:16/4@2",
    ),
    ("longformer_increasing", {"n_layers": 1, "smallest": 4, "largest": 8}, "window:4"),
    ("qwen2", {"n_layers": 4, "max_window_layers": 3, "window": 64}, "full full full window:64"),
    ("qwen2", {"n_layers": 2, "max_window_layers": 2, "window": 64}, "full full"),
    ("gpt_neo", {"n_layers": 3}, "full window:256 full"),
    ("gpt_oss", {"n_layers": 3}, "window:128 full window:128"),
    ("cohere2", {"n_layers": 5}, "window:4096 window:4096 window:4096 full window:4096"),
    ("llama4", {"n_layers": 5}, "block:8192 block:8192 block:8192 full block:8192"),
    ("nanochat", {"n_layers": 6, "window": 64}, "window:64 window:64 window:64 full window:64 full"),
    (
        "jet_nemotron",
        {"model": "2b", "rest": "window:64"},
        "window:64*14 full window:64*4 full window:1152*2 window:64*6",
    ),
    (
        "jet_nemotron",
        {"model": "4b", "rest": "window:64"},
        "window:64*17 full window:64*2 full window:64*11 full window:64*3",
    ),
    (
        "kl_guided",
        {"model": "qwen2.5-1.5b", "rest": "window:64"},
        "window:64*14 full window:64*4 full full window:64*2 full full window:64 full full",
    ),
    (
        "kl_guided",
        {"model": "llama-3.2-3b", "rest": "window:64"},
        "window:64*5 full window:64*2 full window:64*3 full window:64 full window:64*13",
    ),
]


@pytest.mark.parametrize(
    ("name", "parameters", "text"), BY_HAND, ids=lambda value: value if isinstance(value, str) else ""
)
def test_preset_equals_the_schedule_written_by_hand(name: str, parameters: dict[str, object], text: str) -> None:
    assert make_preset(name, parameters) == Schedule.parse(text)


def test_presets_all_are_written_by_hand_and_cite_their_source() -> None:
    assert {case[0] for case in BY_HAND} == set(PRESETS)
    for preset in PRESETS.values():
        text = inspect.getdoc(preset.function) or ""
        source = preset.source.removeprefix("arXiv:").removeprefix("doi:")
        assert source in text or "released configuration" in text


@pytest.mark.parametrize(
    ("family", "given", "size_field", "schedule"),
    [
        ("gpt_oss", {}, "sliding_window", presets.gpt_oss(14)),
        ("cohere2", {}, "sliding_window", presets.cohere2(14)),
        ("llama4_text", {}, "attention_chunk_size", presets.llama4(14)),
        ("gemma3_text", {"sliding_window": 1024}, "sliding_window", presets.gemma3(14)),
        (
            "qwen2",
            {"use_sliding_window": True, "max_window_layers": 5, "sliding_window": 64},
            "sliding_window",
            presets.qwen2(14, 5, 64),
        ),
    ],
)
def test_preset_equals_the_configuration_of_transformers(
    family: str, given: dict[str, object], size_field: str, schedule: Schedule
) -> None:
    from transformers import AutoConfig

    config = AutoConfig.for_model(family, num_hidden_layers=14, **given)
    assert [kind == "full_attention" for kind in config.layer_types] == [span.is_full for span in schedule]
    assert {span.size for span in schedule if not span.is_full} == {getattr(config, size_field)}


def test_preset_gpt_neo_equals_the_configuration_of_transformers() -> None:
    from transformers import GPTNeoConfig

    config = GPTNeoConfig()
    schedule = presets.gpt_neo(config.num_layers)
    assert [kind == "global" for kind in config.attention_layers] == [span.is_full for span in schedule]
    assert schedule[1].size == config.window_size


@pytest.mark.parametrize("block", [1, 5, 6])
def test_preset_zebra_window_is_nearest_to_its_blocks(block: int) -> None:
    tokens = 60

    def zebra_sees(i: int, j: int) -> bool:
        return j <= i and i // block - j // block <= 1

    def differing(window: int) -> int:
        span = Span(kind="window", size=window)
        return sum(span.visible(i, j) != zebra_sees(i, j) for i in range(tokens) for j in range(tokens))

    chosen = presets.zebra(2, block)[1].size
    assert chosen is not None
    assert differing(chosen) == min(differing(window) for window in range(1, 3 * block))


@pytest.mark.parametrize(
    ("name", "parameters", "words"),
    [
        ("masfromer", {"l": 4}, "did you mean 'masformer'"),
        ("masformer", {}, "needs l"),
        ("masformer", {"l": 4, "layers": 12}, "no parameter 'layers'; did you mean 'n_layers'"),
        ("masformer", {"l": "four"}, "l must be a whole number"),
        ("masformer", {"l": 1.5}, "l must be a whole number"),
        ("masformer", {"l": True}, "l must be a whole number"),
        ("masformer", {"l": 25}, "between 0 and n_layers (24), not 25"),
        ("masformer", {"l": -1}, "between 0 and n_layers (24), not -1"),
        ("masformer", {"l": 1, "block": 0}, "at least 1 token"),
        ("bottom", {"n_layers": 4, "l": 1, "span": "windw:8"}, "windw:8"),
        ("bottom", {"n_layers": 4, "l": 1, "span": 8}, "span must be a span"),
        ("all_full", {"n_layers": 0}, "n_layers must be at least 1"),
        ("zebra", {"n_layers": 4, "block": 8, "group": 0}, "group must be at least 1"),
        ("longformer_increasing", {"n_layers": 4, "smallest": 8, "largest": 4}, "windows grow with depth"),
        ("qwen2", {"n_layers": 4, "max_window_layers": 5, "window": 8}, "max_window_layers must lie between"),
        ("jet_nemotron", {"model": "3b", "rest": "window:8"}, "no model '3b' is published"),
        ("kl_guided", {"model": "qwen2.5-7b", "rest": "window:8"}, "did you mean 'qwen2.5-1.5b'"),
    ],
)
def test_make_preset_wrong_name_or_parameter_is_refused_in_one_line(
    name: str, parameters: dict[str, object], words: str
) -> None:
    with pytest.raises(UserError) as error:
        make_preset(name, parameters)
    assert words in str(error.value)
    assert "\n" not in str(error.value)
