"""Draw the cost-quality frontier, and the noise against the effect of placement."""

import argparse
from pathlib import Path

from layersearch.cli.flags import add_shared, print_files


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_shared(parser, "run", "--json")
    parser.add_argument("--out", type=Path, help="folder of the figures (default: RUN)")


def run(options: argparse.Namespace) -> None:
    """Draw the figures of a run and print their paths."""
    from layersearch.files import unwritable
    from layersearch.results.held_out import measure_rows
    from layersearch.results.plots.noise import plot_signal
    from layersearch.results.plots.pareto import plot_pareto
    from layersearch.results.plots.selection import plot_selection
    from layersearch.study.saved_run import load_records, load_result

    out = options.out or options.run
    result = load_result(options.run, predicted=False)  # no figure shows how well it predicts
    try:
        out.mkdir(parents=True, exist_ok=True)
        if result.unit == "document":
            drawn = plot_selection(result, measure_rows(load_records(options.run)), out / "selection")
        else:
            drawn = [*plot_pareto(result, out / "pareto"), *plot_signal(result, out / "signal")]
    except OSError as error:
        raise unwritable(out, error) from None
    print_files(drawn, options.json)
