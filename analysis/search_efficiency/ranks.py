"""Mean ranks of the searches over tables and repetitions, with tests, from contest.jsonl.

Command:  python analysis/search_efficiency/ranks.py
Writes:   ranks.md

A block is one repetition on one table: all searches pay for the same seed's trainings. Within a block they are ranked
by a score, 1 the best, ties shared (Demsar, "Statistical comparisons of classifiers over multiple data sets", JMLR
2006; the package CARP-S does so too). Friedman's test asks whether ranks differ at all. Two mean ranks differ by
Nemenyi's test at 5% if they are farther apart than its critical difference. Both use the repetitions that every search
has. Wilcoxon's signed-rank test compares layersearch with each other search over all repetitions that the two have;
Holm's correction keeps 5% over all of them. Intervals of mean ranks are 95% bootstrap intervals, repetitions drawn
within each table. All of it speaks of these tables: three are too few to speak of tables not seen.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from contest import ALL, AS_RUN, BEFORE, FROZEN, HELD_OUT, LANDSCAPES, OLD, SECOND, limit
from numpy.typing import NDArray
from report import at, reached
from scipy import stats

HERE = Path(__file__).resolve().parent
OURS = "layersearch"
SECTIONS = (
    ("Held-out tables", HELD_OUT, OURS, 25.0),
    ("Held-out tables, the slow searches too", HELD_OUT, OURS, 15.0),
    ("Held-out tables, ours as in a real run", HELD_OUT, AS_RUN, 25.0),
    ("Held-out tables but shallow, layersearch before it learnt from the second ones", HELD_OUT[:2], BEFORE, 25.0),
    ("Second tables", SECOND, OURS, 25.0),
    ("Second tables, layersearch as frozen before they were made", SECOND, FROZEN, 25.0),
    ("Second tables, layersearch as frozen before they were made, the slow searches too", SECOND, FROZEN, 15.0),
    ("First tables", OLD, OURS, 25.0),
    ("Landscapes", LANDSCAPES, OURS, 60.0),
)
"""Title, tables, ours, and the full trials up to which all are scored; a search that may spend less is left out."""
FEWEST = 5
"""Repetitions on every table; a search with fewer is left out."""
Score = Callable[[list[list[float]]], float]
Array = NDArray[np.float64]
Traces = dict[tuple[str, str, bool, int], list[list[float]]]
Pairs = dict[str, tuple[float, int, float]]


def anytime(trace: list[list[float]], most: float) -> float:
    """Return the share of the true hypervolume that is missing, averaged over the logarithm of the training spent."""
    return float(np.mean([1.0 - at(trace, spent, 1, 0.0) for spent in np.geomspace(1.0, most, 60)]))


def to_99(trace: list[list[float]], most: float) -> float:
    """Return the full trials to 99% of the hypervolume for good; what is later than ``most`` counts the same."""
    return min(reached([row for row in trace if row[0] <= most], 0.99), most + 1)


SCORES = {"hypervolume missing, on average": anytime, "trials to 99%": to_99}


def blocks(
    traces: Traces, corpora: Sequence[str], methods: Sequence[str], anchored: bool, score: Score
) -> tuple[Array, list[str]]:
    """Return the scores (blocks, methods) of repetitions that every method has, and the table of each block."""
    rows, tables = [], []
    for corpus in corpora:
        for repetition in range(100):
            found = [traces.get((corpus, method, anchored, repetition)) for method in methods]
            if all(trace is not None for trace in found):
                rows.append([score(trace) for trace in found if trace is not None])
                tables.append(corpus)
    return np.array(rows), tables


def holm(ps: Sequence[float]) -> list[float]:
    """Return p-values after Holm's correction."""
    order, found, worst = np.argsort(ps), [0.0] * len(ps), 0.0
    for at_, index in enumerate(order):
        worst = max(worst, min(1.0, (len(ps) - at_) * ps[index]))
        found[index] = worst
    return found


