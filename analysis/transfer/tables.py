"""The tables of the study, from its records alone."""

from __future__ import annotations

from typing import Any

import numpy as np
from scales import DATA, SCALES, recipe, schedules

LARGEST = "large"
UNRANKED = ("all-full", "all-narrow")
"""Reference schedules: everything beats the one and loses to the other."""


def flops(name: str, vocabulary: int) -> float:
    """Return the FLOPs of one training at a scale, mean over schedules; a step counts as three forward passes."""
    from layersearch.model.flops import model_flops

    scale = SCALES[name]
    config = recipe(scale, "text", "float32").model
    one = [model_flops(config, vocabulary, each, seq_len=scale.tokens) for each in schedules(scale).values()]
    return 3 * scale.rows * scale.steps * float(np.mean(one))


def means(records: list[dict[str, Any]], measure: str = "loss", at: int = -1) -> dict[str, float]:
    """Return the mean over seeds of a measure by schedule; one that failed at a seed has infinity."""
    names = records[0]["measures"][measure]
    found = {name: [r["measures"][measure][name][at] for r in records] for name in names}
    return {name: float("inf") if None in values else float(np.mean(values)) for name, values in found.items()}


def report(records: list[dict[str, Any]]) -> str:
    """Return the tables of all records."""
    from layersearch.results.stats import rank_correlation

    out = ["# Transfer between scales: tables", "", "Written by `study.py report` from `records/`.", ""]
    for data in DATA:
        by = {name: [r for r in records if (r["scale"], r["data"]) == (name, data)] for name in SCALES}
        by = {name: held for name, held in by.items() if held and name != "toy"}
        if LARGEST not in by:
            continue
        goal = {k: v for k, v in means(by[LARGEST]).items() if k not in UNRANKED}
        out += [f"## {data}", "", "| scale | seeds | FLOPs of a training | Spearman with the largest | regret, nats |"]
        out += ["|---|---|---|---|---|"]
        for name, held in by.items():
            found = means(held)
            ranked = rank_correlation([found[k] for k in goal], list(goal.values()))
            regret = goal[min(goal, key=lambda k: found[k])] - min(goal.values())
            said = "–" if ranked is None else ranked.spearman_text
            spent = flops(name, held[0]["vocabulary"])
            out.append(f"| {name} | {len(held)} | {spent:.2e} | {said} | {regret:.3f} |")
        out.append("")
    return "\n".join(out)
