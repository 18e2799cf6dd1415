"""Print what the benchmark's tables say: distinct losses, noise, how early ranks settle, the frontier.

Command:  python analysis/schedule_bench/facts.py
Time:     seconds
"""

from __future__ import annotations

import numpy as np
from scipy import stats

from layersearch.study.benchmark import load_bench


def main() -> None:
    """Print the facts as Markdown."""
    for name in ("mix", "recall", "text", "prose", "deep", "smollm2", "hops", "smollm2-prose", "shallow"):
        bench = load_bench(name)
        final = bench.losses[:, :, -1]
        paired = [
            (final[:, a] - final[:, b]) - (final[:, a] - final[:, b]).mean()
            for a in range(len(bench.seeds))
            for b in range(a)
        ]
        print(f"### {name}\n")
        print(f"- {len(bench.schedules)} schedules x {len(bench.seeds)} seeds x {len(bench.steps)} points, ", end="")
        unit = "hours of one H100" if name == "smollm2" else "core hours"
        print(f"{len(np.unique(final))} distinct final losses, {bench.seconds.sum() / 3600:.2g} {unit}.")
        low, high = bench.means.min(), bench.means.max()
        print(f"- Means over seeds from {low:.4f} to {high:.4f} nats; median {np.median(bench.means):.4f}.")
        if len(bench.seeds) > 1:
            per_schedule = final.std(axis=1, ddof=1)
            print(f"- Seed standard deviation {bench.seed_std:.4f} nats pooled, ", end="")
            print(
                f"{np.median(per_schedule):.4f} in the median schedule, {per_schedule.max():.4f} in the worst; ", end=""
            )
            print(f"{np.std(np.concatenate(paired)):.4f} for a difference of two seeds ", end="")
            print("once what a seed does to all is taken out.")
            seeds = [
                stats.spearmanr(final[:, a], final[:, b]).statistic for a in range(len(bench.seeds)) for b in range(a)
            ]
            print(f"- Ranks of one seed with those of another (Spearman): {min(seeds):.3f} to {max(seeds):.3f}.")
        print()
        print("| share of the training | " + " | ".join(f"{step / bench.steps[-1]:g}" for step in bench.steps) + " |")
        print("|---|" + "---|" * len(bench.steps))
        early = [stats.spearmanr(bench.losses[:, 0, at], final[:, 0]).statistic for at in range(len(bench.steps))]
        kendall = [stats.kendalltau(bench.losses[:, 0, at], final[:, 0]).statistic for at in range(len(bench.steps))]
        print("| Spearman with the end, seed 0 | " + " | ".join(f"{value:.2f}" for value in early) + " |")
        print("| Kendall | " + " | ".join(f"{value:.2f}" for value in kendall) + " |\n")
        print("| schedule on the true frontier | l | cost | mean loss, nats |")
        print("|---|---|---|---|")
        for schedule in bench.frontier:
            mean = bench.means[bench.schedules.index(schedule)]
            print(f"| `{schedule}` | {schedule.n_full} | {bench.cost(schedule):.4f} | {mean:.4f} |")
        print()


if __name__ == "__main__":
    main()
