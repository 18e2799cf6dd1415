"""The schedules of a page, each once: their spans, exact costs and commands. Other parts refer to them by number."""

from __future__ import annotations

import shlex
from collections.abc import Callable
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
        seq_len: tokens of a text.
        bidirectional: whether a token sees later ones.
        cost: gives a schedule's attention FLOPs as a share of all-full's.
        cache: gives the bytes of its keys and values; None where they are not known.
        export: gives a command that uses a schedule.
    """

    def __init__(
        self,
        *,
        seq_len: int,
        bidirectional: bool,
        cost: Callable[[Schedule], float],
        cache: Callable[[Schedule], int | None],
        export: Callable[[Schedule], str],
    ) -> None:
        self._seq_len, self._bidirectional = seq_len, bidirectional
        self._cost, self._cache, self._export = cost, cache, export
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
        return {
            "text": str(schedule),
            "compact": compact(schedule),
            "layers": [self._spans.setdefault(span, len(self._spans)) for span in schedule],
            "n_full": schedule.n_full,
            "cost": self._cost(schedule),
            "kv": self._cache(schedule),
            "export": self._export(schedule),
        }

    @property
    def spans(self) -> list[dict[str, Any]]:
        """The spans that occur, in the order of their numbers."""
        seq_len, both = self._seq_len, self._bidirectional
        n_layers = len(self.rows[0]["layers"]) if self.rows else 0
        return [
            {
                "text": str(span),
                "kind": span.kind,
                "size": span.size,
                "dilation": span.dilation,
                "sink": span.sink,
                "cache": 0 if both else cache_tokens(span, seq_len),
                "keys": last_keys(span, seq_len, bidirectional=both),
                "share": self._cost(Schedule((span,) * n_layers)),
            }
            for span in self._spans
        ]


def run_table(run: OpenedRun, recipe_flag: str) -> ScheduleTable:
    """Return an empty table of a run's schedules; the flag names its recipe on a command line: a name or a file."""
    return ScheduleTable(
        seq_len=run.space.seq_len,
        bidirectional=run.space.bidirectional,
        cost=run.space.cost,
        cache=lambda schedule: cache_bytes(run, schedule),
        export=lambda schedule: _export(run, schedule, recipe_flag),
    )


def _export(run: OpenedRun, schedule: Schedule, recipe_flag: str) -> str:
    if run.result.winner is not None and schedule == run.result.winner.schedule and run.kind != "optimal-l":
        return shlex.join(["layersearch", "export", str(run.path), "--to", "yaml", "--out", "exported"])
    if run.recipe.pretrained is not None:
        line = ["layersearch", "convert", "--model", run.recipe.pretrained, "--schedule", str(schedule)]
        return shlex.join([*line, "--out", "converted"])
    line = ["layersearch", "export", str(schedule), "--recipe", recipe_flag]
    return shlex.join([*line, "--to", "yaml", "--out", "exported"])


def last_keys(span: Span, seq_len: int, *, bidirectional: bool = False) -> list[tuple[int, int]]:
    """Return the keys of the last query of a text as ranges [from, to); too many to draw become one."""
    seen = span.visible(seq_len - 1, np.arange(seq_len), bidirectional=bidirectional, tokens=seq_len)
    edges = np.flatnonzero(np.diff(np.concatenate(([0], seen.astype(np.int8), [0]))))
    found = [(int(first), int(last)) for first, last in edges.reshape(-1, 2)]
    return found if len(found) <= _RANGES else [(found[0][0], found[-1][1])]


def cache_bytes(run: OpenedRun, schedule: Schedule) -> int:
    """Return the bytes of keys and values for one sequence of the run's length, 2 bytes a value; an encoder has 0."""
    model = run.recipe.model
    if model.bidirectional:
        return 0
    sizes = {"n_heads": model.n_heads, "n_kv_heads": model.n_kv_heads, "head_dim": model.head_dim}
    return kv_cache_bytes(schedule, seq_len=run.space.seq_len, **sizes)
