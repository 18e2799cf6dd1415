"""Tables and figures of the study, from its records alone.

Command:  python analysis/optimal_l/report.py
Time:     seconds
Writes:   tables.md, and a figure (PNG and SVG) for each question that has records
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hops4
from drawing import draw_dots, draw_moves, draw_ranks
from groups import SELECT, Group, groups, moves
from jobs import HERE, POINTS, Records
from mdtable import table
from moved import moves_section
from planted import BOTTOM, MENDED_AT, RULE, TASKS, finished
from study import STUDY

from layersearch.optimal_l.report import difference
from layersearch.results.stats import Interval, mean_interval, paired_difference
from layersearch.schedule import Schedule
from layersearch.training.record import TrialRecord

DISPUTES = ("dispute-mix-scratch", "dispute-mix-converted", "dispute-text-scratch", "dispute-text-converted")
SPANS = ("growing-windows", "dilation", "las-local", "las-full", "block-or-window-alone", "block-or-window-below-full")
MORE = ("more-full-text", "more-full-mix")
"""What the factors of l* do not try: more full layers than two, but not all."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of a group, measured."""

    label: str
    schedule: str
    cost: float
    loss: Interval
    to_base: Interval | None
    """Paired, corrected for the number of lines compared with the base; None for the base."""
    by_seed: Mapping[int, float]
    curves: Sequence[Mapping[int, float]]
    """Loss by step, one per seed."""


def rows_of(group: Group, records: Records, seeds: Sequence[int]) -> list[Row]:
    """Return the lines of a group that have records, the best first; what several labels name is one line."""
    by_schedule: dict[str, list[str]] = {}
    for label in group.labels:
        schedule = group.schedule(label, records)
        if schedule:
            by_schedule.setdefault(schedule, []).append(label)
    found: dict[str, tuple[str, list[TrialRecord]]] = {}
    for schedule, labels in by_schedule.items():
        held = [r for seed in seeds if (r := records.get(group.job(schedule, seed)))]
        if held:
            found[" = ".join(labels)] = (schedule, held)
    losses = {label: {r.seed: r.loss or math.nan for r in held} for label, (_, held) in found.items()}
    base = losses.get(group.base)
    rows = []
    for label, (schedule, held) in found.items():
        gap = None
        if base is not None and label != group.base and base.keys() & losses[label].keys():
            gap = paired_difference(losses[label], base, comparisons=max(1, len(found) - 1))
        rows.append(
            Row(
                label=label,
                schedule=schedule,
                cost=held[0].cost,
                loss=mean_interval(losses[label].values()),
                to_base=gap,
                by_seed=losses[label],
                curves=[dict(r.curve) for r in held],
            )
        )
    return sorted(rows, key=lambda row: row.loss.mean)


def answer(group: Group, rows: Sequence[Row]) -> str:
    """Say in a sentence what a group shows."""
    compared = [row for row in rows if row.to_base is not None]
    better = [row for row in compared if row.to_base and row.to_base.excludes_zero and row.to_base.mean < 0]
    worse = [row for row in compared if row.to_base and row.to_base.excludes_zero and row.to_base.mean > 0]

    def listed(found: Sequence[Row]) -> str:
        return "; ".join(f"{row.label} by {difference(row.to_base)}" for row in found)

    said = [f"Lowest mean: {rows[0].label}."]
    said.append(
        f"Better than {group.base}: {listed(better)}." if better else f"None is shown better than {group.base}."
    )
    if worse:
        said.append(f"Worse: {listed(worse)}.")
    left = len(compared) - len(better) - len(worse)
    if left:
        said.append(f"{left} cannot be told from it.")
    return " ".join(said)


