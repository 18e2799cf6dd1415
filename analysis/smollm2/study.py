"""Which method chooses the full-attention layers of a real model best, at equal tokens? Resumable; see README.md.

python analysis/smollm2/study.py choose MODEL.gguf   # each method, each calibration draw
python analysis/smollm2/study.py measure MODEL.gguf  # every chosen schedule on held-out documents
python analysis/smollm2/study.py report              # tables.md and contest.png from the records alone
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
CHOICES, MEASURES = HERE / "choices.jsonl", HERE / "measures.jsonl"
SEQ_LEN, BUDGET, WEIGHT, DRAWS, UNITS, CONFIRM = 1024, 0.27, 0.2, 3, 2, 12
GATE_STEPS, CANDIDATES = 8, 16
SPARSE = "window:64+sink:4"


def lines(path: Path) -> list[dict[str, Any]]:
    """Return the records of a file."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def append(path: Path, record: dict[str, Any]) -> None:
    """Append a record and say it."""
    with path.open("a") as file:
        file.write(json.dumps(record) + "\n")
    print(json.dumps(record)[:200], file=sys.stderr, flush=True)


class Bench:
    """The model and its units."""

    def __init__(self, model: str) -> None:
        from layersearch.config.recipe import DataConfig
        from layersearch.data.sequences import document_sequences
        from layersearch.data.tokenizer import open_tokenizer
        from layersearch.model.pretrained import load_pretrained
        from layersearch.schedule.bound_space import BoundSpace
        from layersearch.schedule.space import Space
        from layersearch.selection.layerwise import Layerwise
        from layersearch.study.selection_plan import weights_type

        self.tokenizer, _ = open_tokenizer(model)
        data = DataConfig(source="stdlib", tokenizer=model)
        counts = {"calibration": DRAWS * UNITS, "selection": 1, "confirmation": CONFIRM}
        self.texts = document_sequences(data, model, SEQ_LEN, counts)
        self.model = Layerwise(load_pretrained(model, check=False, tokens=SEQ_LEN, dtype=weights_type("auto")))
        space = Space(name="contest", choices=("full", SPARSE), baseline_span=SPARSE)
        heads = self.model.decoder.n_heads
        self.space = BoundSpace(space, n_layers=self.model.n_layers, seq_len=SEQ_LEN, n_heads=heads)

    def scorer(self, part: str, first: int, count: int, weight: float = WEIGHT) -> Any:
        """Return a scorer of so many units of a part."""
        import torch

        from layersearch.selection.measure import Scorer, Unit
        from layersearch.selection.retrieval import TASKS, make_example

        offset = {"calibration": 0, "confirmation": 1000}[part]
        units = [
            Unit(
                torch.from_numpy(self.texts[part][n]),
                make_example(self.tokenizer, list(TASKS), seq_len=SEQ_LEN + 1, number=offset + n, seed=7),
            )
            for n in range(first, first + count)
        ]
        return Scorer(self.model, units, list(TASKS), weight)


