"""Temporary folders in which the ranks of one machine meet, closed to other users."""

import contextlib
import fcntl
import os
import shutil
import tempfile
import time
from pathlib import Path

_PREFIX, _LOCK = "layersearch-", "lock"
_ABANDONED = 86_400.0  # Seconds after which a folder without a lock file has no owner: it was not finished


class _Meeting(tempfile.TemporaryDirectory[str]):
    """A folder that this process holds by a lock, which the kernel drops when the process dies, however it dies."""

    def __init__(self) -> None:
        super().__init__(prefix=f"{_PREFIX}{os.getpid()}-", ignore_cleanup_errors=True)
        part, place = (Path(self.name, name) for name in (f"{_LOCK}.part", _LOCK))
        self._held = part.open("w")
        fcntl.flock(self._held, fcntl.LOCK_EX)
        part.replace(place)  # so that nobody finds it unlocked

    def cleanup(self) -> None:
        super().cleanup()
        self._held.close()


def meeting_folder() -> "tempfile.TemporaryDirectory[str]":
    """Make a folder that ends with its object. Remove those that killed processes of this user left behind.

    A process ID would not tell them: containers that share a temporary folder count their processes apart.
    """
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*-*"):
        with contextlib.suppress(OSError):  # another process may remove it at this moment
            own = folder.name.split("-")[1].isdecimal() and not folder.is_symlink()
            if own and folder.stat().st_uid == os.getuid() and not _is_held(folder):
                shutil.rmtree(folder, ignore_errors=True)
    return _Meeting()


def _is_held(folder: Path) -> bool:
    try:
        lock = os.open(folder / _LOCK, os.O_RDONLY | os.O_NOFOLLOW)
    except FileNotFoundError:
        return time.time() - folder.stat().st_mtime < _ABANDONED
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(lock)
    return False
