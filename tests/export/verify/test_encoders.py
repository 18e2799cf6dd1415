"""Every encoder family, proven in the real transformers: its masks, its outputs, and the width of its window."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoConfig, AutoModel

from layersearch.cli.main import main
from layersearch.config.model import ModelConfig
from layersearch.export import export
from layersearch.export.verify import EncoderProof, verify
from layersearch.export.verify.encoder_proof import candidates
from layersearch.schedule import Schedule

torch.set_num_threads(1)
TOKENS = 24
CASES = [
    ("modernbert", "full window:5 full"),
    ("longformer", "window:3+global:first:2 full window:6+global:first:2"),
    ("led", "window:2 window:4"),
    ("longt5", "window:5*2"),
    ("longt5", "window:2+summary:7*2"),
    ("longformer", "window:3+global:mask:3 full window:6+global:mask:3"),
    ("led", "window:3+global:mask:2*2"),
    ("t5gemma", "window:5 full"),
    ("bert", "full*2"),
    ("modernbert", "window:5*2"),
    ("modernbert", "full*2"),
    ("longformer", "full*2"),
    ("longformer", "window:5 full window:2"),
    ("longformer", "window:2+global:first:5 window:4+global:first:5"),
    ("led", "window:3+global:first:1 full"),
    ("led", "full*2"),
    ("longt5", "full*2"),
    ("t5gemma", "window:4*2"),
    ("t5gemma", "full*2"),
]


def written(schedule: str, family: str, out: Path, **given: Any) -> Path:
    asked = Schedule.parse(schedule)
    sizes: dict[str, Any] = {"d_model": 32, "n_heads": 4, "n_kv_heads": 4, "d_ff": 48, "kind": "encoder"} | given
    model = ModelConfig(n_layers=len(asked), **sizes)
    export(asked, "hf", model=model, vocab_size=61, seq_len=TOKENS, out=out, family=family)
    return out


def changed(folder: Path, **fields: Any) -> Path:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))
    return folder


def proof_of(folder: Path, **given: Any) -> EncoderProof:
    proof = verify(folder, **given)
    assert isinstance(proof, EncoderProof)
    return proof


@pytest.mark.parametrize(("family", "schedule"), CASES)
def test_every_encoder_obeys_its_schedule(family: str, schedule: str, tmp_path: Path) -> None:
    proof = proof_of(written(schedule, family, tmp_path))
    assert proof.proven, proof.problem
    assert [layer.pairs for layer in proof.layers] == [proof.tokens**2] * len(proof.layers)
    assert all(layer.by_head for layer in proof.layers)
    assert proof.asked.error < 1e-5 < 1e-2 < proof.next_nearest.error


def test_candidates_hold_one_key_less_and_more_all_full_each_layer_flipped_and_global_tokens() -> None:
    asked = Schedule.parse("full window:4+global:first:2")
    assert {name: str(other) for name, other in candidates(asked, 32)} == {
        "as asked": "full window:4+global:first:2",
        "one key less on each side": "full window:3+global:first:2",
        "one key more on each side": "full window:5+global:first:2",
        "all-full": "full*2",
        "every layer sparse": "window:4+global:first:2*2",
        "one global token less": "full window:4+global:first:1",
        "one global token more": "full window:4+global:first:3",
    }


@pytest.mark.parametrize(
    ("ran", "expected"),
    [
        ("full window:5", "full window:6"),
        ("full window:5", "full window:4"),
        ("full window:5", "full*2"),
        ("window:5 full", "window:5*2"),
    ],
)
def test_schedule_other_than_the_folders_is_not_proven_and_the_one_that_ran_is_named(
    ran: str, expected: str, tmp_path: Path
) -> None:
    proof = proof_of(written(ran, "modernbert", tmp_path), schedule=Schedule.parse(expected))
    assert not proof.proven
    wrong = [a != b for a, b in zip(Schedule.parse(ran), Schedule.parse(expected), strict=True)]
    assert [not layer.proven for layer in proof.layers] == wrong
    assert f"ModernBertModel ran as config.json says ('{ran}')" in str(proof.problem)


def test_full_layer_of_longformer_is_a_window_that_covers_the_text_and_not_one_key_less(tmp_path: Path) -> None:
    folder = written("full*2", "longformer", tmp_path)
    assert json.loads((folder / "config.json").read_text())["attention_window"] == [2 * (TOKENS - 1)] * 2
    assert proof_of(folder).proven
    short = proof_of(changed(folder, attention_window=[2 * (TOKENS - 2)] * 2))
    # Only the first and the last token are too far apart.
    assert [layer.too_few for layer in short.layers] == [2, 2]
    assert f"token {TOKENS - 1} does not see token 0" in str(short.problem) or "token 0 does not" in str(short.problem)
    assert f"LongformerModel ran as config.json says ('window:{TOKENS - 2}*2')" in str(short.problem)


def test_longformer_of_windows_that_do_not_divide_the_largest_fails_in_transformers(tmp_path: Path) -> None:
    folder = changed(written("window:6*2", "longformer", tmp_path), attention_window=[8, 12])
    model = AutoModel.from_config(AutoConfig.from_pretrained(folder))
    with pytest.raises(AssertionError, match="multiple of 8"):
        model(torch.zeros(1, 12, dtype=torch.long))


def keys_seen(run: Any, tokens: int = 32) -> list[int]:
    """Return the distances from a token in the middle at which another token changes its output."""
    at = tokens // 2
    ids = torch.randint(3, 50, (tokens + 1, tokens), generator=torch.Generator().manual_seed(1))[:1].repeat(tokens, 1)
    before = ids.clone()
    ids[torch.arange(tokens), torch.arange(tokens)] = 50
    with torch.no_grad():
        moved = (run(ids)[:, at] - run(before)[:, at]).abs().amax(-1) > 1e-6
    return [int(key) - at for key in moved.nonzero()[:, 0]]


def one_layer(kind: str, **fields: Any) -> Any:
    sizes: dict[str, Any] = {"vocab_size": 61, "pad_token_id": 0}
    if kind in ("led", "longt5"):
        sizes |= {"d_model": 32, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 4, "encoder_layers": 1}
        sizes |= {"decoder_layers": 1, "encoder_attention_heads": 4, "decoder_attention_heads": 4}
    else:
        sizes |= {"hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 4, "num_hidden_layers": 1}
        sizes |= {"max_position_embeddings": 128, "num_key_value_heads": 4, "head_dim": 8}
    if kind == "modernbert":
        fields |= {f"{word}_token_id": 0 for word in ("bos", "eos", "cls", "sep")}
    given = sizes | fields
    if kind == "t5gemma":
        given = {"encoder": dict(given), "decoder": dict(given), "vocab_size": 61}
    torch.manual_seed(0)
    return AutoModel.from_config(AutoConfig.for_model(kind, **given)).eval()


def of_decoder(model: Any) -> Any:
    """Return T5Gemma's decoder, beside the states of five tokens that its encoder has read."""
    states = torch.randn(1, 5, 32, generator=torch.Generator().manual_seed(2))
    return lambda ids: model.decoder(ids, encoder_hidden_states=states.expand(len(ids), -1, -1), use_cache=False)


