"""The folder that is to be proven: its configuration, its schedule and its weights, or one line on what is wrong."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from layersearch.errors import UserError
from layersearch.export.families import check_no_layer_windows
from layersearch.schedule import Schedule
from layersearch.schedule.files import read_schedule

MOST_WEIGHT_BYTES = 2 * 2**30
"""Weights above this are not loaded: the proof then stands on random ones."""
_SCHEDULES = ("schedule.yaml", "schedule.json")


@dataclass(frozen=True, kw_only=True)
class Folder:
    """An export as it lies on the disk, read and found whole."""

    path: Path
    config: dict[str, Any]
    """What ``config.json`` holds."""
    schedule: Schedule
    weights: tuple[Path, ...]
    """The safetensors files; empty: there are none."""
    remote: bool
    """Whether the configuration names code of its own."""

    @property
    def weight_bytes(self) -> int:
        """Size of the weights on the disk."""
        return sum(file.stat().st_size for file in self.weights)


def read_folder(path: Path, schedule: Schedule | None, *, trust_remote_code: bool) -> Folder:
    """Read an exported folder without running anything of it.

    Args:
        path: the folder.
        schedule: what it should hold; None: its ``schedule.yaml``.
        trust_remote_code: whether its own code may run later on.

    Raises:
        UserError: if a file or a shard is missing or damaged, no schedule is there, code would have to run that is not
            trusted, or a stock family is given windows by layer.
    """
    file = path / "config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{file} is missing; give a folder that 'layersearch export --to hf' wrote") from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{file}: no JSON text ({error}); export it again") from None
    if not isinstance(config, dict):
        raise UserError(f"{file}: expected a mapping, found {type(config).__name__}; export it again")
    if schedule is None:
        there = next((path / name for name in _SCHEDULES if (path / name).is_file()), None)
        if there is None:
            raise UserError(f"{path / _SCHEDULES[0]} is missing: it says what to prove; add it, or give --schedule")
        schedule = read_schedule(there)
    remote = bool(config.get("auto_map"))
    if remote and not trust_remote_code:
        raise UserError(
            f"{file}: auto_map names code of the folder's own, which is not run unasked; read it, then give "
            "--trust-remote-code"
        )
    if not remote:
        check_no_layer_windows(config, str(file))
    return Folder(path=path, config=config, schedule=schedule, weights=_weights(path), remote=remote)


def _weights(path: Path) -> tuple[Path, ...]:
    """Return the weights' files, every one whole."""
    from safetensors import SafetensorError, safe_open

    index, single = path / "model.safetensors.index.json", path / "model.safetensors"
    if index.is_file():
        try:
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (OSError, ValueError, KeyError, AttributeError, TypeError):
            raise UserError(f"{index}: no index of weights; copy it again") from None
        missing = [name for name in names if not (path / str(name)).is_file()]
        if missing:
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise UserError(f"{path}: shard {missing[0]}{more} of {len(names)} is missing; copy it there")
        files = tuple(path / name for name in names)
    elif single.is_file():
        files = (single,)
    else:
        pickled = sorted(
            each.name for pattern in ("pytorch_model*.bin", "*.pt", "*.pth") for each in path.glob(pattern)
        )
        if pickled:
            raise UserError(f"{path / pickled[0]}: pickled weights can run code and are not read; save as safetensors")
        return ()
    for file in files:
        try:
            with safe_open(file, "pt"):
                pass
        except (SafetensorError, OSError) as error:
            raise UserError(f"{file}: damaged or no safetensors file ({error}); copy it again") from None
    return files
