"""Ends what is left of a Ray cluster that a search started, as soon as the search is gone, however it ended.

Ray's servers end with the process that started them, but two of its agents wait for a minute first. `watch` starts
this module as a process of its own. It learns that the search is gone when its standard input ends.
"""

from __future__ import annotations

import contextlib
import select
import subprocess
import sys

import psutil

SERVERS = ("raylet", "gcs_server")
SECONDS = 5.0
"""Between two looks at which processes there are, and for them to end by themselves."""


def watch(search: int) -> subprocess.Popen[bytes]:
    """Start the watcher of a search; close its standard input when the cluster is no longer needed."""
    command = [sys.executable, "-P", "-m", __name__, str(search)]
    # A session of its own: an interrupt of the terminal ends the search first.
    return subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True)


def _processes(search: int) -> set[psutil.Process]:
    """Return Ray's servers below a process, and all that they started."""
    found: set[psutil.Process] = set()
    with contextlib.suppress(psutil.Error):
        for child in psutil.Process(search).children():
            if child.name() in SERVERS:
                found |= {child, *child.children(recursive=True)}
    return found


def main(search: int) -> None:
    """Remember the processes of the cluster; end them when standard input has ended."""
    known: set[psutil.Process] = set()
    while True:
        known |= _processes(search)
        if select.select([sys.stdin], [], [], SECONDS)[0]:
            break
    _, left = psutil.wait_procs(known, timeout=SECONDS)
    for process in left:
        with contextlib.suppress(psutil.Error):  # an id that was given again is another process: psutil refuses it
            process.kill()


if __name__ == "__main__":
    main(int(sys.argv[1]))
