"""Mean ranks of the searches over tables and repetitions, with tests, from contest.jsonl.

Command:  python analysis/search_efficiency/ranks.py
Writes:   ranks.md

A block is one repetition on one table: all searches pay for the same seed's trainings. Within a block they are ranked
by a score, 1 the best, ties shared (Demsar, "Statistical comparisons of classifiers over multiple data sets", JMLR
2006; the package CARP-S does so too). Friedman's test asks whether ranks differ at all. Two mean ranks differ by
Nemenyi's test at 5% if they are farther apart than its critical difference. Wilcoxon's signed-rank test compares
layersearch with each other search; Holm's correction keeps 5% over all of them. Intervals of mean ranks are 95%
bootstrap intervals, repetitions drawn within each table. All of it speaks of these tables: three are too few to speak
of tables not seen.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from contest import ALL
from numpy.typing import NDArray
from report import at, reached
from scipy import stats

HERE = Path(__file__).resolve().parent
MOST = 25.0
"""Full trials that every search may spend, so that all are scored alike."""
SPENT = np.geomspace(1.0, MOST, 60)
OURS = "layersearch"
OLD, HELD_OUT = ("mix", "recall", "text"), ("prose", "deep", "smollm2")
Array = NDArray[np.float64]
Key = tuple[str, str, bool, int]


def anytime(trace: list[list[float]]) -> float:
    """Return the share of the true hypervolume that is missing, averaged over the logarithm of the training spent."""
    return float(np.mean([1.0 - at(trace, spent, 1, 0.0) for spent in SPENT]))


def to_99(trace: list[list[float]]) -> float:
    """Return the full trials to 99% of the hypervolume for good; what is later than `MOST` counts the same."""
    return min(reached([row for row in trace if row[0] <= MOST], 0.99), MOST + 1)


SCORES = {"hypervolume missing, on average from 1 to 25 trials": anytime, "trials to 99%": to_99}


def blocks(
    traces: dict[Key, list[list[float]]], corpora: Sequence[str], methods: Sequence[str], anchored: bool, score: str
) -> tuple[Array, list[str]]:
    """Return the scores (blocks, methods) of repetitions that every method has, and the table of each block."""
    rows, tables = [], []
    for corpus in corpora:
        for repetition in range(100):
            found = [traces.get((corpus, method, anchored, repetition)) for method in methods]
            if all(trace is not None for trace in found):
                rows.append([SCORES[score](trace) for trace in found if trace is not None])
                tables.append(corpus)
    return np.array(rows), tables


def holm(ps: Sequence[float]) -> list[float]:
    """Return p-values after Holm's correction."""
    order, found, worst = np.argsort(ps), [0.0] * len(ps), 0.0
    for at_, index in enumerate(order):
        worst = max(worst, min(1.0, (len(ps) - at_) * ps[index]))
        found[index] = worst
    return found


def table(values: Array, tables: list[str], methods: Sequence[str]) -> list[str]:
    """Return the ranks and tests as lines of Markdown."""
    ranks = np.apply_along_axis(stats.rankdata, 1, values)
    count, width = ranks.shape
    friedman = stats.friedmanchisquare(*values.T)
    critical = (
        float(stats.studentized_range.ppf(0.95, width, np.inf)) / 2**0.5 * (width * (width + 1) / 6 / count) ** 0.5
    )
    rng = np.random.default_rng(0)
    groups = [np.flatnonzero(np.array(tables) == name) for name in dict.fromkeys(tables)]
    means = [ranks[np.concatenate([rng.choice(g, len(g)) for g in groups])].mean(axis=0) for _ in range(2000)]
    low, high = np.quantile(means, (0.025, 0.975), axis=0)
    mine = methods.index(OURS)
    others = [at_ for at_ in range(width) if at_ != mine]
    raw = []
    for other in others:
        gaps = values[:, mine] - values[:, other]
        raw.append(1.0 if not gaps.any() else float(stats.wilcoxon(gaps, zero_method="zsplit").pvalue))
    corrected = dict(zip(others, holm(raw), strict=True))
    sizes = ", ".join(f"{name} {tables.count(name)}" for name in dict.fromkeys(tables))
    lines = [
        f"{count} blocks: {sizes}. "
        f"Friedman: chi-squared {friedman.statistic:.1f}, p {friedman.pvalue:.1e}. "
        f"Nemenyi's critical difference of mean ranks: {critical:.2f}.",
        "",
        "| search | mean rank (95%) | median score | Nemenyi | Wilcoxon with Holm, p | layersearch is |",
        "|---|---|---|---|---|---|",
    ]
    for at_ in np.argsort(ranks.mean(axis=0)):
        mean = ranks[:, at_].mean()
        cells = [methods[at_], f"{mean:.2f} ({low[at_]:.2f} to {high[at_]:.2f})", f"{np.median(values[:, at_]):.3g}"]
        if at_ == mine:
            cells = [f"**{cells[0]}**", *cells[1:], "", "", ""]
        else:
            apart = abs(mean - ranks[:, mine].mean()) > critical
            better = ranks[:, mine].mean() < mean
            shown = corrected[int(at_)] < 0.05
            cells += ["apart" if apart else "not apart", f"{corrected[int(at_)]:.1e}"]
            cells += [("better" if better else "worse") if shown else "not shown to differ"]
        lines.append("| " + " | ".join(cells) + " |")
    return [*lines, ""]


def main() -> None:
    """Write all tables."""
    traces: dict[Key, list[list[float]]] = {}
    for line in (HERE / "contest.jsonl").read_text().splitlines():
        row = json.loads(line)
        traces[row["corpus"], row["method"], row["anchors"], row["repetition"]] = row["trace"]
    out = ["# Ranks", "", "Written by `ranks.py` from `contest.jsonl`. Rank 1 is the best.", ""]
    for title, corpora in (("Held-out tables", HELD_OUT), ("The tables before", OLD)):
        for anchored in (False, True):
            present = {(c, m) for c, m, with_anchors, _ in traces if with_anchors == anchored}
            methods = [m for m in ALL if all((c, m) in present for c in corpora)]
            if OURS not in methods or len(methods) < 3:
                continue
            words = "after the anchors of a real run" if anchored else "without anchors"
            for score in SCORES:
                values, tables = blocks(traces, corpora, methods, anchored, score)
                if len(values):
                    out += [f"## {title}, {words}: {score}", "", *table(values, tables, methods)]
    (HERE / "ranks.md").write_text("\n".join(out), encoding="utf-8")
    print("\n".join(out))


if __name__ == "__main__":
    main()
