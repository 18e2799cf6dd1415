"""LaS on lists and on curves, causal and in both directions: does decay or smoothing gain?

Command:  python analysis/lra/study.py [--workers N] [--only listops-encoder ...]
Time:     about half an hour on one idle core; trials that are in records.jsonl are not trained again
Shows:    4 layers, classes read from the mean over the example. listops: the Long Range Arena's rules, but 6 to 31
          tokens in place of 500 to 2,000, 3 levels in place of 10 and 5 arguments in place of 10.
          digits: MNIST-1D at 48 values (pip install mnist1d). Each of them as an encoder and as a decoder,
          with neither part of LaS (2311.16620), decay alone, smoothing alone, and both. Encoders also have windows, for
          what locality alone gives, and digits of half and twice the length, 24 and 96 values.

Writes records.jsonl and tables.md beside itself. ``--toy`` writes into /tmp.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from layersearch.config.loader import build  # noqa: E402
from layersearch.config.recipe import Recipe  # noqa: E402
from layersearch.schedule import Schedule  # noqa: E402
from trials import Group, arguments, read, run, table, toy  # noqa: E402

LAYERS, SEEDS = 4, 3
TASKS: dict[str, dict[str, Any]] = {
    "listops": {
        "data": {
            "source": "lra_listops",
            "list_min": 5,
            "list_max": 32,
            "list_depth": 3,
            "list_args": 5,
            "examples": 20_000,
        },
        "seq_len": 32,
        "batch_size": 32,
        "steps": 300,
    },
    "digits": {"data": {"source": "digits", "examples": 8_000}, "seq_len": 49, "batch_size": 32, "steps": 300},
    "digits-24": {"data": {"source": "digits", "examples": 8_000}, "seq_len": 25, "batch_size": 32, "steps": 300},
    "digits-96": {"data": {"source": "digits", "examples": 8_000}, "seq_len": 97, "batch_size": 32, "steps": 300},
}
LENGTHS = ("digits-24", "digits-96")
"""Half and twice the length of ``digits``: in encoders, and without what holds two parts."""
SPANS = {
    "neither": "full",
    "decay": "full+las:0.1",
    "smoothing": "full+las:0.0/3",
    "both": "full+las:0.1/3",
}


def group(task: str, kind: str) -> Group:
    """Return a task's schedules in one direction."""
    given = TASKS[task]
    model = {
        "kind": kind,
        "n_layers": LAYERS,
        "d_model": 64,
        "n_heads": 4,
        "n_kv_heads": 4,
        "d_ff": 160,
        "qk_norm": True,
        "tie_embeddings": False,
        "init": "width",
        "pooling": "mean",
    }
    training = {
        "seq_len": given["seq_len"],
        "batch_size": given["batch_size"],
        "steps": given["steps"],
        "optimizer": "muon",
        "muon_learning_rate": 0.02,
        "learning_rate": 0.004,
        "warmup_steps": 30,
        "val_sequences": 500,
        "precision": "float32",
        "compile": False,
    }
    name = f"{task}-{kind}"
    recipe = build(Recipe, {"name": name, "model": model, "data": given["data"], "training": training}, name)
    if task in LENGTHS:
        spans = {label: SPANS[label] for label in ("neither", "decay", "smoothing")}
    else:
        spans = SPANS | ({"windows": "window:4"} if kind == "encoder" else {})
    schedules = {label: Schedule.parse(f"{span}*{LAYERS}") for label, span in spans.items()}
    return Group(name=name, recipe=recipe, schedules=schedules, seeds=SEEDS)


def main() -> None:
    """Train what is missing and write the tables."""
    options = arguments(str(__doc__))
    folder = Path("/tmp/lra-toy") if options.toy else HERE
    folder.mkdir(exist_ok=True)
    both = ("encoder", "decoder")
    asked = [group(task, kind) for task in TASKS for kind in (both[:1] if task in LENGTHS else both)]
    asked = [toy(one) for one in asked] if options.toy else asked
    run(asked, folder / "records.jsonl", options.workers, options.only)
    rows = read(folder / "records.jsonl")
    parts = [f"## {one.name}\n\n{table(rows, one.name, 'accuracy', 'neither')}" for one in asked]
    (folder / "tables.md").write_text(
        "Written by `study.py`. Intervals are 95%, paired by seed.\n\n" + "\n".join(parts)
    )


if __name__ == "__main__":
    main()