def paired(
    traces: Traces, corpora: Sequence[str], methods: Sequence[str], mine: str, anchored: bool, score: Score
) -> Pairs:
    """Return (corrected p, blocks, mean of ours less theirs) of each search against ours, over what the two share."""
    raw: dict[str, tuple[float, int, float]] = {}
    for method in methods:
        if method == mine:
            continue
        values, _ = blocks(traces, corpora, (mine, method), anchored, score)
        gaps = values[:, 0] - values[:, 1]
        p = 1.0 if not gaps.any() else float(stats.wilcoxon(gaps, zero_method="zsplit").pvalue)
        raw[method] = p, len(gaps), float(np.sign(gaps) @ stats.rankdata(abs(gaps)))
    corrected = holm([p for p, _, _ in raw.values()])
    return {method: (p, *rest) for p, (method, (_, *rest)) in zip(corrected, raw.items(), strict=True)}


def table(values: Array, tables: list[str], methods: Sequence[str], mine: str, pairs: Pairs) -> list[str]:
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
    own = ranks[:, methods.index(mine)].mean()
    sizes = ", ".join(f"{name} {tables.count(name)}" for name in dict.fromkeys(tables))
    lines = [
        f"{count} blocks: {sizes}. "
        f"Friedman: chi-squared {friedman.statistic:.1f}, p {friedman.pvalue:.1e}. "
        f"Nemenyi's critical difference of mean ranks: {critical:.2f}.",
        "",
        "| search | mean rank (95%) | median score | Nemenyi | Wilcoxon with Holm, p | blocks | layersearch is |",
        "|---|---|---|---|---|---|---|",
    ]
    for at_ in np.argsort(ranks.mean(axis=0)):
        mean, name = ranks[:, at_].mean(), methods[at_]
        cells = [name, f"{mean:.2f} ({low[at_]:.2f} to {high[at_]:.2f})", f"{np.median(values[:, at_]):.3g}"]
        if name == mine:
            cells = [f"**{name}**", *cells[1:], "", "", "", ""]
        else:
            p, number, gap = pairs[name]
            cells += ["apart" if abs(mean - own) > critical else "not apart", f"{p:.1e}", str(number)]
            cells += [("better" if gap < 0 else "worse") if p < 0.05 else "not shown to differ"]
        lines.append("| " + " | ".join(cells) + " |")
    return [*lines, ""]


def main() -> None:
    """Write all tables."""
    traces: Traces = {}
    for line in (HERE / "contest.jsonl").read_text().splitlines():
        row = json.loads(line)
        traces[row["corpus"], row["method"], row["anchors"], row["repetition"]] = row["trace"]
    out = ["# Ranks", "", "Written by `ranks.py` from `contest.jsonl`. Rank 1 is the best.", ""]
    for title, corpora, mine, most in SECTIONS:
        for anchored in (False, True):
            counts = Counter((c, m) for c, m, with_anchors, _ in traces if with_anchors == anchored)
            names = [mine, *(m for m in ALL if m != OURS)]
            methods = [m for m in names if all(counts[c, m] >= FEWEST and limit(c, m) >= most for c in corpora)]
            if mine not in methods or len(methods) < 3:
                continue
            words = "after the anchors of a real run" if anchored else "without anchors"
            for name, scored in SCORES.items():
                score = partial(scored, most=most)
                values, tables = blocks(traces, corpora, methods, anchored, score)
                if not len(values):
                    continue
                out += [f"## {title}, {words}: {name}, up to {most:g} trials", ""]
                if values.min() == values.max():
                    out += [f"All {len(methods)} searches score the same in all {len(values)} blocks.", ""]
                    continue
                pairs = paired(traces, corpora, methods, mine, anchored, score)
                out += table(values, tables, methods, mine, pairs)
    (HERE / "ranks.md").write_text("\n".join(out), encoding="utf-8")
    print("\n".join(out))


if __name__ == "__main__":
    main()
