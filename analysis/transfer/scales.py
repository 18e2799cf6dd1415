"""The schedules of the study, the scales at which they are trained, and how a schedule maps to another depth."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PREPARED = HERE / "prepared"
"""The text as token ids, made by ``study.py data``. A machine with another Python would read other source files."""
DATA = ("mix", "text")
SLOTS, TOKENS = 6, 64
"""Depth and length at which the schedules below are written: those of the recipe ``laptop``."""
MOST_TOKENS = 6_000_000
"""Tokens of text that are read: more than the longest training draws."""
EARLY = (0.125, 0.25, 0.5, 1.0)
"""Shares of the steps at which every schedule is validated."""


@dataclass(frozen=True, kw_only=True)
class Scale:
    """A size of model and training."""

    depth: int = 6
    width: int = 64
    tokens: int = TOKENS
    rows: int = 32  # sequences of a step
    steps: int = 220
    seeds: int = 3
    compiled: bool = False  # with --compile; a small model's time is not in what a compiler fuses


SCALES = {
    "base": Scale(),
    "half-steps": Scale(steps=110),
    "steps-x3": Scale(steps=660),
    "half-width": Scale(width=32),
    "width-x2": Scale(width=128),
    "width-x4": Scale(width=256),
    "depth-x2": Scale(depth=12),
    "length-x2": Scale(tokens=128),
    "length-x4": Scale(tokens=256, rows=16),
    "middle": Scale(width=128, tokens=256, rows=16, steps=300, compiled=True),
    "deep-middle": Scale(depth=12, width=128, tokens=256, rows=16, steps=300, compiled=True),
    "large": Scale(depth=12, width=256, tokens=512, rows=16, steps=300, seeds=2, compiled=True),
    "toy": Scale(width=32, tokens=64, rows=4, steps=8, seeds=2),
}
"""`base` is the recipe ``laptop``. Those named after one thing change it alone (`length-x4` also halves the rows)."""


def _written() -> dict[str, str]:
    """Return the schedules at `SLOTS` layers and `TOKENS` tokens, by name. At equal cost where a name says so."""

    def full(*layers: int, rest: str = "window:4") -> str:
        return " ".join("full" if layer in layers else rest for layer in range(SLOTS))

    def windows(*sizes: int) -> str:
        return " ".join(f"window:{size}" for size in sizes)

    return {
        "all-full": "full*6",
        "all-narrow": "window:4*6",
        # One full layer, or what costs as much: 0.26 to 0.29 of all-full
        **{f"one full: {layer}": full(layer) for layer in range(SLOTS)},
        "one window, cost of one full": "window:9*6",
        "growing windows": windows(2, 4, 6, 10, 16, 20),
        "shrinking windows": windows(20, 16, 10, 6, 4, 2),
        "widest in the middle": windows(2, 6, 16, 20, 10, 4),
        "blocks": "block:16*6",
        "bottom full over blocks": full(0, rest="block:8"),
        "middle full over blocks": full(3, rest="block:8"),
        # Two full layers, or what costs as much: 0.41 of all-full
        "bottom two": full(0, 1),
        "middle two": full(2, 3),
        "top two": full(4, 5),
        "first and last": full(0, 5),  # also: layer 0 and 5:1
        "interleaved two": full(1, 4),
        "3:1, last full": full(3, 5),
        "every third, last full": full(2, 5),
        "every third, first full": full(0, 3),
        "two below the middle": full(1, 2),
        "two apart, below": full(1, 3),
        "one window, cost of two full": "window:15*6",
        # Templates of half full layers
        "odd layers": full(1, 3, 5, rest="window:2"),
        "even layers": full(0, 2, 4, rest="window:2"),
    }


def stretch(text: str, *, depth: int, tokens: int) -> Any:
    """Return a schedule of `SLOTS` layers and `TOKENS` tokens at another depth and length.

    Layers map by relative depth (`layersearch.schedule.stretch`); windows and blocks keep their share of the text. Both
    keep the cost relative to all-full. The reach of all layers together then grows with the depth, as it does between
    real models of one window size.
    """
    from layersearch.schedule import Schedule
    from layersearch.schedule import stretch as mapped

    return mapped(Schedule.parse(text), depth=depth, scale=tokens / TOKENS)


def schedules(scale: Scale) -> dict[str, Any]:
    """Return the schedules at a scale, by name."""
    return {name: stretch(text, depth=scale.depth, tokens=scale.tokens) for name, text in _written().items()}


def recipe(scale: Scale, data: str, precision: str) -> Any:
    """Return the recipe ``laptop`` at a scale: heads of 32 to 64, recall from beyond half the text."""
    from layersearch.config.recipe import load_recipe

    width, tokens = scale.width, scale.tokens
    sizes: dict[str, Any] = {
        "model.n_layers": scale.depth,
        "model.d_model": width,
        "model.n_heads": max(1, min(width // 32, 4)),
        "model.n_kv_heads": max(1, min(width // 32, 4)),
        "model.d_ff": width * 5 // 2,
        "data.source": "mix" if data == "mix" else "stdlib",
        "data.max_tokens": MOST_TOKENS,
        "data.distance": tokens // 2 - 1,
        "training.seq_len": tokens,
        "training.batch_size": scale.rows,
        "training.steps": scale.steps,
        "training.warmup_steps": min(20, scale.steps),
        "training.precision": precision,
    }
    return load_recipe("laptop", [f"{key}={value}" for key, value in sizes.items()])


def prepare() -> None:
    """Write the text's tokens to `PREPARED`."""
    import json
    import shutil

    from layersearch.data import default_cache
    from layersearch.data.text import open_text

    text = open_text(recipe(Scale(), "text", "float32").data, TOKENS, default_cache())
    assert text.tokenizer_file is not None
    made = text.tokenizer_file.parent
    PREPARED.mkdir(exist_ok=True)
    for file in made.iterdir():
        shutil.copy(file, PREPARED / file.name)
    print(json.dumps(dict(text.details), default=str))


def source(found: Any) -> Any:
    """Return the data of a recipe, from `PREPARED` if it is there."""
    import json

    from layersearch.data import open_source
    from layersearch.data.mix import Mix
    from layersearch.data.text import Text

    index = PREPARED / "prepared.json"
    if not index.exists():
        return open_source(found.data, found.training.seq_len)
    text = Text(PREPARED, json.loads(index.read_text())["facts"], "stdlib", found.training.seq_len)
    return Mix(found.data, found.training.seq_len, PREPARED, text) if found.data.source == "mix" else text
