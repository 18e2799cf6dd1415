"""Write one HTML page of a run, or of several side by side; it opens without a network."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from layersearch.cli.flags import add_shared, positive, print_files
from layersearch.errors import LayersearchError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("runs", nargs="+", type=Path, metavar="RUN", help="folders of run, optimal-l or convert, finished or not")
    add("--out", type=Path, help="the file (default: RUN/report.html; with several runs: report.html)")
    add("--watch", action="store_true", help="write the page again whenever a trial ends, until no run goes on")
    add("--every", type=positive, default=10, metavar="SECONDS", help="with --watch: least time between two pages")
    add_shared(parser, "--json")


def run(options: argparse.Namespace) -> None:
    """Write the page and print its path."""
    from layersearch.report.page import NAME, check_extra, write_report

    check_extra()
    out = options.out or (options.runs[0] / NAME if len(options.runs) == 1 else Path(NAME))
    if options.watch:
        _watch(options.runs, out, options.every)
    print_files([write_report(options.runs, out)], options.json)


def _watch(runs: list[Path], out: Path, every: int) -> None:
    """Renew the page while a process holds one of the runs; two looks without one end it."""
    from layersearch.report.folder import goes_on
    from layersearch.report.page import write_report

    idle, seen = 0, None
    while True:
        idle = 0 if any(goes_on(path) for path in runs) else idle + 1
        if idle == 2:
            return
        now = _stamps(runs)
        if now != seen:
            try:
                print(f"report: {write_report(runs, out, watched=True)}", file=sys.stderr, flush=True)
            except LayersearchError as error:
                if seen is None:
                    raise
                print(f"report: {error}", file=sys.stderr, flush=True)  # tried again after the next trial
            seen = now
        time.sleep(1 if idle else every)


def _stamps(runs: list[Path]) -> list[tuple[str, int]]:
    """Return the files that grow when a trial or a step ends, with their times."""
    names = ("trials.jsonl", "gates.json", "retrieval_lengths.json", "answer.json", "evaluations.jsonl")
    files = [file for path in runs for name in names for file in path.rglob(name)]
    return sorted((str(file), file.stat().st_mtime_ns) for file in files)
