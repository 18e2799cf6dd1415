"""JSON Schemas (draft 2020-12) of the files that a person writes: recipes, spaces, conversion recipes and schedules.

They are made from the dataclasses that the loader builds. So both refuse unknown keys, wrong types and values out of
range alike. Rules between keys, such as "n_kv_heads must divide n_heads", are the loader's alone.
"""

from __future__ import annotations

import dataclasses
import typing
from typing import Any

from pydantic import TypeAdapter

from layersearch.config.field_docs import field_docs
from layersearch.config.recipe import Recipe
from layersearch.convert.config import ConvertRecipe
from layersearch.schedule.space import Space
from layersearch.schedule.span import Span
from layersearch.schedule.span_text import KINDS

DRAFT = "https://json-schema.org/draft/2020-12/schema"
SPAN_TEXT = (
    r"^((full|(window|block):[0-9]+(/[0-9]+(@[0-9]+)?)?(~[1-9][0-9]*)?)"
    r"(\+sink:[1-9][0-9]*|\+global:first:[1-9][0-9]*|\+global:mask(:[1-9][0-9]*)?|\+summary:[1-9][0-9]*"
    r"|\+las:[0-9.eE-]+(/[0-9]+)?)*"
    r"|(strided:[0-9]+|fixed:[0-9]+/[0-9]+)(@[0-9]+)?|memory:[0-9]+/[0-9]+|bigbird:[0-9]+(/[0-9]+){1,2})$"
)
"""Text form of a span."""
NAMES = ("recipe", "space", "conversion", "schedule")


def schema(name: str) -> dict[str, Any]:
    """Return the JSON Schema of a kind of file: one of `NAMES`."""
    make = {"recipe": _recipe, "space": _space, "conversion": _conversion, "schedule": _schedule}[name]
    return {"$schema": DRAFT, **make()}


def _recipe() -> dict[str, Any]:
    return _of(Recipe, "layersearch recipe")


def _conversion() -> dict[str, Any]:
    return _of(ConvertRecipe, "layersearch conversion recipe")


def _space() -> dict[str, Any]:
    found = _of(Space, "layersearch search space")
    keys = found["properties"]
    found["$defs"] = {"spans": _spans()}
    choices = {"type": "array", "minItems": 1, "items": _text_or("#/$defs/spans")}
    keys["choices"] |= choices
    keys["layers"] |= {"additionalProperties": False, "patternProperties": {"^[0-9]+$": choices}}
    keys["budget"]["anyOf"][0] |= {"exclusiveMinimum": 0, "maximum": 1}
    keys["pattern"]["anyOf"][0] |= {"minimum": 1}
    keys["baseline_span"]["anyOf"][0] |= {"pattern": SPAN_TEXT}
    keys["name"] |= {"minLength": 1}
    keys["tied"]["items"] |= {"minItems": 2}
    keys["tied"]["items"]["items"] |= {"minimum": 0}
    return found


def _schedule() -> dict[str, Any]:
    layers = {"type": "array", "minItems": 1, "items": {"$ref": "#/$defs/span"}}
    text = {"type": "string", "minLength": 1}
    return {
        "title": "layersearch schedule",
        "description": "One span per layer, bottom layer first. layers counts where both keys stand.",
        "$defs": {"span": _span()},
        "anyOf": [
            layers,
            {
                "type": "object",
                "properties": {
                    "schedule": text | {"description": "Text form, for example full*2 window:32*2."},
                    "layers": layers | {"description": "One mapping per layer, bottom layer first."},
                    "other_stack": {
                        "type": "object",
                        "properties": {"stack": {"enum": ["encoder", "decoder"]}, "schedule": text},
                        "required": ["stack", "schedule"],
                        "description": "The other stack of a model with two.",
                    },
                    "evidence": {"type": "object", "description": "What was measured of the schedule."},
                },
                "anyOf": [{"required": ["layers"]}, {"required": ["schedule"]}],
            },
        ],
    }


def _text_or(reference: str) -> dict[str, Any]:
    return {"anyOf": [{"type": "string", "pattern": SPAN_TEXT}, {"$ref": reference}]}


