"""Narrow models with strong random weights for the engines, saved as real folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from layersearch.config.model import ModelConfig
from layersearch.export.families import FAMILIES
from layersearch.export.hf import known_fields, schedule_fields, size_fields
from layersearch.export.verify.engines.references import load_state
from layersearch.export.verify.engines.small_models import randomize
from layersearch.schedule import Schedule

SIZE = ModelConfig(n_layers=4, d_model=128, n_heads=4, n_kv_heads=2, d_ff=256, tie_embeddings=False)
POSITIONS = 2048


def values_of(model_type: str, schedule: Schedule | None = None) -> dict[str, Any]:
    """Return a narrow configuration, with a schedule or as its class has it by default."""
    from transformers import CONFIG_MAPPING

    fields = size_fields(SIZE, 256, POSITIONS) | {"query_pre_attn_scalar": 32, "sliding_window": 6}
    if model_type in ("gemma3_text", "olmo3"):
        del fields["rope_parameters"]
    fields = known_fields(CONFIG_MAPPING[model_type], fields) | {"model_type": model_type}
    family = next((one for one in FAMILIES.values() if one.model_type == model_type), None)
    return fields if schedule is None or family is None else fields | schedule_fields(schedule, family, POSITIONS)


def saved(model_type: str, out: Path) -> Path:
    """Save a model with random weights as a user's folder; return it."""
    model = load_state(values_of(model_type), None, "test")
    randomize(model)
    model.save_pretrained(out)
    return out
