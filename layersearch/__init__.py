"""layersearch: find which layers need full attention, and the cheapest span the others can live with.

Public names load what they need when they are first used: ``import layersearch`` itself imports nothing heavy.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from layersearch import presets
    from layersearch.attention import attend, reference_attention, span_mask
    from layersearch.bench import load_bench
    from layersearch.cost import attention_flops, budget_ratio, kv_cache_bytes
    from layersearch.errors import UserError
    from layersearch.ladder import search
    from layersearch.recipe import Recipe, load_recipe
    from layersearch.result import Result, analyse
    from layersearch.sampler import ScheduleSampler
    from layersearch.schedule import Schedule, Span
    from layersearch.space import Space, load_space

__version__ = "0.1.0"

_HOME = {
    "Recipe": "recipe",
    "Result": "result",
    "Schedule": "schedule",
    "ScheduleSampler": "sampler",
    "Space": "space",
    "Span": "schedule",
    "UserError": "errors",
    "analyse": "result",
    "attend": "attention",
    "attention_flops": "cost",
    "budget_ratio": "cost",
    "kv_cache_bytes": "cost",
    "load_bench": "bench",
    "load_recipe": "recipe",
    "load_space": "space",
    "reference_attention": "attention",
    "search": "ladder",
    "span_mask": "attention",
}

__all__ = [
    "Recipe",
    "Result",
    "Schedule",
    "ScheduleSampler",
    "Space",
    "Span",
    "UserError",
    "analyse",
    "attend",
    "attention_flops",
    "budget_ratio",
    "kv_cache_bytes",
    "load_bench",
    "load_recipe",
    "load_space",
    "presets",
    "reference_attention",
    "search",
    "span_mask",
]


def __getattr__(name: str) -> Any:
    if name == "presets":
        return importlib.import_module("layersearch.presets")
    if name in _HOME:
        return getattr(importlib.import_module(f"layersearch.{_HOME[name]}"), name)
    raise AttributeError(f"module 'layersearch' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
