"""What a user can get wrong in an export."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.refusals import Line, Refuses, begun, write


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        pytest.param(["full*2", "--to", "hff"], ("--to 'hff'", "did you mean 'hf'"), id="unknown target"),
        pytest.param(["full*2", "--to", "gguf"], ("--to gguf writes weights", "give --model"), id="gguf of a recipe"),
        pytest.param(
            ["window:8*2", "--to", "mlx"], ("without a full layer", "make one"), id="mlx without a full layer"
        ),
        pytest.param(
            ["full window:8", "--to", "mlx", "--family", "qwen3"],
            ("runs a qwen3 with layers of its own", "give a model of type llama"),
            id="mlx of qwen3",
        ),
        pytest.param(
            ["full window:8", "--to", "vllm", "--family", "gpt_neo"],
            ("does not start a gpt_neo", "--family llama"),
            id="vllm of gpt_neo",
        ),
        pytest.param(
            ["full block:8", "--to", "hf"],
            (
                "nearest supported schedule is 'full window:5'",
                "layersearch export 'full window:5' --to hf --recipe smoke",
            ),
            id="blocks for hf, with the command",
        ),
        pytest.param(
            ["full*2", "--to", "hf", "--model", "mine"],
            ("--model has the model's size already", "drop --recipe"),
            id="both",
        ),
        pytest.param(
            ["full*2", "--to", "hf", "--family", "ministrel"],
            ("--family", "did you mean 'ministral'"),
            id="unknown family",
        ),
        pytest.param(
            ["full window:8", "--to", "vllm"], ("--to vllm needs --family", "llama"), id="vllm without a family"
        ),
        pytest.param(
            ["full window:8", "--to", "vllm", "--family", "llama4"],
            ("does not start", "--family llama"),
            id="vllm of llama4",
        ),
        pytest.param(
            ["full window:8", "--to", "sglang", "--family", "llama"],
            ("all-full", "--family gemma3"),
            id="sglang of llama",
        ),
        pytest.param(
            ["full window:1", "--to", "sglang", "--family", "gemma3"],
            ("layer 1", "give window:2"),
            id="sglang of one key",
        ),
        pytest.param(
            ["full window:8", "--to", "vllm", "--family", "gpt_oss"],
            ("hard-coded", "--family llama"),
            id="vllm of gpt_oss",
        ),
        pytest.param(
            ["full block:8", "--to", "megatron"],
            ("layer 1: block:8", "nearest supported schedule"),
            id="blocks for megatron",
        ),
        pytest.param(
            ["full*2", "--to", "hf-remote", "--family", "qwen3"],
            ("--family", "drop it"),
            id="family of a modeling file",
        ),
        pytest.param(
            ["full*2", "--to", "hf", "--family", "llama"],
            ("layer_types", "give --family ministral"),
            id="family that ignores layer_types",
        ),
        pytest.param(["full*2", "--to", "yaml", "--family", "qwen3"], ("--family", "drop it"), id="family of a file"),
        pytest.param(
            ["full block:8", "--to", "hf", "--family", "qwen3"],
            ("layer 1: block:8", "the nearest supported schedule"),
            id="blocks",
        ),
        pytest.param(
            ["full window:8+sink:2", "--to", "hf", "--family", "qwen3"],
            ("no sinks", "the nearest supported schedule"),
            id="sinks",
        ),
        pytest.param(
            ["window:4 window:8", "--to", "hf", "--family", "qwen3"], ("layer 1", "one window size"), id="two windows"
        ),
        pytest.param(
            ["full*3", "--to", "hf", "--family", "qwen3"],
            ("3 layers, the model 2", "at its own depth"),
            id="another depth",
        ),
        pytest.param(
            ["runs/mine", "--to", "hf", "--family", "qwen3"],
            ("no run folder 'runs/mine'",),
            id="neither run nor schedule",
        ),
    ],
)
def test_export_unsupported_request_is_refused_in_one_line(
    arguments: list[str], words: tuple[str, ...], refuses: Refuses
) -> None:
    refuses(["export", *arguments, "--recipe", "smoke", "--out", "new"], *words)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        pytest.param(["export", "full*2", "--out", "new"], ("--to", "export --help"), id="no target"),
        pytest.param(["export", "full*2", "--to", "hf"], ("--out", "export --help"), id="nowhere"),
        pytest.param(
            ["export", "full*2", "--to", "vllm", "--model", "mine", "--out", "new"],
            ("--model is for --to hf, hf-remote, mlx, gguf", "drop it"),
            id="model for a file of flags",
        ),
        pytest.param(
            ["export", "full*2", "--to", "gguf", "--model", "no/model", "--out", "new"],
            ("--model no/model",),
            id="no such model",
        ),
        pytest.param(
            ["export", "full*2", "--to", "gguf", "--model", "no.gguf", "--out", "new"],
            ("--model no.gguf cannot be read", "give the path of a GGUF file"),
            id="no such file",
        ),
        pytest.param(
            ["export", "full*2", "--to", "yaml", "--out", "new"],
            ("--recipe is missing", "name a recipe"),
            id="no recipe",
        ),
        pytest.param(
            ["export", "full window:4 " * 99, "--to", "yaml", "--recipe", "smoke", "--out", "new"],
            ("198 layers, the model 2", "at its own depth"),
            id="schedule longer than a file's name",
        ),
        pytest.param(
            lambda at, run: [
                *("export", str(begun(at, run, (run / "trials.jsonl").read_bytes().splitlines(keepends=True)[0]))),
                *("--to", "yaml", "--out", "new"),
            ],
            ("no winner yet", "run the same command again"),
            id="no winner yet",
        ),
        pytest.param(
            lambda at, run: [
                *(
                    "export",
                    str(run),
                    "--to",
                    "yaml",
                    "--out",
                    str(Path(write(at / "d" / "schedule.yaml", "mine")).parent),
                )
            ],
            ("schedule.yaml exists and differs", "give --out another folder"),
            id="over another file",
        ),
        pytest.param(
            lambda at, run: ["export", str(run), "--to", "yaml", "--out", write(at / "f", "") + "/a"],
            ("cannot be written", "give --out a folder that can"),
            id="below a file",
        ),
    ],
)
def test_export_wrong_flag_or_folder_is_refused_in_one_line(
    line: Line, words: tuple[str, ...], refuses: Refuses
) -> None:
    refuses(line, *words)