SLIDING = {"layer_types": ["sliding_attention"]}


@pytest.mark.parametrize(
    ("kind", "fields", "run", "before", "after"),
    [
        pytest.param("modernbert", {"local_attention": 6} | SLIDING, lambda model: model, 3, 3, id="modernbert"),
        # An odd number is rounded down.
        pytest.param("modernbert", {"local_attention": 7} | SLIDING, lambda model: model, 3, 3, id="modernbert-odd"),
        pytest.param("longformer", {"attention_window": [6]}, lambda model: model, 3, 3, id="longformer"),
        pytest.param("led", {"attention_window": [6]}, lambda model: model.encoder, 3, 3, id="led"),
        pytest.param("longt5", {"local_radius": 6}, lambda model: model.encoder, 6, 6, id="longt5"),
        pytest.param("t5gemma", {"sliding_window": 6} | SLIDING, lambda model: model.encoder, 6, 6, id="t5gemma"),
        # The same number in its decoder: 6 keys, the token itself counted.
        pytest.param("t5gemma", {"sliding_window": 6} | SLIDING, of_decoder, 5, 0, id="t5gemma-decoder"),
        pytest.param("ministral", {"sliding_window": 6} | SLIDING, lambda model: model, 5, 0, id="ministral"),
    ],
)
def test_width_of_a_window_in_every_convention_by_experiment(
    kind: str, fields: dict[str, Any], run: Any, before: int, after: int
) -> None:
    """The last key inside of the window changes a token's output on each side, and the first one outside does not."""
    stack = run(one_layer(kind, **fields))
    assert keys_seen(lambda ids: stack(ids).last_hidden_state) == list(range(-before, after + 1))


