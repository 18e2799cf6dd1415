"""A law of transfer: how Spearman between two scales falls with what separates them. Fitted with its uncertainty.

For each proxy p and target t, Fisher's z of their rank correlation (mean losses over seeds, not corrected for noise) is

    z = a - sum over x of b[x] * log2(t.x / p.x),   x in width, depth, tokens, steps,

fitted by least squares over all pairs of one data set where the target is no smaller in any x. Schedules are resampled
for the intervals: all pairs share them. A scale is left out in turn, as proxy and as target, to see what the law
predicts for a scale that it has not seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scales import SCALES, schedules
from scipy.stats import rankdata
from tables import Records, losses, present, table

AXES = ("width", "depth", "tokens", "steps")
RESAMPLES = 400
_MOST = 3.0  # of Fisher's z, which is infinite at 1


def pairs(records: Records, data: str) -> list[tuple[str, str]]:
    """Return proxies and targets that are as large or larger along every axis."""
    names = present(records, data)
    return [
        (p, t) for p in names for t in names if p != t and all(distance(p, t)[axis] >= 0 for axis in range(len(AXES)))
    ]


def distance(proxy: str, target: str) -> list[float]:
    """Return the doublings of each axis between two scales."""
    small, large = SCALES[proxy], SCALES[target]
    return [float(np.log2(getattr(large, axis) / getattr(small, axis))) for axis in AXES]


def heights(means: dict[str, np.ndarray], chosen: Sequence[tuple[str, str]], at: np.ndarray) -> np.ndarray:
    """Return Fisher's z of each pair over the schedules ``at``."""
    ranks = {name: rankdata(values[at]) for name, values in means.items()}
    found = np.array([np.corrcoef(ranks[p], ranks[t])[0, 1] for p, t in chosen])
    return np.minimum(np.arctanh(found.clip(-0.999, 0.999)), _MOST)


def fit(chosen: Sequence[tuple[str, str]], z: np.ndarray) -> np.ndarray:
    """Return a, then b of each axis."""
    design = np.array([[1.0, *(-each for each in distance(p, t))] for p, t in chosen])
    return np.asarray(np.linalg.lstsq(design, z, rcond=None)[0])


def law(records: Records, data: str) -> dict[str, Any]:
    """Return the coefficients with 95% intervals, the share of the variance, and the error for a scale left out."""
    chosen = pairs(records, data)
    means = {name: losses(records, data, name).mean(1) for name in present(records, data)}
    count = len(schedules(SCALES["base"]))
    z = heights(means, chosen, np.arange(count))
    rng = np.random.default_rng(0)
    drawn = np.array([fit(chosen, heights(means, chosen, rng.integers(count, size=count))) for _ in range(RESAMPLES)])
    best = fit(chosen, z)
    predicted = z + residuals(chosen, z, best)
    errors, plain = [], []
    for name in present(records, data):
        rest = [n for n, pair in enumerate(chosen) if name not in pair]
        out = [n for n, pair in enumerate(chosen) if name in pair]
        if out:
            found = fit([chosen[n] for n in rest], z[rest])
            errors += list(np.abs(residuals([chosen[n] for n in out], z[out], found)))
            plain += list(np.abs(z[out] - z[rest].mean()))
    return {
        "pairs": len(chosen),
        "coefficients": dict(zip(("a", *AXES), best.tolist(), strict=True)),
        "ends": np.quantile(drawn, [0.025, 0.975], axis=0).T.tolist(),
        "explained": float(1 - ((z - predicted) ** 2).sum() / ((z - z.mean()) ** 2).sum()),
        "error": float(np.mean(errors)),
        "error_of_the_mean": float(np.mean(plain)),
    }


def residuals(chosen: Sequence[tuple[str, str]], z: np.ndarray, found: np.ndarray) -> np.ndarray:
    """Return what the law predicts less what was found."""
    design = np.array([[1.0, *(-each for each in distance(p, t))] for p, t in chosen])
    return np.asarray(design @ found - z)


def law_table(records: Records) -> list[str]:
    """Return the laws of both data sets as lines of Markdown."""
    rows = []
    for data in ("mix", "text"):
        found = law(records, data)
        row = [data, str(found["pairs"])]
        for value, (low, high) in zip(found["coefficients"].values(), found["ends"], strict=True):
            row.append(f"{value:.2f} ({low:.2f} to {high:.2f})")
        row += [f"{found['explained']:.2f}", f"{found['error']:.2f}", f"{found['error_of_the_mean']:.2f}"]
        rows.append(row)
    head = "data | pairs | z at no distance | lost by a doubling of width | of depth | of tokens | of steps"
    head += " | variance explained | error of z, a scale left out | error of the mean z"
    return ["## A law", "", *table(head, rows)]


if __name__ == "__main__":
    from study import records

    print("\n".join(law_table(records())))
