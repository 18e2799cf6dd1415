"""YAML files to frozen dataclasses. A wrong key, type or value gives one line that names it."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import re
import reprlib
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import yaml

from layersearch.errors import ConfigError, LayersearchError, did_you_mean

if TYPE_CHECKING:
    from pydantic import TypeAdapter, ValidationError

T = TypeVar("T")


class Strict:
    """Base of configurations: `build` refuses their unknown keys, and numbers that are not finite."""

    __pydantic_config__ = {"extra": "forbid", "allow_inf_nan": False}


class _UniqueKeyLoader(yaml.SafeLoader):
    """A safe loader that refuses a key written twice; plain YAML silently keeps the last one.

    It also reads 1e-3 as a number; YAML 1.1 reads a number only from 1.0e-3.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue  # `<<: *base`: the keys of the base may be written again
            key = self.construct_object(key_node, deep=True)
            wrong = "a key must be a word" if isinstance(key, list | dict) else f"key {key!r} is written twice"
            if isinstance(key, list | dict) or key in seen:
                raise yaml.constructor.ConstructorError(None, None, wrong, key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


_UniqueKeyLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)

MOST_VALUES = 1_000_000
"""Most values of a YAML file, its aliases written out: a small file can stand for more than fits in memory."""
_NO_VALUE = (ValueError, RecursionError, AttributeError, KeyError, TypeError, OverflowError)
"""What PyYAML raises where a tag does not fit its value."""


def find_file(name: str, folder: str, suffix: str = ".yaml") -> Path:
    """Return the path of a file that the user named: an existing path, or a name that ships in ``folder``.

    A bare name, such as ``laptop``, gets the suffix. The folder (``trials``, ``search_spaces`` or ``trials/deepspeed``)
    lies inside the package (an installed wheel) or one folder up (a checkout).

    Raises:
        ConfigError: if there is no such file; names those that ship.
    """
    given = Path(name)
    # os.path.isfile, because Path.is_file raises where a name is too long.
    if (given.suffix or len(given.parts) > 1) and os.path.isfile(given):
        return given
    if len(given.parts) > 1:
        raise ConfigError(f"no file {name!r}: give an existing path, or a bare name that ships in {folder}/")
    package = Path(__file__).resolve().parent.parent
    shipped = next((base / folder for base in (package, package.parent) if (base / folder).is_dir()), package / folder)
    stem = given.name.removesuffix(suffix)  # not given.stem: names such as masformer-1.3b hold a dot
    path = shipped / (stem + suffix)
    if os.path.isfile(path):
        return path
    names = sorted(entry.stem for entry in shipped.glob("*" + suffix))
    raise ConfigError(f"no file {name!r} here and none of that name ships in {folder}/{did_you_mean(stem, names)}")


def read_yaml(path: Path) -> Any:
    """Return the content of a YAML file as plain data.

    Raises:
        ConfigError: if it is missing, not text, or not YAML; names the file and the line.
    """
    try:
        return _plain_data(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: not UTF-8 text; give a YAML file") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); give an existing file") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" line {mark.line + 1}" if mark else ""
        raise ConfigError(f"{path}{where}: not valid YAML ({getattr(error, 'problem', error)}); correct it") from None
    except _NO_VALUE as error:  # an impossible date, a number of thousands of digits, a tag of another kind of value
        raise ConfigError(f"{path}: not valid YAML ({error}); correct it") from None


def _plain_data(text: str) -> Any:
    """Return the data of a YAML text; raise ValueError if its aliases stand for more than `MOST_VALUES` values."""
    loader = _UniqueKeyLoader(text)
    try:
        root = loader.get_single_node()
        if root is None:
            return None
        if _values(root, {}) > MOST_VALUES:
            raise ValueError(f"its aliases stand for more than {MOST_VALUES} values; write out what is needed")
        return loader.construct_document(root)
    finally:
        loader.dispose()


