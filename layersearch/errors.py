"""The one error that a user can cause, and the one line that reports it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

EXIT_NOT_PROVEN = 1
EXIT_USER_ERROR = 2


class UserError(ValueError):
    """A mistake in what the user gave: its text names the key and the remedy, in one line."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the nearest known word, or what is known if none is near."""
    options = list(known)
    near = difflib.get_close_matches(str(word), options, n=1, cutoff=0.5)
    if near:
        return f"; did you mean {near[0]!r}?"
    return f"; known: {', '.join(options)}" if options else ""
