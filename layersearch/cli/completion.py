"""Print a script with which a shell completes commands, flags and files."""

from __future__ import annotations

import argparse
import importlib.util
from pathlib import Path

from layersearch.errors import ConfigError

_FILES = {"model", "schedule", "recipe", "space", "data"}
"""Arguments that take a path among other things, and so have no type that says it."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", choices=("bash", "zsh", "tcsh"), help="the shell that reads the script")


def run(options: argparse.Namespace) -> None:
    """Print the script."""
    if importlib.util.find_spec("shtab") is None:
        raise ConfigError("completion needs its extra: pip install 'layersearch[completion]'")
    import shtab

    parser: argparse.ArgumentParser = options.every_command
    _mark_files(parser)
    print(shtab.complete(parser, options.shell))


def _mark_files(parser: argparse.ArgumentParser) -> None:
    """Let files complete the arguments that take one, in every command."""
    import shtab

    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                _mark_files(command)
        elif action.choices is None and action.nargs != 0 and (action.type is Path or action.dest in _FILES):
            action.complete = shtab.FILE  # type: ignore[attr-defined]
