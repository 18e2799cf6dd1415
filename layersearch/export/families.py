"""What each Hugging Face family calls a span and which fields must be set for it to be obeyed.

A family is data: the checks and the writer in `layersearch.export.hf` know none by name. Read from, and proven on,
transformers 5.23. Every family here counts the token itself in its window, as `Span` does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Family:
    """How one family's ``config.json`` holds a schedule."""

    config_class: str
    """The configuration class in ``transformers``."""
    architecture: str
    """The causal language model's class."""
    layer_types: Mapping[str, str]
    """Entry of ``layer_types`` per span kind; a kind that is absent cannot be held."""
    size_fields: Mapping[str, str]
    """The field that holds the one size of a kind."""
    sparse_flags: Mapping[str, Any] = field(default_factory=dict)
    """Fields without which the sizes are ignored."""
    unused_size: bool = False
    """The model wants every size field set, though no layer uses it."""
    qk_norm: bool = False
    """Queries and keys are normalised; weights of a model that does otherwise do not load."""


FAMILIES: dict[str, Family] = {
    "ministral": Family(
        config_class="MinistralConfig",
        architecture="MinistralForCausalLM",
        layer_types={"full": "full_attention", "window": "sliding_attention"},
        size_fields={"window": "sliding_window"},
        unused_size=True,
    ),
    "qwen3": Family(
        config_class="Qwen3Config",
        architecture="Qwen3ForCausalLM",
        layer_types={"full": "full_attention", "window": "sliding_attention"},
        size_fields={"window": "sliding_window"},
        sparse_flags={"use_sliding_window": True},
        qk_norm=True,
    ),
}
"""Every family by the name that ``--family`` takes."""
