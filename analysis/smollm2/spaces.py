"""Several windows or one? With sinks or without? Which sizes? Each space at one budget, chosen by gates."""

from __future__ import annotations

import time
from collections.abc import Sequence

from bench import BUDGET, Bench, Held, append, costs_of, full_layers, lines, measure_all, within

CONFIRM, GATE_STEPS, DRAWS = 8, 8, 1
SPACES = {
    "32+sink": ("window:32+sink:4",),
    "64+sink": ("window:64+sink:4",),
    "128+sink": ("window:128+sink:4",),
    "64": ("window:64",),
    "64+sink, 128+sink": ("window:64+sink:4", "window:128+sink:4"),
    "64, 128, each with and without sinks": ("window:64", "window:64+sink:4", "window:128", "window:128+sink:4"),
}
"""The spans beside full attention."""


def run(model: str, prose: Sequence[str]) -> None:
    """Choose in every space for each calibration draw; then measure on held-out units."""
    from layersearch.schedule import presets
    from layersearch.selection.gates import descend

    bench = Bench(model)
    done = {(r["space"], r["draw"]) for r in lines("spaces")}
    for draw in range(DRAWS):
        for name, spans in SPACES.items():
            if (name, draw) in done:
                continue
            space, began = bench.space("full", *spans), time.perf_counter()
            scorer = bench.scorer("calibration", 4 * draw, 4)
            scores = descend(scorer, space.options, costs_of(space), BUDGET, steps=GATE_STEPS, rate=0.5)
            schedule = within(space, scores, BUDGET)
            seconds = round(time.perf_counter() - began, 1)
            found = {"schedule": str(schedule), "cost": space.cost(schedule), "seconds": seconds}
            append("spaces", {"space": name, "draw": draw, **found})
    chosen = [r["schedule"] for r in lines("spaces")]
    measure_all(bench, "spaces-held-out", [str(presets.all_full(bench.model.n_layers)), *chosen], CONFIRM)


def table() -> list[str]:
    """Return the comparison as lines of Markdown, from the records alone."""
    held = Held(lines("spaces-held-out"))
    full = next(text for text in held.by if text.startswith("full*30"))
    by: dict[str, list[dict[str, object]]] = {}
    for record in lines("spaces"):
        if record["schedule"] in held.by:
            by.setdefault(record["space"], []).append(record)
    base = [str(r["schedule"]) for r in by["64+sink"]]
    rows = []
    for name, records in by.items():
        chosen = [str(r["schedule"]) for r in records]
        text, less = held.minus(chosen, full, "text"), held.minus(chosen, base, "text")
        versus = "" if name == "64+sink" else f"{less.mean:+.3f} ± {less.half_width:.3f}"
        layers = " / ".join(map(full_layers, chosen))
        cost = " / ".join(f"{r['cost']:.3f}" for r in records)
        row = f"| {name} | {cost} | {text.mean:+.3f} ± {text.half_width:.3f} | {versus} "
        rows.append((text.mean, row + f"| {held.mean(chosen, 'accuracy'):.2f} | {layers} |"))
    return [
        f"{len(held.units)} held-out documents; text loss minus all-full's, paired by document, means over draws.",
        "",
        "| spans beside full | cost | text loss, nats | less `64+sink` | digits right | full layers, by draw |",
        "|---|---|---|---|---|---|",
        *(row for _, row in sorted(rows)),
    ]
