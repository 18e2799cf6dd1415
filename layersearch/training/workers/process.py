"""A worker process from outside: starts `layersearch.training.workers.worker` and talks to it through pipes."""

import contextlib
import json
import os
import queue
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

KEEP_FREED_MEMORY = {"MALLOC_TRIM_THRESHOLD_": str(1 << 30), "MALLOC_MMAP_THRESHOLD_": str(1 << 30)}
"""Environment that makes glibc keep freed memory; other C libraries ignore it. Otherwise tensors of megabytes are
unmapped when freed and mapped again, page by page, at the next step. On virtual machines those page faults can cost
more than the arithmetic. Peak memory is unchanged."""

_SLICE = 1.0  # Seconds of one wait, so that a stop of this process itself is noticed


class WorkerProcess:
    """One rank's process on this machine. Its module documents the messages.

    Args:
        module: what the process runs.
    """

    def __init__(self, module: str = "layersearch.training.workers.worker") -> None:
        self.module = module

    pid = 0
    _process: subprocess.Popen[str] | None = None
    _stdin: IO[str]
    _stdout: IO[str]
    _inbox: "queue.SimpleQueue[str]"
    _reader: threading.Thread

    def start(
        self, settings: Mapping[str, Any], log: Path, host: str | None = None, folder: Path | None = None
    ) -> dict[str, Any]:
        """Start the process and send its settings; return them with ``rendezvous`` for the other ranks.

        Args:
            settings: the first message; without ``rendezvous`` if ``host`` is given.
            log: file for its standard error. If the folder does not exist here, this process's standard error is used.
            host: address of this machine where the ranks meet. This process opens a free port there.
            folder: the working directory, if it exists on this machine.
        """
        found = dict(settings)
        env = {"OMP_NUM_THREADS": str(settings["threads"])} | (KEEP_FREED_MEMORY if settings["device"] == "cpu" else {})
        with contextlib.ExitStack() as stack:
            passed: list[int] = []
            if host is not None:
                # Pass the socket itself: nobody can take the port between finding and using it.
                listening = stack.enter_context(socket.create_server((host, 0)))
                found["rendezvous"] = f"tcp://{host}:{listening.getsockname()[1]}"
                passed = [listening.fileno()]
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", self.module],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stack.enter_context(log.open("a", encoding="utf-8")) if log.parent.is_dir() else None,
                text=True,
                bufsize=1,
                pass_fds=passed,
                cwd=folder if folder is not None and folder.is_dir() else None,
                env=os.environ | env,
            )
            assert self._process.stdin is not None
            assert self._process.stdout is not None
            self.pid, self._stdin, self._stdout = self._process.pid, self._process.stdin, self._process.stdout
            self._inbox = queue.SimpleQueue()
            self._reader = threading.Thread(target=self._read, args=(self._stdout, self._inbox), daemon=True)
            self._reader.start()
            self.send(found | {"listening": passed[0] if passed else None})
        return found

    def send(self, message: Mapping[str, Any]) -> bool:
        """Send one message; return whether the process could still read it."""
        try:
            self._stdin.write(json.dumps(message) + "\n")
            self._stdin.flush()
        except BrokenPipeError:
            return False
        return True

    @staticmethod
    def _read(stdout: IO[str], inbox: "queue.SimpleQueue[str]") -> None:
        with contextlib.suppress(ValueError):  # killed, its pipe is closed
            for line in stdout:
                inbox.put(line)
        inbox.put("")

    def receive(self, timeout: float | None = None) -> dict[str, Any] | None:
        """Wait for the next message; None if the process has ended.

        Raises:
            TimeoutError: after so many seconds in which this process ran. Those in which it was stopped do not count.
        """
        waited = 0.0
        while True:
            began = time.monotonic()
            try:
                line = self._inbox.get(timeout=None if timeout is None else max(0.0, min(_SLICE, timeout - waited)))
                break
            except queue.Empty:
                waited += min(time.monotonic() - began, 2 * _SLICE)
                if timeout is not None and waited >= timeout:
                    raise TimeoutError from None
        if line.endswith("\n"):
            return dict(json.loads(line))
        self._inbox.put("")  # a killed process may leave half a line; whoever asks again learns the same
        return None

    def exit_status(self, timeout: float) -> str:
        """Return the exit code, or ``alive`` if the process still runs after this many seconds."""
        assert self._process is not None
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=timeout)
        code = self._process.returncode
        return "alive" if code is None else str(code)

    def kill(self) -> None:
        """Kill the process."""
        if self._process is None:
            return
        self._process.kill()
        self._process.wait()
        with contextlib.suppress(OSError):  # data it has not read
            self._stdin.close()
        self._reader.join(timeout=1.0)  # its pipe has ended
        self._stdout.close()
