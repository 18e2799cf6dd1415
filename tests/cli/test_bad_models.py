"""What can be wrong with a pre-trained model or a conversion: one line, exit code 2, and nothing is written."""

from __future__ import annotations

import json
import resource
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from huggingface_hub import constants
from tokenizers import Tokenizer, models, pre_tokenizers

from layersearch.cli.main import main
from tests.helpers.hf_models import VOCAB, make, save

Arguments = Callable[[Path], list[str]]
"""From an empty folder with a sound model in ``llama``: make what is wrong, return the line."""
FULL = "full*3"


def convert(model: str, *more: str, schedule: str = FULL) -> list[str]:
    return ["convert", "--model", model, "--schedule", schedule, "--out", "new", "--data", "recall", *more]


RECALL = ["--set", "data.vocab_size=60", "--set", "data.distance=8", "--set", "training.seq_len=32"]


def tokenizer(path: Path, tokens: int) -> None:
    """Write a real tokenizer of so many tokens."""
    words = {f"t{number}": number for number in range(tokens - 1)} | {"<|endoftext|>": tokens - 1}
    made = Tokenizer(models.WordLevel(words, unk_token="t0"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()  # type: ignore[assignment]
    made.save(str(path))


def sharded(at: Path) -> list[str]:
    make("llama").save_pretrained(at / "shards", max_shard_size="20KB")
    gone = sorted((at / "shards").glob("*.safetensors"))[1]
    gone.unlink()
    return convert("shards", *RECALL)


def other_architecture(at: Path) -> list[str]:
    from transformers import T5Config

    T5Config(d_model=16, num_layers=1).save_pretrained(at / "t5")
    return convert("t5", *RECALL)


def not_routable(at: Path) -> list[str]:
    from transformers import AutoModelForCausalLM, MambaConfig

    config = MambaConfig(vocab_size=VOCAB, hidden_size=16, num_hidden_layers=2, state_size=4)
    AutoModelForCausalLM.from_config(config).save_pretrained(at / "mamba")
    return convert("mamba", *RECALL)


def two_windows(at: Path) -> list[str]:
    from transformers import AutoModelForCausalLM, Gemma2Config

    size = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = Gemma2Config(vocab_size=VOCAB, num_key_value_heads=1, head_dim=8, **size)
    AutoModelForCausalLM.from_config(config).save_pretrained(at / "gemma2")
    return convert("gemma2", *RECALL, schedule="window:4 window:8")


def changed(at: Path, **values: object) -> list[str]:
    file = at / "llama" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))
    return convert("llama", *RECALL)


def remote_code(at: Path) -> list[str]:
    file = at / "llama" / "config.json"
    held = json.loads(file.read_text()) | {"model_type": "mine", "auto_map": {"AutoConfig": "mine.MyConfig"}}
    file.write_text(json.dumps(held))
    (at / "llama" / "mine.py").write_text("raise SystemExit('it was run')\n")
    return convert("llama", *RECALL)


def too_many_tokens(at: Path) -> list[str]:
    tokenizer(at / "llama" / "tokenizer.json", VOCAB + 39)
    (at / "text.txt").write_text("t1 t2 t3 " * 4000)
    return ["convert", "--model", "llama", "--schedule", FULL, "--out", "new", "--data", "text.txt", *RECALL[-2:]]


def no_tokenizer(at: Path) -> list[str]:
    return ["convert", "--model", "llama", "--schedule", FULL, "--out", "new", "--data", "stdlib", *RECALL[-2:]]


def damaged_weights(at: Path) -> list[str]:
    file = at / "llama" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    return convert("llama", *RECALL)


def no_weights(at: Path) -> list[str]:
    (at / "llama" / "model.safetensors").unlink()
    return convert("llama", *RECALL)


def left_out_weights(at: Path) -> list[str]:
    from safetensors.torch import load_file, save_file

    file = at / "llama" / "model.safetensors"
    state = load_file(file)
    del state["model.layers.1.self_attn.q_proj.weight"]
    save_file(state, file, metadata={"format": "pt"})
    return convert("llama", *RECALL)


def occupied(at: Path) -> list[str]:
    (at / "new").mkdir()
    (at / "new" / "thesis.txt").write_text("mine")
    return convert("llama", *RECALL)


