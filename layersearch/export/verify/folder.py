"""The exported folder: its configuration, schedule and weights, or one line that says what is wrong."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from layersearch.errors import ExportError
from layersearch.export.families import check_no_layer_windows
from layersearch.export.files import read_json
from layersearch.schedule import Schedule
from layersearch.schedule.files import read_schedule

MAX_WEIGHT_BYTES = 2 * 2**30
"""Larger weights are not loaded: the proof then uses random ones."""


@dataclass(frozen=True, kw_only=True)
class Folder:
    """An exported folder that was read and is complete."""

    path: Path
    config: dict[str, Any]
    """Content of ``config.json``."""
    schedule: Schedule
    weights: tuple[Path, ...]
    """The safetensors files; may be empty."""
    remote: bool
    """Whether the configuration names code in the folder."""

    @property
    def weight_bytes(self) -> int:
        """Size of the weights on disk."""
        return sum(file.stat().st_size for file in self.weights)


def read_folder(path: Path, schedule: Schedule | None, *, trust_remote_code: bool) -> Folder:
    """Read an exported folder without running its code; arguments as `layersearch.export.verify.verify`.

    Raises:
        ExportError: if a file is missing or damaged, the folder's code is not trusted, or a stock family gets a window
            per layer.
    """
    file = path / "config.json"
    config = read_json(file, str(file), "give a folder that 'layersearch export --to hf' wrote")
    if schedule is None:
        files = [path / "schedule.yaml", path / "schedule.json"]
        found = next((one for one in files if one.is_file()), None)
        if found is None:
            raise ExportError(f"{files[0]} is missing: it says what to prove; add it, or give --schedule")
        schedule = read_schedule(found)
    remote = bool(config.get("auto_map"))
    if not remote:
        check_no_layer_windows(config, str(file))
    elif not trust_remote_code:
        raise ExportError(
            f"{file}: auto_map names code in the folder, which does not run without consent; read it, then give "
            "--trust-remote-code"
        )
    return Folder(path=path, config=config, schedule=schedule, weights=_weights(path), remote=remote)


def _weights(path: Path) -> tuple[Path, ...]:
    """Return the weight files, after a check that each is complete."""
    from safetensors import SafetensorError, safe_open

    index, single = path / "model.safetensors.index.json", path / "model.safetensors"
    names = [single.name] if single.is_file() else []
    if index.is_file():
        try:
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (OSError, ValueError, KeyError, AttributeError, TypeError):
            raise ExportError(f"{index}: no index of weights; copy it again") from None
        missing = [name for name in names if not (path / str(name)).is_file()]
        if missing:
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise ExportError(f"{path}: shard {missing[0]}{more} of {len(names)} is missing; copy it there")
    pickled = sorted(file for pattern in ("pytorch_model*.bin", "*.pt", "*.pth") for file in path.glob(pattern))
    if pickled and not names:
        raise ExportError(f"{pickled[0]}: pickled weights can run code and are not read; save as safetensors")
    for name in names:
        try:
            with safe_open(path / name, "pt"):
                pass
        except (SafetensorError, OSError) as error:
            raise ExportError(f"{path / name}: damaged or no safetensors file ({error}); copy it again") from None
    return tuple(path / name for name in names)