def methods(bench: Bench, draw: int, n_full: int) -> Iterator[tuple[tuple[str, ...], Callable[[], Sequence[Any]]]]:
    """Yield the names of methods that share their measurements, and the call that returns a schedule for each."""
    from layersearch.schedule import Span, presets
    from layersearch.selection import rankings
    from layersearch.selection.gates import descend, round_to_schedules
    from layersearch.selection.local_search import LocalSearch

    n, span, full = bench.space.n_layers, Span.parse(SPARSE), presets.all_full(bench.space.n_layers)
    sparse = presets.all_sparse(n, span)
    costs = [np.array([bench.space.share(s) for s in options]) for options in bench.space.options]

    def scorer(count: int = UNITS, start: Any = None) -> Any:
        made = bench.scorer("calibration", draw * UNITS, count)
        if start is not None:
            made.start_from(start)
        return made

    def first(ranking: Any) -> Any:
        return ranking.schedule(n_full, n, span)

    def one_by_one(rank: Callable[..., Any], start: Any) -> list[Any]:
        """Rank by the mixture, by text and by answers, from the same measurements."""
        made, seen = scorer(start=start), {}

        def score(weight: float) -> Callable[[Any], float]:
            def quality(schedule: Any) -> float:
                if schedule not in seen:
                    seen[schedule] = made.measure_all(schedule)
                parts = [(found.text_loss, found.answer_loss) for found in seen[schedule]]
                return float(np.mean([(1 - weight) * text + weight * answers for text, answers in parts]))

            return quality

        return [first(rank(n, span, score(weight))) for weight in (WEIGHT, 0.0, 1.0)]

    def gates() -> list[Any]:
        return descend(scorer(), bench.space.options, costs, BUDGET, steps=GATE_STEPS, rate=0.5)

    def within(scores: Sequence[Any]) -> Any:
        path = round_to_schedules(bench.space.options, scores, costs)
        return max((s for s in path if bench.space.cost(s) <= BUDGET), key=bench.space.cost)

    def ours() -> Any:
        scores = gates()
        tables = [dict(zip(o, s.tolist(), strict=True)) for o, s in zip(bench.space.options, scores, strict=True)]
        prior = lambda schedule: sum(table[span] for table, span in zip(tables, schedule, strict=True))  # noqa: E731
        search = LocalSearch(scorer(), bench.space, BUDGET, prior, lambda made: None, {}, draw)
        search.run([within(scores)], CANDIDATES)
        return search.best[0].schedule

    def named(name: str) -> tuple[str, ...]:
        return (name, f"{name}, text alone", f"{name}, answers alone")

    yield ("block influence",), lambda: [first(rankings.block_influence(scorer()))]
    yield ("lazy ratio",), lambda: [first(rankings.lazy_ratio(scorer(), span))]
    yield ("gate gradient",), lambda: [first(rankings.gate_gradient(scorer(), span))]
    yield ("gates",), lambda: [within(gates())]
    yield ("ours (gates, local search)",), lambda: [ours()]
    yield named("restore one"), lambda: one_by_one(rankings.restore_one, sparse)
    yield ("greedy",), lambda: [first(rankings.restore_greedy(n, span, scorer(1, start=sparse).quality, n_full))]
    yield named("remove one"), lambda: one_by_one(rankings.remove_one, full)


def choose(model: str) -> None:
    """Let every method choose, for each calibration draw."""
    from layersearch.selection.templates import named_placements

    bench = Bench(model)
    done = {(r["method"], r["draw"]) for r in lines(CHOICES)}
    named = named_placements(bench.space, BUDGET)
    n_full = max(schedule.n_full for schedule in named.values())
    for name, schedule in named.items():
        if (name, 0) not in done:
            append(
                CHOICES,
                {
                    "method": name,
                    "draw": 0,
                    "named": True,
                    "schedule": str(schedule),
                    "cost": bench.space.cost(schedule),
                },
            )
    for draw in range(DRAWS):
        for names, call in methods(bench, draw, n_full):
            if (names[0], draw) in done:
                continue
            began, spent = time.perf_counter(), bench.model.tokens_spent
            for name, schedule in zip(names, call(), strict=True):
                found = {
                    "schedule": str(schedule),
                    "cost": bench.space.cost(schedule),
                    "tokens": round(bench.model.tokens_spent - spent),
                    "seconds": round(time.perf_counter() - began, 1),
                }
                append(CHOICES, {"method": name, "draw": draw, "named": False, **found})


