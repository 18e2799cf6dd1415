"""Tasks beyond the reach of the bottom layers: several hops, and coreference across documents.

Command:  python analysis/reach/study.py [--workers N] [--only hops coreference]
Time:     about 20 minutes on one idle core; trials that are in records.jsonl are not trained again
Shows:    decoders of 6 layers. All windows together reach less far than one link of a chain, or one document. One and
          two full layers stand at the bottom, in the middle, at the top and apart, beside none and all.

An encoder is not among them: the generated tasks predict the next token, and encoders read masked text or classes.
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
    # Four windows of 2 tokens reach 4 tokens back.
    "hops": {
        "window": "window:2",
        "data": {"source": "hops", "hops": 2, "vocab_size": 24, "pairs": 4, "queries": 4, "distance": 5},
        "seq_len": 28,
        "steps": 400,
    },
    "coreference": {
        "window": "window:2",
        "data": {"source": "coreference", "documents": 2, "vocab_size": 18, "pairs": 3, "queries": 3, "distance": 5},
        "seq_len": 32,
        "steps": 400,
    },
}
PLACES: dict[str, tuple[int, ...]] = {
    "none": (),
    "1 at the bottom": (0,),
    "1 in the middle": (1,),
    "1 at the top": (3,),
    "2 at the bottom": (0, 1),
    "2 in the middle": (1, 2),
    "2 at the top": (2, 3),
    "2 apart": (1, 3),
    "all": tuple(range(LAYERS)),
}
"""Layers that are full, counted from 0 at the bottom."""


def group(task: str) -> Group:
    """Return a task's schedules."""
    given = TASKS[task]
    model = {
        "n_layers": LAYERS,
        "d_model": 64,
        "n_heads": 2,
        "n_kv_heads": 2,
        "d_ff": 128,
        "qk_norm": True,
        "tie_embeddings": False,
        "init": "width",
    }
    training = {
        "seq_len": given["seq_len"],
        "batch_size": 32,
        "steps": given["steps"],
        "optimizer": "muon",
        "muon_learning_rate": 0.02,
        "learning_rate": 0.004,
        "warmup_steps": 20,
        "final_lr_ratio": 0.5,
        "val_sequences": 256,
        "precision": "float32",
        "compile": False,
    }
    recipe = build(Recipe, {"name": task, "model": model, "data": given["data"], "training": training}, task)
    near = given["window"]
    schedules = {
        name: Schedule.parse(" ".join("full" if layer in full else near for layer in range(LAYERS)))
        for name, full in PLACES.items()
    }
    return Group(name=task, recipe=recipe, schedules=schedules, seeds=SEEDS)


def main() -> None:
    """Train what is missing and write the tables."""
    options = arguments(str(__doc__))
    folder = Path("/tmp/reach-toy") if options.toy else HERE
    folder.mkdir(exist_ok=True)
    asked = [toy(group(task)) if options.toy else group(task) for task in TASKS]
    run(asked, folder / "records.jsonl", options.workers, options.only)
    rows = read(folder / "records.jsonl")
    parts = [f"## {one.name}\n\n{table(rows, one.name, f'{one.name}_accuracy', 'all')}" for one in asked]
    (folder / "tables.md").write_text(
        "Written by `study.py`. Intervals are 95%, paired by seed.\n\n" + "\n".join(parts)
    )


if __name__ == "__main__":
    main()