CASES: dict[str, tuple[Arguments, tuple[str, ...]]] = {
    "missing shards": (sharded, ("--model shards", "of its weight files, model-00002-of-", "copy them")),
    "no weights": (no_weights, ("--model llama lacks 1", "model.safetensors first")),
    "damaged weights": (
        damaged_weights,
        ("model.safetensors is cut off or damaged", "copy it there again"),
    ),
    "weights that lack a tensor": (left_out_weights, ("1 missing keys", "layers.1.self_attn.q_proj.weight")),
    "another architecture": (other_architecture, ("--model t5", "t5 is an encoder-decoder", "give a decoder")),
    "no attention": (not_routable, ("--model mamba: ", "attention")),
    "two windows in a family with one": (
        two_windows,
        ("--schedule cannot be saved", "gemma2 alone, which holds full layers and one"),
    ),
    "windows per layer": (
        lambda at: changed(at, sliding_window=[4, 8, 4]),
        ("sliding_window holds a window per layer",),
    ),
    "layer types that the family ignores": (
        lambda at: changed(at, layer_types=["sliding_attention", "full_attention", "full_attention"]),
        ("layer_types says 'sliding_attention' for layer 0", "llama runs it as full", "--schedule"),
    ),
    "remote code": (remote_code, ("--model llama brings its own modeling code", "--trust-remote-code")),
    "a folder that is none": (lambda at: convert("./nowhere", *RECALL), ("--model ./nowhere", "no such folder")),
    "a file of the folder": (
        lambda at: convert("llama/model.safetensors", *RECALL),
        ("--model llama/model.safetensors is a file", "give the folder that holds it"),
    ),
    "a folder without config.json": (
        lambda at: [(at / "empty").mkdir(), convert("empty", *RECALL)][1],  # type: ignore[func-returns-value]
        ("--model empty", "no config.json"),
    ),
    "a schedule of another length": (
        lambda at: convert("llama", *RECALL, schedule="full window:4"),
        ("a schedule of 2 layers for a model of 3", "one span per layer"),
    ),
    "a schedule with a typo": (lambda at: convert("llama", schedule="ful*3"), ("did you mean 'full'",)),
    "a window longer than the text": (
        lambda at: convert("llama", *RECALL, schedule="window:99*3"),
        ("window:99 is longer than the text of 32 tokens",),
    ),
    "a tokenizer with more tokens than embeddings": (
        too_many_tokens,
        ("data.tokenizer llama has 100 tokens", "embeddings for 61", "give its own"),
    ),
    "no tokenizer": (no_tokenizer, ("--model llama holds no tokenizer.json", "--set data.tokenizer=FILE")),
    "more tokens of a task than embeddings": (
        lambda at: convert("llama", *RECALL, "--set", "data.vocab_size=100"),
        ("the data has 100 tokens", "embeddings for 61"),
    ),
    "a text longer than its positions": (
        lambda at: convert("llama", *RECALL[:4], "--set", "training.seq_len=128"),
        ("knows 64 positions, the text has 128", "rope.rope_type=yarn"),
    ),
    "RoPE scaling without RoPE": (
        lambda at: convert(str(save("gpt2", at / "gpt2")), *RECALL, "--set", "rope={rope_type: yarn}"),
        ("gpt2 has no RoPE to scale",),
    ),
    "a family that cannot hold it": (
        lambda at: convert("llama", *RECALL, "--family", "ministral", schedule="block:4 full*2"),
        ("--family ministral holds full layers and one window", "--family hf-remote"),
    ),
    "a family of other weights": (
        lambda at: convert("llama", *RECALL, "--family", "qwen3"),
        ("--family 'qwen3'", "weights of a llama are saved as ministral or hf-remote"),
    ),
    "neither schedule nor run": (lambda at: ["convert", "--model", "llama", "--out", "new"], ("--schedule", "--run")),
    "a run that is none": (
        lambda at: ["convert", "--model", "llama", "--run", "nowhere", "--out", "new"],
        ("nowhere: no run folder",),
    ),
    "data that are none": (
        lambda at: ["convert", "--model", "llama", "--schedule", FULL, "--out", "new", "--data", "nope.txt"],
        ("--data nope.txt: no such file, and no source", "stdlib"),
    ),
    "a weight of distillation above 1": (
        lambda at: convert("llama", "--distil", "2"),
        ("distil: input should be less than or equal to 1",),
    ),
    "a rank of 0": (lambda at: convert("llama", "--lora", "0"), ("lora: input should be greater than or equal to 1",)),
    "a stage that is not the last length": (
        lambda at: convert("llama", "--set", "stages=[{seq_len: 8, learning_rate: 0.1, share: 1}]"),
        ("the last stage must have training.seq_len",),
    ),
    "ranks that do not divide the batch": (
        lambda at: convert("llama", "--set", "training.ranks=3"),
        ("training: ranks 3 must divide batch_size 8",),
    ),
    "LoRA on shards": (
        lambda at: convert("llama", *RECALL, "--lora", "2", "--set", "training.deepspeed=zero3"),
        ("lora is merged into whole weights", "training.deepspeed=zero2"),
    ),
    "a recipe's unknown key": (lambda at: convert("llama", "--set", "distill=1"), ("did you mean 'distil'",)),
    "a recipe that does not ship": (lambda at: convert("llama", "--recipe", "plan"), ("did you mean 'plain'",)),
    "another folder's things": (occupied, ("--out new: the folder holds other things",)),
    "a search with muon": (
        lambda at: ["run", "--model", "llama", "--recipe", "recall", "--budget", "1", "--out", "new"],
        ("training.optimizer muon trains from scratch", "--recipe pretrained"),
    ),
    "a search on no model": (
        lambda at: ["run", "--model", "./nowhere", "--out", "new"],
        ("--model ./nowhere", "no such folder"),
    ),
    "a search on more tokens than embeddings": (
        lambda at: ["run", "--model", "llama", "--recipe", "smoke", "--out", "new"],
        ("the data has 64 tokens", "embeddings for 61"),
    ),
    "a search on a cut GGUF file": (
        lambda at: [(at / "x.gguf").write_bytes(b"GGUF\3\0"), ["run", "--model", "x.gguf", "--out", "new"]][1],
        ("--model x.gguf is cut off or damaged", "download it again"),
    ),
    "a search without a tokenizer": (
        lambda at: ["run", "--model", "llama", "--out", "new"],
        ("--model llama holds no tokenizer.json",),
    ),
}


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save("llama", tmp_path_factory.mktemp("sound") / "llama")


