"""Draw the contest and write its table, from contest.jsonl.

Command:  python analysis/search_efficiency/report.py
Writes:   contest.png and table.md
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from contest import AS_RUN, BEFORE, FROZEN, HELD_OUT, LANDSCAPES, OLD, OURS, SECOND, limit, problem
from methods import BUDGETS, Problem, Table

mpl.use("Agg")
import matplotlib.pyplot as plt

from layersearch.results.pareto import nondominated

HERE = Path(__file__).resolve().parent
SHARES = (0.9, 0.95, 0.99)
VERSIONS = {"layersearch": "today", AS_RUN: "today, as run", BEFORE: "before", FROZEN: "as frozen"}
COLORS = {
    "layersearch": "#0072B2",
    BEFORE: "#0072B2",
    "random": "#555555",
    "NSGA-II": "#D55E00",
    "TPE": "#009E73",
    "GP": "#CC79A7",
    "MO-ASHA (Syne Tune)": "#B8860B",
    "greedy restore-one-layer": "#8B4513",
    "steepest local search": "#56B4E9",
    "SMAC3": "#E41A1C",
    "Casmopolitan (MCBO)": "#6A3D9A",
    "BOCS (MCBO)": "#808000",
}
FLOOR = 2e-4
"""The least share that is drawn."""
Group = tuple[str, str, bool]


def reached(trace: list[list[float]], share: float) -> float:
    """Return the training after which a share of the true hypervolume was found and kept; infinity if it was not."""
    found = np.inf
    for spent, volume, *_ in trace:
        if volume < share:
            found = np.inf
        elif np.isinf(found):
            found = spent
    return found


def at(trace: list[list[float]], spent: float, column: int, before: float) -> float:
    """Return a column of the trace as it stood when so much was spent."""
    rows = [row for row in trace if row[0] <= spent]
    return rows[-1][column] if rows else before


def quartiles(values: list[float], most: float) -> str:
    """Return the median and the quartiles in words; what was not reached counts as over the limit."""
    low, middle, high = (float(np.quantile(values, q, method="inverted_cdf")) for q in (0.25, 0.5, 0.75))

    def word(value: float) -> str:
        return f"over {most:g}" if np.isinf(value) else f"{value:.1f}"

    return f"{word(middle)} ({word(low)} to {word(high)})"


def fewest(bench: Problem, share: float) -> int:
    """Return how many schedules hold a share of the hypervolume, if one knows which: what no search can undercut."""
    front = sorted(bench.frontier, key=bench.cost)
    alone = [bench.hypervolume([schedule]) for schedule in front]
    # What a schedule adds to a set depends only on the next cheaper one of the set.
    added = [[bench.hypervolume([front[j], front[i]]) - alone[j] for j in range(i)] for i in range(len(front))]
    best, count = alone, 1
    while max(best) < share:
        best = [max((best[j] + added[i][j] for j in range(i)), default=0.0) for i in range(len(front))]
        count += 1
    return count


def ceiling(bench: Table, seed: int) -> float:
    """Return the share of the true hypervolume that is believed in once every schedule is trained at a seed.

    It is less than one where a seed's lucky losses push out schedules that are better on the mean over seeds.
    """
    points = [(bench.query(schedule, seed, bench.steps[-1]), bench.cost(schedule)) for schedule in bench.schedules]
    return bench.hypervolume([bench.schedules[index] for index in nondominated(points)])


def ratio(mine: list[float], theirs: list[float], given: float, most: float) -> str:
    """Return ours over theirs in words: medians, with a 95% bootstrap; not reached counts as all that was given.

    ``given`` and ``most`` are the full trials that ours and theirs could spend.
    """
    rng = np.random.default_rng(0)
    middles = []
    for values, end in ((mine, given), (theirs, most)):
        cut = np.minimum(values, end)
        drawn = np.median(rng.choice(cut, (2000, len(cut))), axis=1)
        middles.append((float(np.median(values)), float(np.median(cut)), drawn))
    (own, top, above), (other, bottom, below) = middles
    if np.isinf(own) and np.isinf(other):
        return "neither"
    low, high = np.quantile(above / below, (0.025, 0.975))
    word = "over " if np.isinf(own) else "under " if np.isinf(other) else ""
    return f"{word}{top / bottom:.2f} ({low:.2f} to {high:.2f})"


def goals(groups: dict[Group, list[list[list[float]]]], corpora: Sequence[str], anchored: bool) -> list[str]:
    """Return the table of ours against the goals: a tenth of NSGA-II's and random's, a fifth of the best other's."""
    lines = [
        "| table | layersearch | trials to 99% | of NSGA-II's | of random's | of the best other's | best other |",
        "|---|---|---|---|---|---|---|",
    ]
    for corpus in corpora:
        to_99 = {
            m: [reached(t, 0.99) for t in traces]
            for (c, m, a), traces in groups.items()
            if (c, a) == (corpus, anchored)
        }
        others = {method: values for method, values in to_99.items() if method not in OURS}
        if not others:
            continue
        best = min(
            others,
            key=lambda method: (np.median(others[method]), np.mean(np.minimum(others[method], limit(corpus, method)))),
        )
        for mine in OURS:
            if mine not in to_99:
                continue
            cells = [corpus, VERSIONS[mine], quartiles(to_99[mine], limit(corpus, mine))]
            for other in ("NSGA-II", "random", best):
                missing = other not in others
                cells.append(
                    "" if missing else ratio(to_99[mine], others[other], limit(corpus, mine), limit(corpus, other))
                )
            cells.append(f"{best}, {quartiles(others[best], limit(corpus, best))}")
            lines.append("| " + " | ".join(cells) + " |")
    return lines


