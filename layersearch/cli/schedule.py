"""Print the attention schedule of a model file, as other commands take it."""

import argparse
import json

from layersearch.cli.flags import add_shared


def add_arguments(parser: argparse.ArgumentParser) -> None:
    text = "config.json of transformers, the folder that holds it, or a GGUF file; its weights are not read"
    parser.add_argument("model", metavar="CONFIG|DIR|GGUF", help=text)
    add_shared(parser, "--json")


def run(options: argparse.Namespace) -> None:
    """Print the schedule on one line, or one mapping per layer."""
    from layersearch.export.model_file import read_model_file

    schedule = read_model_file(options.model).schedule
    print(json.dumps(schedule.to_dicts(), indent=1) if options.json else schedule)