def _values(node: yaml.Node, known: dict[int, int]) -> int:
    """Count the values below a node, those behind an alias each time it is used."""
    found = known.get(id(node))
    if found is None:
        known[id(node)] = 1  # an anchor inside itself; `build` refuses it
        below = node.value if isinstance(node, yaml.SequenceNode) else ()
        if isinstance(node, yaml.MappingNode):
            below = [part for pair in node.value for part in pair]
        found = known[id(node)] = 1 + sum(_values(part, known) for part in below)
    return found


def build(cls: type[T], mapping: Any, where: str) -> T:
    """Build a frozen dataclass, and those in its fields, from plain data, in pydantic's strict mode.

    Raises:
        ConfigError: names ``where`` (a file or flag), the first wrong key, the value found and the value expected, and
            the nearest known key.
    """
    from pydantic import ValidationError  # here, so that `layersearch cost` does not import it

    if not isinstance(mapping, Mapping):
        raise ConfigError(f"{where}: expected a mapping of keys to values, found {type(mapping).__name__}")
    try:
        text = json.dumps(mapping, default=str)
    except (ValueError, TypeError, RecursionError) as error:  # an anchor inside itself, a key that is no word
        raise ConfigError(f"{where}: no plain mapping ({error}); write it out") from None
    try:
        kind: Any = cls
        built: T = _adapter(kind).validate_json(text, strict=True)
        return built
    except ValidationError as invalid:
        raise ConfigError(f"{where}: {_first_problem(cls, invalid)}") from None


def _first_problem(cls: Any, invalid: ValidationError) -> str:
    problems = invalid.errors()
    # A misspelled key is also missing under its right name; the misspelling says more.
    problem = next((p for p in problems if p["type"] == "unexpected_keyword_argument"), problems[0])
    path = [str(part) for part in problem["loc"]]
    key, cause = ".".join(path), problem.get("ctx", {}).get("error")
    if isinstance(cause, LayersearchError):
        return f"{key}: {cause}" if key else str(cause)
    if problem["type"] == "unexpected_keyword_argument":
        return f"unknown key {key!r}{did_you_mean(path[-1], _keys(cls, path[:-1]))}"
    if problem["type"].startswith("missing"):
        return f"the key {key!r} is missing; add it"
    found = "" if isinstance(problem["input"], Mapping) else f", found {reprlib.repr(problem['input'])}"
    return f"{key}: {problem['msg'][0].lower()}{problem['msg'][1:]}{found}"


@functools.cache
def _adapter(cls: Any) -> TypeAdapter[Any]:
    from pydantic import TypeAdapter

    return TypeAdapter(cls)


def _keys(cls: Any, path: list[str]) -> list[str]:
    """Return the field names of the dataclass at ``path`` inside ``cls``."""
    for part in path:
        hint = typing.get_type_hints(cls).get(part) if dataclasses.is_dataclass(cls) else None
        cls = next((option for option in (hint, *typing.get_args(hint)) if dataclasses.is_dataclass(option)), None)
    return [field.name for field in dataclasses.fields(cls)] if dataclasses.is_dataclass(cls) else []


def override(mapping: Any, assignment: str) -> None:
    """Set one dotted key of nested mappings in place, as ``--set training.steps=200`` does.

    Raises:
        ConfigError: if the assignment has no ``=``, or a part of the key holds no keys.
    """
    key, equals, text = assignment.partition("=")
    if not equals or not key:
        raise ConfigError(f"--set {assignment!r}: expected KEY=VALUE, for example training.steps=200")
    try:
        value = _plain_data(text)
    except (yaml.YAMLError, *_NO_VALUE):
        raise ConfigError(f"--set {assignment!r}: the value is not valid YAML; quote it") from None
    if not isinstance(mapping, dict):
        return  # `build` reports it
    *parents, last = key.split(".")
    for parent in parents:
        mapping = mapping.setdefault(parent, {}) if isinstance(mapping, dict) else None
    if not isinstance(mapping, dict):
        raise ConfigError(f"--set {assignment!r}: {'.'.join(parents)} holds no keys; drop the part after it")
    mapping[last] = value
