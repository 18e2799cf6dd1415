"""What the study trains, group by group. A group answers one question; its lines differ in the schedule alone.

Costs are exact: `equal_windows` and `equal_block` look for spans whose attention pairs are equal to the last pair.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache

from jobs import Job, Records

from layersearch.config.recipe import Recipe, load_recipe
from layersearch.schedule import Schedule, Span, presets
from layersearch.schedule.cost import span_pairs

SELECT = (100, 101)
"""Seeds on which searched placements are chosen; no claim rests on them."""
RUNNERS = 3
"""Placements that are trained at the second of them."""


@dataclass(frozen=True, kw_only=True)
class Group:
    """Schedules that are compared with each other on the same seeds."""

    name: str
    question: str
    recipe: str
    changes: tuple[str, ...] = ()
    switch: float | None = None
    lines: Mapping[str, str] = field(default_factory=dict)
    """Schedule by label."""
    base: str
    """The label that the others are compared with."""
    further: tuple[tuple[str, str], ...] = ()
    """Pairs of labels that are compared too, the first less the second."""
    searched: Mapping[str, int] = field(default_factory=dict)
    """Number of full layers by label: the best placement on the selection seeds."""
    span: str = ""
    """Of the layers that are not full, where placements are searched."""

    @property
    def labels(self) -> list[str]:
        """All lines, those that are searched last."""
        return [*self.lines, *self.searched]

    def loaded(self) -> Recipe:
        """Return the recipe with its changes."""
        return load_recipe(self.recipe, list(self.changes))

    def job(self, schedule: str, seed: int) -> Job:
        """Return a training of this group."""
        return Job(recipe=self.recipe, changes=self.changes, schedule=schedule, seed=seed, switch=self.switch)

    def placements(self, l: int) -> list[str]:
        """Return every placement of l full layers."""
        n, span = self.loaded().model.n_layers, Span.parse(self.span)
        chosen = itertools.combinations(range(n), l)
        return [str(Schedule(tuple(presets.FULL if at in full else span for at in range(n)))) for full in chosen]

    def runners(self, l: int, records: Records) -> list[str] | None:
        """Return the best at the first selection seed; None before all are trained."""
        losses = {text: records.loss(self.job(text, SELECT[0])) for text in self.placements(l)}
        if any(loss is None for loss in losses.values()):
            return None
        return sorted(losses, key=lambda text: (losses[text] or 0.0, text))[:RUNNERS]

    def winner(self, l: int, records: Records) -> str | None:
        """Return the placement of the lowest mean over both selection seeds; None before it is known."""
        runners = self.runners(l, records)
        if runners is None:
            return None
        sums = {}
        for text in runners:
            found = [records.loss(self.job(text, seed)) for seed in SELECT]
            if any(loss is None for loss in found):
                return None
            sums[text] = sum(loss or 0.0 for loss in found)
        return min(sums, key=lambda text: (sums[text], text))

    def schedule(self, label: str, records: Records) -> str | None:
        """Return a line's schedule; None where it is not chosen yet."""
        return self.lines[label] if label in self.lines else self.winner(self.searched[label], records)

    def jobs(self, records: Records, seeds: Sequence[int]) -> list[Job]:
        """Return what can be trained now: selection first, then every line at every seed."""
        found = []
        for l in self.searched.values():
            found += [self.job(text, SELECT[0]) for text in self.placements(l)]
            found += [self.job(text, SELECT[1]) for text in self.runners(l, records) or ()]
        schedules = [self.schedule(label, records) for label in self.labels]
        return found + [self.job(text, seed) for seed in seeds for text in schedules if text is not None]

    def count(self, seeds: int) -> int:
        """Return how many trainings it takes, at the most."""
        return sum(len(self.placements(l)) + RUNNERS for l in self.searched.values()) + len(self.labels) * seeds


def pairs(text: str, seq_len: int, n_heads: int) -> int:
    """Return the attention pairs of a span."""
    return span_pairs(Span.parse(text), seq_len, n_heads)


