"""Damage the files that the package writes beside a search and reads again: conversions, selections, states, caches.

Each command runs in a process forked from one that has imported everything (`stage.py`), on a random Llama of three
layers. `inject.py` runs these among the others.
"""

from __future__ import annotations

import functools
import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

Result = dict[str, Any]
SPARSE = "window:8 full window:8"
CONVERT = ("training.precision=float32", "training.val_sequences=4", "training.batch_size=2", "training.seq_len=32")
CONVERT += ("training.steps=8", "training.warmup_steps=0", "checkpoint_steps=2", "evaluations=1")
SELECT = ("training.seq_len=160", "selection.tasks=[pass_key]", "selection.min_accuracy=0", "selection.gate_steps=2")
SELECT += ("selection.candidates=3", "selection.confirm_units=2", "selection.calibration_units=1")
SELECT += ("selection.selection_units=2", "selection.frontier=1", "selection.precision=float32")


def _work() -> Path:
    import inject

    return inject.WORK


def _ways() -> dict[str, Callable[[bytes, Random], bytes]]:
    import inject

    return inject.WAYS


def _sets(pairs: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(word for pair in pairs for word in ("--set", pair))


@functools.cache
def _given() -> Path:
    """Return a folder with a model and documents, and import what the commands need."""
    import torch
    import transformers

    import layersearch.convert.run
    import layersearch.study.model_selection  # noqa: F401
    from layersearch.data.tokenizer import train_bpe

    torch.set_num_threads(1)
    at, rng = _work() / "given", Random(0)
    (at / "docs").mkdir(parents=True)
    words = ["the", "river", "runs", "to", "sea", "boats", "read", "path", "open", "line", "3", "1", "4", "magic"]
    texts = [f"{n} " + " ".join(rng.choice(words) for _ in range(160)) + "\n" for n in range(40)]
    for number, text in enumerate(texts):
        (at / "docs" / f"{number:02}.txt").write_text(text)
    tokenizer = train_bpe([*texts, "The special magic number for river is 4 0 1 2 3 5 6 7 8 9. "] * 3, 400)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
    config = transformers.LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(), num_key_value_heads=2, max_position_embeddings=512, **sizes
    )
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(config).save_pretrained(at / "model")
    tokenizer.save(str(at / "model" / "tokenizer.json"))
    return at


def _command(kind: str, out: Path) -> tuple[str, ...]:
    at = _given()
    shared = ("--model", str(at / "model"), "--data", str(at / "docs"), "--out", str(out))
    if kind == "convert":
        return ("convert", "--schedule", SPARSE, *shared, *_sets(CONVERT))
    return ("run", "--budget", "0.6", *shared, *_sets(SELECT))


def _run(kind: str, out: Path) -> tuple[int, str]:
    import inject
    import stage

    child = stage.start(_command(kind, out), inject.LOG)
    return child.wait(), child.said


@functools.cache
def _whole(kind: str) -> Path:
    out = _work() / f"whole-{kind}"
    code, said = _run(kind, out)
    assert code == 0, said
    return out


@functools.cache
def _begun() -> Path:
    """Return a conversion that was killed between two checkpoints."""
    import inject
    import stage

    out = _work() / "begun-convert"
    child, log = stage.start(_command("convert", out), inject.LOG), out / "steps.jsonl"
    while not (log.exists() and log.read_bytes().count(b"\n") >= 5):
        assert child.poll() is None, child.said
        time.sleep(0.001)
    child.kill(9)
    child.wait()
    assert (out / "checkpoint-previous.pt").exists()
    return out


def _content(kind: str, out: Path) -> Any:
    """Return what a conversion or a selection found, but for what no two share."""
    if kind == "convert":
        found = [json.loads(line) for line in (out / "evaluations.jsonl").read_text().splitlines()]
        weights = hashlib.sha256((out / "model" / "model.safetensors").read_bytes()).hexdigest()
        return sorted([one["step"], one["moment"], one["loss"]] for one in found), weights
    records = [json.loads(line) for line in (out / "trials.jsonl").read_text().splitlines()]
    rows = sorted((r["schedule"], r["seed"], r["phase"], r["state"], r["loss"], r["metrics"]) for r in records)
    return json.loads(json.dumps(rows)), json.loads((out / "frontier.json").read_text())["winner"]


