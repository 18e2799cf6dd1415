"""Where do long memories pay in a Transformer-XL? Rae and Razavi's question (2007.03356), at small scale.

Command:  python analysis/memory/study.py [--workers N]
Time:     about half an hour on one idle core; trials that are in records.jsonl are not trained again
Shows:    6 layers, segments of 32 tokens, trained by recurrence on the standard library. A long memory has 224 tokens,
          a short one 8. At equal cost: one long one at the bottom, in the middle or at the top, three at the bottom,
          interleaved or at the top; beside none and all. Validation is warmed up by 448 tokens: two long memories.

Writes records.jsonl and tables.md beside itself. ``--toy`` writes into /tmp.
"""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from layersearch.config.loader import build  # noqa: E402
from layersearch.config.recipe import Recipe  # noqa: E402
from layersearch.schedule import Schedule  # noqa: E402
from trials import Group, arguments, read, run, table, toy  # noqa: E402

LAYERS, SEGMENT, SEGMENTS, SEEDS = 6, 32, 8, 3
LONG, SHORT = "memory:224/32", "memory:8/32"


def recipe() -> Recipe:
    """Return the recipe: that of ``text`` in segments."""
    model = {
        "n_layers": LAYERS,
        "d_model": 64,
        "n_heads": 2,
        "n_kv_heads": 2,
        "d_ff": 160,
        "qk_norm": True,
        "tie_embeddings": False,
        "init": "width",
    }
    training = {
        "seq_len": SEGMENT * SEGMENTS,
        "segments": SEGMENTS,
        "batch_size": 8,
        "steps": 300,
        "optimizer": "muon",
        "muon_learning_rate": 0.03,
        "learning_rate": 0.004,
        "warmup_steps": 40,
        "warm_tokens": 448,
        "val_sequences": 32,
        "compile": False,
    }
    data = {"source": "stdlib", "vocab_size": 512}
    return build(Recipe, {"name": "memory", "model": model, "data": data, "training": training}, "memory")


def placed(*layers: int) -> Schedule:
    """Return the schedule with long memories in these layers."""
    return Schedule.parse(" ".join(LONG if layer in layers else SHORT for layer in range(LAYERS)))


def schedules() -> dict[str, Schedule]:
    """Return the schedules by name."""
    return {
        "none": placed(),
        "1 at the bottom": placed(0),
        "1 in the middle": placed(3),
        "1 at the top": placed(5),
        "3 at the bottom": placed(0, 1, 2),
        "3 interleaved": placed(1, 3, 5),
        "3 at the top": placed(3, 4, 5),
        "all": placed(*range(LAYERS)),
    }


def main() -> None:
    """Train what is missing and write the table."""
    options = arguments(str(__doc__))
    folder = HERE / "toy" if options.toy else HERE
    folder.mkdir(exist_ok=True)
    group = Group(name="memory", recipe=recipe(), schedules=schedules(), seeds=SEEDS)
    run([toy(group) if options.toy else group], folder / "records.jsonl", options.workers, options.only)
    rows = read(folder / "records.jsonl")
    head = "Written by `study.py`. Intervals are 95%, paired by seed.\n\n"
    (folder / "tables.md").write_text(head + table(rows, "memory"))


if __name__ == "__main__":
    main()