@cache
def equal_windows(n_layers: int, seq_len: int, smallest: int, largest: int) -> tuple[int, tuple[int, ...]]:
    """Return a window w and windows that grow with depth whose pairs add up to exactly those of w in every layer.

    The growing windows are the nearest to a geometric series between the two ends, in the sum of their distances.
    """
    ideal = [smallest * (largest / smallest) ** (at / (n_layers - 1)) for at in range(n_layers)]
    near = [range(max(1, round(size) - 3), round(size) + 4) for size in ideal]

    def cost(size: int) -> int:
        return size * seq_len - size * (size - 1) // 2

    fixed = {n_layers * cost(size): size for size in range(1, seq_len + 1)}
    best: tuple[float, int, tuple[int, ...]] | None = None
    for sizes in itertools.product(*near):
        total = sum(map(cost, sizes))
        if total in fixed and list(sizes) == sorted(set(sizes)):
            far = sum(abs(size - wanted) for size, wanted in zip(sizes, ideal, strict=True))
            if best is None or (far, sizes) < (best[0], best[2]):
                best = (far, fixed[total], sizes)
    assert best is not None, "no growing windows of exactly equal cost near the series"
    return best[1], best[2]


@cache
def equal_block(seq_len: int, least: int) -> tuple[int, int]:
    """Return the smallest block of at least so many tokens, and the window, whose pairs are equal in number."""
    windows = {pairs(f"window:{size}", seq_len, 1): size for size in range(1, seq_len)}
    for block in range(least, seq_len):
        found = windows.get(pairs(f"block:{block}", seq_len, 1))
        if found is not None:
            return block, found
    raise AssertionError("no block and window of equal cost")


def _placed(n: int, span: str, ls: Sequence[int]) -> dict[str, str]:
    """Return the named placements; a schedule that has several names stands once, under all of them."""
    found: dict[str, list[str]] = {}
    for l in ls:
        for place in (presets.bottom, presets.top, presets.middle, presets.interleaved):
            found.setdefault(str(place(n, l, span)), []).append(f"{place.__name__}({l})")
    return {" = ".join(names): text for text, names in found.items()}


def _dispute(data: str, recipe: str, span: str, switch: float | None) -> Group:
    n = load_recipe(recipe).model.n_layers
    regime = "from scratch" if switch is None else "converted"
    return Group(
        name=f"dispute-{data}-{'scratch' if switch is None else 'converted'}",
        question=f"Where do one or two full layers belong, on {'the mix' if data == 'mix' else data}, {regime}?",
        recipe=recipe,
        switch=switch,
        lines={
            "all-full": str(presets.all_full(n)),
            "all-sparse": str(presets.all_sparse(n, span)),
            **_placed(n, span, (1, 2)),
        },
        searched={"searched(1)": 1, "searched(2)": 2},
        span=span,
        base="all-full",
        further=(("top(2)", "top(1)"),),
    )


TEXT_LENGTH = 256
HEADS = ("model.n_heads=4", "model.n_kv_heads=4")
ALPHAS = (0.001, 0.01, 0.1, 0.5)
POOLS = (3, 5)


def _growing() -> Group:
    fixed, sizes = equal_windows(6, TEXT_LENGTH, 4, 64)

    def schedule(windows: Sequence[int]) -> str:
        return str(Schedule.parse(" ".join(f"window:{size}" for size in windows)))

    return Group(
        name="growing-windows",
        question="Do windows that grow with depth beat a fixed window of exactly the same cost, or shrinking ones?",
        recipe="text",
        lines={
            f"fixed ({fixed})": schedule([fixed] * 6),
            f"growing ({sizes[0]} to {sizes[-1]})": schedule(sizes),
            f"shrinking ({sizes[-1]} to {sizes[0]})": schedule(sizes[::-1]),
        },
        base=f"fixed ({fixed})",
        further=((f"growing ({sizes[0]} to {sizes[-1]})", f"shrinking ({sizes[-1]} to {sizes[0]})"),),
    )


def _dilation() -> Group:
    lines = {"no dilation": "window:16*6"}
    lines |= {f"dilation {d} in layers 3 to 5": f"window:16*3 window:16/{d}@2*3" for d in (2, 4)}
    lines |= {"dilation 2 in all layers": "window:16/2@2*6", "dilation 2, 3, 4 in layers 3 to 5": ""}
    lines["dilation 2, 3, 4 in layers 3 to 5"] = "window:16*3 window:16/2@2 window:16/3@2 window:16/4@2"
    return Group(
        name="dilation",
        question="Does dilation on two of four heads help?",
        recipe="text",
        changes=HEADS,
        lines=lines,
        base="no dilation",
    )


