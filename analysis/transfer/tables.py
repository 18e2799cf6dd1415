"""The tables of the study, from its records alone."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from scales import DATA, EARLY, SCALES, recipe, schedules

from layersearch.results.transfer import GOAL, corrected_correlation, regret

TARGETS = ("middle", "deep-middle", "large")
"""The larger scales: the last with two seeds, the others with three."""
RESAMPLES = 600
Records = list[dict[str, Any]]


def cost_groups() -> dict[str, int]:
    """Return the group of equal cost of each schedule: that of one full layer, of two, or one of its own."""
    names = list(schedules(SCALES["base"]))
    one, two = names.index("one full: 0"), names.index("bottom two")
    ends = names.index("odd layers")
    return {name: 0 if one <= at < two else 1 if two <= at < ends else 2 + at for at, name in enumerate(names)}


def placements() -> list[str]:
    """Return the schedules that differ in the place of one or two full layers alone; the others are windows of 4."""
    made = schedules(SCALES["base"])
    return [name for name, s in made.items() if 0 < s.n_full < 3 and {str(span) for span in s} == {"full", "window:4"}]


def losses(records: Records, data: str, scale: str, at: int = -1, measure: str = "loss") -> np.ndarray:
    """Return losses, nats, [schedules, seeds], at one of the checkpoints; infinity where one is not finite."""
    held = sorted((r for r in records if (r["scale"], r["data"]) == (scale, data)), key=lambda r: r["seed"])
    rows = [[r["measures"][measure][name][at] for r in held] for name in schedules(SCALES["base"])]
    return np.array([[math.inf if value is None else value for value in row] for row in rows])


def flops(scale_name: str, data: str) -> float:
    """Return the FLOPs of one training, mean over schedules. A step counts as three forward passes, and a
    multiply-add as one FLOP, as everywhere in the project; a mask saves what it hides."""
    from layersearch.model.flops import model_flops

    scale = SCALES[scale_name]
    config = recipe(scale, data, "float32").model
    vocabulary = 532 if data == "mix" else 512
    one = [model_flops(config, vocabulary, each, seq_len=scale.tokens) for each in schedules(scale).values()]
    return 3 * scale.rows * scale.steps * float(np.mean(one))


def table(head: str, rows: Sequence[Sequence[str]]) -> list[str]:
    """Return a Markdown table and an empty line."""
    columns = head.split(" | ")
    made = ["| " + head + " |", "|" + "---|" * len(columns)]
    return [*made, *("| " + " | ".join(row) + " |" for row in rows), ""]


def present(records: Records, data: str) -> list[str]:
    """Return the scales with records of this data, in the order of `SCALES`."""
    found = {r["scale"] for r in records if r["data"] == data}
    return [name for name in SCALES if name in found and name != "toy"]


def scales_table(records: Records) -> list[str]:
    """Sizes, FLOPs, and how much seeds move a loss."""
    rows = []
    for name in sorted({r["scale"] for r in records}, key=list(SCALES).index):
        scale = SCALES[name]
        row = [name, str(scale.depth), str(scale.width), str(scale.tokens), str(scale.rows), str(scale.steps)]
        row.append(f"{flops(name, 'mix'):.1e}")
        for data in DATA:
            found = losses(records, data, name)
            if not found.size:
                row += ["0", "", ""]
                continue
            row += [str(found.shape[1]), f"{found.mean(1).std(ddof=1):.3f}", noise(found)]
        rows.append(row)
    each = [f"{data}: seeds | spread, nats | seed std, nats (median, largest)" for data in DATA]
    return table(" | ".join(["scale", "layers", "width", "tokens", "rows", "steps", "FLOPs", *each]), rows)


def noise(found: np.ndarray) -> str:
    """Return the standard deviation over seeds, less what all schedules share: the median and the largest."""
    if found.shape[1] < 2:
        return "–"
    stds = (found - found.mean(0)).std(1, ddof=1)
    return f"{np.median(stds):.3f}, {stds.max():.3f}"


def targets_table(records: Records, data: str, target: str) -> list[str]:
    """Each scale against one target: all schedules, equal cost, placements; regret of its winner."""
    goal = losses(records, data, target)
    by_name, only = cost_groups(), placements()
    names = list(by_name)
    groups, kept = list(by_name.values()), [names.index(name) for name in only]
    cost = np.array([float(attention_cost(name)) for name in names])
    rows = []

    def correlations(small: np.ndarray, large: np.ndarray) -> list[str]:
        every = corrected_correlation(small, large, resamples=RESAMPLES)
        equal = corrected_correlation(small, large, groups=groups, resamples=RESAMPLES)
        placed = corrected_correlation(
            small[kept], large[kept], groups=[groups[at] for at in kept], resamples=RESAMPLES
        )
        return ["–" if found is None else str(found) for found in (every, equal, placed)]

    sides = [(name, losses(records, data, name), goal) for name in present(records, data) if name != target]
    if goal.shape[1] > 1:
        sides.append((f"{target}, seed 0, against its others", goal[:, :1], goal[:, 1:]))
    for said, small, large in sides:
        found = regret(small, large)
        fresh = "–" if found.fresh is None else f"{found.fresh:.3f}"
        rows.append([said, *correlations(small, large), names[found.picked], f"{found.nats:.3f}", fresh])
    dearer = -cost[:, None]
    picked = regret(dearer, goal)
    rows.append(["cost alone", *correlations(dearer, goal), names[picked.picked], f"{picked.nats:.3f}", ""])
    rows.append(["at random", "0", "0", "0", "", f"{picked.chance:.3f}", ""])
    head = "scale | Spearman, all 28 | at equal cost | placements alone | its winner | regret, nats | on fresh seeds"
    title = f"### {data}, against {target} ({goal.shape[1]} seed{'s' if goal.shape[1] > 1 else ''}; its best: "
    return [title + f"{names[int(goal.mean(1).argmin())]})", "", *table(head, rows)]


def attention_cost(name: str) -> float:
    """Return a schedule's attention FLOPs relative to all-full."""
    from layersearch.schedule.cost import budget_ratio

    return budget_ratio(schedules(SCALES["base"])[name], seq_len=64, n_heads=2)


