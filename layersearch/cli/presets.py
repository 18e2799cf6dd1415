"""List the literature's schedules by name and size, or print one."""

import argparse
import json

from layersearch.cli.flags import add_shared
from layersearch.errors import ConfigError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", nargs="?", help="print this schedule")
    parser.add_argument("sizes", nargs="*", metavar="KEY=VALUE", help="its sizes, for example l=4 n_layers=24")
    add_shared(parser, "--json")


def run(options: argparse.Namespace) -> None:
    """Print one preset, or the table of all."""
    from layersearch.schedule.presets import PRESETS, make_preset

    if options.name:
        pairs = [pair.partition("=") for pair in options.sizes]
        for key, equals, _ in pairs:
            if not equals:
                raise ConfigError(f"presets {options.name}: expected KEY=VALUE such as n_layers=24, found {key!r}")
        schedule = make_preset(options.name, {key: value for key, _, value in pairs})
        print(json.dumps(schedule.to_dicts(), indent=1) if options.json else schedule)
        return
    if options.json:
        keys = ("summary", "source", "parameters")
        rows = {name: {key: getattr(preset, key) for key in keys} for name, preset in PRESETS.items()}
        print(json.dumps(rows, indent=1))
        return
    from layersearch.cli.tables import console, table

    grid = table("preset", "parameters", "description", "source", left=4)
    for name, preset in PRESETS.items():
        parameters = (key if value is None else f"{key}={value}" for key, value in preset.parameters.items())
        grid.add_row(name, " ".join(parameters), preset.summary, preset.source)
    screen = console(width=180)
    screen.print(grid)
    screen.print("\nPrint one: layersearch presets masformer l=4 n_layers=24 block=1024")
