"""Where does an encoder, and an encoder-decoder, need a full layer to recall? The answer is known for a decoder.

Command:  python analysis/encoders/answers.py [--workers N] [--only decoder encoder t5 given named longer]
Time:     about 45 minutes on one idle core; trials that are in answers.jsonl are not trained again
Shows:    associative recall. All windows together reach less far than from a query to its pair. decoder: one full layer
          above a local one is needed and enough. encoder: the same places; the answers are hidden. t5: the schedule
          stands in the encoder of an encoder-decoder whose decoder has one layer, a full one. given: the same, but the
          decoder is given each key and writes its value. named: it is given the name of a key, which the encoder's text
          ties to the key far from the pair, so that it takes two hops. longer: the same in twice the steps.

Writes answers.jsonl and answers.md beside itself. ``--toy`` writes into /tmp.
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
MORE = {"named": 5}
"""Seeds where a schedule may or may not learn the task."""
KINDS: dict[str, dict[str, Any]] = {
    "decoder": {"kind": "decoder"},
    "encoder": {"kind": "encoder"},
    "t5": {"kind": "encoder_decoder", "other_layers": 1},
    "given": {"kind": "encoder_decoder", "other_layers": 1},
    "named": {"kind": "encoder_decoder", "other_layers": 1},
    "longer": {"kind": "encoder_decoder", "other_layers": 1},
}
DATA = {"source": "recall", "vocab_size": 32, "pairs": 4, "queries": 4, "distance": 17}
"""Four layers of windows reach 4 tokens."""
NAMED = DATA | {"vocab_size": 24, "pairs": 3, "queries": 3, "distance": 13, "asked_in": "names"}
GIVEN: dict[str, tuple[dict[str, Any], dict[str, int]]] = {
    "given": (DATA | {"asked_in": "target"}, {"steps": 100}),
    "named": (NAMED, {"seq_len": 28, "batch_size": 64, "steps": 200}),
    "longer": (NAMED, {"seq_len": 28, "batch_size": 64, "steps": 400}),
}
"""Data and training where they differ from the others'."""
PLACES: dict[str, tuple[int, ...]] = {
    "none": (),
    "full at 0": (0,),
    "full at 1": (1,),
    "full at 2": (2,),
    "full at 3": (3,),
    "l = 2": (1, 3),
    "all full": tuple(range(LAYERS)),
}

LONGER = ("none", "full at 0", "full at 1", "l = 2")
"""Those that are trained longer: does the bottom catch up?"""


def group(name: str) -> Group:
    """Return the schedules of a kind of model."""
    model = SMALL | KINDS[name] | {"n_layers": LAYERS}
    training = FAST | {
        "seq_len": 36,
        "batch_size": 32,
        "steps": 300,
        "muon_learning_rate": 0.02,
        "val_sequences": 256,
        "precision": "float32",
    }
    data, more = GIVEN.get(name, (DATA, {}))
    training |= more
    recipe = build(Recipe, {"name": f"answers-{name}", "model": model, "data": data, "training": training}, name)
    near = "window:2" if name == "decoder" else "window:1"
    places = {p: PLACES[p] for p in LONGER} if name == "longer" else PLACES
    schedules = {place: placed(full, near, LAYERS) for place, full in places.items()}
    return Group(name=name, recipe=recipe, schedules=schedules, seeds=MORE.get(name, SEEDS))


def main() -> None:
    """Train what is missing and write the tables."""
    options = arguments(str(__doc__))
    folder = Path("/tmp/answers-toy") if options.toy else HERE
    folder.mkdir(exist_ok=True)
    asked = [toy(group(name)) if options.toy else group(name) for name in KINDS]
    run(asked, folder / "answers.jsonl", options.workers, options.only)
    rows = read(folder / "answers.jsonl")
    parts = [f"## {name}\n\n{table(rows, name, 'recall_accuracy', 'none')}" for name in KINDS]
    (folder / "answers.md").write_text(
        "Written by `answers.py`. Intervals are 95%, paired by seed.\n\n" + "\n".join(parts)
    )


if __name__ == "__main__":
    main()