def equal_cost(rows: Sequence[Row]) -> list[str]:
    """Compare placements of equal cost with the best of them, where a group has several."""
    said = []
    by_cost: dict[float, list[Row]] = {}
    for row in rows:
        by_cost.setdefault(row.cost, []).append(row)
    for cost, held in sorted(by_cost.items()):
        if len(held) < 3:
            continue
        searched = next((row for row in held if "searched" in row.label), None)
        # The searched placement was chosen on other seeds; the lowest of these would be flattered by the choice.
        first = searched or next(row for row in held if "interleaved" in row.label)
        rivals = [row for row in held if row is not first]
        gaps = {
            row.label: paired_difference(row.by_seed, first.by_seed, comparisons=len(rivals))
            for row in rivals
            if row.by_seed.keys() & first.by_seed.keys()
        }
        text = "; ".join(f"{label} {difference(gap)}" for label, gap in sorted(gaps.items(), key=lambda x: x[1].mean))
        said.append(f"At equal cost {cost:.4f}, less {first.label} (`{first.schedule}`): {text}.")
    return said


def further(group: Group, rows: Sequence[Row]) -> list[str]:
    """Compare the further pairs of a group, corrected for their number."""
    named = {name: row for row in rows for name in row.label.split(" = ")}
    said = []
    for a, b in group.further:
        if a in named and b in named and named[a].by_seed.keys() & named[b].by_seed.keys():
            gap = paired_difference(named[a].by_seed, named[b].by_seed, comparisons=len(group.further))
            said.append(f"{a} less {b} {difference(gap)}")
    return [f"Further: {'; '.join(said)}.", ""] if said else []


def ranks_along(rows: Sequence[Row]) -> list[tuple[float, float]]:
    """Return Kendall's tau-b of the order of mean losses at each validation with the last, by share of the training."""
    from scipy import stats

    steps = sorted(set.intersection(*(set(curve) for row in rows for curve in row.curves)))
    if len(rows) < 4 or len(steps) < POINTS // 2:
        return []

    def means(step: int) -> list[float]:
        return [sum(curve[step] for curve in row.curves) / len(row.curves) for row in rows]

    end = means(steps[-1])
    return [(step / steps[-1], float(stats.kendalltau(means(step), end).statistic)) for step in steps]


def regimes(found: Mapping[str, Sequence[Row]]) -> list[str]:
    """Compare bottom placement with the others of equal cost, from scratch and converted, and the two regimes."""
    cells = []
    for data in ("mix", "text"):
        for l in (1, 2):
            for other in ("top", "middle", "interleaved", "searched"):
                gaps: dict[str, dict[int, float]] = {}
                for regime in ("scratch", "converted"):
                    rows = found.get(f"dispute-{data}-{regime}", ())
                    named = {name: row for row in rows for name in row.label.split(" = ")}
                    low, high = named.get(f"bottom({l})"), named.get(f"{other}({l})")
                    if low is None or high is None:
                        continue
                    shared = low.by_seed.keys() & high.by_seed.keys()
                    gaps[regime] = {seed: low.by_seed[seed] - high.by_seed[seed] for seed in shared}
                if not any(gaps.values()):
                    continue
                told = [difference(mean_interval(g.values(), comparisons=4)) if (g := gaps.get(r)) else ""
                        for r in ("scratch", "converted")]  # fmt: skip
                both = ""
                if len(gaps) == 2 and gaps["scratch"].keys() & gaps["converted"].keys():
                    both = difference(paired_difference(gaps["converted"], gaps["scratch"], comparisons=4))
                cells.append([data, str(l), f"bottom less {other}", *told, both])
    if not cells:
        return []
    head = ["data", "l", "at equal cost", "from scratch", "converted", "converted less from scratch"]
    note = "Intervals hold for the four comparisons of a data set and an l together (Bonferroni)."
    return ["### Bottom against the others, in both regimes", "", *table(head, cells), "", note, ""]


