"""Which method chooses the full-attention layers best, at equal units? Three calibration draws."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from bench import BUDGET, WEIGHT, Bench, Held, append, costs_of, device_name, full_layers, lines, measure_all, within

DRAWS, UNITS, CONFIRM = 3, 2, 8
GATE_STEPS, CANDIDATES = 8, 12
FEW_STEPS = 2
"""Steps of *gates, two steps of answers alone*. Two, and the rate of 0.5, were fixed on examples not used here."""
FEW = "gates, two steps of answers alone"
SPARSE = "window:64+sink:4"


def methods(
    bench: Bench, space: Any, draw: int, n_full: int
) -> Iterator[tuple[tuple[str, ...], Callable[[], Sequence[Any]]]]:
    """Yield the names of methods that share their measurements, and the call that returns a schedule for each."""
    from layersearch.schedule import Span, presets
    from layersearch.selection import rankings
    from layersearch.selection.gates import descend
    from layersearch.selection.local_search import LocalSearch

    n, span, full = space.n_layers, Span.parse(SPARSE), presets.all_full(space.n_layers)
    sparse = presets.all_sparse(n, span)

    def scorer(count: int = UNITS, start: Any = None, weight: float = WEIGHT) -> Any:
        made = bench.scorer("calibration", draw * UNITS, count, weight)
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

    def gates(steps: int = GATE_STEPS, weight: float = WEIGHT) -> list[Any]:
        return descend(scorer(weight=weight), space.options, costs_of(space), BUDGET, steps=steps, rate=0.5)

    def ours() -> Any:
        scores = gates()
        tables = [dict(zip(o, s.tolist(), strict=True)) for o, s in zip(space.options, scores, strict=True)]
        prior = lambda schedule: sum(table[span] for table, span in zip(tables, schedule, strict=True))  # noqa: E731
        search = LocalSearch(scorer(), space, BUDGET, prior, lambda made: None, {}, draw)
        search.run([within(space, scores, BUDGET)], CANDIDATES)
        return search.best[0].schedule

    def named(name: str) -> tuple[str, ...]:
        return (name, f"{name}, text alone", f"{name}, answers alone")

    yield ("block influence",), lambda: [first(rankings.block_influence(scorer()))]
    yield ("lazy ratio",), lambda: [first(rankings.lazy_ratio(scorer(), span))]
    yield ("gate gradient",), lambda: [first(rankings.gate_gradient(scorer(), span))]
    yield (FEW,), lambda: [within(space, gates(FEW_STEPS, weight=1.0), BUDGET)]
    yield ("gates",), lambda: [within(space, gates(), BUDGET)]
    yield ("ours (gates, local search)",), lambda: [ours()]
    yield named("restore one"), lambda: one_by_one(rankings.restore_one, sparse)
    yield named("remove one"), lambda: one_by_one(rankings.remove_one, full)
    # On a CPU it takes as long as all others of a draw together.
    yield ("greedy",), lambda: [first(rankings.restore_greedy(n, span, scorer(start=sparse).quality, n_full))]


def run(model: str, prose: Sequence[str], device: str = "cpu") -> None:
    """Let every method choose, for each calibration draw; then measure what was chosen on held-out units.

    Args:
        model: the GGUF file.
        prose: not used.
        device: where it runs. The committed measurements are from a CPU; a GPU chose for *greedy*.
    """
    from layersearch.schedule import presets
    from layersearch.selection.templates import named_placements

    bench = Bench(model, device=device)
    space = bench.space("full", SPARSE)
    done = {(r["method"], r["draw"]) for r in lines("choices")}
    named = named_placements(space, BUDGET)
    n_full = max(schedule.n_full for schedule in named.values())
    for name, schedule in named.items():
        if (name, 0) not in done:
            chosen = {"schedule": str(schedule), "cost": space.cost(schedule)}
            append("choices", {"method": name, "draw": 0, "named": True, **chosen})
    for draw in range(DRAWS):
        for names, call in methods(bench, space, draw, n_full):
            if (names[-1], draw) in done:
                continue
            began, spent = time.perf_counter(), bench.model.tokens_spent
            for name, schedule in zip(names, call(), strict=True):
                found = {
                    "schedule": str(schedule),
                    "cost": space.cost(schedule),
                    "tokens": round(bench.model.tokens_spent - spent),
                    "seconds": round(time.perf_counter() - began, 1),
                    **({} if device == "cpu" else {"device": device_name(device)}),
                }
                append("choices", {"method": name, "draw": draw, "named": False, **found})
    ends = [str(presets.all_sparse(space.n_layers, SPARSE)), str(presets.all_full(space.n_layers))]
    measure_all(bench, "contest", [*ends, *(r["schedule"] for r in lines("choices"))], CONFIRM)


def seconds(model: str, prose: Sequence[str]) -> None:
    """Time two methods in turns in one process, one thread: processor seconds, so that other work matters little.

    Args:
        model: the GGUF file.
        prose: not used.
    """
    import torch

    torch.set_num_threads(1)
    bench = Bench(model)
    space = bench.space("full", SPARSE)
    done = {(r["method"], r["draw"]) for r in lines("contest-seconds")}
    for draw in range(DRAWS):
        for names, call in methods(bench, space, draw, 4):
            if names[0] in (FEW, "restore one") and (names[0], draw) not in done:
                began = time.process_time()
                chosen = call()[0]
                spent = round(time.process_time() - began, 2)
                found = {"schedule": str(chosen), "processor seconds": spent, "threads": 1}
                append("contest-seconds", {"method": names[0], "draw": draw, **found})


def ratio() -> str:
    """Return the time of the few steps as a share of restore-one's, from the records alone."""
    spent = {(r["method"], r["draw"]): r["processor seconds"] for r in lines("contest-seconds")}
    draws = [draw for draw in range(DRAWS) if {(FEW, draw), ("restore one", draw)} <= set(spent)]
    shares = [spent[FEW, draw] / spent["restore one", draw] for draw in draws]
    found = f"{min(shares):.2f} to {max(shares):.2f}" if shares else "not measured"
    return f"Processor time of *{FEW}* as a share of *restore one*'s, by draw, timed in turns on one thread: {found}."


