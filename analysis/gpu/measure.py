"""Measure on one GPU what a CPU cannot show; see README.md.

python analysis/gpu/measure.py --out FOLDER [--model MODEL.gguf]      # every part, under 10 minutes on one GPU
python analysis/gpu/measure.py --out FOLDER --only kernels            # one part
python analysis/gpu/measure.py --out FOLDER --toy                     # small sizes on the CPU: shows that it runs

Each part runs in a process of its own and writes FOLDER/PART.json. A part whose file is there is not run again.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
BUDGET = 0.27


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What is measured where."""

    device: str
    toy: bool
    out: Path
    model: str | None

    @property
    def gpus(self) -> int:
        """GPUs of a training process."""
        return int(self.device != "cpu")


def _recipe(setting: Setting) -> Any:
    """Return the recipe of the speed parts: ``gpu-125m`` at 8,192 tokens; as a toy, a small one."""
    from layersearch.config.recipe import load_recipe

    if setting.toy:
        return load_recipe("smoke", ["training.seq_len=256", "training.batch_size=2"])
    return load_recipe("gpu-125m", ["training.seq_len=8192", "training.batch_size=4"])


def _sparse(setting: Setting) -> str:
    from speed import SPARSE

    return "window:16" if setting.toy else SPARSE


def kernels(setting: Setting) -> Any:
    """Compare every span's kernels with the dense reference."""
    from kernels import check

    return check(setting.device, few=setting.toy)


def attention(setting: Setting) -> Any:
    """Time attention beside its FLOPs."""
    from speed import attention

    repeats = 2 if setting.toy else 20
    return attention(_recipe(setting), setting.device, sparse=_sparse(setting), repeats=repeats)


def kernel_times(setting: Setting) -> Any:
    """Time one layer's attention by span and batch size: the whole call, and its kernels alone."""
    from speed import kernel_times

    sizes = (1, 2) if setting.toy else (4, 16)
    spans = ("full", "window:256", "window:512", "window:1024")
    return kernel_times(_recipe(setting), setting.device, sizes, spans, 2 if setting.toy else 10)


def training(setting: Setting) -> Any:
    """Time training steps; measure memory beside its estimate."""
    from speed import training_steps

    repeats = 2 if setting.toy else 10
    return training_steps(_recipe(setting), setting.device, sparse=_sparse(setting), repeats=repeats)


def search(setting: Setting) -> Any:
    """Run a short search by the command line, with two workers on the one device."""
    recipe = "smoke" if setting.toy else "gpu-125m"
    given = ["--recipe", recipe, "--budget", "0.6" if setting.toy else "0.4", "--workers", "2"]
    given += ["--trials", "4" if setting.toy else "8"]
    short = ["training.steps=4", "training.warmup_steps=1", "training.val_sequences=8"]
    if not setting.toy:
        short = ["training.steps=60", "training.warmup_steps=6", "training.val_sequences=32"]
    short += [f"training.gpus={setting.gpus}", "search.rungs=[0.5]", "search.finalists=1", "search.confirm_seeds=2"]
    run = setting.out / "search"
    seconds = _layersearch("run", *given, *_sets(short), "--out", str(run))
    return {"seconds": seconds, **_facts_of(run)}


def selection(setting: Setting) -> Any:
    """Choose the layers of a pre-trained model, with the default settings, then heal the winner for 40 steps."""
    run, healed = setting.out / "selection", setting.out / "healed"
    if setting.model is None:
        raise SystemExit("selection: give --model")
    small = _sets(_SMALL_SELECTION) if setting.toy else []
    gpus = _sets([f"training.gpus={setting.gpus}"])
    budget = "0.5" if setting.toy else str(BUDGET)
    seconds = _layersearch("run", "--model", setting.model, "--budget", budget, *small, *gpus, "--out", str(run))
    steps = _sets(_SMALL_HEALING) if setting.toy else []
    healing = _layersearch("convert", "--run", str(run), *steps, *gpus, "--out", str(healed))
    evaluations = [json.loads(line) for line in (healed / "evaluations.jsonl").read_text().splitlines()]
    kept = [{k: one[k] for k in ("moment", "step", "loss", "metrics")} for one in evaluations]
    memory = json.loads((healed / "memory.json").read_text())
    return {
        "seconds": seconds,
        **_facts_of(run),
        "healing": {"seconds": healing, "memory": memory, "evaluations": kept},
    }


_SMALL_SELECTION = (
    *("selection.calibration_units=1", "selection.selection_units=2", "selection.confirm_units=2"),
    *("selection.gate_steps=1", "selection.candidates=2", "selection.frontier=1", "training.seq_len=256"),
    "selection.retrieval_weight=0",
)
_SMALL_HEALING = ("training.steps=2", "training.warmup_steps=0", "evaluations=0", "training.val_sequences=2")
PARTS: dict[str, Callable[[Setting], Any]] = {
    "kernels": kernels,
    "attention": attention,
    "kernel_times": kernel_times,
    "training": training,
    "search": search,
    "selection": selection,
}


def _sets(pairs: Sequence[str]) -> list[str]:
    return [word for pair in pairs for word in ("--set", pair)]


def _layersearch(*words: str) -> float:
    """Run the command line; return its seconds."""
    began = time.perf_counter()
    subprocess.run([sys.executable, "-m", "layersearch", *words], check=True)
    return round(time.perf_counter() - began, 1)


def _facts_of(run: Path) -> dict[str, Any]:
    """Return what a run folder says: the winner, and what really ran."""
    from layersearch.study.saved_run import load_result

    records = [json.loads(line) for line in (run / "trials.jsonl").read_text().splitlines()]
    result = load_result(run)
    entry = None if result.winner is None else result.entry(result.winner.schedule)
    return {
        "winner": None if entry is None else {"schedule": str(entry.schedule), "cost": entry.cost},
        "verdict": result.verdict,
        "trials": len(records),
        "states": sorted({record["state"] for record in records}),
        "devices": sorted({record["device"] for record in records}),
        "kernels": sorted({kernel for record in records for kernel in record["kernels"]}),
        "precision": sorted({record["precision"] for record in records}),
        "peak_bytes": max(record["peak_memory_bytes"] for record in records),
    }


def _one(part: str, setting: Setting) -> None:
    import torch

    began = time.perf_counter()
    found = PARTS[part](setting)
    on_gpu = setting.device != "cpu"
    text = {
        "part": part,
        "device": torch.cuda.get_device_name() if on_gpu else platform.machine(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "seconds": round(time.perf_counter() - began, 1),
        "found": found,
    }
    (setting.out / f"{part}.json").write_text(json.dumps(text, indent=1) + "\n")


def main() -> None:
    """Run every part that has no file yet; the exit status is 1 if one failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", help="a folder or GGUF file, for the part selection")
    parser.add_argument("--only", choices=tuple(PARTS), help="one part")
    parser.add_argument("--toy", action="store_true", help="small sizes on the CPU")
    options = parser.parse_args()
    device = "cpu" if options.toy else "cuda:0"
    setting = Setting(device=device, toy=options.toy, out=options.out.resolve(), model=options.model)
    setting.out.mkdir(parents=True, exist_ok=True)
    if options.only:
        _one(options.only, setting)
        return
    failed = []
    for part in PARTS:
        if (setting.out / f"{part}.json").exists() or (part == "selection" and setting.model is None):
            continue
        print(f"{part} …", file=sys.stderr, flush=True)
        if subprocess.run([sys.executable, __file__, *sys.argv[1:], "--only", part]).returncode:
            failed.append(part)
    print(f"failed: {', '.join(failed)}" if failed else "all parts are done", file=sys.stderr)
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
