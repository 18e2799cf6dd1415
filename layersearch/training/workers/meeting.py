"""Temporary folders in which the ranks of one machine meet, closed to other users."""

import contextlib
import os
import shutil
import tempfile
from pathlib import Path

_PREFIX = "layersearch-"


def meeting_folder() -> "tempfile.TemporaryDirectory[str]":
    """Make a folder that ends with its object. Remove those that killed processes of this user left behind."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*-*"):
        owner = folder.name.split("-")[1]
        with contextlib.suppress(OSError):  # another process may remove it at this moment
            own = owner.isdecimal() and not folder.is_symlink() and folder.stat().st_uid == os.getuid()
            if own and not _lives(int(owner)):
                shutil.rmtree(folder, ignore_errors=True)
    return tempfile.TemporaryDirectory(prefix=f"{_PREFIX}{os.getpid()}-", ignore_cleanup_errors=True)


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True
