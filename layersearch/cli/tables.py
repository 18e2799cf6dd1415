"""Aligned tables of the smaller commands: cost, presets and the plan of a dry run."""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Mapping, Sequence
from typing import IO, TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from layersearch.cli import tables
from layersearch.cli.progress import duration
from layersearch.results.stats import Interval, decimals
from layersearch.results.verdict import comparison_text
from layersearch.schedule import Schedule

if TYPE_CHECKING:
    from layersearch.export.verify import Proof
    from layersearch.results.result import Entry
    from layersearch.results.stats import Interval
    from layersearch.schedule import Schedule
    from layersearch.schedule.cost import LayerCost
    from layersearch.schedule.presets import Preset
    from layersearch.study.estimate import Estimate
    from layersearch.surrogate.solve import Candidate, Solution

WIDTH = 100
"""Columns where there is no terminal to ask."""


def console(file: IO[str] | None = None, width: int = WIDTH) -> Console:
    """Return a console: as wide as the terminal, or ``width`` columns where there is none.

    Args:
        file: where to print; standard output if None.
        width: columns without a terminal.
    """
    found = Console(file=file, highlight=False)
    return found if found.is_terminal else Console(file=file, highlight=False, width=width)


def _table(*columns: str, left: int = 1) -> Table:
    """Return a borderless table, the first ``left`` columns aligned left, the others right."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index < left else "right", no_wrap=index >= left)
    return table


def size(count: float) -> str:
    """Return a number of bytes with a binary unit."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if count < 1024 or unit == "TiB":
            break
        count /= 1024
    return f"{count:,.0f} {unit}" if count >= 100 or unit == "B" else f"{count:.1f} {unit}"


def cost_table(
    schedule: Schedule, layers: Sequence[LayerCost], *, ratio: float, flops: int, cache_bytes: int, seq_len: int
) -> None:
    """Print a schedule's exact cost: the whole, then runs of equal layers."""
    screen = console()
    screen.print(f"schedule         {schedule}", soft_wrap=True)
    screen.print(f"attention cost   {ratio:.3f} of all-full at {seq_len:,} tokens (l = {schedule.n_full})")
    screen.print(f"attention FLOPs  {flops:,} a sequence, forward (one multiply-add = one FLOP)")
    screen.print(f"KV cache         {size(cache_bytes)} ({cache_bytes:,} bytes)\n")
    table = _table("layers", "span", "share", "of a full layer", "FLOPs a layer", "KV cache a layer", left=2)
    for _, run in itertools.groupby(layers, key=lambda layer: layer.span):
        group = list(run)
        first, last = group[0].layer, group[-1].layer
        table.add_row(
            str(first) if first == last else f"{first}-{last}",
            str(group[0].span),
            f"{sum(layer.share for layer in group):.1%}",
            f"{group[0].ratio:.4f}",
            f"{group[0].flops:,}",
            size(group[0].cache_bytes),
        )
    screen.print(table)


def preset_table(presets: Mapping[str, Preset]) -> None:
    """Print the literature's schedules: name, parameters, what it is, where it comes from."""
    table = _table("preset", "parameters", "what it is", "source", left=4)
    for name, preset in presets.items():
        parameters = (key if value is None else f"{key}={value}" for key, value in preset.parameters.items())
        table.add_row(name, " ".join(parameters), preset.summary, preset.source)
    screen = console(width=180)
    screen.print(table)
    screen.print("\nPrint one: layersearch presets masformer l=4 n_layers=24 block=1024")


def estimate_table(found: Estimate) -> None:
    """Print the plan of a search and what it needs."""
    screen = console()
    rows = [
        ("schedules in the space", f"{found.schedules_in_space:,}"),
        ("baselines", f"{len(found.baselines)}, trained to the end"),
        ("proposals", f"{found.proposals} at the most, within budget {found.budget:g}"),
        ("sampler, pruner", f"{found.sampler}, {found.pruner}"),
        ("confirmation", f"{found.confirm_trials} full trials at fresh seeds"),
        ("training in all", f"about {found.full_trials:.1f} full trials"),
        ("model", f"{found.parameters:,} parameters, vocabulary {found.vocab_size:,}"),
        ("one training step", f"{found.step_flops:.3g} FLOPs (all-full, forward and backward)"),
        ("whole search", f"{found.total_flops:.3g} FLOPs at the most (one multiply-add = one FLOP)"),
        ("memory of a rank", f"{size(found.model_bytes)} weights, gradients and optimiser state"),
        ("", f"{size(found.activation_bytes)} activations kept for the backward pass (all-full)"),
        ("time of training", "not estimated" if found.seconds is None else f"about {duration(found.seconds)}"),
        ("", found.seconds_note),
    ]
    grid = Table.grid(padding=(0, 2))
    for key, value in rows:
        grid.add_row(key, value)
    screen.print(grid)
    screen.print()
    table = _table("baseline", "schedule", "cost", left=2)
    for name, schedule, cost in found.baselines:
        table.add_row(name, schedule, f"{cost:.3f}")
    screen.print(table)


