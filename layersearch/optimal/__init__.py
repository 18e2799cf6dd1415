"""How many layers need full attention, and which: every l measured, with what the data can and cannot tell.

Names load what they need when they are first used, as the package's own do: the command line imports from here.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from layersearch.optimal.asked import PLACEMENTS, Asked, Setting, default_delta
    from layersearch.optimal.noninferiority import LStar, find_l_star
    from layersearch.optimal.study import OptimalL, optimal_l

_HOME = {
    "PLACEMENTS": "asked",
    "Asked": "asked",
    "LStar": "noninferiority",
    "OptimalL": "study",
    "Setting": "asked",
    "default_delta": "asked",
    "find_l_star": "noninferiority",
    "optimal_l": "study",
}

__all__ = ["PLACEMENTS", "Asked", "LStar", "OptimalL", "Setting", "default_delta", "find_l_star", "optimal_l"]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"layersearch.optimal.{_HOME[name]}"), name)
    raise AttributeError(f"module 'layersearch.optimal' has no attribute {name!r}")
