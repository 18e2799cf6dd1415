"""The parsers to fuzz: each takes bytes and may raise `LayersearchError` only. Seeds are whole files."""

from __future__ import annotations

import atexit
import gzip
import io
import json
import os
import shutil
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import yaml

from layersearch.config.loader import override
from layersearch.config.recipe import load_recipe
from layersearch.convert.config import load_convert_recipe
from layersearch.files import unseal
from layersearch.schedule import Schedule
from layersearch.schedule.files import read_schedule, schedule_text
from layersearch.schedule.space import load_space
from layersearch.surrogate.constraint import parse_bytes, read_latencies
from layersearch.training.record import Trial, TrialRecord, blank_record, read

ROOT = Path(__file__).resolve().parents[2]
MEMORY = Path("/dev/shm")
_FOLDER = Path(tempfile.mkdtemp(prefix="fuzz-", dir=MEMORY if MEMORY.is_dir() else None))
atexit.register(shutil.rmtree, _FOLDER, ignore_errors=True)
RECIPE = load_recipe("smoke")
TEXT = "The quick brown fox jumps over the lazy dog.\n"


class Parser(NamedTuple):
    """One parser: what it reads, and files that it accepts."""

    read: Callable[[bytes], object]
    seeds: tuple[bytes, ...]
    json: bool = False  # whether whole values of its JSON are exchanged too


def _file(name: str, read: Callable[[Path], object]) -> Callable[[bytes], object]:
    path = _FOLDER / str(os.getpid()) / name

    def written(content: bytes) -> object:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
        return read(path)

    return written


def _schedule(content: bytes) -> None:
    found = Schedule.parse(content.decode("utf-8", "replace"))
    assert Schedule.parse(str(found)) == found, "the text form does not give the schedule back"


def _set(content: bytes) -> None:
    mapping = RECIPE.to_dict()
    override(mapping, content.decode("utf-8", "replace"))


def _texts(name: str, source: str = "files") -> Callable[[bytes], object]:
    def read_all(path: Path) -> None:
        from layersearch.data.local_files import local_files, read_texts

        if path.stat().st_size:
            for _ in read_texts(source, local_files([str(path)]), "text"):
                pass

    return _file(name, read_all)


def _run(name: str, content: str, read: Callable[[Path], object]) -> Callable[[bytes], object]:
    """Read a run folder in which one file is the fuzzer's."""
    folder = _FOLDER / f"{os.getpid()}-{name.replace('.', '-')}"
    other = {"config.json": "trials.jsonl", "trials.jsonl": "config.json"}[name]

    def written(fuzzed: bytes) -> object:
        folder.mkdir(exist_ok=True)
        (folder / other).write_text(content)
        (folder / name).write_bytes(fuzzed)
        return read(folder)

    return written


def _records() -> list[TrialRecord]:
    made = []
    for text, loss in (("full*2", 2.5), ("window:4*2", 2.75), ("full window:4", 2.6), ("window:8 full", 2.61)):
        record = blank_record(Trial(schedule=Schedule.parse(text), seed=0), RECIPE).to_json()
        found = json.loads(record) | {"state": "complete", "steps": 8, "loss": loss, "curve": [[4, 3.0], [8, loss]]}
        found |= {"metrics": [["recall", 0.5]], "loss_by_position": [loss], "position_edges": [48]}
        made.append(TrialRecord.from_json(json.dumps(found)))
    return made


def _request() -> str:
    from layersearch.files import _LIBRARIES, FORMAT

    space = load_space("smoke")
    import dataclasses

    data = {"source": "recall", "vocab_size": 64}
    held = {"format": FORMAT, "versions": dict.fromkeys(_LIBRARIES, "1"), "git_commit": None}
    held |= {"recipe": RECIPE.to_dict(), "space": dataclasses.asdict(space), "budget": 0.6, "seed": 0, "data": data}
    return json.dumps(held)


def _show(path: Path) -> object:
    from layersearch.study.saved_run import load_result

    return load_result(path)


def _config(path: Path) -> object:
    from layersearch.study.saved_run import load_request

    return load_request(path)


def _model(path: Path) -> object:
    from layersearch.export.model_file import read_model_file

    return read_model_file(str(path)).token_flops()


def _export_config(path: Path) -> object:
    from layersearch.export.edit_config import read_user_config

    return read_user_config(path)


def _tokenizer(path: Path) -> object:
    from layersearch.data.tokenizer import open_tokenizer

    return open_tokenizer(str(path))


def _journal(path: Path) -> object:
    from layersearch.study.journal import _reopen

    return _reopen(path)


def _checkpoint(path: Path) -> object:
    from layersearch.training.checkpoint import load_state

    return load_state(path, "cpu")


def _weights(path: Path) -> object:
    import torch

    from layersearch.training.checkpoint import load_weights

    return load_weights(torch.nn.Linear(3, 2), path)


def _seed_weights() -> bytes:
    import torch
    from safetensors.torch import save

    return save(torch.nn.Linear(3, 2).state_dict(), metadata={"steps": "8"})


def _seed_checkpoint() -> bytes:
    import torch

    held = io.BytesIO()
    torch.save({"step": 3, "model": torch.zeros(4)}, held)
    return held.getvalue()


