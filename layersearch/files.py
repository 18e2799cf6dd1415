"""Files written whole, folders locked by one process, and the provenance that a run folder records."""

from __future__ import annotations

import fcntl
import fnmatch
import json
import os
import secrets
import zlib
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import IO, Any

from layersearch.errors import RunFolderError, one_line, visible
from layersearch.version import __version__

FORMAT = 1
"""Version of the run folder's layout."""
_PART = ".written.part"
UNTRAINED = ("checkpoint_seconds", "hang_seconds", "hang_factor")
"""Keys of a recipe's training that change no result."""
FREE = ("recipe.search.workers", "recipe.data.depth", "data.read", *(f"recipe.training.{key}" for key in UNTRAINED))
"""Keys that change no record; a resumed run may have others. ``data.depth`` is retired: older folders hold it."""
LOCKS = "study.journal*.lock*"
"""Locks of Optuna's journal that a killed search of an older version left: links to the journal's path."""
_LIBRARIES = ("torch", "deepspeed", "optuna", "datasets", "tokenizers", "fvcore", "transformers")


def open_folder(
    path: Path, config: str, request: Mapping[str, Any], check: Callable[[dict[str, Any]], None]
) -> IO[str]:
    """Make or reopen a folder that a JSON file describes. Lock it until the returned file is closed.

    Args:
        path: the folder; made if it does not exist.
        config: name of the JSON file; a new one gets the request and its `provenance`.
        request: plain data that defines the run.
        check: refuses a folder that exists; its argument is the request as JSON returns it.

    Raises:
        RunFolderError: if the folder holds other files or links out of it, cannot be written, or another process holds
            its lock.
    """
    wanted = json.loads(json.dumps(request))  # lists in place of tuples
    check_links(path)
    file, lock = path / config, None
    try:
        if path.exists() and not path.is_dir():
            raise RunFolderError(f"--out {path}: a file stands there; name a folder")
        fresh = not file.exists()
        if not fresh:
            check(wanted)
        elif path.is_dir() and not all(_begun(entry.name, config) for entry in path.iterdir()):
            raise RunFolderError(f"--out {path}: the folder holds other things; name a new or empty folder")
        path.mkdir(parents=True, exist_ok=True)
        lock = (path / "run.lock").open("w")
        # The kernel drops this lock when the process dies, however it dies.
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        for part in path.glob(f"*{_PART}"):  # half-written files of a killed process
            part.unlink(missing_ok=True)
        if fresh:
            write_text(file, json.dumps(provenance() | wanted, indent=2) + "\n")
    except OSError as error:
        if lock is not None:
            lock.close()
        if isinstance(error, BlockingIOError):
            message = f"--out {path}: another search is running there; wait for it or name another folder"
            raise RunFolderError(message) from None
        raise unwritable(path, error) from None
    return lock


def _begun(name: str, config: str) -> bool:
    """Return whether a process that was killed at its very start leaves a file of this name."""
    return name == "run.lock" or (name.startswith(f"{config}.") and name.endswith(_PART))


def check_links(path: Path) -> None:
    """Raise RunFolderError if a symbolic link in a folder leads out of it: nothing there is read or written."""
    top = os.path.realpath(path)
    for folder, folders, files in os.walk(path):
        for name in (*folders, *files):
            place = os.path.join(folder, name)
            if fnmatch.fnmatch(name, LOCKS):
                continue  # nobody follows it
            if os.path.islink(place) and not Path(os.path.realpath(place)).is_relative_to(top):
                raise RunFolderError(f"{visible(place)}: a symbolic link out of the folder; put the file there itself")


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file whole or not at all, also where several processes write it at once."""
    part = path.with_name(f"{path.name}.{secrets.token_hex(4)}{_PART}")
    try:
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError:
        part.unlink(missing_ok=True)
        raise


def parse_json(text: str | bytes) -> Any:
    """Return the value of a JSON text; ValueError if it is none, or is nested too deeply to be read."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def checksum(content: Mapping[str, Any]) -> str:
    """Return the CRC-32 of plain data, 8 hexadecimal digits; ``content`` may not hold NaN.

    It is that of the content, so other spaces, line ends or another order of the keys change nothing.
    """
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return f"{zlib.crc32(text.encode()):08x}"


def seal(content: Mapping[str, Any]) -> str:
    """Return plain data as one line of JSON, with its checksum in the field ``crc32``."""
    return json.dumps({**content, "crc32": checksum(content)}, allow_nan=False)


def unseal(line: str) -> dict[str, Any]:
    """Return the content of a line of JSON without its checksum. Lines of older versions have none.

    Raises:
        RunFolderError: if the line is no JSON object, or its content does not fit its checksum.
    """
    try:
        content = parse_json(line)
        held = content.pop("crc32", None) if isinstance(content, dict) else None
        fits = held is None or held == checksum(content)
    except ValueError as error:
        raise RunFolderError(f"no JSON ({one_line(error)})") from None
    if not isinstance(content, dict):
        raise RunFolderError("no JSON object")
    if not fits:
        raise RunFolderError("changed since it was written: its content does not fit its crc32")
    return content


def unwritable(path: Path, error: OSError) -> RunFolderError:
    """Return the error for a run folder that cannot be written."""
    return RunFolderError(
        f"--out {path}: cannot be written ({error.strerror or error}); free space, fix its permissions or name "
        "another folder, then run the same command again: finished trials are kept"
    )


def first_difference(old: Any, new: Any, key: str, free: Collection[str] = FREE) -> str | None:
    """Return the first key below ``key`` that differs, with both values; None if only ``free`` keys do."""
    if key in free:
        return None
    if isinstance(old, dict) and isinstance(new, dict):
        parts = [*new, *(part for part in old if part not in new)]
        found = (first_difference(old.get(part), new.get(part), f"{key}.{part}", free) for part in parts)
        return next(filter(None, found), None)
    return None if old == new else f"{key} ({old!r}, now {new!r})"


def provenance() -> dict[str, Any]:
    """Return the format of a folder, the versions of the libraries and the commit of the checkout (None: a wheel)."""
    import importlib.metadata  # slow to import; `layersearch show` does without
    import platform
    import subprocess

    root = Path(__file__).resolve().parents[1]
    command = ["git", "-C", str(root), "rev-parse", "HEAD"]
    checkout = (root / ".git").exists()
    commit = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() if checkout else None
    return {
        "format": FORMAT,
        "versions": {"layersearch": __version__, "python": platform.python_version()}
        | {name: importlib.metadata.version(name) for name in _LIBRARIES},
        "git_commit": commit or None,
    }
