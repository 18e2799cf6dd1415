"""Print one screen: the winner, the frontier, the baselines, and loss against l."""

import argparse

from layersearch.cli.flags import add_shared


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_shared(parser, "run", "--json")


def run(options: argparse.Namespace) -> None:
    """Print the result of a run so far."""
    from layersearch.cli.summary import print_run
    from layersearch.study.saved_run import load_result

    print_run(load_result(options.run), options.run, options.json)
