"""A small instance of every generated task."""

from __future__ import annotations

from typing import Any

from layersearch.config.data import DataConfig
from layersearch.data import open_source
from layersearch.data.source import Source

SMALL: dict[str, dict[str, Any]] = {
    "recall": {"seq_len": 40, "vocab_size": 40, "pairs": 4, "queries": 2, "distance": 16},
    "hops": {"seq_len": 70, "vocab_size": 40, "hops": 2, "pairs": 4, "queries": 3, "distance": 16},
    "coreference": {"seq_len": 96, "vocab_size": 40, "documents": 3, "pairs": 4, "queries": 3, "distance": 8},
    "listops": {"seq_len": 40, "vocab_size": 40, "list_depth": 6, "list_args": 5},
    "local": {"seq_len": 40, "vocab_size": 40, "reach": 4},
}


def open_task(name: str, seq_len: int, **settings: Any) -> Source:
    """Open a task with these settings."""
    return open_source(DataConfig(source=name, **settings), seq_len)