def solution_table(found: Solution, *, flops: int, confirm_with: str | None) -> None:
    """Print what a run says about a constraint, and the command that puts it to the test.

    Args:
        found: the answer and its alternatives.
        flops: attention FLOPs of the answer, forward, for one sequence.
        confirm_with: a command; None where there is nothing to confirm.
    """
    screen = console()
    answer = found.answer
    what = {"cost": "attention cost", "kv_cache": "KV cache", "latency": "latency"}[found.kind]
    level = f"{found.confidence:.0%}"

    def say(text: str, style: str = "") -> None:
        for line in textwrap.wrap(text, screen.width):
            screen.print(Text(line, style=style), soft_wrap=True)

    def taken(amount: float) -> str:
        if found.kind == "cost":
            return f"{amount:.4g} of all-full"
        return f"{size(amount)} ({int(amount):,} bytes)" if found.kind == "kv_cache" else f"{amount:.6g} ms"

    say(f"Constraint: {what} at most {taken(found.limit)}")
    say(f"Answer: {answer.schedule} (l = {answer.n_full})", "bold")
    source = {
        "confirmed": f"measured, the mean over {answer.seeds} fresh seeds",
        "trained": "predicted for the mean over seeds; trained, but not confirmed",
        "stopped": "predicted for the mean over seeds; its trial was stopped early",
        "untrained": "predicted for the mean over seeds; never trained",
    }[answer.state]
    places = decimals(answer.high - answer.loss)
    say(f"Loss {answer.loss:.{places}f} nats, {level} interval {_ends(answer, places)}: {source}.")
    more = "" if found.kind == "cost" else f"; {what} {taken(answer.takes)}"
    spent = f"{flops:,} FLOPs a sequence (one multiply-add = one FLOP)"
    say(f"Attention cost {answer.cost:.6f} of all-full, {spent}{more}.")
    say(tables.alternatives(found))
    table = _table("", "schedule", "l", "cost", "loss", f"{level} interval", "seeds", "model", left=2)
    table.columns[0].no_wrap = True
    rows = (
        ("confirmed", found.measured),
        ("cheapest as good", found.cheaper),
        ("predicted", found.proposal),
        (f"nearest ({found.changed} unlike)", found.nearest),
    )
    for name, one in rows:
        if one is not None:
            places = decimals(one.high - one.loss)
            seeds = str(one.seeds) if one.seeds else "search" if one.state == "trained" else one.state
            cells = [name, str(one.schedule), str(one.n_full), f"{one.cost:.3f}", f"{one.loss:.{places}f}"]
            table.add_row(*(Text(cell) for cell in [*cells, _ends(one, places), seeds, f"{one.predicted:.{places}f}"]))
    screen.print()
    screen.print(table)
    screen.print()
    say(tables.learnt(found))
    if confirm_with is not None:
        screen.print(Text(f"Confirm with: {confirm_with}"), soft_wrap=True)


def _ends(one: Candidate, places: int) -> str:
    return f"{one.low:.{places}f} to {one.high:.{places}f}"


def confirmed_table(rows: Sequence[tuple[Entry, Entry | None, Interval | None]]) -> None:
    """Print what schedules reached on the fresh seeds.

    Args:
        rows: the schedule, the best confirmed one that costs no more, and the paired difference to it, nats.
    """
    screen = console()
    for entry, rival, difference in rows:
        screen.print(Text(str(entry.schedule), style="bold"), soft_wrap=True)
        reached = "failed on every fresh seed" if entry.mean is None else f"loss {entry.mean} nats"
        screen.print(f"  l = {entry.n_full}, cost {entry.cost:.4f}, {reached}, fresh seeds {len(entry.confirm)}")
        if rival is not None and difference is not None:
            said = comparison_text(difference, difference, 1)
            screen.print(
                Text(f"  against the best confirmed that costs no more, {rival.label}: {said}"), soft_wrap=True
            )


