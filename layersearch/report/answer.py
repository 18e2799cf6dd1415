"""The sentences of a page: the answer, how sure it is, and what the evidence does not say."""

from __future__ import annotations

from collections import Counter
from typing import Any

from layersearch.report.folder import OpenedRun
from layersearch.report.schedules import cache_bytes
from layersearch.results.held_out import MeasureRow, compact
from layersearch.results.result import ALL_FULL, Entry
from layersearch.results.sentences import noise_sentence, position_sentence, ranking_warning, signal_sentence
from layersearch.results.stats import Interval, decimals, paired_difference
from layersearch.schedule import Schedule, presets
from layersearch.study.transfer import STUDIED

FEW = 5
"""Fewer seeds or documents than this are called few."""
HEALED_ORDER = (
    "Healed models may have another order. On SmolLM2-135M, 12 schedules were measured before and after healing for "
    "1.2 million tokens. Spearman's correlation was 0.75 (0.23 to 0.99) for text loss, 0.60 (-0.00 to 0.93) for "
    "answers, and 0.45 (-0.21 to 0.89) for both together (analysis/smollm2)."
)
"""How far training-free scores rank as healed models do. A test compares the figures with the study's tables."""
LATENCY = (
    "Attention FLOPs and KV cache bytes are counted exactly. No latency was measured: kernels may be slower than their "
    "share of the FLOPs."
)
"""What no run measured."""


def chosen(run: OpenedRun) -> Schedule | None:
    """Return the schedule that the page answers with; None before there is one."""
    if run.answer is not None:
        return Schedule.parse(str(run.answer["l_star"]["shown_by"]))
    winner = run.result.winner
    return run.result.best_searched if winner is None else winner.schedule


def full_row(run: OpenedRun) -> MeasureRow | None:
    """Return all_full's row of a selection."""
    return next((row for row in run.held_out if ALL_FULL in row.names), None)


def headline(run: OpenedRun) -> str:
    """Return the sentence that answers: which schedule, what it costs, what it loses."""
    schedule = chosen(run)
    if schedule is None:
        return run.result.verdict
    if run.answer is not None:
        first = next(iter(sureness(run)), "")
        return first.partition(". ")[0].rstrip(".") + "." if first else kept(schedule) + "."
    entry = next((entry for entry in run.result.entries if entry.schedule == schedule), None)
    keeps = kept(schedule)
    if run.result.winner is None and run.answer is None:
        keeps = f"No winner yet. Best so far, on one seed: {keeps[0].lower()}{keeps[1:]}"
    said = f"{keeps}. That is {run.space.cost(schedule):.1%} of the attention FLOPs of all-full"
    loses = None if entry is None else _loses(run, entry)
    return f"{said}, {loses}." if loses else f"{said}."


def kept(schedule: Schedule) -> str:
    """Return which layers keep full attention, without a full stop."""
    number, total = schedule.n_full, len(schedule)
    layers = [str(layer) for layer, span in enumerate(schedule) if span.is_full]
    if not number:
        return "Keep full attention in no layer"
    if number == total:
        return f"Keep full attention in all {total} layers"
    if number > 12:
        return f"Keep full attention in {number} of {total} layers"
    listed = layers[0] if number == 1 else f"{', '.join(layers[:-1])} and {layers[-1]}"
    return f"Keep full attention in {number} of {total} layers: {listed}"


def _loses(run: OpenedRun, entry: Entry) -> str | None:
    row, full = next((row for row in run.held_out if row.schedule == entry.schedule), None), full_row(run)
    if row is not None:
        said = f"and {signed(row.text_to_full)} nats of text loss against all-full"
        if row.accuracy is not None and full is not None and full.accuracy is not None:
            said = f"{row.accuracy.mean:.0%} of the hidden digits right (all-full: {full.accuracy.mean:.0%}), {said}"
        return f"with {said}" if row.accuracy is not None else said
    difference = corrected_to_full(run, entry)
    if difference is not None and entry.n_full < run.space.n_layers:
        return f"and {signed(difference)} nats of loss against all-full"
    return None if entry.loss is None else f"with a loss of {entry.loss:.4g} nats"


def to_full(run: OpenedRun, entry: Entry) -> Interval | None:
    """Return an entry's paired loss minus all_full's, nats; None if they share no seed.

    The winner's is the one that the verdict speaks of, so that the page says one interval of it.
    """
    winner = run.result.winner
    if winner is not None and winner.schedule == entry.schedule and winner.to_all_full is not None:
        return winner.to_all_full.difference
    full = run.full
    if full is None:
        return None
    a, b = dict(entry.confirm), dict(full.confirm)
    return paired_difference(a, b, run.result.confidence) if a.keys() & b.keys() else None