def behind(groups: dict[Group, list[list[list[float]]]], corpus: str) -> str:
    """Say where, in training spent, the median of ours is worse than random's: hypervolume, and regret by budget."""
    spent = np.arange(1, limit(corpus, "layersearch") + 0.1, 0.5)
    mine, other = (groups[corpus, method, False] for method in ("layersearch", "random"))
    found = []
    for column, name in enumerate(["the hypervolume", *(f"the regret at {budget:g}" for budget in BUDGETS)], start=1):
        ours, theirs = (
            # What has found nothing within a budget yet is worse than anything.
            [np.median([at(t, s, column, 0.0 if column == 1 else np.inf) for t in traces]) for s in spent]
            for traces in (mine, other)
        )
        sign = -1 if column == 1 else 1
        late = [s for s, a, b in zip(spent, ours, theirs, strict=True) if sign * (a - b) > 0.001]
        if late:
            worst = max(sign * (a - b) for a, b in zip(ours, theirs, strict=True) if np.isfinite(a - b))
            unit = "" if column == 1 else " nats"
            found.append(
                f"{name} by up to {worst:.3f}{unit} at {len(late)} of {len(spent)} points "
                f"({late[0]:g} to {late[-1]:g} trials)"
            )
    return "; ".join(found) or "nowhere"


def _words(anchored: bool) -> str:
    return "after the anchors of a real run" if anchored else "without anchors"


