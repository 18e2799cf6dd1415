"""Members of a JSON text set in place: every other byte stays as it was written."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_SPACE = re.compile(r"[ \t\r\n]*")
_DECODER = json.JSONDecoder()


@dataclass(frozen=True)
class _Member:
    key: str
    key_start: int
    start: int
    """Of the value."""
    end: int


def set_members(text: str, path: Sequence[str], values: Mapping[str, Any]) -> str:
    """Return a JSON text in which members of one object have new values; new members come last.

    A value that is there already is left as it is written. A new one is spread over lines where the old one was, or
    where the object's members stand on lines of their own.

    Args:
        text: a JSON object.
        path: keys that lead to the object.
        values: members to set.

    Raises:
        ValueError: if the text is no JSON object, the path leads to none, or a key stands there twice.
    """
    for key, value in values.items():
        text = _set(text, path, key, value)
    return text


def _set(text: str, path: Sequence[str], key: str, value: Any) -> str:
    at = _skip(text, 0)
    for part in path:
        at = _only(_members(text, at), part).start
    members = _members(text, at)
    old = [member for member in members if member.key == key]
    if old:
        member = _only(members, key)
        before = text[member.start : member.end]
        if json.loads(before) == value and type(json.loads(before)) is type(value):
            return text
        return text[: member.start] + _written(text, member, value, "\n" in before) + text[member.end :]
    if not members:
        return text[: at + 1] + f"{json.dumps(key)}: {json.dumps(value)}" + text[at + 1 :]
    last = members[-1]
    gap = text[_after_comma(text, members, at) : last.key_start]
    new = f",{gap}{json.dumps(key)}: " + _written(text, last, value, "\n" in gap)
    return text[: last.end] + new + text[last.end :]


def _members(text: str, at: int) -> list[_Member]:
    """Return the members of the object that begins at ``at``."""
    if text[at : at + 1] != "{":
        raise ValueError("no JSON object")
    members: list[_Member] = []
    at = _skip(text, at + 1)
    while text[at] != "}":
        key, end = _DECODER.raw_decode(text, at)
        start = _skip(text, _skip(text, end) + 1)  # past the colon
        _, stop = _DECODER.raw_decode(text, start)
        members.append(_Member(key, at, start, stop))
        at = _skip(text, stop)
        if text[at] == ",":
            at = _skip(text, at + 1)
    return members


def _only(members: Sequence[_Member], key: str) -> _Member:
    found = [member for member in members if member.key == key]
    if len(found) != 1:
        raise ValueError(f"the key {key!r} stands there {len(found)} times")
    return found[0]


def _after_comma(text: str, members: Sequence[_Member], at: int) -> int:
    """Return where the white space before the last member's key begins."""
    return text.index(",", members[-2].end) + 1 if len(members) > 1 else at + 1


def _written(text: str, beside: _Member, value: Any, spread: bool) -> str:
    """Return a value as JSON, on lines of their own if it is spread, at the indentation of the member beside it."""
    if not spread or not isinstance(value, list | dict):
        return json.dumps(value)
    line = text[text.rfind("\n", 0, beside.key_start) + 1 : beside.key_start]
    indent = line if not line.strip() else ""
    newline = "\r\n" if "\r\n" in text else "\n"
    return json.dumps(value, indent=2).replace("\n", newline + indent)


def _skip(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    return match.end() if match else at