def corrected_to_full(run: OpenedRun, entry: Entry) -> Interval | None:
    """Return `to_full`; the winner's interval is corrected for its choice among several."""
    winner = run.result.winner
    if winner is not None and winner.schedule == entry.schedule and winner.to_all_full is not None:
        return winner.to_all_full.corrected
    return to_full(run, entry)


def signed(found: Interval) -> str:
    """Return a difference with its sign and half width, which no line break parts."""
    places = decimals(found.half_width)
    half = "" if found.half_width is None else f"\u00a0±\u00a0{found.half_width:.{places}f}"
    return f"{found.mean:+.{places}f}{half}"


def sureness(run: OpenedRun) -> list[str]:
    """Return what is known about the answer's reliability, in sentences."""
    if run.answer is not None:  # the page of the study says it all
        return [line.removeprefix("- ").replace("`", "") for line in _answer_lines(run)]
    verdict = run.result.verdict
    for entry in sorted(run.result.entries, key=lambda entry: -len(str(entry.schedule))):
        verdict = verdict.replace(str(entry.schedule), compact(entry.schedule))
    lines = [verdict]
    if run.kind == "selection":
        lines[0] = f"Loss = text and answers together. {verdict}"
    winner = run.result.winner
    if winner is not None and 1 < len(winner.seeds) < FEW:
        lines.append(f"{len(winner.seeds)} {run.result.unit}s are few: the intervals assume normal errors.")
    return lines


def _answer_lines(run: OpenedRun) -> list[str]:
    """Return the lines of ``answer.md`` on this setting: those below its heading if there are several."""
    assert run.answer is not None
    lines = str(run.answer["text"]).splitlines()
    heading = f"## {run.recipe.training.seq_len} tokens, {run.space.n_layers} layers"
    if heading in lines:
        lines = lines[lines.index(heading) + 1 :]
        lines = lines[: next((at for at, line in enumerate(lines) if line.startswith("## ")), None)]
    return [line for line in lines if line.startswith("- ")]


def noise_lines(run: OpenedRun) -> list[str]:
    """Return what is known about noise, signal and cheap measures."""
    result = run.result
    found = [noise_sentence(result.noise), signal_sentence(result.signal, result.noise), ranking_warning(result.trust)]
    return [line for line in found if line]


def position_line(run: OpenedRun) -> str | None:
    """Return the difference to all_full by position, in one sentence."""
    return position_sentence(run.result)


def frontier_line(run: OpenedRun) -> str | None:
    """Return why a frontier of one or two points shows no gradual trade-off; None for a longer one."""
    result = run.result
    confirmed = result.frontier_of == "confirm"

    def loss(entry: Entry) -> float | None:
        return entry.search_loss if not confirmed else None if entry.mean is None else entry.mean.mean

    front = [result.entry(schedule) for schedule in result.frontier]
    measured = [(entry, value) for entry in result.entries if (value := loss(entry)) is not None]
    if not 1 <= len(front) <= 2 or len(measured) == len(front):
        return None
    word = "confirmed" if confirmed else "trained to the end"
    cheapest, last = front[0], front[-1]
    dearer = sum(entry.cost > last.cost for entry, _ in measured)
    above = f"{_schedules(dearer)} of a higher cost {_were(dearer)} {word}, and {_none(dearer)} less." if dearer else ""
    if len(front) == 1:
        return f"Why the frontier has one point: no schedule is cheaper, and none has a lower loss. {above}".rstrip()
    step = next(value for entry, value in measured if entry is cheapest) - next(v for e, v in measured if e is last)
    said = (
        f"Why the frontier has two points: the step from cost {cheapest.cost:.3f} to {last.cost:.3f} gains "
        f"{step:.{decimals(step)}f} nats at once. "
    )
    between = [entry for entry in result.entries if cheapest.cost < entry.cost < last.cost]
    number = sum(loss(entry) is not None for entry in between)
    if number:
        said += (
            f"{_schedules(number)} of a cost between {_were(number)} {word}, and {_none(number)} less than the cheaper "
            "point. "
        )
    others = len(between) - number
    if others:
        said += f"{_schedules(others)} of a cost between {_were(others)} tried and not {word}. "
    if confirmed and len(result.search_frontier) > len(front):
        said += f"In the search, on one seed, the frontier has {len(result.search_frontier)} points. "
    return (said + above).rstrip()


def _schedules(number: int) -> str:
    return "1 schedule" if number == 1 else f"{number} schedules"


def _none(number: int) -> str:
    return "does not lose" if number == 1 else "none loses"


def _were(number: int) -> str:
    return "was" if number == 1 else "were"


