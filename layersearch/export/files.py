"""Files of an export: written once, never over something else."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from layersearch.errors import UserError
from layersearch.schedule import Schedule


def write_text(path: Path, text: str) -> Path:
    """Write a file in a folder that is made where it is missing; the same text may stand there already.

    Raises:
        UserError: if another text stands there, or the folder cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            if path.read_text(encoding="utf-8", errors="replace") != text:
                raise UserError(f"{path} exists and differs; give --out another folder or remove it")
        else:
            path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}); give --out a folder that can") from None
    return path


def write_schedule(schedule: Schedule, target: str, out: Path, evidence: Mapping[str, Any]) -> Path:
    """Write ``schedule.yaml`` or ``schedule.json``: the text form, one mapping per layer, and the evidence.

    Args:
        schedule: one span per layer.
        target: ``yaml`` or ``json``.
        out: the folder.
        evidence: plain data; tuples become lists.

    Raises:
        UserError: as `write_text`.
    """
    content = {"schedule": str(schedule), "layers": schedule.to_dicts(), "evidence": dict(evidence)}
    text = json.dumps(content, indent=2, allow_nan=False) + "\n"
    if target == "yaml":
        text = yaml.safe_dump(json.loads(text), sort_keys=False, allow_unicode=True)
    return write_text(out / f"schedule.{target}", text)