def test_wide_config_with_its_own_weights_is_proven_on_them(tmp_path: Path) -> None:
    folder = written("full window:5", "modernbert", tmp_path, d_model=160)
    torch.manual_seed(0)
    model = AutoModel.from_config(AutoConfig.from_pretrained(folder))
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
    model.save_pretrained(folder)
    proof = proof_of(folder)
    assert proof.proven, proof.problem
    assert (proof.shrunk, proof.weights) == (True, "the folder's own")


TWO_STACKS = {"kind": "encoder_decoder", "other_layers": 1, "d_model": 32, "n_heads": 2, "n_kv_heads": 2, "d_ff": 48}


@pytest.mark.parametrize(
    ("family", "schedule", "given"),
    [
        ("t5gemma", "window:5 full", {"other_schedule": "window:6"}),
        ("t5gemma", "window:6 full", {"other_schedule": "window:5", "searched": "decoder"}),
        ("led", "window:4+global:first:1 window:2+global:first:1", {}),
        ("longt5", "window:5*2", {}),
        ("longt5", "window:3+summary:6*2", {}),
    ],
)
def test_command_line_writes_and_proves_both_stacks(
    family: str, schedule: str, given: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = yaml.safe_load(Path("trials/smoke-t5.yaml").read_text())
    recipe["model"] = TWO_STACKS | {"n_layers": 2} | given
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(recipe))
    out = str(tmp_path / "out")
    size = ["--recipe", str(tmp_path / "mine.yaml"), "--family", family]
    assert main(["export", schedule, "--to", "hf", *size, "--out", out]) == 0
    capsys.readouterr()
    assert main(["verify-export", out, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    stacks = {one["stack"]: one["schedule"] for one in (found, found["other"]) if one}
    searched = given.get("searched", "encoder")
    other = "decoder" if searched == "encoder" else "encoder"
    # The decoders of LED and LongT5 hold no schedule.
    assert stacks == {searched: schedule} | ({other: given["other_schedule"]} if given else {})
    if family == "t5gemma":
        cache = (found if searched == "decoder" else found["other"])["cache_error"]
        assert 0 < cache < 1e-5


def test_decoder_of_another_window_is_not_proven(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = written("window:5 full", "t5gemma", tmp_path, **TWO_STACKS, other_schedule="window:6")
    values = json.loads((folder / "config.json").read_text())
    assert main(["verify-export", str(folder)]) == 0
    text = capsys.readouterr().out
    assert (
        text.index("stack      encoder") < text.index("stack      decoder") < text.index("\ncache      outputs token")
    )
    assert "\nPROVEN: every layer does what the schedule says" in text
    proof = proof_of(changed(folder, decoder=values["decoder"] | {"sliding_window": 7}))
    assert "decoder: layer 0: token 6 sees token 0, unlike window:6" in str(proof.problem)
    assert "T5GemmaDecoder ran as config.json says ('window:7')" in str(proof.problem)
    assert proof.other is not None
    assert not proof.other.layers[0].proven


def test_verify_export_of_an_encoder_prints_the_schedule_that_ran(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = written("full window:5", "modernbert", tmp_path)
    assert main(["verify-export", str(folder)]) == 0
    text = capsys.readouterr().out
    assert "nearest    as asked: 'full window:5'" in text
    assert "PROVEN: every layer does what the schedule says" in text
    assert main(["verify-export", str(folder), "--schedule", "full window:6"]) == 1
    text = capsys.readouterr().out
    assert "NOT PROVEN" in text
    assert "ModernBertModel ran as config.json says ('full window:5')" in text