def _damaged(kind: str, begun: bool, name: str, way: str, number: int) -> Result:
    """Damage one file; the same command refuses it by name, or ends as an undisturbed one."""
    import inject
    import stage

    wanted = _content(kind, _whole(kind))
    out = stage.copied(_begun() if begun else _whole(kind), _work() / "damaged")
    file = out / name
    file.write_bytes(_ways()[way](file.read_bytes(), Random(f"{name}{way}{number}")))
    code, said = _run(kind, out)
    refused = code == 2 and Path(name).name in said.replace("\n", "") and inject.plainly(said)
    same = code == 0 and _content(kind, out) == wanted
    done = "refused in one line" if refused else "as undisturbed" if same else "changed"
    lost = "nothing" if refused or same else f"exit {code}: {said.strip()[-200:]}"
    return {"exit": code, "done": done, "lost": lost, "held": refused or same}


def _state(way: str, number: int) -> Result:
    """Damage the newest state of a trial in flight: it is named, and the one before is used."""
    import torch

    from layersearch.training.checkpoint import load_state, save_state

    file = _work() / "state" / "s.pt"
    shutil.rmtree(file.parent, ignore_errors=True)
    file.parent.mkdir()
    for step in (1, 2):
        save_state(file, {"step": step, "w": torch.full((500,), float(step))})
    file.write_bytes(_ways()[way](file.read_bytes(), Random(f"state{way}{number}")))
    found, problem = load_state(file, "cpu")
    step = 0 if found is None else found["step"]
    whole = found is not None and torch.equal(found["w"], torch.full((500,), float(step)))
    held = whole and (step == 2 or (step == 1 and "s.pt" in str(problem)))
    return {"done": f"step {step}", "lost": "nothing" if held else "the state", "held": held}


def _weights(way: str, number: int) -> Result:
    """Damage a trial's weights: they are refused by name, or are the same."""
    import torch

    from layersearch.errors import LayersearchError
    from layersearch.training.checkpoint import load_weights, save_weights

    file, model = _work() / "w.safetensors", torch.nn.Linear(20, 20)
    save_weights(model, file, 5)
    file.write_bytes(_ways()[way](file.read_bytes(), Random(f"weights{way}{number}")))
    other = torch.nn.Linear(20, 20)
    try:
        load_weights(other, file)
    except LayersearchError as error:
        held = file.name in str(error) and "\n" not in str(error)
        return {"done": "refused in one line", "lost": "nothing" if held else str(error), "held": held}
    held = torch.equal(other.weight, model.weight) and torch.equal(other.bias, model.bias)
    return {"done": "the same", "lost": "nothing" if held else "the weights", "held": held}


def _cache(name: str, way: str, number: int) -> Result:
    """Damage prepared data: they are prepared again."""
    from layersearch.config.data import DataConfig
    from layersearch.data import open_source

    cache = _work() / "cache"
    data = DataConfig(source="text", files=(str(_given() / "docs" / "*.txt"),), vocab_size=300)
    before = open_source(data, 16, cache).train(seed=0, step=3, batch_size=8).tokens
    (folder,) = (path for path in cache.iterdir() if path.is_dir() and not path.name.startswith("."))
    file = folder / name
    file.write_bytes(_ways()[way](file.read_bytes(), Random(f"{name}{way}{number}")))
    after = open_source(data, 16, cache).train(seed=0, step=3, batch_size=8).tokens
    held = bool((before == after).all())
    return {"done": "prepared again or the same", "lost": "nothing" if held else "the data", "held": held}


WHOLE = ("convert.json", "evaluations.jsonl", "steps.jsonl", "memory.json", "model/model.safetensors")
WHOLE += ("model/weights.crc32.json",)
BEGUN = ("convert.json", "evaluations.jsonl", "steps.jsonl", "checkpoint.pt", "checkpoint-previous.pt")
SELECTED = ("config.json", "trials.jsonl", "gates.json", "retrieval.json", "retrieval_lengths.json", "frontier.json")
CACHED = ("train.npy", "validation.npy", "tokenizer.json", "prepared.json")


def state_files() -> Iterator[tuple[str, Callable[[], Result]]]:
    """Damaged files of conversions, selections, states, weights and prepared data: refused by name, or mended."""
    for way in _ways():
        for number in range(1 if way in ("CRLF", "empty") else 3):
            yield f"state {way} {number}", functools.partial(_state, way, number)
            yield f"weights {way} {number}", functools.partial(_weights, way, number)
            for name in CACHED:
                yield f"cache {name} {way} {number}", functools.partial(_cache, name, way, number)
        for number in range(2 if way == "bit flip" else 1):
            for kind, begun, names in (
                ("convert", False, WHOLE),
                ("convert", True, BEGUN),
                ("run", False, SELECTED),
            ):
                for name in names:
                    label = f"{'begun ' if begun else ''}{kind} {name} {way} {number}"
                    yield label, functools.partial(_damaged, kind, begun, name, way, number)
