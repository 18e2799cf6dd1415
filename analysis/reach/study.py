"""A task beyond the reach of the bottom layers: coreference across documents, made by a generator.

Command:  python analysis/reach/study.py [--workers N]
Time:     about 20 minutes on one idle core; trials that are in records.jsonl are not trained again
Shows:    decoders and encoders of 4 layers on the generated task `coreference`. All windows together reach less far
          than from one document to the next. One and two full layers stand at the bottom, in the middle and at the
          top, beside two apart, three at the bottom, none and all. The same for several hops is in ../optimal_l.

Encoders answer at the end of a query, as decoders do; no answer stands in the sequence. Writes records.jsonl and
tables.md beside itself. ``--toy`` writes into /tmp.
"""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from layersearch.config.loader import build  # noqa: E402
from layersearch.config.recipe import Recipe  # noqa: E402
from trials import FAST, SMALL, Group, arguments, placed, read, run, table, toy  # noqa: E402

NAMES = {"coreference": "decoder", "coreference-encoder": "encoder"}
LAYERS, SEEDS = 4, 3
DATA = {"source": "coreference", "documents": 2, "vocab_size": 18, "pairs": 3, "queries": 3, "distance": 5}
WINDOW = {"decoder": "window:2", "encoder": "window:1"}
"""Four of them reach 4 tokens, one less than the distance: back, and in an encoder ahead too."""
PLACES: dict[str, tuple[int, ...]] = {
    "none": (),
    "1 at the bottom": (0,),
    "1 in the middle": (1,),
    "1 at the top": (3,),
    "2 at the bottom": (0, 1),
    "2 in the middle": (1, 2),
    "2 at the top": (2, 3),
    "2 apart": (1, 3),
    "3 at the bottom": (0, 1, 2),
    "all": tuple(range(LAYERS)),
}
"""Layers that are full, counted from 0 at the bottom."""


def group(name: str) -> Group:
    """Return the schedules of a kind of model."""
    kind = NAMES[name]
    model = SMALL | {"kind": kind, "n_layers": LAYERS, "d_ff": 128}
    training = FAST | {
        "seq_len": 32,
        "batch_size": 32,
        "steps": 400,
        "muon_learning_rate": 0.02,
        "final_lr_ratio": 0.5,
        "val_sequences": 256,
        "precision": "float32",
    }
    recipe = build(Recipe, {"name": name, "model": model, "data": DATA, "training": training}, name)
    schedules = {place: placed(full, WINDOW[kind], LAYERS) for place, full in PLACES.items()}
    return Group(name=name, recipe=recipe, schedules=schedules, seeds=SEEDS)


def main() -> None:
    """Train what is missing and write the tables."""
    options = arguments(str(__doc__))
    folder = Path("/tmp/reach-toy") if options.toy else HERE
    folder.mkdir(exist_ok=True)
    asked = [toy(group(name)) if options.toy else group(name) for name in NAMES]
    run(asked, folder / "records.jsonl", options.workers, options.only)
    rows = read(folder / "records.jsonl")
    parts = [f"## {name}\n\n{table(rows, name, 'coreference_accuracy', '2 in the middle')}" for name in NAMES]
    (folder / "tables.md").write_text(
        "Written by `study.py`. Intervals are 95%, paired by seed.\n\n" + "\n".join(parts)
    )


if __name__ == "__main__":
    main()
