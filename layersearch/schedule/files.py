"""A schedule in a file: its text form, one mapping per layer, and the evidence for it."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from layersearch.config.loader import read_yaml
from layersearch.errors import located, require
from layersearch.schedule.schedule import Schedule


def schedule_text(
    schedule: Schedule, evidence: Mapping[str, Any], form: str = "yaml", other: tuple[str, Schedule] | None = None
) -> str:
    """Return the content of a schedule file, ``yaml`` or ``json``; ``evidence`` is plain data, tuples become lists.

    ``other`` is the name and the schedule of the other stack of a model with two.
    """
    content: dict[str, Any] = {"schedule": str(schedule), "layers": schedule.to_dicts()}
    if other is not None:
        content["other_stack"] = {"stack": other[0], "schedule": str(other[1])}
    content["evidence"] = plain(evidence)
    text = json.dumps(content, indent=2, allow_nan=False) + "\n"
    if form == "yaml":
        return yaml.safe_dump(json.loads(text), sort_keys=False, allow_unicode=True, width=100)
    return text


def read_schedule(path: Path) -> Schedule:
    """Read a schedule from a file that holds the text of `schedule_text` or a bare list of spans.

    Raises:
        ConfigError: the file is missing or holds no schedule; names the key or the layer.
    """
    held = read_yaml(path)  # JSON is YAML too
    if isinstance(held, Mapping):
        held = held.get("layers", held.get("schedule"))
    require(held is not None, f"{path}: no key 'layers'; give a winner.yaml, or a list with one span per layer")
    with located(str(path)):
        return _written(held)


def read_other_stack(path: Path) -> tuple[str, Schedule] | None:
    """Return the name, ``encoder`` or ``decoder``, and the schedule of the other stack in a schedule file; None: none.

    Raises:
        ConfigError: the entry has another form.
    """
    held = read_yaml(path)
    other = held.get("other_stack") if isinstance(held, Mapping) else None
    if other is None:
        return None
    form = f"{path}: other_stack is a mapping of stack (encoder or decoder) and schedule, not {other!r}"
    require(isinstance(other, Mapping) and other.get("stack") in ("encoder", "decoder") and "schedule" in other, form)
    with located(f"{path}: other_stack"):
        return str(other["stack"]), _written(other["schedule"])


def _written(held: Any) -> Schedule:
    """Return the schedule of a text form, or of a list with one span per layer."""
    return Schedule.parse(held) if isinstance(held, str) else Schedule.from_dicts(held)


def schedule_argument(text: str) -> Schedule:
    """Read a schedule from a ``.yaml`` or ``.json`` file that a user named, or from its text form."""
    path = Path(text)
    return read_schedule(path) if path.suffix in (".yaml", ".yml", ".json") else _written(text)


def plain(value: Any) -> Any:
    """Return data for JSON: dataclasses become mappings, tuples lists, schedules their text form."""
    if isinstance(value, Schedule):
        return str(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key) if isinstance(key, Schedule) else key: plain(held) for key, held in value.items()}
    return [plain(held) for held in value] if isinstance(value, list | tuple) else value
