"""layersearch: find which layers need full attention, and the cheapest span the others can live with.

Public names load what they need when they are first used: ``import layersearch`` itself imports nothing heavy.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from layersearch.version import __version__ as __version__

if TYPE_CHECKING:
    from layersearch.config.recipe import Recipe, load_recipe
    from layersearch.errors import UserError
    from layersearch.model.attention.dispatch import attend
    from layersearch.model.attention.reference import reference_attention, span_mask
    from layersearch.results.analyze import analyse
    from layersearch.results.result import Result
    from layersearch.schedule import Schedule, Span
    from layersearch.schedule.cost import attention_flops, budget_ratio, kv_cache_bytes
    from layersearch.schedule.space import Space, load_space
    from layersearch.study.benchmark import load_bench
    from layersearch.study.search import search
    from layersearch.surrogate.sampler import ScheduleSampler


_HOME = {
    "Recipe": "config.recipe",
    "Result": "results.result",
    "Schedule": "schedule",
    "ScheduleSampler": "surrogate.sampler",
    "Space": "schedule.space",
    "Span": "schedule",
    "UserError": "errors",
    "analyse": "results.analyze",
    "attend": "model.attention.dispatch",
    "attention_flops": "schedule.cost",
    "budget_ratio": "schedule.cost",
    "kv_cache_bytes": "schedule.cost",
    "load_bench": "study.benchmark",
    "load_recipe": "config.recipe",
    "load_space": "schedule.space",
    "reference_attention": "model.attention.reference",
    "search": "study.search",
    "span_mask": "model.attention.reference",
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
        return importlib.import_module("layersearch.schedule.schedule.presets")
    if name in _HOME:
        return getattr(importlib.import_module(f"layersearch.{_HOME[name]}"), name)
    raise AttributeError(f"module 'layersearch' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
