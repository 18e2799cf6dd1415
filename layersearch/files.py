"""Files written whole, folders held by one process, and what a run records of where it ran."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import IO, Any

from layersearch.errors import RunFolderError, UserError
from layersearch.version import __version__

FORMAT = 1
"""Version of the run folder's layout."""
_LIBRARIES = ("torch", "deepspeed", "optuna", "datasets", "tokenizers", "fvcore", "transformers")


FREE = ("recipe.search.workers",)
"""Keys that change no record; a resumed run may have others."""


def hold(path: Path) -> IO[str]:
    """Keep a folder to this process until the file that is returned is closed.

    Raises:
        UserError: if another process has it.
    """
    lock = (path / "run.lock").open("w")
    try:
        # The kernel drops this lock when the process dies, however it dies.
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        raise UserError(f"--out {path}: another search is running there; wait for it or name another folder") from None
    return lock


def open_folder(
    path: Path, config: str, request: Mapping[str, Any], check: Callable[[dict[str, Any]], None]
) -> IO[str]:
    """Make or take up a folder that a JSON file describes, and keep it to this process. See `hold`.

    Args:
        path: the folder; made if it does not exist.
        config: name of the JSON file; a new one gets the request and `stamp`.
        request: plain data that defines the run.
        check: refuses a folder that is there already; it gets the request as its file would give it back.

    Raises:
        RunFolderError: if the folder holds something else or cannot be written, or another process has it.
    """
    wanted = json.loads(json.dumps(request))  # as the file will give it back: lists for tuples
    file, begun = path / config, ("run.lock", f"{config}.part")  # a process killed at its very start leaves the latter
    try:
        if path.exists() and not path.is_dir():
            raise RunFolderError(f"--out {path}: a file stands there; name a folder")
        fresh = not file.exists()
        if not fresh:
            check(wanted)
        elif path.is_dir() and any(entry.name not in begun for entry in path.iterdir()):
            raise RunFolderError(f"--out {path}: the folder holds other things; name a new or empty folder")
        path.mkdir(parents=True, exist_ok=True)
        lock = hold(path)
        if fresh:
            try:
                write_text(file, json.dumps(stamp() | wanted, indent=2) + "\n")
            except OSError:
                lock.close()
                raise
    except OSError as error:
        raise unwritable(path, error) from None
    return lock


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    part = path.with_name(path.name + ".part")
    try:
        with part.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError:
        part.unlink(missing_ok=True)
        raise


def unwritable(path: Path, error: OSError) -> UserError:
    """Return the one line for a folder that cannot be written."""
    return UserError(
        f"--out {path}: cannot be written ({error.strerror or error}); free space, mend its permissions or name "
        "another folder, then run the same command again: finished trials are kept"
    )


def first_difference(old: Any, new: Any, key: str, free: Collection[str] = FREE) -> str | None:
    """Return the first key by which two configurations differ, with both values; None if they are the same.

    Args:
        old: the configuration that is there.
        new: the one that is asked for.
        key: where both stand.
        free: keys that may differ.
    """
    if key in free:
        return None
    if isinstance(old, dict) and isinstance(new, dict):
        for part in [*new, *(part for part in old if part not in new)]:
            found = first_difference(old.get(part), new.get(part), f"{key}.{part}", free)
            if found:
                return found
        return None
    return None if old == new else f"{key} ({old!r}, now {new!r})"


def stamp() -> dict[str, Any]:
    """Return what made a folder: its format, the libraries' versions and the checkout's commit."""
    import importlib.metadata  # slow to import; `layersearch show` does without
    import platform

    return {
        "format": FORMAT,
        "versions": {"layersearch": __version__, "python": platform.python_version()}
        | {name: importlib.metadata.version(name) for name in _LIBRARIES},
        "git_commit": _git_commit(),
    }


def _git_commit() -> str | None:
    """Return the commit of the checkout this package runs from; None for an installed wheel."""
    root = Path(__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return None
    import subprocess

    answer = subprocess.run(["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return answer.stdout.strip() or None
