"""Does the place of a full layer matter as much in an encoder, and what do other patterns give at equal cost?

Command:  python analysis/encoders/study.py [--workers N] [--only encoder decoder t5]
Time:     about 35 minutes on one idle core; trials that are in records.jsonl are not trained again
Shows:    encoder: 4 layers, masked language modeling on the standard library, 128 tokens. The patterns have the cost of
          one full layer among windows of 1 token on each side, to the nearest size. decoder: the same places in a
          decoder of equal size on the same text. t5: in the encoder of an encoder-decoder.

Writes records.jsonl and tables.md beside itself. ``--toy`` writes into /tmp.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from layersearch.config.loader import build  # noqa: E402
from layersearch.config.recipe import Recipe  # noqa: E402
from layersearch.schedule import Schedule  # noqa: E402
from layersearch.schedule.work import Work  # noqa: E402
from trials import FAST, SMALL, Group, arguments, placed, read, run, table, toy  # noqa: E402

LAYERS, TOKENS, SEEDS = 4, 128, 3
NEAR = {"encoder": "window:1", "decoder": "window:3", "t5": "window:1"}
"""3 keys in all three."""


def recipe(kind: str) -> Recipe:
    """Return the recipe of a group: that of ``text``, which was tuned for decoders, at more steps."""
    model = SMALL | {
        "kind": {"t5": "encoder_decoder"}.get(kind, kind),
        "n_layers": LAYERS,
    }
    if kind == "t5":
        model["other_layers"] = 2
    training = FAST | {
        "seq_len": TOKENS,
        "batch_size": 16,
        "steps": 200,
        "muon_learning_rate": 0.03,
        "val_sequences": 64,
    }
    data = {"source": "stdlib", "vocab_size": 512} | ({} if kind == "decoder" else {"mask_share": 0.3})
    return build(Recipe, {"name": f"encoders-{kind}", "model": model, "data": data, "training": training}, kind)


def full_at(near: str, *layers: int) -> Schedule:
    """Return the schedule with these full layers."""
    return placed(layers, near, LAYERS)


def nearest(work: Work, target: float, made: Callable[[Any], str], sizes: Iterable[Any]) -> Schedule:
    """Return the schedule of a family whose cost is closest to a target."""
    return min((Schedule.parse(made(size)) for size in sizes), key=lambda one: abs(work.ratio(one) - target))


def schedules(kind: str) -> dict[str, Schedule]:
    """Return the schedules of a group by name."""
    near = NEAR[kind]
    found = {f"full at {layer}": full_at(near, layer) for layer in ((0, 3) if kind == "t5" else (0, 1, 3))}
    found |= {"l = 0": full_at(near), "l = 2": full_at(near, 1, 3), "all full": full_at(near, *range(LAYERS))}
    if kind != "encoder":
        return found
    work = Work.of(recipe(kind))
    target = work.ratio(found["full at 0"])
    wide = range(1, 60)
    found["windows"] = nearest(work, target, lambda w: f"window:{w}*{LAYERS}", wide)
    found["windows and 8 global"] = nearest(work, target, lambda w: f"window:{w}+global:first:8*{LAYERS}", wide)
    found["windows and summaries"] = nearest(work, target, lambda w: f"window:{w}+summary:16*{LAYERS}", wide)
    stagger = (f"block:{b} block:{b}~{b // 2} " * 2 for b in range(2, 60))
    found["blocks, staggered"] = nearest(work, target, lambda text: text, stagger)
    pairs = ((b, r) for b in range(2, 24) for r in (1, 2, 3))
    found["BigBird"] = nearest(work, target, lambda one: f"bigbird:{one[0]}/{one[1]}*{LAYERS}", pairs)
    return found


def groups() -> list[Group]:
    """Return the three groups."""
    return [
        Group(name=kind, recipe=recipe(kind), schedules=schedules(kind), seeds=SEEDS)
        for kind in ("encoder", "decoder", "t5")
    ]


def main() -> None:
    """Train what is missing and write the tables."""
    options = arguments(str(__doc__))
    folder = Path("/tmp/encoders-toy") if options.toy else HERE
    folder.mkdir(exist_ok=True)
    asked = [toy(group) for group in groups()] if options.toy else groups()
    run(asked, folder / "records.jsonl", options.workers, options.only)
    rows = read(folder / "records.jsonl")
    parts = [f"## {group.name}\n\n{table(rows, group.name, 'accuracy')}" for group in asked]
    (folder / "tables.md").write_text(
        "Written by `study.py`. Intervals are 95%, paired by seed.\n\n" + "\n".join(parts)
    )


if __name__ == "__main__":
    main()
