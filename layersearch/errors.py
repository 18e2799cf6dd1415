"""Errors that a user can cause. The command line prints one line and ends with exit code 2.

``LayersearchError`` (a ``ValueError``)
  - ``ConfigError``: a recipe, a space, a schedule or a constraint
  - ``DataError``: training data or a tokenizer
  - ``RunFolderError``: a run folder, its records, its journal or its checkpoints
  - ``ExportError``: an export target, a model configuration to export to, or an exported folder
"""

from __future__ import annotations

import contextlib
import difflib
import re
from collections.abc import Iterable, Iterator

EXIT_NOT_PROVEN = 1
EXIT_USER_ERROR = 2
_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff]")
"""Control characters, marks that reorder or hide text, and lone surrogates."""


def visible(text: str) -> str:
    """Return text whose control characters are written out, such as ``\\x1b``: a terminal would obey them."""
    return _UNSEEN.sub(lambda match: f"\\x{ord(match[0]):02x}", text)


class LayersearchError(ValueError):
    """A mistake in what the user gave. Its text names the key and the remedy in one line.

    Example:
        >>> from layersearch import LayersearchError, Schedule
        >>> try:
        ...     Schedule.parse('full*2 windo:8')
        ... except LayersearchError as error:
        ...     print(str(error)[:40])
        schedule term 2 at character 8: 'windo:8
    """

    def __init__(self, message: str) -> None:
        super().__init__(visible(" ".join(message.split())))


class ConfigError(LayersearchError):
    """A recipe, a search space, a schedule or a constraint is wrong.

    Example:
        >>> from layersearch import ConfigError, load_recipe
        >>> try:
        ...     load_recipe('smoke', ['training.stpes=9'])
        ... except ConfigError as error:
        ...     print('steps' in str(error))
        True
    """


class DataError(LayersearchError):
    """Training data or a tokenizer is wrong or missing.

    Example:
        >>> from layersearch import DataError, LayersearchError
        >>> issubclass(DataError, LayersearchError)
        True
    """


class RunFolderError(LayersearchError):
    """A run folder, or a file in it, is missing, damaged or of another run.

    Example:
        >>> from pathlib import Path
        >>> from layersearch import RunFolderError
        >>> from layersearch.study.saved_run import load_result
        >>> try:
        ...     load_result(Path('no-such-run'))
        ... except RunFolderError as error:
        ...     print('no-such-run' in str(error))
        True
    """


class ExportError(LayersearchError):
    """An export target cannot hold the schedule, or an exported folder cannot be read.

    Example:
        >>> from layersearch import ExportError, LayersearchError
        >>> issubclass(ExportError, LayersearchError)
        True
    """


UserError = LayersearchError
"""The former name of `LayersearchError`."""


def require(holds: object, message: str, word: str | None = None, known: Iterable[str] = ()) -> None:
    """Raise ConfigError with the message unless the condition holds; `did_you_mean` follows an unknown word."""
    if not holds:
        raise ConfigError(message if word is None else message + did_you_mean(word, known))


@contextlib.contextmanager
def located(where: str) -> Iterator[None]:
    """Put the place, such as a file or a key, before the text of a LayersearchError that is raised inside."""
    try:
        yield
    except LayersearchError as error:
        raise type(error)(f"{where}: {error}") from None


def one_line(error: BaseException) -> str:
    """Return another library's error text in one line of at most 200 characters, or its class name if it has none."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else text[:197] + "..."


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the nearest known word, or what is known if none is near."""
    options = list(known)
    near = difflib.get_close_matches(str(word), options, n=1, cutoff=0.5)
    if near:
        return f"; did you mean {near[0]!r}?"
    return f"; known: {', '.join(options)}" if options else ""