def _fields() -> dict[str, dict[str, Any]]:
    """Return the schema of each field of a span."""
    docs = field_docs(Span)
    kinds: dict[str, dict[str, Any]] = {
        "kind": {"enum": list(KINDS)},
        "size": {"type": ["integer", "null"], "minimum": 1},
        "dilation": {"type": "integer", "minimum": 1},
        "dilated_heads": {"type": ["integer", "null"], "minimum": 1},
        "offset": {"type": "integer", "minimum": 0},
        "columns": {"type": "integer", "minimum": 0},
        "random_blocks": {"type": "integer", "minimum": 0},
        "seed": {"type": "integer", "minimum": 0},
        "memory": {"type": "integer", "minimum": 0},
        "far_heads": {"type": ["integer", "null"], "minimum": 1},
        "summary": {"type": "integer", "minimum": 0},
        "global_first": {"type": "integer", "minimum": 0},
        "global_marked": {"type": "integer", "minimum": 0},
        "sink": {"type": "integer", "minimum": 0},
        "decay": {"type": "number", "minimum": 0, "exclusiveMaximum": 1},
        "pool": {"type": "integer", "minimum": 1},
    }
    assert list(kinds) == [field.name for field in dataclasses.fields(Span)]
    return {name: kind | {"description": docs[name]} for name, kind in kinds.items()}


def _span() -> dict[str, Any]:
    """Return the schema of one span: which fields belong to which kind."""
    sized = {"required": ["size"], "properties": {"size": {"type": "integer"}}}
    zero = {"maximum": 0}
    beside = {name: zero for name in ("sink", "summary", "global_first", "global_marked")}
    whole = {"properties": {"size": {"type": "null"}, **beside}}
    plain = {"properties": {"dilation": {"maximum": 1}, "dilated_heads": {"type": "null"}}}
    merged = {"properties": {"far_heads": {"type": "null"}}}
    only = {
        "block": {"properties": {"offset": {"maximum": 0}}},
        "fixed": {"properties": {"columns": {"maximum": 0}}},
        "memory": {"properties": {"memory": {"maximum": 0}}},
        "bigbird": {"properties": {"random_blocks": {"maximum": 0}, "seed": {"maximum": 0}}},
    }
    bare = {
        "properties": {
            **beside,
            "decay": {"maximum": 0},
            "pool": {"maximum": 1},
        }
    }
    return {
        "type": "object",
        "properties": _fields(),
        "required": ["kind"],
        "additionalProperties": False,
        "allOf": [
            {"if": {"properties": {"kind": {"const": "full"}}}, "then": whole, "else": sized},
            {"if": {"properties": {"kind": {"const": "window"}}}, "else": plain},
            {"if": {"properties": {"kind": {"enum": ["strided", "fixed"]}}}, "else": merged},
            *({"if": {"properties": {"kind": {"const": kind}}}, "else": rest} for kind, rest in only.items()),
            {"if": {"properties": {"kind": {"enum": ["strided", "fixed", "bigbird", "memory"]}}}, "then": bare},
        ],
    }


def _spans() -> dict[str, Any]:
    """Return the schema of a choice of a space, in which each value may be a list: they multiply out."""
    several = {
        name: {"anyOf": [kind, {"type": "array", "minItems": 1, "uniqueItems": True, "items": kind}]}
        for name, kind in _fields().items()
    }
    return {"type": "object", "properties": several, "required": ["kind"], "additionalProperties": False}


def _of(cls: type, title: str) -> dict[str, Any]:
    """Return the schema of a configuration, its keys described by the docstrings of the fields."""
    adapter: TypeAdapter[Any] = TypeAdapter(cls)
    found = adapter.json_schema()
    parts = {part.__name__: part for part in _parts(cls)}
    for name, one in [(cls.__name__, found), *found.get("$defs", {}).items()]:
        if name in parts:
            one["description"] = _lead(parts[name])
            for key, text in field_docs(parts[name]).items():
                if key in one["properties"]:
                    one["properties"][key]["description"] = text.replace("``", "`")
    return found | {"title": title}


def _lead(cls: type) -> str:
    """Return the first paragraph of a class's docstring; empty under python -OO."""
    return " ".join((cls.__doc__ or "").split("\n\n")[0].split()).replace("``", "`")


def _parts(cls: type) -> list[type]:
    """Return a configuration's dataclass and those of its sections."""
    found = [cls]
    for hint in typing.get_type_hints(cls).values():
        for option in (hint, *typing.get_args(hint)):
            if dataclasses.is_dataclass(option):
                found += _parts(typing.cast(type, option))
    return found