def measure(model: str) -> None:
    """Measure every chosen schedule, all-full and all-sparse on the held-out units, unit by unit."""
    from layersearch.schedule import Schedule, presets

    bench = Bench(model)
    n = bench.space.n_layers
    sparse = presets.all_sparse(n, SPARSE)
    wanted = dict.fromkeys([sparse, presets.all_full(n), *(Schedule.parse(r["schedule"]) for r in lines(CHOICES))])
    done = {(r["schedule"], r["unit"]) for r in lines(MEASURES)}
    for number in range(CONFIRM):
        left = [schedule for schedule in wanted if (str(schedule), number) not in done]
        if not left:
            continue
        scorer = bench.scorer("confirmation", number, 1)
        scorer.start_from(sparse)
        for schedule in left:
            found = scorer.measure(schedule, 0)
            append(
                MEASURES,
                {
                    "schedule": str(schedule),
                    "unit": number,
                    "text": found.text_loss,
                    "answers": found.answer_loss,
                    "accuracy": float(np.mean(list(found.accuracy.values()))),
                },
            )


def table() -> list[str]:
    """Return the contest as lines of Markdown, from the records alone."""
    from layersearch.results.stats import mean_interval
    from layersearch.schedule import Schedule

    measured: dict[str, dict[int, dict[str, float]]] = {}
    for record in lines(MEASURES):
        measured.setdefault(record["schedule"], {})[record["unit"]] = record
    units = sorted(set.intersection(*(set(by) for by in measured.values())))
    full = next(text for text in measured if Schedule.parse(text).n_full == len(Schedule.parse(text)))
    by: dict[str, list[dict[str, Any]]] = {}
    for record in lines(CHOICES):
        if record["schedule"] in measured:
            by.setdefault(record["method"], []).append(record)

    def mean(text: str, key: str) -> float:
        return float(np.mean([measured[text][unit][key] for unit in units]))

    def over_units(records: Sequence[dict[str, Any]], key: str) -> Any:
        # Each unit's mean over draws, minus all-full: the interval is over documents, for these draws.
        return mean_interval(
            float(np.mean([measured[r["schedule"]][unit][key] for r in records])) - measured[full][unit][key]
            for unit in units
        )

    rows = []
    for method, records in by.items():
        text, accuracy = over_units(records, "text"), over_units(records, "accuracy")
        level = float(np.mean([mean(r["schedule"], "accuracy") for r in records]))
        losses = [mean(r["schedule"], "text") - mean(full, "text") for r in records]
        spread = f"{min(losses):+.3f} to {max(losses):+.3f}" if len(losses) > 1 else ""
        layers = " / ".join(
            " ".join(str(at) for at, span in enumerate(Schedule.parse(r["schedule"])) if span.is_full) or "none"
            for r in records
        )
        tokens = "" if records[0]["named"] else f"{np.mean([r['tokens'] for r in records]):,.0f}"
        seconds = "" if records[0]["named"] else f"{np.mean([r['seconds'] for r in records]):.0f}"
        cost = f"{np.mean([r['cost'] for r in records]):.3f}"
        row = f"| {method} | {cost} | {tokens} | {seconds} | {text.mean:+.3f} ± {text.half_width:.3f} | {spread} "
        row += f"| {level:.2f} ({accuracy.mean:+.2f} ± {accuracy.half_width:.2f}) | {layers} |"
        rows.append((text.mean, row))
    head = [
        f"{len(units)} held-out documents. Text loss and digits right minus all-full's, paired by document.",
        "A method's figures are means over its calibration draws.",
        f"All-full: text {mean(full, 'text'):.3f} nats, {mean(full, 'accuracy'):.2f} of the digits right.",
        "",
        "| method | cost | tokens | seconds | text loss, nats | of draws | digits right | full layers, by draw |",
        "|---|---|---|---|---|---|---|---|",
    ]
    return head + [row for _, row in sorted(rows)]


def main() -> None:
    """Run one step of the study."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=("choose", "measure", "report"))
    parser.add_argument("model", nargs="?")
    options = parser.parse_args()
    if options.step == "report":
        (HERE / "tables.md").write_text("\n".join(["# Methods of choosing layers", "", *table()]) + "\n")
        return
    {"choose": choose, "measure": measure}[options.step](options.model)


if __name__ == "__main__":
    main()