def table() -> list[str]:
    """Return the contest as lines of Markdown, from the records alone."""
    held = Held(lines("contest"))
    full = next(text for text in held.by if text.startswith("full*30"))
    by: dict[str, list[dict[str, Any]]] = {}
    for record in lines("choices"):
        if record["schedule"] in held.by:
            by.setdefault(record["method"], []).append(record)
    ours = next(([r["schedule"] for r in found] for name, found in by.items() if name.startswith("ours")), None)
    rows = []
    for method, records in by.items():
        chosen = [r["schedule"] for r in records]
        loss, text = held.minus(chosen, full, "loss"), held.minus(chosen, full, "text")
        losses = [held.mean(one, "text") - held.mean(full, "text") for one in chosen]
        spread = f"{min(losses):+.3f} to {max(losses):+.3f}" if len(losses) > 1 else ""
        layers = " / ".join(dict.fromkeys(map(full_layers, chosen)))
        tokens = "" if records[0]["named"] else f"{np.mean([r['tokens'] for r in records]):,.0f}"
        seconds = "" if records[0]["named"] else f"{np.mean([r['seconds'] for r in records]):.0f}"
        seconds += " (GPU)" if any("device" in r for r in records) else ""
        cost = f"{np.mean([r['cost'] for r in records]):.3f}"
        versus = ""
        if ours is not None and not method.startswith("ours"):
            less = held.minus(ours, chosen, "loss")
            versus = f"{less.mean:+.3f} ± {less.half_width:.3f}"
        row = f"| {method} | {cost} | {tokens} | {seconds} | {loss.mean:+.3f} ± {loss.half_width:.3f} | {versus} "
        row += f"| {text.mean:+.3f} ± {text.half_width:.3f} | {spread} | {held.mean(chosen, 'accuracy'):.2f} "
        rows.append((loss.mean, row + f"| {layers} |"))
    return [
        f"{len(held.units)} held-out documents. Losses minus all-full's, paired. *Loss* is what methods lower:",
        f"{1 - WEIGHT:g} of the text's and {WEIGHT:g} of the answers'. *Ours less it* is of that loss.",
        "A method's figures are means over its calibration draws; intervals are over documents, for these draws.",
        f"All-full: text {held.mean(full, 'text'):.3f} nats, {held.mean(full, 'accuracy'):.2f} of the digits right.",
        "",
        "| method | cost | tokens | seconds | loss, nats | ours less it | text, nats | text, by draw | digits right "
        "| full layers, by draw |",
        "|---|---|---|---|---|---|---|---|---|---|",
        *(row for _, row in sorted(rows)),
        "",
        ratio(),
    ]