def _seed_gguf() -> bytes:
    import numpy as np
    from gguf import GGUFWriter

    path = _FOLDER / "seed.gguf"
    writer = GGUFWriter(path, "llama")
    writer.add_block_count(2)
    writer.add_context_length(64)
    writer.add_embedding_length(16)
    writer.add_head_count(2)
    writer.add_head_count_kv(1)
    writer.add_token_list(["a", "b"])
    for layer in range(2):
        writer.add_tensor(f"blk.{layer}.attn_q.weight", np.zeros((16, 16), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.read_bytes()


def _seed_parquet() -> bytes:
    import pyarrow
    import pyarrow.parquet

    held = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({"text": [TEXT, None, "b"], "n": [1, 2, 3]}), held)
    return held.getvalue()


def _seed_tokenizer() -> bytes:
    from layersearch.data.tokenizer import train_bpe

    return train_bpe([TEXT], 260).to_str().encode()


def _seed_zip() -> bytes:
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w") as archive:
        archive.writestr("a.txt", TEXT)
        archive.writestr("b.jsonl", json.dumps({"text": TEXT}) + "\n")
    return held.getvalue()


def _seed_journal() -> bytes:
    from layersearch.schedule.bound_space import BoundSpace
    from layersearch.study.journal import Study

    path = _FOLDER / "seed.journal"
    space = BoundSpace.of(load_space("smoke"), RECIPE)
    Study(path, space, 0.6, RECIPE.search, 0).enter(Schedule.parse("full window:4"), "proposed", 1)
    return path.read_bytes()


def _models() -> tuple[bytes, ...]:
    base = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1}
    base |= {"num_hidden_layers": 3, "vocab_size": 64, "max_position_embeddings": 128, "head_dim": 16}
    sliding = {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
    kinds = {"llama": {}, "qwen3": sliding, "gemma3_text": sliding, "mistral": {"sliding_window": 8}}
    rope = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}
    return tuple(json.dumps({"model_type": name, **base, **more, **rope}).encode() for name, more in kinds.items())


def parsers() -> dict[str, Parser]:
    """Return all parsers by name; some seeds take seconds to make."""
    lines = [record.to_json() for record in _records()]
    trials = "".join(f"{line}\n" for line in lines)
    texts = ["full*2 window:4*2", "window:512/2@2+sink:4+las:0.5/3 block:8*3", "full, window:1+sink:2"]
    yamls = [path.read_bytes() for path in sorted((ROOT / "search_spaces").glob("*.yaml"))[:4]]
    recipes = [path.read_bytes() for path in sorted((ROOT / "trials").glob("*.yaml"))[:4]]
    converts = tuple(path.read_bytes() for path in sorted((ROOT / "trials" / "convert").glob("*.yaml")))
    rows = "".join(json.dumps({"text": TEXT, "n": n}) + "\n" for n in range(3)).encode()
    table = yaml.safe_dump({"full": 0.3, "window:4": 0.1}).encode()
    files = tuple(schedule_text(Schedule.parse(text), {}).encode() for text in texts)
    return {
        "schedule": Parser(_schedule, tuple(text.encode() for text in texts)),
        "set": Parser(_set, (b"training.steps=20", b"search.rungs=[0.5]", b"model={n_layers: 3}")),
        "bytes": Parser(lambda content: parse_bytes(content.decode("utf-8", "replace")), (b"64KiB", b"1.5 GiB")),
        "record": Parser(lambda c: TrialRecord.from_json(c.decode("utf-8", "replace")), (lines[0].encode(),), True),
        "line": Parser(lambda content: unseal(content.decode("utf-8", "replace")), (b'{"a": 1, "crc32": "1"}',), True),
        "records": Parser(_file("t.jsonl", lambda path: list(read(path, RECIPE))), (trials.encode(),)),
        "run": Parser(_run("trials.jsonl", _request(), _show), (trials.encode(),)),
        "config.json": Parser(_run("config.json", trials, _config), (_request().encode(),), True),
        "schedule file": Parser(_file("s.yaml", read_schedule), files),
        "space": Parser(_file("space.yaml", lambda path: load_space(str(path))), tuple(yamls)),
        "recipe": Parser(_file("recipe.yaml", lambda path: load_recipe(str(path))), tuple(recipes)),
        "convert recipe": Parser(_file("convert.yaml", lambda path: load_convert_recipe(str(path))), converts),
        "latencies": Parser(_file("l.yaml", read_latencies), (table,)),
        "model config": Parser(_file("config.json", _model), _models(), True),
        "export config": Parser(_file("export.json", _export_config), _models(), True),
        "gguf": Parser(_file("m.gguf", _model), (_seed_gguf(),)),
        "tokenizer": Parser(_file("tokenizer.json", _tokenizer), (_seed_tokenizer(),), True),
        "jsonl": Parser(_texts("d.jsonl"), (rows, json.dumps([{"text": "a"}, {"text": "b"}]).encode())),
        "text": Parser(_texts("d.txt"), (TEXT.encode(), TEXT.encode("utf-16"))),
        "html": Parser(_texts("d.html"), (b'<html><meta charset="latin-1"><p>a<script>b</script>&amp;</p></html>',)),
        "parquet": Parser(_texts("d.parquet"), (_seed_parquet(),)),
        "gzip": Parser(_texts("d.txt.gz"), (gzip.compress(TEXT.encode() * 9, mtime=0),)),
        "zip": Parser(_texts("d.zip"), (_seed_zip(),)),
        "journal": Parser(_file("study.journal", _journal), (_seed_journal(),)),
        "weights": Parser(_file("w.safetensors", _weights), (_seed_weights(),)),
        "checkpoint": Parser(_file("state.pt", _checkpoint), (_seed_checkpoint(),)),
    }
