"""The schedules of a page, each once: their spans, exact costs and commands. Other parts refer to them by number."""

from __future__ import annotations

import shlex
from typing import Any

import numpy as np

from layersearch.report.folder import OpenedRun
from layersearch.results.held_out import compact
from layersearch.schedule import Schedule, Span
from layersearch.schedule.cost import cache_tokens, kv_cache_bytes

_RANGES = 256
"""Most ranges of keys that are drawn for a layer."""


class ScheduleTable:
    """Numbers schedules in order of first use; ``rows`` is plain data.

    Args:
        run: gives the model's size, the length of the texts and the commands.
        recipe_flag: the recipe of the run for a command line: a shipped name or a file.
    """

    def __init__(self, run: OpenedRun, recipe_flag: str) -> None:
        self._run, self._recipe_flag = run, recipe_flag
        self._numbers: dict[Schedule, int] = {}
        self._spans: dict[Span, int] = {}
        self.rows: list[dict[str, Any]] = []

    def add(self, schedule: Schedule) -> int:
        """Return the number of a schedule."""
        if schedule not in self._numbers:
            self._numbers[schedule] = len(self.rows)
            self.rows.append(self._row(schedule))
        return self._numbers[schedule]

    def _row(self, schedule: Schedule) -> dict[str, Any]:
        run = self._run
        return {
            "text": str(schedule),
            "compact": compact(schedule),
            "layers": [self._spans.setdefault(span, len(self._spans)) for span in schedule],
            "n_full": schedule.n_full,
            "cost": run.space.cost(schedule),
            "kv": cache_bytes(run, schedule),
            "export": self._export(schedule),
        }

    def _export(self, schedule: Schedule) -> str:
        run = self._run
        if run.result.winner is not None and schedule == run.result.winner.schedule and run.kind != "optimal-l":
            return shlex.join(["layersearch", "export", str(run.path), "--to", "yaml", "--out", "exported"])
        if run.recipe.pretrained is not None:
            line = ["layersearch", "convert", "--model", run.recipe.pretrained, "--schedule", str(schedule)]
            return shlex.join([*line, "--out", "converted"])
        line = ["layersearch", "export", str(schedule), "--recipe", self._recipe_flag]
        return shlex.join([*line, "--to", "yaml", "--out", "exported"])

    @property
    def spans(self) -> list[dict[str, Any]]:
        """The spans that occur, in the order of their numbers."""
        seq_len, both = self._run.space.seq_len, self._run.space.bidirectional
        return [
            {
                "text": str(span),
                "kind": span.kind,
                "size": span.size,
                "dilation": span.dilation,
                "sink": span.sink,
                "cache": 0 if both else cache_tokens(span, seq_len),
                "keys": last_keys(span, seq_len, bidirectional=both),
                "share": _share(self._run, span),
            }
            for span in self._spans
        ]


def last_keys(span: Span, seq_len: int, *, bidirectional: bool = False) -> list[tuple[int, int]]:
    """Return the keys of the last query of a text as ranges [from, to); too many to draw become one."""
    seen = span.visible(seq_len - 1, np.arange(seq_len), bidirectional=bidirectional, tokens=seq_len)
    edges = np.flatnonzero(np.diff(np.concatenate(([0], seen.astype(np.int8), [0]))))
    found = [(int(first), int(last)) for first, last in edges.reshape(-1, 2)]
    return found if len(found) <= _RANGES else [(found[0][0], found[-1][1])]


def _share(run: OpenedRun, span: Span) -> float:
    """Return a layer's attention FLOPs as a share of a full layer's."""
    return run.space.cost(Schedule((span,) * run.space.n_layers))


def cache_bytes(run: OpenedRun, schedule: Schedule) -> int:
    """Return the bytes of keys and values for one sequence of the run's length, 2 bytes a value; an encoder has 0."""
    model = run.recipe.model
    if model.bidirectional:
        return 0
    sizes = {"n_heads": model.n_heads, "n_kv_heads": model.n_kv_heads, "head_dim": model.head_dim}
    return kv_cache_bytes(schedule, seq_len=run.space.seq_len, **sizes)
