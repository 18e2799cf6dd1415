"""Which layers, for which text, length, budget and goal? Choices by gates, and what each costs the others."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence

from bench import BUDGET, WEIGHT, Bench, Held, append, costs_of, full_layers, lines, measure_all, within

GATE_STEPS, CROSS = 6, 8
COUNTS = {"calibration": 8, "confirmation": 12, "healing": 40}
LONG = {"calibration": 4, "confirmation": 8, "healing": 8}


@dataclasses.dataclass(frozen=True)
class Condition:
    """What the layers are chosen for."""

    text: str
    seq_len: int
    weight: float = WEIGHT
    """Of retrieval in the loss."""
    draw: int = 0

    @property
    def sparse(self) -> str:
        """The span of the other layers: a 32nd of the text, and four sinks."""
        return f"window:{self.seq_len // 32}+sink:4"

    @property
    def name(self) -> str:
        """The condition in tables."""
        goal = {0.0: ", text alone", 0.9: ", retrieval"}.get(self.weight, "")
        return f"{self.text}, {self.seq_len:,}{goal}{', other documents' if self.draw else ''}"


CONDITIONS = (
    Condition("code", 1024),
    Condition("prose", 1024),
    Condition("code", 1024, draw=1),
    Condition("code", 1024, weight=0.0),
    Condition("code", 1024, weight=0.9),
    Condition("code", 2048),
    Condition("code", 4096),
    Condition("prose", 2048),
)
"""In the order of their worth: the study may be stopped after any."""


def run(model: str, prose: Sequence[str], most: int | None = None) -> None:
    """Choose under the first conditions; then measure every choice at 1,024 tokens of code and of prose."""
    from layersearch.schedule import Schedule, presets
    from layersearch.selection.gates import descend

    benches: dict[tuple[str, int], Bench] = {}

    def bench_of(text: str, seq_len: int) -> Bench:
        if (text, seq_len) not in benches:
            shared = next(iter(benches.values()), None)
            counts = COUNTS if seq_len == 1024 else LONG
            files = prose if text == "prose" else ()
            benches[text, seq_len] = Bench(model, seq_len, files, counts, shared=shared)
        return benches[text, seq_len]

    done = {r["condition"] for r in lines("layers")}
    for condition in CONDITIONS[:most]:
        if condition.name in done or (condition.text == "prose" and not prose):
            continue
        bench = bench_of(condition.text, condition.seq_len)
        space, began = bench.space("full", condition.sparse), time.perf_counter()
        count = 4 if condition.seq_len == 1024 else 2
        scorer = bench.scorer("calibration", count * condition.draw, count, condition.weight)
        scores = descend(scorer, space.options, costs_of(space), BUDGET, steps=GATE_STEPS, rate=0.5)
        schedule = within(space, scores, BUDGET)
        full = next(at for at, span in enumerate(space.options[0]) if span.is_full)
        needs = [float(layer[1 - full] - layer[full]) for layer in scores]
        found = {"schedule": str(schedule), "needs": needs, "seconds": round(time.perf_counter() - began, 1)}
        append("layers", {"condition": condition.name, "budget": BUDGET, **found})
    # Every choice at one length and with one span, so that the layers alone differ.
    chosen = lines("layers")
    short = "window:32+sink:4"
    for text in ("code", "prose") if prose else ("code",):
        bench = bench_of(text, 1024)
        n = bench.model.n_layers
        wanted = [str(presets.all_full(n)), str(presets.interleaved(n, 6, short)), str(presets.top(n, 6, short))]
        for record in chosen:
            full_at = [at for at, span in enumerate(Schedule.parse(record["schedule"])) if span.is_full]
            wanted.append(str(presets.place(n, full_at, short)))
        measure_all(bench, "layers-held-out", wanted, CROSS, source=text)


def table() -> list[str]:
    """Return the agreement of the answers as lines of Markdown, from the records alone."""
    from scipy.stats import spearmanr

    from layersearch.schedule import Schedule, presets

    records = lines("layers")
    same = next(r for r in records if r["condition"] == "code, 1,024")
    rows = []
    for record in records:
        rank = float(spearmanr(record["needs"], same["needs"]).statistic)
        ours, other = (set(full_layers(r["schedule"]).split()) - {"none"} for r in (record, same))
        shared = "" if record is same else f"{len(ours & other)} of {min(len(ours), len(other))} | {rank:.2f}"
        rows.append(f"| {record['condition']} | {full_layers(record['schedule'])} | {shared or ' | '} |")
    out = [
        "Each choice is by gates over full attention and `window:T/32+sink:4`, 6 steps. Shared layers and Spearman's",
        "rank correlation of all 30 needs are against `code, 1,024`. The budget is 0.27.",
        "",
        "| text, tokens | full layers | shared | Spearman |",
        "|---|---|---|---|",
        *rows,
    ]
    short = "window:32+sink:4"
    for text in ("code", "prose"):
        held = Held(r for r in lines("layers-held-out") if r["source"] == text)
        if not held.by:
            continue
        full = next(one for one in held.by if one.startswith("full*30"))
        named: dict[str, list[str]] = {}
        for record in records:
            at = [i for i, span in enumerate(Schedule.parse(record["schedule"])) if span.is_full]
            named.setdefault(str(presets.place(30, at, short)), []).append(record["condition"])
        named.setdefault(str(presets.interleaved(30, 6, short)), []).append("interleaved")
        named.setdefault(str(presets.top(30, 6, short)), []).append("top")
        own = next(one for one, names in named.items() if f"{text}, 1,024" in names)
        made = []
        for schedule, names in named.items():
            if schedule not in held.by:
                continue
            found = held.minus(schedule, full, "text")
            less = held.minus(schedule, own, "text")
            versus = "" if schedule == own else f"{less.mean:+.3f} ± {less.half_width:.3f}"
            made.append(
                (
                    found.mean,
                    f"| {'; '.join(names)} | {full_layers(schedule)} | {found.mean:+.3f} ± {found.half_width:.3f} | "
                    f"{versus} | {held.mean(schedule, 'accuracy'):.2f} |",
                )
            )
        out += [
            "",
            f"### The choices, measured on {text} at 1,024 tokens",
            "",
            f"{len(held.units)} held-out documents, text loss minus all-full's, paired. Other layers: `{short}`.",
            "",
            "| chosen for | full layers | text loss, nats | less its own choice | digits right |",
            "|---|---|---|---|---|",
            *(row for _, row in sorted(made)),
        ]
    return out