def check_line(err: str, words: tuple[str, ...]) -> None:
    assert err.count("\n") == 1, err
    assert err.startswith("layersearch: ")
    for word in words:
        assert word in err


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_bad_model_is_refused_in_one_line_and_nothing_is_written(
    name: str, llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(llama, tmp_path / "llama")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LAYERSEARCH_CACHE", str(tmp_path / "cache"))
    arguments, words = CASES[name]
    line = arguments(tmp_path)
    capfd.readouterr()
    assert main(line) == 2
    out, err = capfd.readouterr()
    assert out == ""
    check_line(err.removeprefix(f"reading the configuration of {line[2]}\n"), words)  # a run's first sign of life
    assert not (tmp_path / "new").exists() or name == "another folder's things"


def test_bad_model_hub_that_is_down_is_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]  # closed again: whoever calls there is refused
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{port}")
    monkeypatch.chdir(tmp_path)
    assert main(convert("me/tiny", *RECALL)) == 2
    out, err = capfd.readouterr()
    assert out == ""
    check_line(err, ("--model me/tiny", "does not answer and there is no local copy", "connect, or give"))
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
def test_convert_on_a_full_disk_ends_in_one_line(llama: Path, tmp_path: Path) -> None:
    """The first checkpoint finds no room; what was measured before is kept."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    line = convert(str(llama), *RECALL, "--steps", "2", "--set", "training.val_sequences=4", schedule="full window:4*2")
    done = subprocess.run(
        [sys.executable, "-P", "-m", "layersearch", *line],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=limit,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert "Traceback" not in done.stderr
    check_line(
        done.stderr.splitlines(keepends=True)[-1], ("--out new", "cannot be written", "free space", "run the same")
    )
    found = [json.loads(line) for line in (tmp_path / "new" / "evaluations.jsonl").read_text().splitlines()]
    assert [line["moment"] for line in found[:2]] == ["original", "switched"]
