"""A schedule in a file: its text form, one mapping per layer, and what speaks for it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from layersearch.config.loader import read_yaml
from layersearch.errors import UserError
from layersearch.schedule import Schedule


def schedule_text(schedule: Schedule, evidence: Mapping[str, Any], form: str = "yaml") -> str:
    """Return what a schedule file holds.

    Args:
        schedule: one span per layer.
        evidence: plain data; tuples become lists.
        form: ``yaml`` or ``json``.
    """
    content = {"schedule": str(schedule), "layers": schedule.to_dicts(), "evidence": dict(evidence)}
    text = json.dumps(content, indent=2, allow_nan=False) + "\n"
    if form == "yaml":
        return yaml.safe_dump(json.loads(text), sort_keys=False, allow_unicode=True, width=100)
    return text


def read_schedule(path: Path) -> Schedule:
    """Read a schedule from a file as `schedule_text` makes it, or from a bare list of spans.

    Raises:
        UserError: if the file is missing or holds no schedule; names the key or the layer.
    """
    held = read_yaml(path)  # JSON is YAML too
    if isinstance(held, Mapping):
        held = held.get("layers", held.get("schedule"))
    if held is None:
        raise UserError(f"{path}: no key 'layers'; give a winner.yaml, or a list with one span per layer")
    try:
        return Schedule.parse(held) if isinstance(held, str) else Schedule.from_dicts(held)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def schedule_argument(text: str) -> Schedule:
    """Read a schedule that a user named: a ``.yaml`` or ``.json`` file, or the text form itself."""
    path = Path(text)
    return read_schedule(path) if path.suffix in (".yaml", ".yml", ".json") else Schedule.parse(text)
