"""Files of an export: written once, never over something else."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from layersearch.errors import UserError
from layersearch.schedule import Schedule
from layersearch.schedule.files import schedule_text


def write_text(path: Path, text: str) -> Path:
    """Write a file in a folder that is made where it is missing; the same text may stand there already.

    Raises:
        UserError: if another text stands there, or the folder cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            if path.read_bytes() != text.encode():
                raise UserError(f"{path} exists and differs; give --out another folder or remove it")
        else:
            path.write_bytes(text.encode())
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
    return write_text(out / f"schedule.{target}", schedule_text(schedule, evidence, target))
