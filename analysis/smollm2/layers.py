"""Which layers, for which text, length, budget and goal? Choices by gates, and what each costs the others.

Every choice is by gates over full attention and one window with sinks, T/32 tokens of T. Then the choices are measured
on held-out documents of every text and length, each with the window of that length, so that the layers alone differ.
"""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from bench import BUDGET, WEIGHT, Bench, Held, append, costs_of, device_name, full_layers, lines, measure_all, within

GATE_STEPS = 6
COUNTS = {"calibration": 8, "confirmation": 12, "healing": 40}
LONG = {"calibration": 8, "confirmation": 8, "healing": 8}
UNITS = 4
"""Calibration units of a choice."""
LENGTHS, TEXTS, BUDGETS = (1024, 2048, 4096), ("code", "prose"), (0.15, BUDGET, 0.4)
GOALS = {WEIGHT: "", 0.0: ", text alone", 0.9: ", retrieval"}


@dataclasses.dataclass(frozen=True)
class Condition:
    """What the layers are chosen for."""

    text: str
    seq_len: int
    budget: float = BUDGET
    weight: float = WEIGHT
    """Of retrieval in the loss."""
    draw: int = 0

    @property
    def name(self) -> str:
        """The condition in tables."""
        other = ", other documents" if self.draw else ""
        at = "" if self.budget == BUDGET else f", budget {self.budget:g}"
        return f"{self.text}, {self.seq_len:,}{at}{GOALS[self.weight]}{other}"


def sparse(seq_len: int) -> str:
    """Return the span of the layers that are not full: a 32nd of the text, and four sinks."""
    return f"window:{seq_len // 32}+sink:4"


def conditions() -> Iterator[Condition]:
    """Yield the conditions in the order of their worth: the study may be stopped after any."""
    for seq_len in LENGTHS:
        for text, budget in itertools.product(TEXTS, (BUDGET, *(b for b in BUDGETS if b != BUDGET))):
            yield Condition(text, seq_len, budget)
        for text in TEXTS:
            yield Condition(text, seq_len, draw=1)
            yield Condition(text, seq_len, weight=0.0)
            yield Condition(text, seq_len, weight=0.9)


def run(
    model: str, prose: Sequence[str], device: str = "cpu", most: int | None = None, lengths: int | None = None
) -> None:
    """Choose under the first conditions; then measure the choices of one budget on every text and length.

    Args:
        model: the GGUF file.
        prose: files or folders of English prose; none: code alone.
        device: where the model runs.
        most: conditions; None: all.
        lengths: measure the choices at so many lengths only, the shortest first.
    """
    from layersearch.selection.gates import descend

    benches: dict[tuple[str, int], Bench] = {}

    def bench_of(text: str, seq_len: int) -> Bench:
        if (text, seq_len) not in benches:
            shared = next(iter(benches.values()), None)
            counts = COUNTS if seq_len == LENGTHS[0] else LONG
            files = prose if text == "prose" else ()
            benches[text, seq_len] = Bench(model, seq_len, files, counts, shared=shared, device=device)
        return benches[text, seq_len]

    texts = TEXTS if prose else TEXTS[:1]
    done = {r["condition"] for r in lines("layers")}
    for condition in itertools.islice(conditions(), most):
        if condition.name in done or condition.text not in texts:
            continue
        bench = bench_of(condition.text, condition.seq_len)
        space, began = bench.space("full", sparse(condition.seq_len)), time.perf_counter()
        scorer = bench.scorer("calibration", UNITS * condition.draw, UNITS, condition.weight)
        scores = descend(scorer, space.options, costs_of(space), condition.budget, steps=GATE_STEPS, rate=0.5)
        schedule = within(space, scores, condition.budget)
        full = next(at for at, span in enumerate(space.options[0]) if span.is_full)
        needs = [float(layer[1 - full] - layer[full]) for layer in scores]
        seconds = round(time.perf_counter() - began, 1)
        facts = {**dataclasses.asdict(condition), "seconds": seconds, "device": device_name(device)}
        append("layers", {"condition": condition.name, "schedule": str(schedule), "needs": needs, **facts})
    chosen = [r for r in lines("layers") if r["budget"] == BUDGET]
    for seq_len, text in itertools.product(LENGTHS[:lengths], texts):
        if any(r["seq_len"] == seq_len for r in chosen):
            bench = bench_of(text, seq_len)
            wanted = [*_places(chosen, seq_len), *_ends(bench.model.n_layers, seq_len)]
            measure_all(bench, "layers-held-out", wanted, 8, source=text, seq_len=seq_len)


def _places(chosen: Sequence[dict[str, Any]], seq_len: int) -> dict[str, list[str]]:
    """Return each choice of layers with the window of a length, and the conditions that chose it."""
    from layersearch.schedule import Schedule, presets

    found: dict[str, list[str]] = {}
    for record in chosen:
        spans = Schedule.parse(record["schedule"])
        full_at = [at for at, span in enumerate(spans) if span.is_full]
        found.setdefault(str(presets.place(len(spans), full_at, sparse(seq_len))), []).append(record["condition"])
    return found


