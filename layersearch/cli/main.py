"""The command line: each command is a module with ``add_arguments`` and ``run``; its docstring is the help text.

A command imports heavy libraries in ``run`` only, so ``--help`` stays quick. The flags are read by argparse, not by
jsonargparse: importing that takes ten times as long (97 ms, argparse 9 ms).
"""

import argparse
import contextlib
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

from layersearch.cli import (
    bench_engine,
    completion,
    confirm,
    convert,
    cost,
    doctor,
    evaluate,
    export,
    init,
    optimal_l,
    plot,
    presets,
    report,
    run,
    schedule,
    show,
    solve,
    transfer,
    verify_export,
)
from layersearch.errors import EXIT_USER_ERROR, LayersearchError, did_you_mean, visible
from layersearch.version import __version__

COMMANDS = (
    run,
    show,
    solve,
    confirm,
    transfer,
    optimal_l,
    plot,
    report,
    export,
    convert,
    verify_export,
    bench_engine,
    evaluate,
    cost,
    schedule,
    presets,
    init,
    doctor,
    completion,
)


class _Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line with a remedy."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Refuse an unknown flag at once: the command's parser knows the command's flags, the outer one does not."""
        found, unknown = super().parse_known_args(args, namespace)
        if unknown:
            flags = [flag for action in self._actions for flag in action.option_strings if flag.startswith("--")]
            self.error(f"{unknown[0]!r} is not known here{did_you_mean(unknown[0].partition('=')[0], flags)}")
        return found, unknown

    def error(self, message: str) -> NoReturn:
        raise LayersearchError(f"{message.replace('invalid choice', 'unknown')} (see '{self.prog} --help')")


class _Lines(logging.Handler):
    """Prints the log of layersearch on standard error, as plain lines; a line that repeats the last one is left out."""

    last = ""

    def emit(self, record: logging.LogRecord) -> None:
        line = visible(self.format(record))
        if line != self.last:
            print(line, file=sys.stderr, flush=True)  # the present one: a progress display puts its own in its place
        self.last = line


_LINES = _Lines()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return its exit code: 0, or 2 after one line that names an error of the user and the remedy."""
    log = logging.getLogger("layersearch")
    log.setLevel(logging.INFO)
    log.addHandler(_LINES)
    _LINES.last = ""
    try:
        with _ended_by_signals():
            options = build_parser().parse_args(arguments)
            code: int | None = options.command(options)
            sys.stdout.flush()
    except LayersearchError as error:
        print(f"layersearch: {error}", file=sys.stderr)
        return EXIT_USER_ERROR
    except BrokenPipeError:
        _discard_output()  # the reader of a pipe has gone (`| head`)
        return 0
    except OSError as error:  # files that vanish, names that are too long, full disks
        where = f"{error.filename}: " if error.filename else ""
        reason = error.strerror or " ".join(str(error).split())
        print(
            visible(f"layersearch: {where}{reason}; fix the path or its permissions, or choose another"),
            file=sys.stderr,
        )
        try:
            sys.stdout.flush()
        except OSError:  # standard output itself is full; at exit the interpreter would write to it once more
            _discard_output()
        return EXIT_USER_ERROR
    except MemoryError as error:
        reason = " ".join(str(error).split()) or "it is full"
        print(f"layersearch: not enough memory ({reason}); lower the sizes that you gave", file=sys.stderr)
        return EXIT_USER_ERROR
    except _Ended as ended:
        print("layersearch: terminated; run the same command again to go on", file=sys.stderr)
        return 128 + ended.number
    except KeyboardInterrupt:
        print("layersearch: interrupted; run the same command again to go on", file=sys.stderr)
        return 130
    return code or 0


class _Ended(BaseException):
    """A signal asked this process to end."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


@contextlib.contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Turn SIGTERM and SIGHUP into an exception, so that workers, servers and temporary files are cleaned up."""

    def end(number: int, frame: object) -> None:
        for one in signals:
            signal.signal(one, signal.SIG_IGN)  # a second one must not break off the clean-up
        raise _Ended(number)

    signals = (signal.SIGTERM, signal.SIGHUP)
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {one: signal.signal(one, end) for one in signals if signal.getsignal(one) == signal.SIG_DFL}
    try:
        yield
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)


def _discard_output() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    parser = _Parser(
        prog="layersearch",
        description="Find which layers of a long-context transformer need full attention, "
        "and the cheapest span for the others.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"layersearch {__version__}")
    groups = parser.add_subparsers(title="commands", metavar="COMMAND", required=True, parser_class=_Parser)
    for command in COMMANDS:
        name = command.__name__.rpartition(".")[2].replace("_", "-")
        text = command.__doc__ or ""  # None under python -OO
        short = text[:1].lower() + text[1:].removesuffix(".")
        sub = groups.add_parser(name, help=short, description=text, allow_abbrev=False)
        command.add_arguments(sub)
        sub.set_defaults(command=command.run, every_command=parser)
    return parser
