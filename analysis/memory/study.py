"""Where do long memories pay? Rae and Razavi's question (2007.03356), at small scale.

Command:  python analysis/memory/study.py [--workers N] [--only recall text]
Time:     about 15 minutes on one idle core; trials that are in records.jsonl are not trained again
Shows:    decoders of 4 layers. A long memory stands at the bottom or at the top; two stand at the bottom, interleaved
          or at the top, at equal cost; beside none and all.
          recall: a pair lies farther back than all short memories together reach. Trained in one pass over segments of
          4 tokens, so gradients reach the memories; a long memory holds 32 tokens, a short one 1.
          text: the standard library, trained by recurrence as Transformer-XL, with stopped gradients. Segments of 16
          tokens, memories of 48 and 2. Validation is warmed up by 96 tokens: two long memories.

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
from trials import FAST, SMALL, Group, arguments, placed, read, run, table, toy  # noqa: E402

LAYERS, SEEDS = 4, 3
LONG = {"recall": "memory:32/4", "text": "memory:48/16"}
SHORT = {"recall": "memory:1/4", "text": "memory:2/16"}
DATA: dict[str, dict[str, Any]] = {
    # Four layers of at most 4 tokens back each reach 16.
    "recall": {"source": "recall", "vocab_size": 32, "pairs": 4, "queries": 4, "distance": 17},
    "text": {"source": "stdlib", "vocab_size": 512},
}
TRAINING: dict[str, dict[str, Any]] = {
    "recall": {"seq_len": 36, "batch_size": 32, "steps": 300, "muon_learning_rate": 0.02, "val_sequences": 256},
    "text": {
        "seq_len": 64,
        "segments": 4,
        "warm_tokens": 96,
        "batch_size": 16,
        "steps": 160,
        "muon_learning_rate": 0.03,
        "val_sequences": 64,
    },
}
PLACES: dict[str, tuple[int, ...]] = {
    "none": (),
    "1 at the bottom": (0,),
    "1 at the top": (3,),
    "2 at the bottom": (0, 1),
    "2 interleaved": (1, 3),
    "2 at the top": (2, 3),
    "all": tuple(range(LAYERS)),
}
"""Layers with a long memory, counted from 0 at the bottom."""


def group(name: str) -> Group:
    """Return the schedules of a text."""
    model = SMALL | {"n_layers": LAYERS}
    training = FAST | TRAINING[name] | {"precision": "float32"}
    recipe = build(Recipe, {"name": name, "model": model, "data": DATA[name], "training": training}, name)
    schedules = {place: placed(long, SHORT[name], LAYERS, LONG[name]) for place, long in PLACES.items()}
    return Group(name=name, recipe=recipe, schedules=schedules, seeds=SEEDS)


def main() -> None:
    """Train what is missing and write the tables."""
    options = arguments(str(__doc__))
    folder = Path("/tmp/memory-toy") if options.toy else HERE
    folder.mkdir(exist_ok=True)
    asked = [toy(group(name)) if options.toy else group(name) for name in DATA]
    run(asked, folder / "records.jsonl", options.workers, options.only)
    rows = read(folder / "records.jsonl")
    metrics = {"recall": "recall_accuracy", "text": None}
    parts = [f"## {one.name}\n\n{table(rows, one.name, metrics[one.name], 'none')}" for one in asked]
    (folder / "tables.md").write_text(
        "Written by `study.py`. Intervals are 95%, paired by seed.\n\n" + "\n".join(parts)
    )


if __name__ == "__main__":
    main()