def by_layer(disputes: Mapping[str, Group], records: Records) -> list[str]:
    """Return the loss of one full layer in each layer, at the selection's first seed, for every dispute."""
    cells, layers = [], 0
    for name, group in disputes.items():
        losses = [records.loss(group.job(text, SELECT[0])) for text in group.placements(1)]
        if any(loss is None for loss in losses):
            continue
        layers = len(losses)
        lowest = min(loss or 0.0 for loss in losses)
        shown = [f"{loss:.3f}" if loss != lowest else f"**{loss:.3f}**" for loss in losses]
        cells.append([name.removeprefix("dispute-").replace("-", ", "), *shown])
    if not cells:
        return []
    head = ["nats", *(f"layer {at}" for at in range(layers))]
    note = f"Seed {SELECT[0]} only, on which placements were searched; layer 0 is the bottom one."
    return ["### One full layer, in each layer", "", *table(head, cells), "", note, ""]


def after_switch(group: Group, rows: Sequence[Row]) -> list[str]:
    """Return the losses soon after the switch, seed by seed, of the lines with one full layer and of all-full."""
    shown = [row for row in rows if "(1)" in row.label or row.label == group.base]
    if group.switch is None or not shown:
        return []
    seeds = sorted(set.intersection(*(set(row.by_seed) for row in shown)))
    first = min(shown[0].curves[0])
    cells = []
    for row in sorted(shown, key=lambda row: [not span.is_full for span in Schedule.parse(row.schedule)]):
        by_seed = dict(zip(row.by_seed, row.curves, strict=True))
        cells.append([f"`{row.schedule}`", *(f"{by_seed[seed][first]:.2f}" for seed in seeds)])
    lines = [f"Loss {first} steps after the switch, seed by seed (nats):", ""]
    return [*lines, *table(["schedule", *(f"seed {seed}" for seed in seeds)], cells), ""]


def group_section(group: Group, rows: Sequence[Row]) -> list[str]:
    """Return a group's part of the page."""
    cells = [
        [
            row.label,
            f"`{row.schedule}`",
            f"{row.cost:.4f}",
            str(row.loss.n),
            str(row.loss),
            f"{min(row.by_seed.values()):.3f} to {max(row.by_seed.values()):.3f}",
            difference(row.to_base) or "base",
        ]
        for row in rows
    ]
    lines = [f"### {group.question}", "", f"**{answer(group, rows)}**", ""]
    if group.searched:
        lines += [line for text in equal_cost(rows) for line in (text, "")]
    lines += [*table(["line", "schedule", "cost", "seeds", "loss, nats", "by seed", f"less {group.base}"], cells), ""]
    lines += further(group, rows)
    lines += after_switch(group, rows)
    ranks = ranks_along(rows)
    if ranks:
        lines += ["Order along training against the order at the end (Kendall's tau):", ""]
        lines += [*table([f"{share:.2f}" for share, _ in ranks], [[f"{tau:.2f}" for _, tau in ranks]]), ""]
    return lines


def planted_section(path: Path) -> list[str]:
    """Return what the repetitions on planted tasks found."""
    rows = finished(path)
    if not rows:
        return []
    cells, bottom = [], []
    for task in TASKS:
        mine = [row for row in rows if row["task"] == task]
        if not mine:
            continue
        known = mine[0]["known_l"]
        before = [[row for row in finished(path, rule) if row["task"] == task] for rule in range(1, RULE)]
        seen = [row for row in mine if row["repetition"] < MENDED_AT]
        unseen = [row for row in mine if row["repetition"] >= MENDED_AT]

        def right(held: Sequence[Mapping[str, Any]], known: int = known) -> str:
            return f"{sum(row['l_star'] == known for row in held)} of {len(held)}" if held else ""

        cells.append(
            [
                f"`{task}`",
                str(known),
                *(right(held) for held in before),
                f"**{right(seen)}**",
                f"**{right(unseen)}**" if unseen else "",
                f"{sum(row['low'] <= known <= row['l_star'] for row in mine)} of {len(mine)}",
                ", ".join(
                    f"{l} ({sum(r['l_star_all_full'] == l for r in mine)})"
                    for l in sorted({r["l_star_all_full"] for r in mine})
                ),
                f"{sum(row['trials'] for row in mine) / len(mine):.0f}",
                f"{sum(row['trial_seconds'] for row in mine) / len(mine) / 60:.1f}",
            ]
        )
        for l in range(1, 4) if BOTTOM[task] else ():
            means = [row["bottom_less_best"][str(l)][0] for row in mine if str(l) in row["bottom_less_best"]]
            if len(means) > 1:
                gap = mean_interval(means)
                bottom.append([f"`{task}`", str(l), difference(gap), str(gap.n)])
    head = [
        "task",
        "known l",
        "l* is it, first rule",
        "second rule",
        f"third rule, the first {MENDED_AT}",
        "third rule, fresh ones",
        "set holds it",
        "l* against all-full (times)",
        "trials",
        "minutes of trials",
    ]
    lines = ["## Where the truth is known", "", *table(head, cells), ""]
    if bottom:
        lines += ["Bottom placement less the best found of the same l, mean over repetitions (nats):", ""]
        lines += [*table(["task", "l", "difference", "repetitions"], bottom), ""]
    return lines


