"""A worker's side of its pipes: one JSON message per line on standard input and output."""

import ctypes
import json
import math
import os
import queue
import signal
import sys
import threading
import time
from typing import Any

_PR_SET_PDEATHSIG = 1
BEAT_SECONDS = 1.0  # Least time between two messages of progress


class Channel:
    """The messages of a worker process. It exits at once when standard input ends: whoever started it is gone."""

    _last: float | None  # when the last step ended
    _said: float  # when the last message of progress went out
    _slowest: float

    def __init__(self) -> None:
        if sys.platform == "linux":
            # The kernel also kills a worker that is stopped, and so cannot see the end of its standard input. The
            # signal comes when the thread that started the worker ends: pools keep theirs until they are closed.
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        # Libraries print to file descriptor 1: reserve the real one for the messages.
        self._out = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)
        self.begin()
        self._inbox: queue.Queue[dict[str, Any]] = queue.Queue()
        threading.Thread(target=self._listen, daemon=True).start()

    def receive(self) -> dict[str, Any]:
        """Wait for the next message."""
        return self._inbox.get()

    def send(self, **message: Any) -> None:
        """Send one message."""
        self._out.write(json.dumps(message) + "\n")
        self._out.flush()

    def beat(self) -> None:
        """Say that there is progress, and the longest time between two calls; at most one message a second."""
        now = time.monotonic()
        if self._last is not None:
            self._slowest = max(self._slowest, now - self._last)
        self._last = now
        if now - self._said >= BEAT_SECONDS:
            self._said = now
            self.send(event="beat", slowest=self._slowest)

    def begin(self) -> None:
        """Begin a trial. The time up to the end of its first step, which may compile, does not count as a step's."""
        self._last = None
        self._said, self._slowest = -math.inf, 0.0

    def _listen(self) -> None:
        for line in sys.stdin:
            self._inbox.put(json.loads(line))
        os._exit(0)
