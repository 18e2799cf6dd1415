"""A worker's side of its pipes: one JSON message per line on standard input and output."""

import json
import os
import queue
import sys
import threading
from typing import Any


class Channel:
    """The messages of a worker process. It exits at once when standard input ends: whoever started it is gone."""

    def __init__(self) -> None:
        # Libraries print to file descriptor 1: reserve the real one for the messages.
        self._out = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)
        self._inbox: queue.Queue[dict[str, Any]] = queue.Queue()
        threading.Thread(target=self._listen, daemon=True).start()

    def receive(self) -> dict[str, Any]:
        """Wait for the next message."""
        return self._inbox.get()

    def send(self, **message: Any) -> None:
        """Send one message."""
        self._out.write(json.dumps(message) + "\n")
        self._out.flush()

    def _listen(self) -> None:
        for line in sys.stdin:
            self._inbox.put(json.loads(line))
        os._exit(0)
