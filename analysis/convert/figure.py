"""Draw what study.py measured, and print its table.

Command:  python analysis/convert/figure.py
Time:     seconds
Writes:   recovery.png, recovery.svg
Shows:    loss above the original's against optimizer steps after the switch, one panel a budget, one line a placement;
          the table's recovered share is (switched - after the last step) / (switched - original), of gaps over 0.05
"""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from layersearch.results.plots.style import VERMILION, write_figure
from layersearch.results.stats import mean_interval, paired_difference

if TYPE_CHECKING:
    from matplotlib.figure import Figure

HERE = Path(__file__).parent
STYLES = {
    "all_sparse": ("#5D5D5D", "P", "all sparse"),
    "all_full": ("#000000", ".", "all full (nothing switched)"),
    "bottom": ("#009E73", "s", "bottom"),
    "top": ("#CC79A7", "^", "top"),
    "interleaved": ("#B8860B", "v", "interleaved"),
    "remove_one": ("#56B4E9", "D", "sensitivity (remove one)"),
    "restore_greedy": (VERMILION, "o", "greedy (restore one)"),
}
SMALLEST = 0.05
"""A gap below so many nats is too small for a share of it to mean anything."""
Losses = dict[tuple[float, str], dict[int, dict[int, float]]]
"""By budget and placement, then by step, then by seed."""


def load() -> tuple[float, Losses, dict[tuple[float, str], dict[str, Any]]]:
    """Return the original's loss, the losses of the runs, and one record of each."""
    lines = [json.loads(line) for line in (HERE / "records.jsonl").read_text(encoding="utf-8").splitlines()]
    original = next(line["loss"] for line in lines if line["kind"] == "original")
    losses: Losses = defaultdict(lambda: defaultdict(dict))
    facts = {}
    for line in lines:
        if line["kind"] == "run":
            key = (line["budget"], line["placement"])
            losses[key][line["step"]][line["seed"]] = line["loss"]
            facts[key] = line
    return original, losses, facts


def draw(figure: Figure, top: float, original: float, losses: Losses) -> None:
    """Draw one panel a budget."""
    budgets = sorted({budget for budget, _ in losses if budget < 1})
    control = losses[1.0, "all_full"]
    trained = [mean_interval(control[step].values()).mean - original for step in sorted(control)]
    grid = figure.add_gridspec(1, len(budgets), left=0.075, right=0.99, bottom=0.25, top=top - 0.09, wspace=0.08)
    first = None
    for column, budget in enumerate(budgets):
        axes = figure.add_subplot(grid[column], sharey=first)
        first = first or axes
        for place, (color, marker, label) in STYLES.items():
            by_step = losses.get((budget, place))
            if not by_step:
                continue
            steps = sorted(by_step)
            means = [mean_interval(by_step[step].values()) for step in steps]
            above = [mean.mean - original for mean in means]
            if any(mean.low is not None for mean in means):
                low = [(mean.low if mean.low is not None else mean.mean) - original for mean in means]
                high = [(mean.high if mean.high is not None else mean.mean) - original for mean in means]
                axes.fill_between(range(len(steps)), low, high, color=color, alpha=0.15, linewidth=0)
            axes.plot(range(len(steps)), above, color=color, marker=marker, markersize=5, linewidth=1.4, label=label)
            axes.set_xticks(range(len(steps)), [str(step) for step in steps])
        axes.axhline(0, color="black", linewidth=0.8)
        axes.plot(
            range(len(trained)), trained, color="black", linestyle=":", linewidth=1.4, label="all full, trained on"
        )
        axes.set_yscale("symlog", linthresh=0.1, linscale=0.6)
        axes.set_ylim(-0.02, 8)
        axes.set_yticks([0, 0.05, 0.1, 0.3, 1, 3], ["0", "0.05", "0.1", "0.3", "1", "3"])
        axes.grid(color="#E6E6E6", linewidth=0.6)
        axes.set_title(f"budget {budget}", fontsize=10)
        axes.spines[["top", "right"]].set_visible(False)
        if column:
            axes.tick_params(labelleft=False)
        else:
            axes.set_ylabel("validation loss above the original, nats")
    figure.supxlabel("optimizer steps after the switch", fontsize=10, y=0.115)
    handles, labels = [], []
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            if label not in labels:
                handles.append(handle)
                labels.append(label)
    order = [label for label in (*(style[2] for style in STYLES.values()), "all full, trained on") if label in labels]
    handles = [handles[labels.index(label)] for label in order]
    figure.legend(handles, order, loc="lower center", ncols=7, frameon=False, fontsize=8, columnspacing=1.2)


def table(original: float, losses: Losses, facts: dict[tuple[float, str], dict[str, Any]]) -> None:
    """Print the README's table."""
    print("| budget | cost | placement | schedule | after the switch | after the last step | recovered |")
    print("|---|---|---|---|---|---|---|")
    for (budget, place), by_step in sorted(
        losses.items(), key=lambda item: (item[0][0], list(STYLES).index(item[0][1]))
    ):
        last = max(by_step)
        before, after = (mean_interval(by_step[step].values()) for step in (0, last))
        gap = before.mean - original
        line = facts[budget, place]
        width = "" if after.low is None or after.high is None else f" ± {(after.high - after.low) / 2:.3f}"
        share = f"{(before.mean - after.mean) / gap:.0%}" if gap >= SMALLEST else "–"
        print(
            f"| {budget} | {line['cost']:.3f} | {STYLES[place][2]} | `{line['schedule']}` | {before.mean:.3f} "
            f"| {after.mean:.3f}{width} | {share} |"
        )
    for budget in sorted({budget for budget, _ in losses}):
        greedy = losses.get((budget, "restore_greedy"))
        for place in ("bottom", "top", "interleaved", "remove_one"):
            other = losses.get((budget, place))
            if greedy and other:
                last = max(greedy)
                found = paired_difference(other[last], greedy[last])
                print(f"budget {budget}: {place} less greedy after {last} steps: {found}")
    lines = [json.loads(line) for line in (HERE / "records.jsonl").read_text(encoding="utf-8").splitlines()]
    for line in lines:
        if line["kind"] == "long":
            print("long", line["placement"], line["step"], f"{line['loss']:.3f}, recall {line['recall_accuracy']:.2f}")


def main() -> None:
    """Draw and print."""
    original, losses, facts = load()
    title = (
        "Which layers keep full attention decides whether a switch can be won back in 64 steps",
        f"A small pre-trained Qwen3 (6 layers, 64 tokens; original loss {original:.3f}) on the default mix; the sparse "
        "layers see a window. Mean of 3 seeds of the data order, bands: 95% intervals. The scale is linear below 0.1.",
    )
    for path in write_figure(
        HERE / "recovery", title, 4.2, 0.01, lambda figure, top: draw(figure, top, original, losses)
    ):
        print(path)
    table(original, losses, facts)


if __name__ == "__main__":
    main()