def hops4_section(path: Path, straight: Path) -> list[str]:
    """Return what four hops reached with so many full layers, by way of fewer hops and straight away."""
    rows = hops4.done(path)
    if not rows:
        return []
    at_once, cells = Records(straight), []
    for text in hops4.SCHEDULES:
        seeds = sorted({seed for schedule, seed, _ in rows if schedule == text})
        by_hops = [
            ", ".join(f"{rows[text, seed, hops]['accuracy']:.2f}" for seed in seeds if (text, seed, hops) in rows)
            for hops in hops4.STEPS
        ]
        held = [record for seed in seeds if (record := at_once.get(hops4.straight(text, seed)))]
        straight_on = ", ".join(f"{dict(record.metrics)['hops_accuracy']:.2f}" for record in held)
        if any(by_hops):
            cells.append([f"`{text}`", str(Schedule.parse(text).n_full), *by_hops, straight_on])
    head = [
        "schedule",
        "full layers",
        *(f"{hops} hop{'s' * (hops > 1)}" for hops in hops4.STEPS),
        f"4 hops at once, {hops4.STRAIGHT_STEPS} steps",
    ]
    note = "Accuracy by seed, on chains never seen; each number of hops goes on from the weights of the one before."
    return ["### Four hops: three full layers, or four?", "", note, "", *table(head, cells), ""]


def main() -> None:
    """Write what there are records for."""
    records = Records(STUDY)
    every = groups()
    seeds = range(100)  # fresh seeds lie below the selection's
    found = {name: rows for name, group in every.items() if (rows := rows_of(group, records, seeds))}
    lines = ["# Tables", "", "Written by `report.py`; intervals are 95%, differences are paired by seed, nats.", ""]
    lines += planted_section(HERE / "planted.jsonl")
    lines += hops4_section(hops4.PATH, hops4.STRAIGHT)
    disputes = {name: found[name] for name in DISPUTES if name in found}
    if disputes:
        lines += ["## The dispute about placement", ""]
        lines += regimes(disputes)
        lines += by_layer({name: every[name] for name in disputes}, records)
        for name, rows in disputes.items():
            lines += group_section(every[name], rows)
        draw_dots([(every[name], rows) for name, rows in disputes.items()], HERE / "dispute")
        draw_ranks([(every[name], rows) for name, rows in disputes.items()], HERE / "ranks")
    moved, drawn = moves_section()
    lines += moved
    for name in MORE:
        lines += group_section(every[name], found[name]) if len(found.get(name, ())) > 1 else []
    if drawn:
        draw_moves(drawn, {name: move.unit for name, move in moves().items()}, HERE / "moves")
    spans = {name: found[name] for name in SPANS if name in found}
    if spans:
        lines += ["## Windows, dilation, LaS and blocks", ""]
        for name, rows in spans.items():
            lines += group_section(every[name], rows)
        draw_dots([(every[name], rows) for name, rows in spans.items()], HERE / "spans")
    (HERE / "tables.md").write_text("\n".join(lines).rstrip() + "\n")
    print(f"{len(found)} groups and {len(drawn)} factors in {HERE / 'tables.md'}")


if __name__ == "__main__":
    main()
