"""The choices of a layer: a list of spans as a search space writes it, made into text forms."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from layersearch.errors import UserError, did_you_mean
from layersearch.schedule import Span


def expand(choices: Any, where: str) -> list[str]:
    """Return the text forms of a list of choices: terms as they stand, mappings with their lists multiplied out.

    Args:
        choices: what the file holds under a key.
        where: the file and the key, for errors.

    Raises:
        UserError: if it is no such list; names the position.
    """
    if not isinstance(choices, list):
        raise UserError(f"{where}: expected a list such as [full, 'window:32'], found {choices!r}")
    texts: list[str] = []
    for position, choice in enumerate(choices):
        at = f"{where}.{position}"
        try:
            texts += [choice] if isinstance(choice, str) else _multiply_out(choice)
        except UserError as error:
            raise UserError(f"{at}: {error}") from None
    return texts


def _multiply_out(choice: Any) -> list[str]:
    if not isinstance(choice, dict):
        raise UserError(f"expected a span such as 'window:32' or {{kind: window, size: [32, 64]}}, found {choice!r}")
    for key in choice:
        known = [entry.name for entry in fields(Span)]
        if key not in known:
            raise UserError(f"unknown key {key!r}{did_you_mean(str(key), known)}")
    lists = {key: value if isinstance(value, list) else [value] for key, value in choice.items()}
    for key, values in lists.items():
        if not values:
            raise UserError(f"{key} is an empty list; give at least one value or drop the key")
        if any(value in values[:index] for index, value in enumerate(values)):
            raise UserError(f"{key} holds a value twice: {values}; write it once")
    spans = [Span.from_dict(dict(zip(lists, values, strict=True))) for values in itertools.product(*lists.values())]
    # Products may meet: without dilation, every number of dilated heads means the same span.
    return list(dict.fromkeys(str(span) for span in spans))


def span_texts(texts: Sequence[str], where: str) -> tuple[str, ...]:
    """Return spans in their one text form, each once.

    Args:
        texts: spans in any of their text forms.
        where: the key that holds them, for errors.

    Raises:
        UserError: if there is none, one is no span, or one stands there twice.
    """
    if not texts:
        raise UserError(f"{where} is empty; name at least one span, for example full")
    seen: list[str] = []
    for position, text in enumerate(texts):
        try:
            span = str(Span.parse(text))
        except UserError as error:
            raise UserError(f"{where}.{position}: {error}") from None
        if span in seen:
            raise UserError(f"{where}: {span} is named twice; name it once")
        seen.append(span)
    return tuple(seen)
