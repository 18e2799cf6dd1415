"""Encoders of transformers: what is written, edited, read back and refused; `tests/export/verify` proves the masks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from layersearch.config.model import ModelConfig
from layersearch.errors import ExportError, LayersearchError
from layersearch.export import export
from layersearch.export.capabilities import UnsupportedSchedule
from layersearch.export.encoders import ENCODERS, edit_encoder
from layersearch.export.encoders.supported import nearest, problem
from layersearch.export.families import ENCODER_TYPES
from layersearch.export.model_file import read_model_file
from layersearch.schedule import Schedule
from layersearch.schedule.cost import attention_flops, budget_ratio
from layersearch.schedule.files import read_other_stack

torch.set_num_threads(1)
TOKENS, VOCAB = 40, 61
HELD = {
    "modernbert": "full window:5*2 full",
    "longformer": "window:3 full window:6*2",
    "longt5": "window:5*4",
    "longt5 with summaries": "window:5+summary:7*4",
    "t5gemma": "window:5*3 full",
    "bert": "full*4",
}


def written(schedule: str, family: str, out: Path, **given: Any) -> dict[str, Any]:
    asked = Schedule.parse(schedule)
    sizes: dict[str, Any] = {"d_model": 32, "n_heads": 4, "n_kv_heads": 4, "d_ff": 48, "kind": "encoder"} | given
    model = ModelConfig(n_layers=len(asked), **sizes)
    export(asked, "hf", model=model, vocab_size=VOCAB, seq_len=TOKENS, out=out, family=family)
    values: dict[str, Any] = json.loads((out / "config.json").read_text())
    return values


def test_every_encoder_family_is_named_where_decoders_are_found() -> None:
    assert set(ENCODER_TYPES) == set(ENCODERS)


@pytest.mark.parametrize("family", HELD)
def test_schedule_that_was_written_is_read_back(family: str, tmp_path: Path) -> None:
    written(HELD[family], family.split()[0], tmp_path)
    found = read_model_file(str(tmp_path))
    assert (str(found.schedule), found.bidirectional, found.positions) == (HELD[family], True, TOKENS)
    assert (found.n_heads, found.n_kv_heads, found.head_dim) == (4, 4, 8)


def test_fields_hold_each_familys_own_number_for_five_keys_on_each_side(tmp_path: Path) -> None:
    schedule = "window:5*2"
    assert written(schedule, "modernbert", tmp_path / "a")["local_attention"] == 10
    assert written(schedule, "longformer", tmp_path / "b")["attention_window"] == [10, 10]
    assert written(schedule, "led", tmp_path / "c")["attention_window"] == [10, 10]
    assert written(schedule, "longt5", tmp_path / "d")["local_radius"] == 5
    values = written(schedule, "t5gemma", tmp_path / "e", n_kv_heads=2, head_width=10)
    assert values["encoder"]["sliding_window"] == 5
    assert set(values["decoder"]["layer_types"]) == {"full_attention"}
    assert (values["encoder"]["num_key_value_heads"], values["encoder"]["head_dim"]) == (2, 10)


def test_padding_of_longformer_is_no_token_of_the_text_and_takes_no_position_of_it(tmp_path: Path) -> None:
    values = written("window:5 full", "longformer", tmp_path)
    assert values["pad_token_id"] == VOCAB == values["vocab_size"] - 1
    assert values["max_position_embeddings"] == VOCAB + 1 + TOKENS
    # Every size divides the padded length, which is a multiple of the largest.
    assert values["attention_window"] == [10, 80]


@pytest.mark.parametrize(
    ("family", "schedule", "reason", "closest"),
    [
        ("modernbert", "window:5 window:6", "layer 1: window:6, but layer 0 has window:5: .* one window",
         r"window:5\*2"),
        ("modernbert", "window:5+global:first:2 full", "modernbert has no global tokens", r"window:\d+ full"),
        ("modernbert", "full block:8", "layer 1: block:8: family modernbert holds no block spans", r"full window:\d+"),
        ("longformer", "window:4 window:6", "window:4: family longformer pads a text .* 6 keys .* 4 does not divide it",
         "window:3 window:6"),
        ("longformer", "window:4+global:first:1 window:4", "the same global tokens in all layers",
         r"window:4\+global:first:1\*2"),
        ("longformer", "window:4+global:mask:2 window:4+global:first:2", "the same global tokens in all layers",
         r"window:4\+global:mask:2\*2"),
        ("longt5", "window:5+summary:4 window:6+summary:4", "but layer 0 has .* longt5 has one window size",
         r"window:\d\+summary:4\*2"),
        ("longt5", "window:5+summary:4 window:5", "layer 1: window:5, but layer 0 has .* one span for all layers",
         r"window:\d\*2"),
        ("longt5", "window:5 full", "layer 1: full, but layer 0 has window:5: .* one span for all layers",
         r"window:\d+\*2"),
        ("t5gemma", "full block:8~4", "holds no block spans", r"full window:\d+"),
        ("bert", "full window:5", "layer 1: window:5: family bert holds no windows", r"full\*2"),
    ],
)  # fmt: skip
def test_schedule_that_a_family_cannot_hold_is_refused_with_the_nearest(
    family: str, schedule: str, reason: str, closest: str, tmp_path: Path
) -> None:
    with pytest.raises(
        UnsupportedSchedule, match=f"{reason}.*the nearest supported schedule is '{closest}', with"
    ) as held:
        written(schedule, family, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert problem(held.value.nearest, ENCODERS[family]) is None
    written(str(held.value.nearest), family, tmp_path / "out")


@pytest.mark.parametrize("family", ["modernbert", "longformer", "longt5"])
def test_nearest_schedule_has_the_closest_flops_of_all_sizes(family: str) -> None:
    schedule = Schedule.parse("block:8 block:12" if family == "longformer" else "block:8 block:8~4")

    def off(other: Schedule) -> int:
        sizes: dict[str, Any] = {"seq_len": TOKENS, "n_heads": 1, "head_dim": 1, "bidirectional": True}
        return abs(attention_flops(other, **sizes) - attention_flops(schedule, **sizes))

    found = nearest(schedule, ENCODERS[family], seq_len=TOKENS, n_heads=1)
    sides = [Schedule.parse(f"window:{a} window:{b}") for a in range(1, TOKENS) for b in range(1, TOKENS)]
    held = [one for one in sides if problem(one, ENCODERS[family]) is None]
    same = [one for one in held if family != "longformer" or max(s.size or 0 for s in one) == 6]
    assert off(found) == min(map(off, same))


@pytest.mark.parametrize(
    ("family", "given", "message"),
    [
        ("longformer", {"n_kv_heads": 2}, "n_kv_heads: family longformer .*give --family t5gemma, or .* n_kv_heads: 4"),
        ("modernbert", {"head_width": 6}, "head_width: family modernbert has heads of d_model / n_heads"),
        ("qwen3", {}, "--family qwen3 is a decoder's, and the model is an encoder; give modernbert, "),
        ("longforme", {}, r"--family 'longforme' is not known.*longformer"),
    ],
)
def test_size_or_family_that_does_not_fit_is_refused(
    family: str, given: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ExportError, match=message):
        written("window:5 full", family, tmp_path / "out", **given)


def test_encoder_family_for_a_decoder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="--family longformer is an encoder's, and the model is a decoder; give "):
        written("window:5 full", "longformer", tmp_path / "out", kind="decoder")


@pytest.mark.parametrize("target", ["mlx", "gguf", "vllm"])
def test_target_of_decoders_is_refused_with_the_remedy(target: str, tmp_path: Path) -> None:
    schedule = Schedule.parse("window:5 full")
    model = ModelConfig(n_layers=2, d_model=32, n_heads=4, n_kv_heads=4, d_ff=48, kind="encoder")
    with pytest.raises(ExportError, match=f"--to {target} is for decoders, .* an encoder; give --to hf, hf-remote, "):
        export(schedule, target, model=model, vocab_size=VOCAB, seq_len=TOKENS, out=tmp_path)


@pytest.mark.parametrize("schedule", ["window:5+sink:2 full", "full strided:4", "window:5+global:first:41 full"])
def test_causal_terms_and_globals_outside_the_text_are_refused(schedule: str, tmp_path: Path) -> None:
    with pytest.raises(LayersearchError, match=r"layer [01]: .*(in an encoder|for causal models|longer than the text)"):
        written(schedule, "longformer", tmp_path / "out")


MODERNBERT: dict[str, Any] = {
    "model_type": "modernbert",
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": TOKENS,
    "global_attn_every_n_layers": 3,
    "local_attention": 10,
    **{f"{word}_token_id": 0 for word in ("pad", "bos", "eos", "cls", "sep")},
}


def edited(values: dict[str, Any], schedule: str, folder: Path) -> tuple[dict[str, Any], str | None]:
    file = folder / "config.json"
    file.write_text(json.dumps(values))
    _, note = edit_encoder(Schedule.parse(schedule), dict(values), file, out=folder / "out")
    found: dict[str, Any] = json.loads((folder / "out" / "config.json").read_text())
    return found, note


def test_edited_modernbert_keeps_other_keys_and_says_whose_positions_change(tmp_path: Path) -> None:
    found, note = edited(MODERNBERT | {"mine": 7}, "full window:7 full window:7", tmp_path)
    assert found == MODERNBERT | {"mine": 7, "local_attention": 14, "global_attn_every_n_layers": 2} | {
        "layer_types": ["full_attention", "sliding_attention"] * 2
    }
    assert "the positions of layers 2, 3 change" in str(note)  # every third layer was full, with another RoPE base


def test_edited_modernbert_without_a_period_drops_the_key_that_older_releases_read(tmp_path: Path) -> None:
    found, _ = edited(MODERNBERT, "window:7 full*3", tmp_path)
    assert "global_attn_every_n_layers" not in found


def test_edited_folder_keeps_weights_and_tokenizer_to_the_byte(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(MODERNBERT))
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    (tmp_path / "tokenizer.json").write_text("{}")
    paths, note = edit_encoder(Schedule.parse("full*4"), dict(MODERNBERT), tmp_path, out=tmp_path / "out")
    assert [path.name for path in paths] == ["config.json", "model.safetensors", "tokenizer.json", "schedule.yaml"]
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == b"weights"
    assert json.loads((tmp_path / "out" / "config.json").read_text())["local_attention"] == 10  # no layer uses it
    assert "positions of layers 1, 2" in str(note)


LED: dict[str, Any] = {
    "model_type": "led",
    "vocab_size": VOCAB,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "attention_window": 8,
    "max_encoder_position_embeddings": TOKENS,
}


def test_edited_led_refuses_a_full_layer_whose_padding_needs_more_positions(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="led pads a text of 40 tokens to 80, more than its positions: give "):
        edited(LED, "window:4 full", tmp_path)
    found, _ = edited(LED, "window:4 window:20", tmp_path)
    assert found["attention_window"] == [8, 40]


def test_edited_config_says_where_global_tokens_go(tmp_path: Path) -> None:
    _, note = edited(LED, "window:4+global:first:2*2", tmp_path)
    assert "give global_attention_mask with 1 at the first 2 tokens at each call of LEDModel" in str(note)
    (tmp_path / "marked").mkdir()
    _, note = edited(LED, "window:4+global:mask:2*2", tmp_path / "marked")
    assert "give global_attention_mask with 1 at the 2 tokens that the task marks at each call of" in str(note)


def test_edited_config_of_another_family_or_depth_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LED))
    for given, message in (
        (
            {"schedule": Schedule.parse("window:4*3")},
            "the schedule has 3 layers, .* 2; give a schedule of the encoder's",
        ),
        (
            {"schedule": Schedule.parse("window:4*2"), "family": "longformer"},
            "--family longformer but .* of family led",
        ),
        ({"schedule": Schedule.parse("window:4+sink:1*2")}, "in an encoder, first tokens that all see are"),
    ):
        with pytest.raises(LayersearchError, match=message):
            edit_encoder(values=dict(LED), source=tmp_path / "config.json", out=tmp_path / "out", **given)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (LED | {"attention_window": [8, 7]}, "layer 1: attention_window is 7; expected an even whole number"),
        (LED | {"attention_window": [8]}, "attention_window has 1 sizes for 2 layers; give one for each"),
        (MODERNBERT | {"local_attention": 1}, "layer 1: local_attention is 1; expected an even whole number of at"),
        (
            {"model_type": "longt5", "num_layers": 2, "encoder_attention_type": "global"},
            "encoder_attention_type is global, which no span says; known: local, transient-global",
        ),
        (
            {"model_type": "longt5", "encoder_attention_type": "transient-global", "global_block_size": 1},
            "global_block_size is 1; expected a whole number of at least 2",
        ),
    ],
)  # fmt: skip
def test_model_file_that_no_span_of_an_encoder_says_is_refused(
    values: dict[str, Any], message: str, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(ExportError, match=message):
        read_model_file(str(tmp_path))


def test_model_file_of_a_published_longformer_counts_its_pairs(tmp_path: Path) -> None:
    # allenai/longformer-base-4096: 12.1% of the pairs of full attention, its MLM head included in the FLOPs.
    values = {"model_type": "longformer", "attention_window": [512] * 12, "max_position_embeddings": 4098}
    (tmp_path / "config.json").write_text(json.dumps(values | {"pad_token_id": 1, "vocab_size": 50265}))
    found = read_model_file(str(tmp_path))
    assert (str(found.schedule), found.positions) == ("window:256*12", 4096)
    width, inner = 768, 3072
    assert found.token_flops() == {
        "projections": 12 * 4 * width**2,  # without those of global tokens, which the file names none of
        "mlp": 12 * 2 * width * inner + width**2,
        "head": width * 50265,
    }


def test_model_file_of_a_published_longt5_with_summaries_counts_them_as_keys(tmp_path: Path) -> None:
    # google/long-t5-tglobal-base, and the same sizes with local attention.
    values = {"model_type": "longt5", "num_layers": 12, "local_radius": 127, "n_positions": 4096}
    shares = []
    for kind in ("transient-global", "local"):
        (tmp_path / "config.json").write_text(json.dumps(values | {"encoder_attention_type": kind}))
        found = read_model_file(str(tmp_path)).schedule
        shares.append((str(found), budget_ratio(found, seq_len=4096, n_heads=12, bidirectional=True)))
    assert shares[0] == ("window:127+summary:16*12", pytest.approx(0.1238, abs=1e-4))
    assert shares[1] == ("window:127*12", pytest.approx(0.0613, abs=1e-4))


def test_folder_of_a_modeling_file_is_read_as_the_encoder_that_it_is(tmp_path: Path) -> None:
    schedule = Schedule.parse("bigbird:4/1 window:3+global:mask:2+summary:6")
    model = ModelConfig(n_layers=2, d_model=32, n_heads=4, n_kv_heads=2, d_ff=48, kind="encoder")
    export(schedule, "hf-remote", model=model, vocab_size=VOCAB, seq_len=TOKENS, out=tmp_path)
    found = read_model_file(str(tmp_path))
    assert (found.schedule, found.bidirectional, found.positions) == (schedule, True, TOKENS)
    assert found.token_flops()["head"] == 32 * VOCAB


def test_longt5_is_edited_to_summaries_but_not_with_weights_of_another_type(tmp_path: Path) -> None:
    values = {"model_type": "longt5", "num_layers": 2, "d_model": 32, "d_kv": 8, "num_heads": 4, "vocab_size": VOCAB}
    found, _ = edited(values | {"n_positions": TOKENS}, "window:5+summary:8*2", tmp_path)
    held = (found["encoder_attention_type"], found["local_radius"], found["global_block_size"])
    assert held == ("transient-global", 5, 8)
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    with pytest.raises(ExportError, match="weights of encoder_attention_type local have other names than transient-"):
        edit_encoder(Schedule.parse("window:5+summary:8*2"), dict(values), tmp_path, out=tmp_path / "new")


def of_two_stacks(family: str | None, out: Path, **given: Any) -> Path:
    model = ModelConfig(
        kind="encoder_decoder", n_layers=2, d_model=32, n_heads=4, n_kv_heads=4, d_ff=48, **{"other_layers": 1} | given
    )
    schedule = Schedule.parse("window:5*2")
    export(schedule, "hf", model=model, vocab_size=VOCAB, seq_len=TOKENS, out=out, family=family)
    return out


@pytest.mark.parametrize("family", [None, "led", "longt5"])
def test_encoder_decoder_of_a_recipe_keeps_the_layers_of_both_stacks(family: str | None, tmp_path: Path) -> None:
    values = json.loads((of_two_stacks(family, tmp_path / "out") / "config.json").read_text())
    assert str(read_model_file(str(tmp_path / "out")).schedule) == "window:5*2"
    layers = {
        None: lambda: (values["encoder"]["num_hidden_layers"], values["decoder"]["num_hidden_layers"]),
        "led": lambda: (values["encoder_layers"], values["decoder_layers"]),
        "longt5": lambda: (values["num_layers"], values["num_decoder_layers"]),
    }
    assert layers[family]() == (2, 1)


@pytest.mark.parametrize("searched", ["encoder", "decoder"])
def test_t5gemma_holds_the_schedules_of_both_stacks_in_their_own_numbers(searched: str, tmp_path: Path) -> None:
    out = of_two_stacks(None, tmp_path / "out", searched=searched, other_layers=3, other_schedule="window:7*2 full")
    values = json.loads((out / "config.json").read_text())
    other = "decoder" if searched == "encoder" else "encoder"
    held = {stack: (values[stack]["layer_types"], values[stack]["sliding_window"]) for stack in ("encoder", "decoder")}
    assert held[searched] == (["sliding_attention"] * 2, 5)  # W keys on each side in the encoder, W keys in the decoder
    assert held[other] == (["sliding_attention"] * 2 + ["full_attention"], 7)
    assert read_other_stack(out / "schedule.yaml") == (other, Schedule.parse("window:7*2 full"))


def test_either_stack_of_a_t5gemma_is_edited_and_the_other_stays(tmp_path: Path) -> None:
    source = of_two_stacks(None, tmp_path / "mine", other_layers=3, other_schedule="window:7*2 full")
    values = json.loads((source / "config.json").read_text())
    for stack, schedule, other in (
        ("decoder", "full window:4*2", "window:5*2"),
        ("encoder", "full window:4", "window:7*2 full"),
    ):
        out = tmp_path / stack
        edit_encoder(Schedule.parse(schedule), values, source / "config.json", out=out, stack=stack)
        found = json.loads((out / "config.json").read_text())
        assert found[stack]["sliding_window"] == 4
        assert found[stack]["layer_types"][:2] == ["full_attention", "sliding_attention"]
        left = "encoder" if stack == "decoder" else "decoder"
        assert found[left] == values[left]
        assert read_other_stack(out / "schedule.yaml") == (left, Schedule.parse(other))
    for schedule, message in (
        ("full window:4", "the schedule has 2 layers, .* 3; give a schedule of the decoder's depth"),
        ("full window:4 window:5", "the decoder of family t5gemma supports one window size"),
        ("full block:4*2", "the decoder of family t5gemma supports no blocks"),
    ):
        with pytest.raises(ExportError, match=message):
            edit_encoder(Schedule.parse(schedule), values, source / "config.json", out=tmp_path / "no", stack="decoder")
    with pytest.raises(
        ExportError, match="the decoder of family led is full and holds no schedule; give the schedule of"
    ):
        edit_encoder(Schedule.parse("window:4*2"), dict(LED), tmp_path, out=tmp_path / "no", stack="decoder")


def test_decoder_of_two_window_sizes_is_refused_with_the_nearest(tmp_path: Path) -> None:
    model = ModelConfig(
        kind="encoder_decoder", searched="decoder", n_layers=2, d_model=32, n_heads=4, n_kv_heads=4, d_ff=48
    )
    with pytest.raises(UnsupportedSchedule, match=r"decoder of family t5gemma supports one window size .* nearest"):
        export(Schedule.parse("window:5 window:6"), "hf", model=model, vocab_size=VOCAB, seq_len=TOKENS, out=tmp_path)


@pytest.mark.parametrize(
    ("family", "given", "said"),
    [
        ("modernbert", {}, "modernbert has no decoder, and the recipe's model is an encoder-decoder; give led, longt5"),
        ("led", {"other_schedule": "window:4"}, r"model\.other_schedule window:4: the decoder of family led is full"),
        (
            "longt5",
            {"searched": "decoder"},
            r"window:5\*2: the decoder of family longt5 is full .*give --family t5gemma",
        ),
        (
            None,
            {"other_schedule": "block:4"},
            r"model\.other_schedule: layer 0: block:4: .* t5gemma supports no blocks",
        ),
        (None, {"searched": "decoder", "other_schedule": "block:8"}, "model.other_schedule: layer 0: block:8: family"),
    ],
)
def test_encoder_decoder_that_no_family_holds_is_refused(
    family: str | None, given: dict[str, Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(ExportError, match=said):
        of_two_stacks(family, tmp_path / "out", **given)
    assert not (tmp_path / "out").exists()
