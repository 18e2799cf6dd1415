"""Files to resume from: a trial's weights, and the state of an unfinished training. Each carries a checksum."""

import os
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from layersearch.errors import RunFolderError, one_line


def save_weights(model: nn.Module, path: Path, steps: int) -> None:
    """Write a model's parameters whole or not at all. Makes the folder; raises OSError if the file cannot be written.

    The file also holds ``steps``, all optimizer steps behind the weights, including those of the weights it started
    from, and a CRC-32 of both.
    """
    from safetensors.torch import save_model

    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    save_model(model, str(part), metadata={"steps": str(steps), "crc32": _checksum(model, str(steps))})
    part.replace(path)


def load_weights(model: nn.Module, path: Path) -> int:
    """Read a model's parameters; return the optimizer steps behind them, 0 if the file does not say.

    Raises:
        RunFolderError: if the file is missing, is not safetensors, is damaged, or holds another model's parameters.
    """
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import load_model

    try:
        load_model(model, str(path))
        with safe_open(str(path), framework="pt") as file:
            facts = file.metadata() or {}
    except OSError as error:
        raise RunFolderError(f"training.start {path}: cannot be read ({error}); give a model's weights") from None
    except (SafetensorError, RuntimeError) as error:
        wrong = f"training.start {path}: not this model's weights ({one_line(error)})"
        raise RunFolderError(f"{wrong}; give those of a trial with the same model") from None
    steps = facts.get("steps", "0")
    if facts.get("crc32") not in (None, _checksum(model, steps)):
        raise RunFolderError(
            f"training.start {path}: damaged, its weights do not fit its crc32; remove the file to train it again"
        )
    return int(steps) if steps.isdecimal() else 0


def _checksum(model: nn.Module, steps: str) -> str:
    """Return the CRC-32 of a model's state by name, and of the steps behind it."""
    found = zlib.crc32(steps.encode())
    for name, value in sorted(model.state_dict().items()):
        found = zlib.crc32(name.encode(), found)
        found = zlib.crc32(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy(), found)
    return f"{found:08x}"


def previous(path: Path) -> Path:
    """Return where the state before the last one is kept."""
    return path.with_name(f"{path.stem}-previous{path.suffix}")


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Write a state for `load_state`, whole or not at all. The one before is kept as `previous`.

    Raises:
        OSError: if it cannot be written.
    """
    part = path.with_suffix(".part")
    try:
        torch.save(state, part)
    except RuntimeError as error:  # torch's error for a failed write
        part.unlink(missing_ok=True)
        raise OSError(None, f"no room for the checkpoint: {one_line(error)}") from None
    with part.open("rb") as file:
        os.fsync(file.fileno())
    if path.exists():
        path.replace(previous(path))
    part.replace(path)


def load_state(
    path: Path, device: str, check: Callable[[dict[str, Any]], None] = lambda state: None
) -> tuple[dict[str, Any] | None, str | None]:
    """Return the newest state that is not damaged, and what was found wrong with a newer one.

    Both are None if there is no file.

    Args:
        path: where `save_state` wrote it.
        device: for its tensors.
        check: raises RunFolderError if further files of a state are damaged.

    Raises:
        RunFolderError: if every state is damaged; names the first file.
    """
    problem: str | None = None
    for file in (path, previous(path)):
        if not file.is_file():
            continue
        try:
            check_archive(file)
            try:
                found: dict[str, Any] = torch.load(file, map_location=device, weights_only=True)
            except Exception as error:  # torch's own kinds, and pickle's refusals
                raise RunFolderError(f"{file}: no checkpoint ({type(error).__name__})") from None
            check(found)
            return found, problem
        except RunFolderError as error:
            problem = problem or str(error)
    if problem is not None:
        raise RunFolderError(f"{problem}; remove it to train again")
    return None, None


def check_archive(path: Path) -> None:
    """Raise RunFolderError if a file of `torch.save` is damaged, or packed: what is read is no larger than the file.

    The file is a zip archive with a CRC-32 of each part, which torch itself does not compare.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            if any(part.compress_type != zipfile.ZIP_STORED for part in archive.infolist()):
                raise ValueError("its parts are packed")
            damaged = archive.testzip()
    except Exception as error:  # a damaged header can raise almost anything
        raise RunFolderError(f"{path}: damaged, no checkpoint ({one_line(error)})") from None
    if damaged is not None:
        raise RunFolderError(f"{path}: damaged, its part {damaged} does not fit its CRC-32")