def proof_table(proof: Proof) -> None:
    """Print a proof: what was loaded, each layer's mask, logits, texts, and the verdict."""
    screen = console()
    how = (
        "every pair tested"
        if proof.keys == proof.tokens
        else (f"{proof.keys} keys tested against every query, those at the spans' edges among them")
    )
    masks = "random weights, widths shrunk" if proof.shrunk else "random weights"
    screen.print(f"model      {proof.architecture}", soft_wrap=True)
    screen.print(f"schedule   {proof.schedule}", soft_wrap=True)
    screen.print(f"masks      {proof.tokens:,} tokens, {how}; {masks}\n", soft_wrap=True)
    rows = _table("layer", "span", "pairs tested", "seen", "too many", "too few", "each head", "as scheduled", left=2)
    for layer in proof.layers:
        heads = "not tested" if not layer.by_head else "yes" if not layer.wrong_heads else f"{layer.wrong_heads:,} off"
        rows.add_row(
            str(layer.layer),
            layer.span,
            f"{layer.pairs:,}",
            f"{layer.seen:,}",
            f"{layer.too_many:,}",
            f"{layer.too_few:,}",
            heads,
            "yes" if layer.proven else "NO",
        )
    screen.print(rows)
    if proof.logits is None:
        logits = f"not compared with layersearch's own model: {proof.logits_reason}"
    else:
        logits = f"{proof.logits.difference:.1e} of their norm from layersearch's own model, {proof.weights} weights"
        if proof.logits.all_full:
            logits += f" (all-full would be {proof.logits.all_full:.1e} off)"
    screen.print(f"\nlogits     {logits}", soft_wrap=True)
    texts = proof.texts
    if texts.error is not None:
        words = texts.error
    else:
        words = (
            f"{texts.equal} of {texts.tokens} tokens up to position {texts.longest:,} are the same with and without a "
            f"cache, logits within {texts.difference:.1e} of their spread, {proof.weights} weights"
        )
    screen.print(f"texts      {words}", soft_wrap=True)
    verdict = "PROVEN: every layer does what the schedule says" if proof.proven else f"NOT PROVEN: {proof.problem}"
    screen.print(f"\n{verdict}", soft_wrap=True)


def alternatives(found: Solution) -> str:
    """Say how the best confirmed schedule within a constraint and the best prediction stand to each other."""
    if found.proposal is None:
        return "All that could be proposed within the constraint is confirmed: this is measured, nothing is predicted."
    low = ""
    if found.proposal.predicted < found.lowest:
        low = (
            f" The prediction is below every loss that was trained ({found.lowest:.4g} nats): the model does not know "
            "where losses level off, so the interval reaches up to there."
        )
    if found.measured is None or found.difference is None:
        return "No schedule within the constraint is confirmed on fresh seeds yet." + low
    gap = found.difference
    places = decimals(gap.high - gap.mean)
    size = (
        f"{gap.mean:+.{places}f} nats, {found.confidence:.0%} interval {gap.low:+.{places}f} to {gap.high:+.{places}f}"
    )
    if gap.mean >= 0:
        return f"No other schedule is predicted to lie below the best confirmed one; the best of them by {size}."
    if gap.shown:
        return f"The model puts it below the best confirmed schedule by {size}.{low}"
    return (
        f"{found.proposal.schedule} is predicted to lie below the best confirmed schedule, which is not shown: "
        f"{size}.{low}"
    )


def learnt(found: Solution) -> str:
    """Say what a solution rests on, and whether a better prediction may have been missed."""
    stopped = f" and {found.stopped} stopped" if found.stopped else ""
    said = (
        f"Learnt from {found.trials} complete{stopped} trials of {found.schedules} schedules, {found.within} of them "
        f"within the constraint. Only numbers of full layers that were trained are proposed: "
        f"l = {', '.join(map(str, found.n_full))}. "
    )
    if found.noise is not None:
        said = f"Seed std {found.noise:.2g} nats. " + said
    if not found.shortlisted:
        return said + "No untrained schedule of theirs is within the constraint."
    return (
        f"{said}A local search found the {found.shortlisted} best untrained ones by single layers and pairs, of which "
        "the predictor chose. A better one may have been missed."
    )
