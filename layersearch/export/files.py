"""Files of an export: read with one-line errors, written whole, and never written over other files."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from layersearch import files
from layersearch.errors import ExportError
from layersearch.schedule import Schedule
from layersearch.schedule.files import schedule_text


def read_json(file: Path, where: str, remedy: str) -> dict[str, Any]:
    """Return the mapping in a JSON file; an `ExportError` begins with ``where`` and ends with ``remedy``."""
    try:
        values = files.parse_json(file.read_bytes())
    except FileNotFoundError:
        raise ExportError(f"{where}: {file.name} is missing; {remedy}") from None
    except (OSError, ValueError) as error:
        raise ExportError(f"{where}: no JSON text ({error}); {remedy}") from None
    if not isinstance(values, dict):
        raise ExportError(f"{where}: expected a mapping, found {type(values).__name__}; {remedy}")
    if not files.is_unchanged(values):
        raise ExportError(f"{where}: changed since it was written; {remedy}")
    return values


def write_files(
    out: Path,
    texts: Mapping[str, str],
    schedule: Schedule,
    evidence: Mapping[str, Any] | None = None,
    form: str = "yaml",
    other: tuple[str, Schedule] | None = None,
) -> list[Path]:
    """Write files (content by name) and ``schedule.yaml`` or ``schedule.json``, and return their paths.

    ``other`` is the name and the schedule of the other stack of a model with two. The folder is created if it is
    missing. Files with the same content may exist already.

    Raises:
        ExportError: if a file exists with other content (then nothing is written), or cannot be written.
    """
    texts = {**texts, f"schedule.{form}": schedule_text(schedule, evidence or {}, form, other)}
    path = out
    try:
        for path in (out / name for name in texts):
            if path.exists() and path.read_bytes() != texts[path.name].encode():
                raise ExportError(f"{path} exists and differs; give --out another folder or remove it")
        out.mkdir(parents=True, exist_ok=True)
        for path in (out / name for name in texts):
            if not path.exists():
                files.write_text(path, texts[path.name])
    except OSError as error:
        raise ExportError(f"{path} cannot be written ({error.strerror}); give --out a folder that can") from None
    return [out / name for name in texts]
