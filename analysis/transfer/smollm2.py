"""Does a ranking from scratch agree with SmolLM2-135M's, before and after healing? From committed records alone."""

from __future__ import annotations

import json
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

    four = {s: found for s, found in tuned["before"].items() if Schedule.parse(s).n_full == 4}
    placed = {s: found for s, found in tuned["1.2 million tokens"].items() if 0 < Schedule.parse(s).n_full < 30}
    sinks = {s: found for s, found in placed.items() if "sink" in s}
    out += [
        "A schedule's score from the study: the mean loss of `one full: j` over its full layers, j by relative depth.",
        f"{len(four)} schedules of SmolLM2 with four full layers (named, or chosen by a method), not healed. "
        f"{len(placed)} healed with 1.2 million tokens: {len(sinks)} placements of 4 or 9 full layers, among windows "
        "with sinks, most of them without sinks too. The score does not see sinks.",
        "",
    ]
    rows = []
    for data, measure, against in (("text", "loss", "text"), ("mix", "recall", "answers"), ("mix", "loss", "answers")):
        for scale in present(records, data):
            own = losses(records, data, scale, measure=measure).mean(1)
            alone = [own[names.index(f"one full: {slot}")] for slot in range(SLOTS)]
            row = [data, measure, scale, against]
            for chosen in (four, placed, sinks):
                score = np.array([score_of(schedule, alone) for schedule in chosen])[:, None]
                goal = np.array([found[against].mean() for found in chosen.values()])[:, None]
                known = bool(np.isfinite(score).all())
                found = corrected_correlation(score, goal, resamples=1000) if known else None
                row.append("–" if found is None else str(found))
            rows.append(row)
    head = "data | measure of the study | scale | SmolLM2's measure | not healed | healed | healed, with sinks"
    return [*out, *table(head, rows)]


def score_of(schedule: str, alone: list[float]) -> float:
    """Return the mean loss of the study's single full layers at the relative depths of a schedule's full layers."""
    spans = Schedule.parse(schedule)
    return float(np.mean([alone[j * SLOTS // len(spans)] for j, span in enumerate(spans) if span.is_full]))
