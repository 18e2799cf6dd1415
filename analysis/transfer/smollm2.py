"""Does a ranking from scratch agree with SmolLM2-135M's, before and after healing? From committed records alone."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from scales import HERE, SCALES, SLOTS, schedules

from layersearch.results.transfer import corrected_correlation
from layersearch.schedule import Schedule

REAL = HERE.parent / "smollm2/records"
NAMED = {  # SmolLM2's placement at 0.27 of the cost: the study's schedules at nearly the same relative depths
    "bottom(4)": ("full*4 window:64+sink:4*26", ("one full: 0",)),
    "middle(4)": ("window:64+sink:4*13 full*4 window:64+sink:4*13", ("one full: 2", "one full: 3")),
    "top(4)": ("window:64+sink:4*26 full*4", ("one full: 5",)),
    "interleaved(4)": (
        " full ".join(f"window:64+sink:4*{number}" for number in (3, 7, 6, 7, 3)),
        ("interleaved two",),  # at 0.41 of the cost: the study has no interleaving at one full layer's cost
    ),
}


def real(file: str, key: Callable[[dict[str, Any]], bool]) -> dict[str, dict[str, np.ndarray]]:
    """Return text loss, loss of the answers and accuracy by schedule, one number for each held-out document."""
    found: dict[str, dict[int, dict[str, Any]]] = {}
    for line in (REAL / f"{file}.jsonl").read_text().splitlines():
        row = json.loads(line)
        if key(row):
            found.setdefault(row["schedule"], {})[row["unit"]] = row
    return {
        schedule: {name: np.array([by[unit][name] for unit in sorted(by)]) for name in ("text", "answers", "accuracy")}
        for schedule, by in found.items()
    }


def healed(row: dict[str, Any]) -> bool:
    """Whether a record is of a healed model, or of the original, which is not healed."""
    return bool(row["moment"] == "after" or row["name"] == "all-full")


def lines(records: list[dict[str, Any]]) -> list[str]:
    """Return the section of the tables."""
    from tables import losses, present, table

    names = list(schedules(SCALES["base"]))
    tuned = {
        "before": real("contest", lambda row: True),
        "8 steps": real("heal", healed),
        "1.2 million tokens": real("heal-long", healed),
    }
    out = [
        "## SmolLM2-135M",
        "",
        "Text loss above all-full's, nats, and digits right; the study's losses at its own scales.",
        "",
    ]
    rows = []
    for name, (schedule, ours) in NAMED.items():
        at = [names.index(each) for each in ours]
        row = [name, ", ".join(ours)]
        for found in tuned.values():
            if schedule in found:
                above = found[schedule]["text"] - found["full*30"]["text"]
                row += [f"{above.mean():+.3f}", f"{found[schedule]['accuracy'].mean():.2f}"]
            else:
                row += ["", ""]
        for data, scale, measure in (
            ("text", "middle", "loss"),
            ("text", "deep-middle", "loss"),
            ("mix", "middle", "recall_right"),
            ("mix", "large", "recall_right"),
        ):
            row.append(f"{losses(records, data, scale, measure=measure)[at].mean():.3f}")
        rows.append(row)
    each = [f"{moment}: text | digits" for moment in tuned]
    head = " | ".join(
        [
            "SmolLM2",
            "study",
            *each,
            "study: text, middle",
            "text, deep-middle",
            "recall right, middle",
            "recall right, large",
        ]
    )
    out += table(head, rows)

    four = [s for s in tuned["before"] if Schedule.parse(s).n_full == 4]
    text = np.array([tuned["before"][s]["text"].mean() for s in four])[:, None]
    answers = np.array([tuned["before"][s]["answers"].mean() for s in four])[:, None]
    out += [
        "A schedule's score from the study: the mean loss of `one full: j` over its full layers, j by relative depth.",
        f"{len(four)} schedules of SmolLM2 with four full layers (named, or chosen by a method), not healed:",
        "",
    ]
    rows = []
    for data, measure, against, goal in (
        ("text", "loss", "text", text),
        ("mix", "recall", "answers", answers),
        ("mix", "loss", "answers", answers),
    ):
        for scale in present(records, data):
            own = losses(records, data, scale, measure=measure).mean(1)
            alone = [own[names.index(f"one full: {slot}")] for slot in range(SLOTS)]
            score = [
                np.mean([alone[j * SLOTS // 30] for j, span in enumerate(Schedule.parse(s)) if span.is_full])
                for s in four
            ]
            found = (
                corrected_correlation(np.array(score)[:, None], goal, resamples=1000)
                if all(map(math.isfinite, score))
                else None
            )
            rows.append([data, measure, scale, against, "–" if found is None else str(found)])
    return [*out, *table("data | measure of the study | scale | SmolLM2's measure | Spearman", rows)]
