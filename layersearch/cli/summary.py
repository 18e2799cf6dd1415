"""One screen about a run: the winner, the verdict, the noise, the frontier, the baselines, loss against l."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from layersearch.cli.tables import console, table
from layersearch.results.result import BestPerL, Entry, Fidelity, Result
from layersearch.results.sentences import (
    headline_metric,
    noise_sentence,
    position_sentence,
    ranking_warning,
    signal_sentence,
)
from layersearch.results.stats import Interval, decimals
from layersearch.study.run_folder import read_config
from layersearch.study.saved_run import load_request
from layersearch.study.transfer import scale_sentence

LINES = 40


def print_run(result: Result, run: Path, as_json: bool, more: Mapping[str, Any] | None = None) -> None:
    """Print the result of a run folder, as JSON or on one screen; ``more`` is JSON of a selection's healing."""
    if result.unit == "document":
        from layersearch.cli.selection_summary import print_selection

        print_selection(result, run, as_json, more)
        return
    if as_json:
        print(json.dumps(result.to_dict(), indent=1))
        return
    config = read_config(run)
    meta = {"run": run, "recipe": config["recipe"]["name"], "space": config["space"]["name"], "seed": config["seed"]}
    scale = scale_sentence(load_request(run)[0])
    print_result(result, meta | {"data": config["data"]["source"]}, scale)


