"""What a user can get wrong with an encoder and with a training in stages."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.refusals import Line, Refuses, write

LONGFORMER: dict[str, Any] = {
    "model_type": "longformer",
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "intermediate_size": 32,
    "vocab_size": 61,
    "max_position_embeddings": 66,
    "pad_token_id": 1,
    "attention_window": [8, 8],
}
MISTRAL = {
    "model_type": "mistral",
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 2,
    "intermediate_size": 32,
    "vocab_size": 61,
    "max_position_embeddings": 64,
}
HF = ["--to", "hf", "--recipe", "smoke-encoder", "--out", "new"]


def config(at: Path, **fields: Any) -> str:
    return write(at / "mine" / "config.json", json.dumps(LONGFORMER | fields))


@pytest.mark.parametrize(
    ("line", "words"),
    [
        pytest.param(
            ["export", "window:4+sink:2 full", *HF, "--family", "longformer"],
            ("layer 0: window:4+sink:2", "in an encoder", "'+global:first:2'"),
            id="sinks",
        ),
        pytest.param(
            ["export", "full strided:4", *HF, "--family", "longformer"],
            ("layer 1: strided:4 is for causal models", "an encoder has full, window:W"),
            id="a causal term",
        ),
        pytest.param(
            ["export", "window:4+global:first:49 full", *HF, "--family", "longformer"],
            ("layer 0: window:4+global:first:49", "longer than the text of 48 tokens"),
            id="global tokens outside the text",
        ),
        pytest.param(
            ["export", "window:4+summary:8 full", *HF, "--family", "modernbert"],
            ("layer 0: window:4+summary:8", "is written without summaries", "nearest supported schedule is"),
            id="summaries",
        ),
        pytest.param(
            ["export", "window:4+global:mask full", *HF, "--family", "modernbert"],
            ("layer 0: window:4+global:mask:1: family modernbert has no global tokens", "nearest supported schedule"),
            id="marked tokens",
        ),
        pytest.param(
            ["export", "memory:8/16 full", "--to", "hf-remote", "--recipe", "smoke-encoder", "--out", "new"],
            ("layer 0: memory:8/16 is for causal models", "an encoder has full, window:W"),
            id="a memory to a modeling file",
        ),
        pytest.param(
            ["export", "window:4+summary:8 full", "--to", "flex", "--recipe", "smoke", "--out", "new"],
            ("layer 0: window:4+summary:8: --to flex has no summaries", "give --to hf-remote, yaml or json"),
            id="summaries in a mask",
        ),
        pytest.param(
            lambda at, run: [
                *("export", "window:4+summary:8 full", "--to", "hf-remote", "--out", "new"),
                *("--model", write(at / "mistral.json", json.dumps(MISTRAL))),
            ],
            ("layer 0: window:4+summary:8: --to hf-remote has summaries for llama and qwen3", "not for 'mistral'"),
            id="summaries in another model's layers",
        ),
        pytest.param(
            ["export", "window:4*2", "--to", "hf", "--recipe", "smoke-t5", "--family", "bert", "--out", "new"],
            ("--family bert has no decoder", "give led, longt5, t5gemma"),
            id="a family without a decoder",
        ),
        pytest.param(
            ["export", "window:4*2", "--to", "hf-remote", "--recipe", "smoke-t5", "--out", "new"],
            (
                "--to hf-remote runs one stack, and the recipe's model is an encoder-decoder",
                "give --to hf, yaml or json",
            ),
            id="a modeling file for two stacks",
        ),
        pytest.param(
            ["export", "window:4 full", *HF, "--stack", "decoder"],
            ("--stack decoder is for a --model with two stacks", "drop it"),
            id="a stack of a recipe",
        ),
        pytest.param(
            lambda at, run: [
                *("export", "window:4*2", "--to", "hf", "--model", config(at), "--stack", "decoder", "--out", "new")
            ],
            ("no decoder; give the schedule of the encoder",),
            id="a decoder that an encoder has not",
        ),
        pytest.param(
            ["cost", "memory:8/65 full", "--seq-len", "64"],
            ("layer 0: memory:8/65 is longer than the text of 64 tokens",),
            id="a segment longer than the text",
        ),
        pytest.param(
            ["cost", "window:4+summary:65 full", "--seq-len", "64", "--encoder"],
            ("layer 0: window:4+summary:65 is longer than the text of 64 tokens",),
            id="a summary longer than the text",
        ),
        pytest.param(
            lambda at, run: [
                *("run", "--recipe", "smoke-classes", "--set", "data.examples=200", "--budget", "0.6", "--out", "new"),
                "--space",
                write(at / "marks.yaml", "name: marks\nchoices: [full, 'window:4+global:mask:3']\n"),
            ],
            ("window:4+global:mask:3: data.source lra_listops marks 1 token of", "write '+global:mask:1'"),
            id="a task that marks another number of tokens",
        ),
        pytest.param(
            ["export", "window:4 full", *HF, "--family", "bert"],
            ("family bert holds no windows, as modernbert and longformer do", "layersearch export 'full*2'"),
            id="a window for a family without one",
        ),
        pytest.param(
            ["export", "window:4 full", *HF, "--family", "longt5"],
            ("layer 1: full, but layer 0 has window:4", "one span for all layers", "nearest supported schedule is"),
            id="two spans for one radius",
        ),
        pytest.param(
            ["export", "window:4 full", *HF],
            ("n_kv_heads: family modernbert has one", "give --family t5gemma, or a --recipe with n_kv_heads: 2"),
            id="grouped heads",
        ),
        pytest.param(
            ["export", "window:4 full", *HF, "--family", "gemma2"],
            ("--family gemma2 is a decoder's", "give modernbert, longformer"),
            id="a decoder's family",
        ),
        pytest.param(
            ["export", "window:4 full", "--to", "hf", "--recipe", "smoke", "--family", "longformer", "--out", "new"],
            ("--family longformer is an encoder's", "give ministral"),
            id="an encoder's family for a decoder",
        ),
        pytest.param(
            ["export", "window:4 full", *HF[2:], "--to", "flex"],
            ("--to flex is for decoders", "give --to hf, hf-remote, yaml or json"),
            id="a target of decoders",
        ),
        pytest.param(
            lambda at, run: ["export", "window:4*2", "--to", "gguf", "--model", config(at), "--out", "new"],
            ("--to gguf is for decoders", "is an encoder; give --to hf"),
            id="an encoder's file for a target of decoders",
        ),
        pytest.param(
            lambda at, run: ["export", "window:4*3", "--to", "hf", "--model", config(at), "--out", "new"],
            ("the schedule has 3 layers", "give a schedule of the encoder's depth"),
            id="another depth",
        ),
        pytest.param(
            lambda at, run: ["schedule", config(at, attention_window=[8, 7])],
            ("layer 1: attention_window is 7", "expected an even whole number of at least 2"),
            id="an odd window",
        ),
        pytest.param(
            lambda at, run: ["cost", config(at), "--encoder"],
            ("--encoder counts a schedule", "says its own direction; leave it out"),
            id="direction of a file",
        ),
        pytest.param(
            ["cost", "window:4+global:first:65", "--seq-len", "64", "--encoder"],
            ("window:4+global:first:65 is longer than the text of 64 tokens",),
            id="cost of global tokens outside the text",
        ),
        pytest.param(
            ["cost", "full+las:0.1/2", "--seq-len", "64", "--encoder"],
            ("an encoder smooths rows around a token", "the pooling width is odd: give 3"),
            id="an even pooling width",
        ),
        pytest.param(
            lambda at, run: [
                *("verify-export", str(Path(config(at)).parent), "--schedule", "window:4*2", "--engine", "hf")
            ],
            ("longformer is an encoder, and --engine generates", "leave --engine out"),
            id="an engine",
        ),
        pytest.param(
            lambda at, run: ["verify-export", str(Path(config(at)).parent), "--schedule", "window:4*3"],
            ("the schedule has 3 layers, the encoder in config.json 2", "give the schedule of this model"),
            id="verify another depth",
        ),
        pytest.param(
            [
                *("run", "--recipe", "smoke-encoder", "--set", "training.seq_len=512"),
                *("--space", "patterns", "--budget", "0.5", "--out", "new"),
            ],
            ("is for causal models", "an encoder has full, window:W"),
            id="a space of decoders",
        ),
        pytest.param(
            ["run", "--recipe", "staged", "--set", "training.seq_len=256", "--out", "new"],
            ("the last of stages must have training.seq_len (256)", "not 512"),
            id="stages of another length",
        ),
        pytest.param(
            [
                *("run", "--recipe", "staged", "--set", "training.steps=4", "--set", "training.warmup_steps=0"),
                *("--out", "new"),
            ],
            ("steps 4 are fewer than the 5 stages; raise it",),
            id="fewer steps than stages",
        ),
    ],
)
def test_encoder_wrong_request_is_refused_in_one_line(line: Line, words: tuple[str, ...], refuses: Refuses) -> None:
    refuses(line, *words)
