"""An encoder of layersearch's own as a folder for transformers: its modeling file runs every span of an encoder."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from layersearch.config.model import ModelConfig
from layersearch.export.files import write_files
from layersearch.export.hf import stock_config
from layersearch.export.weights import decoder_tensors, new_files, save_tensors
from layersearch.schedule import Schedule

if TYPE_CHECKING:
    from torch import Tensor

MODELING = "modeling_layersearch_encoder.py"
"""The code that is exported unchanged."""
MODEL_TYPE = "layersearch_encoder"


def remote_encoder_files(schedule: Schedule, model: ModelConfig, vocab_size: int, seq_len: int) -> dict[str, str]:
    """Return ``config.json`` and the modeling file by name."""
    from layersearch.export.remote.modeling_layersearch_encoder import NAME, config_class

    values = copy.deepcopy(stock_config(model, vocab_size, seq_len).to_dict())
    base = values["model_type"]
    if values.get("layer_types") is not None:
        values["layer_types"] = ["full_attention"] * len(schedule)
    values |= {
        "model_type": MODEL_TYPE,
        "base_model_type": base,
        "layer_spans": schedule.to_dicts(),
        "use_cache": False,
        "architectures": ["LayersearchForMaskedLM"],
        "auto_map": {
            "AutoConfig": f"{MODELING.removesuffix('.py')}.LayersearchEncoderConfig",
            "AutoModelForMaskedLM": f"{MODELING.removesuffix('.py')}.LayersearchForMaskedLM",
        },
    }
    made = config_class(base).from_dict(values)
    made._attn_implementation = NAME
    code = resources.files("layersearch.export.remote").joinpath(MODELING).read_text(encoding="utf-8")
    return {"config.json": made.to_json_string(), MODELING: code}


def save_encoder(
    state: Mapping[str, Tensor],
    schedule: Schedule,
    model: ModelConfig,
    *,
    vocab_size: int,
    seq_len: int,
    out: Path,
    evidence: Mapping[str, Any] | None = None,
) -> list[Path]:
    """Write a trained encoder as a folder that loads with ``AutoModelForMaskedLM`` and ``trust_remote_code=True``.

    Args:
        state: the state dict of a `layersearch.model.decoder.Decoder` of kind ``encoder``.
        schedule: one span per layer.
        model: its size.
        vocab_size: number of tokens in the vocabulary, the mask token among them.
        seq_len: longest sequence in tokens.
        out: the folder; created if it is missing.
        evidence: what supports the schedule, as plain data.

    Returns:
        The files written.

    Raises:
        LayersearchError: the schedule does not fit the model, or a file cannot be written or exists with other content.
    """
    schedule.check(seq_len=seq_len, n_heads=model.n_heads, bidirectional=True)
    with new_files(out) as part:
        write_files(part, remote_encoder_files(schedule, model, vocab_size, seq_len), schedule, evidence)
        save_tensors(decoder_tensors(state, model), part)
        names = sorted((file.name for file in part.iterdir()), key=lambda name: (name == "schedule.yaml", name))
    return [out / name for name in names]
