"""Does the interval of the corrected rank correlation hold planted truths? Writes coverage.md.

python analysis/transfer/coverage.py [repetitions]
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable

import numpy as np
from scales import HERE
from study import records
from tables import losses

from layersearch.results.transfer import corrected_correlation

REPETITIONS, RESAMPLES = 400, 400
Draw = Callable[[np.random.Generator], tuple[np.ndarray, np.ndarray, list[int] | None]]


def planted(spearman: float, n: int, noise: float, seeds: tuple[int, int], groups: list[int] | None = None) -> Draw:
    """Normal true losses of this rank correlation; ``noise`` is the seeds' standard deviation, the truth's is 1."""
    pearson = 2 * math.sin(math.pi * spearman / 6)

    def draw(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, list[int] | None]:
        true = rng.multivariate_normal([0, 0], [[1, pearson], [pearson, 1]], n)
        if groups is not None:  # groups far apart, as costs move losses
            true += 3 * np.array(groups)[:, None]
        sides = [true[:, [side]] + noise * rng.standard_normal((n, seeds[side])) for side in (0, 1)]
        return sides[0], sides[1], groups

    return draw


def measured(data: str, scale: str, target: str) -> tuple[float, Draw]:
    """The measured means as the truth: schedules drawn from them, each with the noise that it showed at three seeds."""
    pair = [losses(records(), data, name) for name in (scale, target)]
    means = [side.mean(1) for side in pair]
    stds = [(side - side.mean(0)).std(1, ddof=1) for side in pair]
    exact = corrected_correlation(means[0][:, None], means[1][:, None], resamples=1)
    assert exact is not None

    def draw(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, list[int] | None]:
        drawn = rng.integers(0, len(means[0]), len(means[0]))
        sides = [m[drawn, None] + s[drawn, None] * rng.standard_normal((len(drawn), 3)) for m, s in zip(means, stds)]  # noqa: B905
        return sides[0], sides[1], None

    return exact.spearman, draw


def found(truth: float, draw: Draw, repetitions: int) -> str:
    """Return one row: how often the interval holds the truth, lies above it and below it, and mean estimates."""
    rng = np.random.default_rng(0)
    rows = []
    for number in range(repetitions):
        small, large, groups = draw(rng)
        c = corrected_correlation(small, large, groups=groups, resamples=RESAMPLES, seed=number)
        if c is not None and c.low is not None and c.high is not None:
            rows.append((c.low <= truth <= c.high, c.low > truth, c.high < truth, c.spearman, c.corrected))
    held, above, below, plain, corrected = np.mean(rows, axis=0)
    return f"{truth:.2f} | {plain:.2f} | {corrected:.2f} | {held:.0%} | {above:.1%} | {below:.1%} |"


def main() -> None:
    """Simulate and write the table."""
    repetitions = int(sys.argv[1]) if len(sys.argv) > 1 else REPETITIONS
    plans: list[tuple[str, float, Draw]] = [
        (
            f"normal, noise {noise:g}, {seeds[0]} and {seeds[1]} seeds, {n} schedules",
            truth,
            planted(truth, n, noise, seeds),
        )
        for truth, n, noise, seeds in (
            (0.4, 28, 0.5, (3, 3)),
            (0.8, 28, 0.5, (3, 3)),
            (0.95, 28, 0.5, (3, 3)),
            (0.8, 28, 0.2, (3, 1)),
            (0.8, 28, 0.5, (3, 1)),
            (0.6, 16, 0.3, (3, 3)),
            (0.6, 10, 0.3, (3, 3)),
        )
    ]
    groups = [0] * 13 + [1] * 11
    plans.append(
        ("normal, noise 0.3, 3 and 3 seeds, in two groups of 13 and 11", 0.6, planted(0.6, 24, 0.3, (3, 3), groups))
    )
    for data, scale in (("mix", "base"), ("mix", "length-x4"), ("text", "base"), ("text", "length-x4")):
        plans.append((f"measured: {data}, {scale} and middle", *measured(data, scale, "middle")))
    lines = [
        "# Coverage of the corrected rank correlation",
        "",
        f"Written by `coverage.py`: {repetitions} repetitions of {RESAMPLES} resamples a row, 95% intervals.",
        "",
        "| truth | planted | mean, plain | mean, corrected | held | too high | too low |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, truth, draw in plans:
        lines.append(f"| {name} | {found(truth, draw, repetitions)}")
        print(lines[-1], file=sys.stderr, flush=True)
    (HERE / "coverage.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