def tiles(run: OpenedRun) -> list[dict[str, str]]:
    """Return the key figures below the headline: label, value and note."""
    schedule = chosen(run)
    if schedule is None:
        return []
    full = presets.all_full(run.space.n_layers)
    cost_note = "of all-full" if run.budget >= 1 else f"of all-full; budget {run.budget:.4g}"
    made = [
        tile("Full layers", f"{schedule.n_full} of {len(schedule)}", "l, the layers that see every earlier token"),
        tile("Attention cost", f"{run.space.cost(schedule):.1%}", cost_note),
    ]
    row, reference = next((row for row in run.held_out if row.schedule == schedule), None), full_row(run)
    entry = next((entry for entry in run.result.entries if entry.schedule == schedule), None)
    if row is not None:
        made.append(tile("Text loss", f"{signed(row.text_to_full)}", "nats against all-full, paired by document"))
        if row.accuracy is not None and reference is not None and reference.accuracy is not None:
            note = f"all-full {reference.accuracy.mean:.0%}; on {row.text.n} documents"
            made.append(tile("Hidden digits right", f"{row.accuracy.mean:.0%}", note))
    elif entry is not None and entry.mean is not None:
        difference = corrected_to_full(run, entry)
        if difference is not None and difference.n > 1:
            corrected = run.result.winner is not None and run.result.winner.to_all_full is not None
            note = "nats against all-full, paired by seed" + ("; corrected for the choice" if corrected else "")
            made.append(tile("Loss", signed(difference), note))
        else:
            made.append(tile("Loss", str(entry.mean), f"nats, on {entry.mean.n} fresh seeds"))
    elif entry is not None and entry.loss is not None:
        made.append(tile("Loss", f"{entry.loss:.4g}", "nats, on one seed"))
    cache, whole = cache_bytes(run, schedule), cache_bytes(run, full)
    note = f"of {size(whole)} for all-full, one sequence of {run.recipe.training.seq_len:,} tokens, 16-bit values"
    made.append(tile("KV cache", size(cache), note))
    return made


def tile(label: str, value: str, note: str) -> dict[str, str]:
    """Return one key figure."""
    return {"label": label, "value": value, "note": note}


def size(number: int) -> str:
    """Return bytes in the largest unit that leaves at least 1."""
    value, unit = float(number), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if value < 1024:
            break
        value, unit = value / 1024, larger
    return f"{value:.0f} B" if unit == "B" else f"{value:.3g} {unit}"


def progress(run: OpenedRun) -> str:
    """Return how far the run is, in one sentence."""
    states = Counter(record.state for record in run.records)
    if not run.records:
        return "No trial has finished yet."
    parts = ", ".join(f"{states[state]} {state}" for state in ("complete", "stopped", "failed") if states[state])
    return f"{len(run.records)} records so far ({parts})."


def not_said(run: OpenedRun) -> list[str]:
    """Return what the evidence does not say."""
    recipe, result = run.recipe, run.result
    tokens, source = recipe.training.seq_len, run.config["data"]["source"]
    lines = []
    if not run.finished:
        lines.append("The run is not finished. Its answer may change.")
    if run.kind == "selection":
        lines += [
            f"It is one model, at {tokens:,} tokens, on data from {source}, with one draw of the documents. Another "
            "length, language or draw may give another order.",
            f"No weight was trained after the switch. {HEALED_ORDER}",
        ]
    else:
        start = "a pre-trained model" if recipe.pretrained else f"{recipe.model.d_model} wide, from random weights"
        lines.append(
            f"It is a small model ({run.space.n_layers} layers, {start}) that was trained for "
            f"{recipe.training.steps:,} steps at {tokens:,} tokens, on data from {source}. A larger model may differ."
        )
        if not recipe.pretrained:
            lines.append(STUDIED)
    winner = result.winner
    if winner is not None and winner.not_separated > 1:
        lines.append(
            f"{winner.not_separated - 1} of the other schedules within the budget are not shown to be worse than the "
            "one with the lowest loss. A test that cannot see is no proof that they are equal."
        )
    if winner is None and run.answer is None:
        lines.append(f"Nothing is confirmed on fresh {result.unit}s. The lowest of many losses is partly luck.")
    if result.failed:
        lines.append(f"{result.failed} trials failed. trials.jsonl holds their errors.")
    lines += [
        LATENCY,
    ]
    unseen = run.space.size - len(result.entries)
    if unseen > 0:
        total = run.space.size
        counted = f"{total:,}" if total < 1_000_000 else f"{total:.3g}"
        lines.append(f"{len(result.entries)} of {counted} schedules of the space were tried. Another may be better.")
    return lines


def run_facts(run: OpenedRun) -> dict[str, Any]:
    """Return the facts of a page's first line, in order."""
    recipe, config = run.recipe, run.config
    model = recipe.pretrained or f"{run.space.n_layers} layers, {recipe.model.d_model} wide"
    return {
        "run": str(run.path),
        "kind": run.kind,
        "recipe": recipe.name,
        "model": model,
        "tokens": f"{recipe.training.seq_len:,}",
        "data": config["data"]["source"],
        "budget": f"{run.budget:g}",
        "seed": config["seed"],
    }
