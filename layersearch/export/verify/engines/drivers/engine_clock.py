"""The two clocks of a bench: wall time, and CPU time, which other work on the machine disturbs less."""

import time

Mark = tuple[float, float]


def now() -> Mark:
    """Return wall and CPU seconds."""
    return time.perf_counter(), time.process_time()


def seconds(start: Mark, first: Mark, end: Mark) -> dict[str, float]:
    """Return the seconds of prefill (start to first token) and of decoding (first token to end)."""
    return {
        "prefill_s": first[0] - start[0],
        "decode_s": end[0] - first[0],
        "prefill_cpu_s": first[1] - start[1],
        "decode_cpu_s": end[1] - first[1],
    }