def price_rows(records: Records, data: str, target: str) -> list[tuple[float, str, float, float, float]]:
    """Return FLOPs of one schedule, what was trained, and Spearman with the target's true ranking with its interval.

    The proxy is taken as it is, with its noise; the target alone is corrected. Of several seeds the mean over all
    subsets is given, and the interval of the first.
    """
    made = []
    for name in present(records, data):
        for at, share in enumerate(EARLY):
            small, goal = losses(records, data, name, at), losses(records, data, target)
            if name == target and (share == 1.0 or goal.shape[1] < 2):
                continue
            for seeds in range(1, small.shape[1] + 1):
                values, first = [], None
                for subset in itertools.combinations(range(small.shape[1]), seeds):
                    rest = [s for s in range(goal.shape[1]) if name != target or s not in subset]
                    if not rest:  # one training must not predict itself
                        continue
                    mean = small[:, list(subset)].mean(1, keepdims=True)
                    resamples = RESAMPLES if first is None else 1
                    found = corrected_correlation(mean, goal[:, rest], resamples=resamples)
                    if found is not None:
                        values.append(found.corrected)
                        first = first or (found.low, found.high)
                if values and first is not None and first[0] is not None and first[1] is not None:
                    said = f"{name}, {share:g} of the steps, {seeds} seed{'s' if seeds > 1 else ''}"
                    price = flops(name, data) * share * seeds
                    made.append((price, said, float(np.mean(values)), first[0], first[1]))
    return sorted(made)


def price_table(records: Records, data: str, target: str) -> list[str]:
    """The trainings that no cheaper one beats, and the cheapest that reaches `GOAL`."""
    rows = price_rows(records, data, target)
    own, best, shown = flops(target, data), -1.0, []
    for price, said, value, low, high in rows:
        if value > best + 0.005:
            best = value
            shown.append([said, f"{price:.1e}", f"{price / own:.4f}", f"{value:.2f} ({low:.2f} to {high:.2f})"])
    reach = next((row for row in rows if row[2] >= GOAL), None)
    sure = next((row for row in rows if row[3] >= GOAL), None)
    lines = [f"### {data}, {target}: the best Spearman for the FLOPs", ""]
    lines += table("trained for each schedule | FLOPs | share of one training of the target | Spearman", shown)
    for what, row in ((f"Spearman {GOAL:g}", reach), (f"a lower end of {GOAL:g}", sure)):
        found = "none" if row is None else f"{row[1]} ({row[2]:.2f}, {row[3]:.2f} to {row[4]:.2f})"
        lines.append(f"- Cheapest with {what}: {found}.")
    return [*lines, ""]


def early_table(records: Records, data: str, target: str) -> list[str]:
    """Early losses and fewer seeds of each scale against one target, point estimates."""
    by = {said: value for _, said, value, _, _ in price_rows(records, data, target)}
    rows = []
    for name in present(records, data):
        row = [name, f"{flops(name, data) / flops(target, data):.3f}"]
        for seeds in (1, 2, 3):
            for share in EARLY if seeds == 1 else (1.0,):
                key = f"{name}, {share:g} of the steps, {seeds} seed{'s' if seeds > 1 else ''}"
                row.append(f"{by[key]:.2f}" if key in by else "")
        rows.append(row)
    head = (
        "scale | FLOPs, of one training of the target | 1 seed: 1/8 of the steps | 1/4 | 1/2 | all | 2 seeds | 3 seeds"
    )
    return [f"### {data}, against {target}: early losses and seeds", "", *table(head, rows)]


def report(records: Records) -> str:
    """Return the tables of all records."""
    from law import law_table
    from smollm2 import lines as real_model

    out = ["# Transfer between scales: tables", "", "Written by `study.py report` from `records/`.", ""]
    out += ["## Scales", "", *scales_table(records)]
    for data in DATA:
        targets = [name for name in TARGETS if name in present(records, data)]
        out += [f"## {data}", ""]
        for target in targets:
            out += targets_table(records, data, target)
        for target in targets:
            out += price_table(records, data, target)
        for target in targets:
            out += early_table(records, data, target)
    out += law_table(records)
    out += real_model(records)
    return "\n".join(out).rstrip() + "\n"