def main() -> None:
    """Read the records, write the table, draw the figure."""
    groups: dict[Group, list[list[list[float]]]] = defaultdict(list)
    by_seed: dict[Group, list[list[list[float]]]] = defaultdict(list)
    tables = [table for table in map(Table, HELD_OUT) if len(table.seeds) > 1]
    limits = {table.name: [ceiling(table, seed) for seed in table.seeds] for table in tables}
    for line in (HERE / "contest.jsonl").read_text().splitlines():
        row = json.loads(line)
        key = (row["corpus"], row["method"], row["anchors"])
        groups[key].append(row["trace"])
        if row["corpus"] in limits:
            parts = limits[row["corpus"]]
            top = parts[row["repetition"] % len(parts)]
            by_seed[key].append([[spent, volume / top, *rest] for spent, volume, *rest in row["trace"]])
    corpora = [corpus for corpus in (*HELD_OUT, *SECOND, *OLD, *LANDSCAPES) if any(key[0] == corpus for key in groups)]
    lines = []
    for anchored in (False, True):
        lines += [
            f"### The goals on held-out tables of several seeds, {_words(anchored)}, to what a seed can show",
            "",
            "As below, but to 99% of what a search finds that trains every schedule at its seed. That is "
            + "; ".join(f"{name}: {' and '.join(f'{part:.3f}' for part in parts)}" for name, parts in limits.items())
            + " of the true hypervolume.",
            "",
            *goals(by_seed, list(limits), anchored),
            "",
        ]
    for anchored in (False, True):
        lines += [
            f"### The goals, {_words(anchored)}",
            "",
            "Full trials to 99% for good: ours, and ours as a part of the others' (ratio of medians, 95% bootstrap "
            "interval). The goals are 0.10, 0.10 and 0.20. *under*, *over*: the other, or ours, did not get there at "
            "the median, and is counted with all it was given. *neither*: both did not.",
            "",
            *goals(groups, corpora, anchored),
            "",
        ]
    for corpus in corpora:
        mine = {key: traces for key, traces in groups.items() if key[0] == corpus}
        lines += [
            f"### {corpus}",
            "",
            "Full trials until a share of the true hypervolume is found for good, median (quartiles); regret in nats "
            "after 10 full trials, median.",
            "",
            "| search | anchors | 90% | 95% | 99% | " + " | ".join(f"regret at {b:g}" for b in BUDGETS) + " | runs |",
            "|---|---|---|---|---|" + "---|" * (len(BUDGETS) + 1),
        ]
        order = sorted(mine, key=lambda key: float(np.median([reached(trace, 0.95) for trace in mine[key]])))
        for key in order:
            traces, most = mine[key], limit(corpus, key[1])
            cells = [quartiles([reached(trace, share) for trace in traces], most) for share in SHARES]
            regrets = [np.median([at(trace, 10.0, 2 + i, np.nan) for trace in traces]) for i in range(len(BUDGETS))]
            cells += [f"{regret:.3f}" for regret in regrets]
            name = f"**{key[1]}**" if key[1] in OURS else key[1]
            lines.append(f"| {name} | {'yes' if key[2] else 'no'} | {' | '.join(cells)} | {len(traces)} |")
        few = fewest(problem(corpus), 0.99)
        lines += ["", f"Schedules that hold 99% of the hypervolume if one knows which: {few}."]
        if all((corpus, method, False) in groups for method in ("layersearch", "random")):
            worse = behind(groups, corpus)
            lines.append(f"Where layersearch's median of today is behind random's by more than 0.001: {worse}.")
        lines.append("")
    (HERE / "table.md").write_text("\n".join(lines), encoding="utf-8")
    print("\n".join(lines))
    draw(groups, corpora)


def draw(groups: dict[Group, list[list[list[float]]]], corpora: list[str]) -> None:
    """Draw the hypervolume that is still missing against training spent, without anchors."""
    rows = -(-(len(corpora) + 1) // 3)
    figure, grid = plt.subplots(rows, 3, figsize=(15, 4.4 * rows), squeeze=False)
    spent = np.concatenate((np.arange(1, 10, 0.25), np.arange(10, 61, 1.0)))
    places = list(grid.flat)
    lines = {}
    for place, corpus in zip(places, corpora, strict=False):
        for method, shade in COLORS.items():
            traces = groups.get((corpus, method, False))
            if not traces:
                continue
            own = method in OURS
            end = spent[spent <= limit(corpus, method)]
            low, middle, high = np.maximum(
                np.quantile([[1 - at(trace, s, 1, 0.0) for s in end] for trace in traces], (0.25, 0.5, 0.75), axis=0),
                FLOOR,
            )
            style = {"lw": 2.4 if own else 1.3, "ls": "--" if method == BEFORE else "-", "zorder": 4 if own else 3}
            (lines[method],) = place.plot(end, middle, color=shade, **style)
            if method in ("layersearch", "random"):
                place.fill_between(end, low, high, color=shade, alpha=0.15, lw=0)
        place.axhline(0.01, color="black", lw=0.8, ls=":")
        place.annotate("99% found", (1, 0.0104), fontsize=8, ha="left", va="bottom")
        kind = "held out" if corpus in HELD_OUT else "landscape" if corpus in LANDSCAPES else "learnt from"
        place.set_title(f"{corpus} ({kind})")
        place.set_ylabel("share of the true hypervolume missing")
        place.set_xlabel("training spent (full trials)")
        place.set_xscale("log")
        place.set_yscale("log")
        place.set_xticks([1, 2, 5, 10, 20, 50], ["1", "2", "5", "10", "20", "50"])
        place.grid(color="#E4E4E4", lw=0.6)
    for place in places[len(corpora) :]:
        place.set_axis_off()
    places[len(corpora)].legend(lines.values(), lines.keys(), loc="center", frameon=False, fontsize=10)
    figure.suptitle("Median of the repetitions, without anchors; bands hold half of them", fontsize=11)
    figure.tight_layout(rect=(0, 0, 1, 0.99))
    figure.savefig(HERE / "contest.png", dpi=90)


if __name__ == "__main__":
    main()
