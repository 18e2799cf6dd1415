"""Reading YAML into frozen dataclasses: every key known, every type right, or one line that says which is not."""

from __future__ import annotations

import functools
import json
import os
import re
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml

from layersearch.errors import UserError, did_you_mean

T = TypeVar("T")


class _UniqueKeyLoader(yaml.SafeLoader):
    """A safe loader that refuses a key written twice, which plain YAML resolves silently to the last.

    It also reads 1e-3 as the number it is; YAML 1.1 wants 1.0e-3 and takes the other for a word.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue  # `<<: *base`: what it brings may be written anew
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, list | dict):
                raise yaml.constructor.ConstructorError(None, None, "a key must be a word", key_node.start_mark)
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key!r} is written twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


_UniqueKeyLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def find_file(name: str, folder: str, suffix: str = ".yaml") -> Path:
    """Return the path of a file the user named: an existing path, or the name of one that ships in ``folder``.

    Args:
        name: a path, or a bare name such as ``laptop``.
        folder: ``trials``, ``search_spaces`` or ``trials/deepspeed``; looked for beside this module (an installed
            wheel) and one folder up (a checkout).
        suffix: appended to a bare name.

    Raises:
        UserError: if there is no such file; names those that ship.
    """
    given = Path(name)
    if given.suffix or len(given.parts) > 1:
        if os.path.isfile(given):  # not Path.is_file, which raises where a name is too long
            return given
        if len(given.parts) > 1:
            raise UserError(f"no file {name!r}: give an existing path, or a bare name that ships in {folder}/")
    here = Path(__file__).resolve().parent.parent
    shipped = next((base / folder for base in (here, here.parent) if (base / folder).is_dir()), here / folder)
    stem = given.name.removesuffix(suffix)  # not given.stem: names such as masformer-1.3b hold a dot
    path = shipped / (stem + suffix)
    if os.path.isfile(path):
        return path
    names = sorted(entry.stem for entry in shipped.glob("*" + suffix))
    raise UserError(f"no file {name!r} here and none of that name ships in {folder}/{did_you_mean(stem, names)}")


def read_yaml(path: Path) -> Any:
    """Return what a YAML file holds.

    Raises:
        UserError: if it is missing, not text, or not YAML; names the file and the line.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise UserError(f"{path}: not UTF-8 text; give a YAML file") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); give an existing file") from None
    try:
        return _load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" line {mark.line + 1}" if mark else ""
        raise UserError(f"{path}{where}: not valid YAML ({getattr(error, 'problem', error)}); correct it") from None
    except (ValueError, RecursionError) as error:  # a date that no calendar holds, a number of thousands of digits
        raise UserError(f"{path}: not valid YAML ({error}); correct it") from None


def _load(text: str) -> Any:
    return yaml.load(text, Loader=_UniqueKeyLoader)  # a SafeLoader: builds plain data


def build(cls: type[T], mapping: Any, where: str) -> T:
    """Build a frozen dataclass from a mapping, strictly.

    Args:
        cls: a dataclass whose fields may be dataclasses again.
        mapping: what the YAML held.
        where: the file or flag, for the error's text.

    Raises:
        UserError: names the first wrong key, what was found and what was expected; a typo names its neighbour.
    """
    from pydantic import ValidationError

    if not isinstance(mapping, Mapping):
        raise UserError(f"{where}: expected a mapping of keys to values, found {type(mapping).__name__}")
    try:
        text = json.dumps(mapping, default=str)
    except (ValueError, TypeError, RecursionError) as error:  # an anchor inside itself, a key that is no word
        raise UserError(f"{where}: no plain mapping ({error}); write it out") from None
    try:
        kind: Any = cls
        built: T = _adapter(kind).validate_json(text, strict=True)
        return built
    except ValidationError as invalid:
        problems = invalid.errors()
        # A misspelt key is missing under its right name too; the misspelling says more.
        problem = next((p for p in problems if p["type"] == "unexpected_keyword_argument"), problems[0])
        path = [str(part) for part in problem["loc"]]
        cause = problem.get("ctx", {}).get("error")
        if isinstance(cause, UserError):
            raise UserError(f"{where}: {'.'.join(path) + ': ' if path else ''}{cause}") from None
        key = ".".join(path)
        if problem["type"] == "unexpected_keyword_argument":
            raise UserError(f"{where}: unknown key {key!r}{did_you_mean(path[-1], _keys(cls, path[:-1]))}") from None
        if problem["type"] in ("missing", "missing_argument", "missing_keyword_only_argument"):
            raise UserError(f"{where}: the key {key!r} is missing; add it") from None
        found = "" if isinstance(problem["input"], Mapping) else f", found {reprlib.repr(problem['input'])}"
        raise UserError(f"{where}: {key}: {problem['msg'][0].lower()}{problem['msg'][1:]}{found}") from None


@functools.cache
def _adapter(cls: Any) -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(cls)


def _keys(cls: Any, path: list[str]) -> list[str]:
    """Return the field names of the dataclass that lies at ``path`` inside ``cls``."""
    import dataclasses
    import typing

    for part in path:
        hint = typing.get_type_hints(cls).get(part) if dataclasses.is_dataclass(cls) else None
        options = [hint, *typing.get_args(hint)]
        cls = next((option for option in options if dataclasses.is_dataclass(option)), None)
    return [field.name for field in dataclasses.fields(cls)] if dataclasses.is_dataclass(cls) else []


def override(mapping: Any, assignment: str) -> None:
    """Set one dotted key of nested mappings in place, as ``--set training.steps=200`` asks.

    Raises:
        UserError: if the assignment has no ``=`` or goes through something that holds no keys.
    """
    key, equals, text = assignment.partition("=")
    if not equals or not key:
        raise UserError(f"--set {assignment!r}: expected KEY=VALUE, for example training.steps=200")
    try:
        value = _load(text)
    except (yaml.YAMLError, ValueError, RecursionError):
        raise UserError(f"--set {assignment!r}: the value is not valid YAML; quote it") from None
    if not isinstance(mapping, dict):
        return  # no mapping to set a key of, which `build` says in better words
    *parents, last = key.split(".")
    for parent in parents:
        mapping = mapping.setdefault(parent, {}) if isinstance(mapping, dict) else None
    if not isinstance(mapping, dict):
        raise UserError(f"--set {assignment!r}: {'.'.join(parents)} holds no keys; drop the part after it")
    mapping[last] = value
