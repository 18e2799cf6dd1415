"""What no stock family reads, refused where it stands in a configuration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from layersearch.errors import UserError

_SIZES = ("sliding_window", "attention_chunk_size", "window_size", "local_attention")
_BY_LAYER = ("per_layer_config", "sliding_windows", "layer_windows", "window_sizes", "sliding_window_sizes")


def check_stock(config: Mapping[str, Any], where: str) -> None:
    """Refuse windows by layer in a stock family's configuration: transformers raises on them or passes over them.

    Args:
        config: what ``config.json`` holds.
        where: the file, for the error.

    Raises:
        UserError: names the key.
    """
    nested = [value for key, value in config.items() if key.endswith("text_config") and isinstance(value, Mapping)]
    family = config.get("model_type", "of no name")
    for part in (config, *nested):
        for key in (*_SIZES, *_BY_LAYER):
            value = part.get(key)
            if isinstance(value, list | Mapping) and value:
                raise UserError(
                    f"{where}: {key} gives layers windows of their own, which stock family {family!r} does not run; "
                    "drop it and use one size, or export with --to hf-remote"
                )
