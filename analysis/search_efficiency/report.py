"""Draw the contest and write its table, from contest.jsonl.

Command:  python analysis/search_efficiency/report.py
Writes:   contest.png and table.md
"""

from __future__ import annotations

import json
from collections import defaultdict
from itertools import combinations
from pathlib import Path

import matplotlib as mpl
import numpy as np
from contest import LIMIT, SLOW
from methods import BUDGETS

from layersearch.study.benchmark import Benchmark, load_bench

mpl.use("Agg")
import matplotlib.pyplot as plt

HERE = Path(__file__).resolve().parent
SHARES = (0.9, 0.95, 0.99)
COLOURS = {
    "layersearch": "#0072B2",
    "random": "#555555",
    "NSGA-II": "#D55E00",
    "TPE": "#009E73",
    "GP": "#CC79A7",
    "MO-ASHA (Syne Tune)": "#B8860B",
    "ASHA (Ray Tune)": "#56B4E9",
    "greedy restore-one-layer": "#8B4513",
}
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


def quartiles(values: list[float], limit: float) -> str:
    """Return the median and the quartiles in words; what was not reached counts as over the limit."""
    low, middle, high = (float(np.quantile(values, q, method="inverted_cdf")) for q in (0.25, 0.5, 0.75))

    def word(value: float) -> str:
        return f"over {limit:g}" if np.isinf(value) else f"{value:.1f}"

    return f"{word(middle)} ({word(low)} to {word(high)})"


def fewest(bench: Benchmark, share: float) -> int:
    """Return how many schedules hold a share of the hypervolume, if one knows which: what no search can undercut."""
    count = 1
    while max(map(bench.hypervolume, map(list, combinations(bench.frontier, count)))) < share:
        count += 1
    return count


def behind(groups: dict[Group, list[list[list[float]]]], corpus: str) -> str:
    """Say where, in training spent, the median of ours is worse than random's: hypervolume, and regret by budget."""
    spent = np.arange(1, SLOW["layersearch"] + 0.1, 0.5)
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


def main() -> None:
    """Read the records, write the table, draw the figure."""
    groups: dict[Group, list[list[list[float]]]] = defaultdict(list)
    for line in (HERE / "contest.jsonl").read_text().splitlines():
        row = json.loads(line)
        key = (row["corpus"], row["method"], row["anchors"])
        groups[key].append(row["trace"])
    corpora = sorted({corpus for corpus, _, _ in groups})
    lines = []
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
            traces, limit = mine[key], SLOW.get(key[1], LIMIT)
            cells = [quartiles([reached(trace, share) for trace in traces], limit) for share in SHARES]
            regrets = [np.median([at(trace, 10.0, 2 + i, np.nan) for trace in traces]) for i in range(len(BUDGETS))]
            cells += [f"{regret:.3f}" for regret in regrets]
            name = f"**{key[1]}**" if key[1] == "layersearch" else key[1]
            lines.append(f"| {name} | {'yes' if key[2] else 'no'} | {' | '.join(cells)} | {len(traces)} |")
        bench = load_bench(corpus)
        lines += [
            "",
            f"Schedules that hold 99% of the hypervolume if one knows which: {fewest(bench, 0.99)}.",
            f"Where layersearch's median is behind random's by more than 0.001: {behind(groups, corpus)}.",
            "",
        ]
    (HERE / "table.md").write_text("\n".join(lines), encoding="utf-8")
    print("\n".join(lines))
    draw(groups, corpora)


def draw(groups: dict[Group, list[list[list[float]]]], corpora: list[str]) -> None:
    """Draw the hypervolume that is still missing against training spent, and the regret at one budget."""
    figure, grid = plt.subplots(2, len(corpora), figsize=(5.6 * len(corpora), 8.2), sharex=True, squeeze=False)
    spent = np.concatenate((np.arange(1, 10, 0.25), np.arange(10, 61, 1.0)))
    for axes, corpus in zip(grid.T, corpora, strict=True):
        for method, colour in COLOURS.items():
            for anchored in (False, True):
                traces = groups.get((corpus, method, anchored))
                if not traces or (anchored and method != "layersearch"):
                    continue
                end = spent[spent <= SLOW.get(method, LIMIT)]
                style = {
                    "color": colour,
                    "lw": 2.4 if method == "layersearch" else 1.3,
                    "ls": "--" if anchored else "-",
                }
                for place, column, before in ((axes[0], 1, 0.0), (axes[1], 3, np.nan)):
                    values = np.array([[at(trace, s, column, before) for s in end] for trace in traces])
                    values = 1 - values if column == 1 else values
                    low, middle, high = np.nanquantile(values, (0.25, 0.5, 0.75), axis=0)
                    floor = 2e-4
                    label = method + (" + anchors" if anchored else "")
                    place.plot(
                        end, np.maximum(middle, floor), label=label, zorder=4 if method == "layersearch" else 3, **style
                    )
                    if method in ("layersearch", "random") and not anchored:
                        band = (np.maximum(low, floor), np.maximum(high, floor))
                        place.fill_between(end, *band, color=colour, alpha=0.15, lw=0)
        axes[0].axhline(0.01, color="black", lw=0.8, ls=":")
        axes[0].annotate("99% found", (1, 0.0104), fontsize=8, ha="left", va="bottom")
        axes[0].set_title(corpus)
        axes[0].set_ylabel("share of the true hypervolume missing")
        axes[1].set_ylabel(f"regret at budget {BUDGETS[1]:g} (nats)")
        axes[1].set_xlabel("training spent (full trials)")
        for place in axes:
            place.set_xscale("log")
            place.set_yscale("log")
            place.set_xticks([1, 2, 5, 10, 20, 50], ["1", "2", "5", "10", "20", "50"])
            place.grid(color="#E4E4E4", lw=0.6)
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=3, frameon=False, fontsize=9)
    figure.suptitle("Median of the repetitions; bands hold half of them", fontsize=11)
    figure.tight_layout(rect=(0, 0.085, 1, 0.99))
    figure.savefig(HERE / "contest.png", dpi=110)


if __name__ == "__main__":
    main()
