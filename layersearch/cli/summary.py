"""One screen of what a run found: the winner and why, the frontier, the baselines, loss against l, noise and trust."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from layersearch.cli import tables
from layersearch.results.result import BestPerL, Entry, Fidelity, Result
from layersearch.results.sentences import (
    headline_metric,
    noise_sentence,
    position_sentence,
    ranking_warning,
    signal_sentence,
)
from layersearch.results.stats import Interval, decimals

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

LINES = 40


def show(result: Result, run_meta: Mapping[str, Any], console: Console | None = None) -> None:
    """Print a result on one screen: at most 40 lines at 100 columns, plain text where there is no terminal.

    Args:
        result: of a run, finished or not.
        run_meta: what the first line names, in its order, for example the run's folder, recipe and time.
        console: where to; standard output if None.
    """
    from rich.table import Table
    from rich.text import Text

    if console is None:
        console = tables.console()
    prose = _prose(result, console.width)
    trust = list(result.trust[-4:])
    # Headings, column heads and blank lines take 9 lines, the note under a cut table 1 each; tables share the rest.
    room = LINES - len(prose) - (3 + len(trust) if trust else 0) - 12
    n_frontier = min(len(result.frontier), max(3, room - max(4, room // 2)))
    n_below = max(3, room - n_frontier)

    meta = " · ".join(f"{key} {value}" for key, value in run_meta.items())
    head = textwrap.shorten(meta or "result", console.width, placeholder=" …")
    console.print(Text(head, style="dim"), soft_wrap=True)
    for line, bold in prose:
        console.print(Text(line, style="bold" if bold else ""), soft_wrap=True)
    frontier = [result.entry(text) for text in result.frontier]
    if frontier:
        kind = "means of the confirmed" if result.frontier_of == "confirm" else "one seed, the search's own"
        console.print(Text(f"\nFrontier ({kind}; * the winner)", style="bold"))
        console.print(_entries(result, frontier[-n_frontier:], "schedule", console.width))
        if len(frontier) > n_frontier:
            console.print(Text(f"  and {len(frontier) - n_frontier} cheaper ones in frontier.json", style="dim"))
    baselines = [entry for entry in result.entries if entry.names]
    if result.entries:
        console.print()
        pair = Table.grid(padding=(0, 4, 0, 0))
        pair.add_row(Text("Baselines", style="bold"), Text("Loss against l, the number of full layers", style="bold"))
        below = _entries(result, baselines[:n_below], "name", console.width // 2), _per_l(result.best_per_l[:n_below])
        pair.add_row(*below)
        more = [len(rows) - n_below for rows in (baselines, result.best_per_l)]
        if max(more) > 0:
            pair.add_row(*(Text(f"  and {number} more" if number > 0 else "", style="dim") for number in more))
        console.print(pair)
    if trust:
        console.print()
        console.print(Text("Rank agreement of what is cheap with what it stands for", style="bold"))
        console.print(_trust(trust))


def _prose(result: Result, width: int) -> list[tuple[str, bool]]:
    """Return the verdict and the noise, wrapped, each line with whether it is bold."""
    lines = [("", False)]
    if result.winner is not None:
        entry = result.entry(result.winner.schedule)
        text = f"Winner: {entry.schedule} (l = {entry.n_full}, cost {entry.cost:.3f}, budget {result.budget:g})"
        lines += [(line, True) for line in textwrap.wrap(text, width)]
    lines += [(line, False) for line in textwrap.wrap(result.verdict, width)]
    noise, signal = noise_sentence(result.noise), signal_sentence(result.signal)
    for sentences in (noise, signal, position_sentence(result), ranking_warning(result.trust)):
        lines += [(line, False) for line in textwrap.wrap(sentences or "", width)]
    if result.failed:
        lines.append(
            (f"Failed trials: {result.failed}; their errors are in trials.jsonl; the same command tries again.", False)
        )
    return lines


def _table(*heads: str, left: int = 1) -> Table:
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", pad_edge=False)
    for number, head in enumerate(heads):
        side = number < left
        table.add_column(
            head, justify="left" if side else "right", no_wrap=True, overflow="ellipsis" if side else "fold"
        )
    return table


def _places(intervals: Sequence[Interval | None]) -> int:
    """Return the decimals that suit the middle interval of a column."""
    known = sorted(interval.half_width for interval in intervals if interval is not None and interval.half_width)
    return decimals(known[len(known) // 2] if known else None)


def _half(interval: Interval | None, places: int) -> str:
    half = None if interval is None else interval.half_width
    return "" if half is None else f"{half:.{places}f}"


def _value(found: tuple[str, float] | None) -> str:
    return "" if found is None else f"{found[1]:.3f}"


def _entries(result: Result, entries: Sequence[Entry], by: str, width: int) -> Table:
    from rich.text import Text

    full = by == "schedule"
    probes = {entry.schedule: headline_metric(entry) for entry in entries} if full else {}
    probe = next((found[0] for found in probes.values() if found is not None), None)
    heads = [] if probe is None else [probe.replace("_", " ")]
    table = _table(by, *(["l"] if full else []), "cost", "loss", "±", *heads, "seeds")
    places = _places([entry.mean for entry in entries])
    for entry in entries:
        mark = "* " if result.winner is not None and entry.schedule == result.winner.schedule else "  "
        name = str(entry.schedule) + (f"  ({', '.join(entry.names)})" if entry.names else "") if full else entry.label
        room = width - (36 if full else 30) - sum(len(head) + 2 for head in heads)
        name = name if len(name) <= room else name[: room - 1] + "…"
        # A trial that ended early has a loss of fewer steps, which must not stand in this column.
        loss = (entry.state or "untrained") if entry.loss is None else f"{entry.loss:.{places}f}"
        table.add_row(
            Text(mark + name, style="bold" if mark.strip() else ""),
            *([str(entry.n_full)] if full else []),
            f"{entry.cost:.3f}",
            loss,
            _half(entry.mean, places),
            *([] if probe is None else [_value(probes[entry.schedule])]),
            "search" if entry.mean is None and entry.loss is not None else str(entry.mean.n if entry.mean else 0),
        )
    return table


def _per_l(rows: Sequence[BestPerL]) -> Table:
    table = _table("l", "trained", "best, 1 seed", "confirmed", "±", left=0)
    places = _places([row.confirmed for row in rows])
    for row in rows:
        table.add_row(
            str(row.n_full),
            str(row.trained),
            "" if row.search_loss is None else f"{row.search_loss:.{places}f}",
            "" if row.confirmed is None else f"{row.confirmed.mean:.{places}f}",
            _half(row.confirmed, places),
        )
    return table


def _trust(found: Sequence[Fidelity]) -> Table:
    from rich.text import Text

    table = _table("measure", "Spearman", "interval", "Kendall", "interval", "trials", "ended")
    for fidelity in found:
        row = [f"{fidelity.name} → {fidelity.against}"]
        a = fidelity.agreement
        if a is None:
            row += ["too few", "", "", "", ""]
        else:
            # All resamples of a perfect order are perfect: that is no bound on the next trial.
            bounds = [
                "no bound" if low == high else f"{low:.2f} to {high:.2f}"
                for low, high in ((a.spearman_low, a.spearman_high), (a.kendall_low, a.kendall_high))
            ]
            row += [f"{a.spearman:.2f}", bounds[0], f"{a.kendall:.2f}", bounds[1], str(a.n)]
        table.add_row(*(Text(cell) for cell in row), str(fidelity.stopped) if fidelity.stopped else "")
    return table