def print_result(result: Result, meta: Mapping[str, Any], scale: str | None = None) -> None:
    """Print a result on one screen: at most 40 lines at 100 columns, plain text where there is no terminal.

    Args:
        result: of a run, finished or not.
        meta: facts for the first line, in order, for example the run's folder and recipe.
        scale: the sentence on what the run stands for, see `layersearch.study.transfer.scale_sentence`.
    """
    screen = console()
    prose = _prose(result, screen.width, scale)
    trust = result.trust[-4:]
    # Headings, column heads and blank lines take 9 lines, the note under a cut table 1 each; tables share the rest.
    room = LINES - len(prose) - (3 + len(trust) if trust else 0) - 12
    n_frontier = min(len(result.frontier), max(3, room - max(4, room // 2)))
    n_below = max(3, room - n_frontier)

    head = " · ".join(f"{key} {value}" for key, value in meta.items())
    screen.print(textwrap.shorten(head or "result", screen.width, placeholder=" …"), style="dim", soft_wrap=True)
    for line, style in prose:
        screen.print(line, style=style, soft_wrap=True)
    frontier = [result.entry(schedule) for schedule in result.frontier]
    if frontier:
        confirmed = "mean loss over fresh seeds; * winner, whose ± allows for its choice"
        kind = confirmed if result.frontier_of == "confirm" else "one seed, that of the search; * marks the winner"
        screen.print(f"\nFrontier ({kind})", style="bold")
        wins = None if result.winner is None else result.winner.schedule
        hidden = [entry for entry in frontier[:-n_frontier] if entry.schedule != wins]
        shown = [entry for entry in frontier if entry not in hidden]
        screen.print(_entries(result, shown, "schedule", screen.width))
        if hidden:
            ending = "cheaper schedule is" if len(hidden) == 1 else "cheaper schedules are"
            screen.print(f"  {len(hidden)} {ending} in frontier.json", style="dim")
    if result.entries:
        baselines = [entry for entry in result.entries if entry.names]
        pair = Table.grid("Baselines", "Loss against l, the number of full layers", padding=(0, 4, 0, 0))
        pair.show_header = True
        below = _entries(result, baselines[:n_below], "name", screen.width // 2), _per_l(result.best_per_l[:n_below])
        pair.add_row(*below)
        more = [len(rows) - n_below for rows in (baselines, result.best_per_l)]
        if max(more) > 0:
            pair.add_row(*(f"  and {number} more" if number > 0 else "" for number in more), style="dim")
        screen.print("", pair, sep="\n")
    if trust:
        screen.print("\nRank correlation of cheap measures with final losses", style="bold")
        screen.print(_trust(trust))
        if any(fidelity.stopped for fidelity in trust):
            screen.print("Stopped trials are missing from an early step's correlation, which therefore reads low.")


def _prose(result: Result, width: int, scale: str | None) -> list[tuple[str, str]]:
    """Return the verdict and the noise, wrapped, each line with its style."""
    parts: list[str | None] = [result.verdict, noise_sentence(result.noise)]
    parts += [signal_sentence(result.signal, result.noise), position_sentence(result)]
    parts += [ranking_warning(result.trust), scale]
    lines = [("", "")]
    if result.winner is not None:
        entry = result.entry(result.winner.schedule)
        text = f"Winner: {entry.schedule} (l = {entry.n_full}, cost {entry.cost:.3f}, budget {result.budget:g})"
        lines += [(line, "bold") for line in textwrap.wrap(text, width)]
    lines += [(line, "") for part in parts for line in textwrap.wrap(part or "", width)]
    if result.failed:
        lines.append((f"Failed trials: {result.failed}; trials.jsonl holds their errors; run again to retry them.", ""))
    return lines


def _places(intervals: Sequence[Interval | None]) -> int:
    """Return the decimals that suit the middle interval of a column."""
    known = sorted(interval.half_width for interval in intervals if interval is not None and interval.half_width)
    return decimals(known[len(known) // 2] if known else None)


def _number(value: float | None, places: int) -> str:
    return "" if value is None else f"{value:.{places}f}"


def _half(interval: Interval | None, places: int) -> str:
    return _number(None if interval is None else interval.half_width, places)


def _entries(result: Result, entries: Sequence[Entry], by: str, width: int) -> Table:
    full = by == "schedule"
    probes = {entry.schedule: headline_metric(entry) for entry in entries} if full else {}
    probe = next((found[0] for found in probes.values() if found is not None), None)
    heads = [] if probe is None else [probe.replace("_", " ")]
    made = table(by, *(["l"] if full else []), "cost", "loss", "±", *heads, "seeds", cut=True)
    places = _places([entry.mean for entry in entries])
    for entry in entries:
        wins = result.winner is not None and entry.schedule == result.winner.schedule
        name = str(entry.schedule) + (f"  ({', '.join(entry.names)})" if entry.names else "") if full else entry.label
        room = width - (36 if full else 30) - sum(len(head) + 2 for head in heads)
        name = name if len(name) <= room else name[: room - 1] + "…"
        found = probes.get(entry.schedule)
        made.add_row(
            ("* " if wins else "  ") + name,
            *([str(entry.n_full)] if full else []),
            f"{entry.cost:.3f}",
            # The loss of a trial that ended early is of fewer steps: it must not stand in this column.
            (entry.state or "untrained") if entry.loss is None else f"{entry.loss:.{places}f}",
            _half(entry.mean, places),
            *([] if probe is None else [_number(found[1] if found else None, 3)]),
            "search" if entry.mean is None and entry.loss is not None else str(entry.mean.n if entry.mean else 0),
            style="bold" if wins else "",
        )
    return made


def _per_l(rows: Sequence[BestPerL]) -> Table:
    made = table("l", "trained", "best, 1 seed", "confirmed", "±", left=0)
    places = _places([row.confirmed for row in rows])
    for row in rows:
        confirmed = _number(None if row.confirmed is None else row.confirmed.mean, places)
        cells = _number(row.search_loss, places), confirmed, _half(row.confirmed, places)
        made.add_row(str(row.n_full), str(row.trained), *cells)
    return made


def _trust(found: Sequence[Fidelity]) -> Table:
    made = table("measure", "Spearman", "interval", "Kendall", "interval", "trials", "stopped", cut=True)
    for fidelity in found:
        a = fidelity.agreement
        cells = ["too few", "", "", "", ""]
        if a is not None:
            spearman = [f"{a.spearman:.2f}", a.bounds(a.spearman_low, a.spearman_high)]
            cells = [*spearman, f"{a.kendall:.2f}", a.bounds(a.kendall_low, a.kendall_high), str(a.n)]
        made.add_row(f"{fidelity.name} → {fidelity.against}", *cells, str(fidelity.stopped or ""))
    return made