def _las(kind: str, span: str) -> Group:
    plain = f"{span}*6"
    lines = {"plain": plain}
    lines |= {f"alpha to {alpha:g}": f"{span}+las:{alpha:g}/1*6" for alpha in ALPHAS}
    lines |= {f"alpha to {ALPHAS[0]:g}, pool {p}": f"{span}+las:{ALPHAS[0]:g}/{p}*6" for p in POOLS}
    return Group(
        name=f"las-{kind}",
        question=f"Does LaS decay help in {kind} layers, and does its smoothing hurt?",
        recipe="text",
        changes=HEADS,
        lines=lines,
        base="plain",
        further=tuple((f"alpha to {ALPHAS[0]:g}, pool {p}", f"alpha to {ALPHAS[0]:g}") for p in POOLS),
    )


def _blocks(top: bool) -> Group:
    block, window = equal_block(TEXT_LENGTH, 24)
    rest = "*5 full" if top else "*6"
    where = " below a full layer" if top else ""
    lines = {f"{span}{where}": span + rest for span in (f"window:{window}", f"block:{block}")}
    lines[f"window:{block}{where} (equal size, dearer)"] = f"window:{block}{rest}"
    return Group(
        name="block-or-window-" + ("below-full" if top else "alone"),
        question=f"Block or sliding window, at exactly equal cost{', below a full layer' if top else ''}?",
        recipe="text",
        lines=lines,
        base=next(iter(lines)),
        further=((list(lines)[1], list(lines)[2]),),
    )


def _more(data: str, recipe: str, span: str) -> Group:
    n = load_recipe(recipe).model.n_layers
    places = {"top(2)": presets.top(n, 2, span), "top(3)": presets.top(n, 3, span), "top(4)": presets.top(n, 4, span)}
    places["middle(3)"] = presets.middle(n, 3, span)
    return Group(
        name=f"more-full-{data}",
        question=f"Do three or four full layers beat two, on {'the mix' if data == 'mix' else data}?",
        recipe=recipe,
        lines={label: str(schedule) for label, schedule in places.items()},
        base="top(2)",
    )


def groups() -> dict[str, Group]:
    """Return every group by name."""
    found = [
        _dispute(data, recipe, span, switch)
        for data, recipe, span in (("mix", "laptop", "window:4"), ("text", "text", "window:2"))
        for switch in (None, 0.5)
    ]
    found += [_growing(), _dilation(), _las("local", "window:32"), _las("full", "full"), _blocks(False), _blocks(True)]
    found += [_more("text", "text", "window:2"), _more("mix", "laptop", "window:4")]
    return {group.name: group for group in found}


@dataclass(frozen=True, kw_only=True)
class Move:
    """One factor with which l* may move: the command's own study at each of its values."""

    name: str
    """What varies."""
    recipe: str
    values: Mapping[int, tuple[tuple[str, ...], str]]
    """By value: changes of the recipe, and the sparse span."""
    unit: str


def moves() -> dict[str, Move]:
    """Return every factor by name."""
    # A batch has as many tokens at every length. Mix is not among them: from 16 sequences of 128 tokens a step, recall
    # was not learnt in 240 steps (analysis/signal/mix_sweep.jsonl, "pure-T128").
    lengths = {t: (f"training.seq_len={t}", f"training.batch_size={2048 // t}") for t in (64, 128, 256, 512)}
    found = [
        Move(
            name="length-text",
            recipe="text",
            values={t: (changes, "window:2") for t, changes in lengths.items()},
            unit="tokens",
        ),
        Move(
            name="depth-text",
            recipe="text",
            values={n: ((f"model.n_layers={n}",), "window:2") for n in (3, 6, 9)},
            unit="layers",
        ),
        Move(
            name="depth-mix",
            recipe="laptop",
            values={n: ((f"model.n_layers={n}",), "window:4") for n in (3, 6, 9)},
            unit="layers",
        ),
        Move(
            name="window-text",
            recipe="text",
            values={w: ((), f"window:{w}") for w in (2, 4, 8, 16)},
            unit="tokens",
        ),
        Move(
            name="training-text",
            recipe="text",
            values={s: ((f"training.steps={s}",), "window:2") for s in (150, 300, 600)},
            unit="steps",
        ),
    ]
    return {move.name: move for move in found}