def _ends(n: int, seq_len: int) -> dict[str, str]:
    """Return what choices are compared with."""
    from layersearch.schedule import presets

    span = sparse(seq_len)
    named = {f"{name}(6)": getattr(presets, name)(n, 6, span) for name in ("interleaved", "top")}
    named |= {"all full": presets.all_full(n), "all sparse": presets.all_sparse(n, span)}
    return {str(schedule): name for name, schedule in named.items()}


def table() -> list[str]:
    """Return the agreement of the answers as lines of Markdown, from the records alone."""
    from scipy.stats import spearmanr

    records = lines("layers")
    same = next(r for r in records if r["condition"] == "code, 1,024")
    rows = []
    for record in records:
        rank = float(spearmanr(record["needs"], same["needs"]).statistic)
        ours, other = (set(full_layers(r["schedule"]).split()) - {"none"} for r in (record, same))
        shared = "" if record is same else f"{len(ours & other)} of {min(len(ours), len(other))} | {rank:.2f}"
        rows.append(f"| {record['condition']} | {full_layers(record['schedule'])} | {shared or ' | '} |")
    out = [
        f"Each choice is by gates over full attention and `window:T/32+sink:4`, {GATE_STEPS} steps on {UNITS} units.",
        "*Shared* layers and Spearman's rank correlation of all 30 needs are against `code, 1,024`. The budget is",
        f"{BUDGET} where none is named. The choices were made on: {', '.join(sorted({r['device'] for r in records}))}.",
        "",
        "| text, tokens | full layers | shared | Spearman |",
        "|---|---|---|---|",
        *rows,
    ]
    held_out = lines("layers-held-out")
    for seq_len, text in itertools.product(LENGTHS, TEXTS):
        held = Held(r for r in held_out if (r["source"], r["seq_len"]) == (text, seq_len))
        if held.by:
            out += _measured(held, text, seq_len, [r for r in records if r["budget"] == BUDGET])
    return out + _regrets(held_out, records)


def _measured(held: Held, text: str, seq_len: int, chosen: Sequence[dict[str, Any]]) -> list[str]:
    """Return the table of one text and length."""
    ends = _ends(30, seq_len)
    full = next(schedule for schedule, name in ends.items() if name == "all full")
    places = _places(chosen, seq_len)
    own = next((s for s, names in places.items() if f"{text}, {seq_len:,}" in names), None)
    made = []
    for schedule in held.by:
        if schedule == full:
            continue
        names = places.get(schedule, []) + ([ends[schedule]] if schedule in ends else [])
        loss, less = held.minus(schedule, full, "loss"), None if own is None else held.minus(schedule, own, "loss")
        versus = "" if schedule == own or less is None else f"{less.mean:+.3f} ± {less.half_width:.3f}"
        digits = f"{held.mean(schedule, 'accuracy'):.2f}"
        said = f"{held.minus(schedule, full, 'text').mean:+.3f}"
        cells = ["; ".join(names), full_layers(schedule), f"{loss.mean:+.3f} ± {loss.half_width:.3f}", versus, said]
        made.append((loss.mean, "| " + " | ".join([*cells, digits]) + " |"))
    return [
        "",
        f"### The choices, measured on {text} at {seq_len:,} tokens",
        "",
        f"{len(held.units)} held-out documents, losses minus all-full's, paired. Other layers: `{sparse(seq_len)}`.",
        f"All-full: text {held.mean(full, 'text'):.3f} nats, {held.mean(full, 'accuracy'):.2f} of the digits right.",
        "",
        "| chosen for | full layers | loss, nats | less its own choice | text, nats | digits right |",
        "|---|---|---|---|---|---|",
        *(row for _, row in sorted(made)),
    ]


def _regrets(held_out: Sequence[dict[str, Any]], records: Sequence[dict[str, Any]]) -> list[str]:
    """Return what a choice for one text and length loses on another, against that one's own choice, in nats."""
    names = [f"{text}, {seq_len:,}" for seq_len in LENGTHS for text in TEXTS]
    chosen = {r["condition"]: r for r in records if r["condition"] in names}
    rows = []
    for seq_len, text in itertools.product(LENGTHS, TEXTS):
        held, own = Held(r for r in held_out if (r["source"], r["seq_len"]) == (text, seq_len)), f"{text}, {seq_len:,}"
        if not held.by or own not in chosen:
            continue
        cells = []
        for name in names:
            if name not in chosen:
                continue
            ours, other = (next(iter(_places([chosen[n]], seq_len))) for n in (name, own))
            less = held.minus(ours, other, "loss")
            same = ours == other or not np.isfinite(less.half_width)
            cells.append("0" if same else f"{less.mean:+.3f} ± {less.half_width:.3f}")
        rows.append(f"| {own} | " + " | ".join(cells) + " |")
    present = [name for name in names if name in chosen]
    if not rows:
        return []
    return [
        "",
        "### What a choice loses elsewhere",
        "",
        "Loss (text and answers) of each column's layers less that of the row's own layers, measured on the row, nats.",
        "",
        "| measured on | " + " | ".join(f"for {name}" for name in present) + " |",
        "|---" * (len(present) + 1) + "|",
        *rows,
    ]
