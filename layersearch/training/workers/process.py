"""A worker process as the one who starts it holds it: ``layersearch.training.workers.worker`` and the pipes to it."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class WorkerProcess:
    """One rank's process on this machine. `layersearch.training.workers.worker` says which messages go to and fro."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def start(
        self, settings: Mapping[str, Any], log: Path, host: str | None = None, folder: Path | None = None
    ) -> dict[str, Any]:
        """Start the process and tell it its settings.

        Args:
            settings: the first message, ``rendezvous`` left out where ``host`` is given.
            log: file for its standard error; where its folder is not on this machine, this process's own is used.
            host: the address of this machine at which the ranks are to meet: this one opens a free port there.
            folder: the working directory, if it is on this machine.

        Returns:
            The settings, ``rendezvous`` filled in for the other ranks.
        """
        found = dict(settings)
        with contextlib.ExitStack() as stack:
            passed: list[int] = []
            if host is not None:
                # The socket itself is handed down: between finding a free port and using it nobody can take it.
                listening = stack.enter_context(socket.create_server((host, 0)))
                found["rendezvous"] = f"tcp://{host}:{listening.getsockname()[1]}"
                passed = [listening.fileno()]
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "layersearch.training.workers.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stack.enter_context(log.open("a", encoding="utf-8")) if log.parent.is_dir() else None,
                text=True,
                bufsize=1,
                pass_fds=passed,
                cwd=folder if folder is not None and folder.is_dir() else None,
                env=os.environ | {"OMP_NUM_THREADS": str(settings["threads"])},
            )
            self.send(found | {"listening": passed[0] if passed else None})
        return found

    @property
    def pid(self) -> int:
        """The process's number on its machine."""
        assert self._process is not None
        return self._process.pid

    def send(self, message: Mapping[str, Any]) -> bool:
        """Send one message; tell whether there was still somebody to read it."""
        assert self._process is not None
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(message) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            return False
        return True

    def receive(self) -> dict[str, Any] | None:
        """Wait for the next message; None if the process has ended."""
        assert self._process is not None
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        # A killed process may leave half a line.
        return json.loads(line) if line.endswith("\n") else None

    def exit_status(self, patience: float) -> str:
        """Return its exit code, or ``alive`` if it runs on for so many seconds."""
        assert self._process is not None
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=patience)
        code = self._process.returncode
        return "alive" if code is None else str(code)

    def kill(self) -> None:
        """Kill it."""
        if self._process is None:
            return
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.kill()
        self._process.wait()
        with contextlib.suppress(OSError):  # what it has not read
            self._process.stdin.close()
        self._process.stdout.close()
