"""Export: write a schedule in the form that other software loads, or refuse with the reason."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from layersearch.config.model import ModelConfig
from layersearch.errors import ExportError, did_you_mean, located
from layersearch.export.encoders import default_encoder, encoder_text, find_encoder
from layersearch.export.encoders.remote import remote_encoder_files
from layersearch.export.engines import ENGINES, SERVING_FAMILIES, engine_text
from layersearch.export.families import FAMILIES, default_family, find_family
from layersearch.export.files import write_files
from layersearch.export.folder import export_model
from layersearch.export.hf import FLEX, config_text, flex_module, remote_files, save_remote, stock_config
from layersearch.export.mlx import check_mlx, mlx_config
from layersearch.export.source import SourceModel, decoder_source, read_source
from layersearch.export.weights import save_weights
from layersearch.schedule import Schedule
from layersearch.schedule.work import other_stack

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

__all__ = [
    "FAMILIES",
    "TARGETS",
    "SourceModel",
    "check_target",
    "decoder_source",
    "export",
    "export_model",
    "read_source",
    "save_remote",
    "save_weights",
]

TARGETS: dict[str, str] = {
    "hf": "config.json for Hugging Face transformers, and schedule.yaml",
    "hf-remote": "a folder for transformers that runs any schedule, with its own modeling file",
    "mlx": "a folder for MLX-LM: config.json, and a model's weights and tokenizer",
    "gguf": "model.gguf for llama.cpp: a model's weights and tokenizer with the schedule",
    "flex": "a Python module with FlexAttention's mask_mod and score_mod per layer; needs only torch",
    **{name: f"{engine.file} for {engine.name}" for name, engine in ENGINES.items()},
    "litgpt": f"{ENGINES['litgpt'].file} for {ENGINES['litgpt'].name}, and a model's weights and tokenizer",
    "yaml": "schedule.yaml: the schedule with its evidence",
    "json": "schedule.json: the schedule with its evidence",
}
"""Every export target, with one line about its files."""


def check_target(target: str) -> None:
    """Refuse a name that is not in `TARGETS`."""
    if target not in TARGETS:
        raise ExportError(f"--to {target!r} is no export target{did_you_mean(target, TARGETS)}")


def export(
    schedule: Schedule,
    target: str,
    *,
    model: ModelConfig,
    vocab_size: int,
    seq_len: int,
    out: Path,
    family: str | None = None,
    evidence: Mapping[str, Any] | None = None,
    stock: PreTrainedConfig | None = None,
) -> list[Path]:
    """Write a schedule for other software, for a model of a recipe's size. `export_model` writes one that has weights.

    Args:
        schedule: one span per layer of ``model``.
        target: a key of `TARGETS`.
        model: size of the model, which may differ from the proxy's.
        vocab_size: number of tokens in the vocabulary.
        seq_len: longest sequence in tokens.
        out: the folder; created if it is missing.
        family: for ``hf`` and ``mlx`` a key of `FAMILIES`; for ``vllm`` and ``sglang`` the family of the served model.
            For ``hf`` of an encoder a key of `layersearch.export.encoders.ENCODERS`. None: for ``hf`` the decoder's
            own, `default_family`, or ModernBERT, or T5Gemma for an encoder-decoder; for ``mlx`` a Llama.
        evidence: what supports the schedule, as plain data; it is written beside the schedule.
        stock: for ``hf-remote``: configuration of a stock model; None: the one of ``model``.

    Returns:
        The files written.

    Raises:
        ExportError: if the target or family is unknown or does not support the schedule (names the layer and the
            nearest supported schedule), or a file cannot be written or exists with other content.
        ConfigError: if the schedule does not fit the model.
    """
    check_target(target)
    if len(schedule) != model.n_layers:
        raise ExportError(
            f"the schedule has {len(schedule)} layers, the model {model.n_layers}; export it at its own depth"
        )
    two = model.kind == "encoder_decoder"
    takes: tuple[str, ...] = (target,) if model.kind == "decoder" else ("hf", "yaml", "json")
    if model.kind == "encoder":
        takes = ("hf", "hf-remote", "yaml", "json")
    if target not in takes:
        kind = "an encoder-decoder" if two else "an encoder"
        known = f"{', '.join(takes[:-1])} or {takes[-1]}"
        held = "runs one stack" if target == "hf-remote" else "is for decoders"
        raise ExportError(f"--to {target} {held}, and the recipe's model is {kind}; give --to {known}")
    sizes: dict[str, Any] = {"seq_len": seq_len, "n_heads": model.n_heads}
    schedule.check(**sizes, bidirectional=model.bidirectional)
    other = None
    if two:
        other = "decoder" if model.bidirectional else "encoder", other_stack(model)
        with located("model.other_schedule"):
            other[1].check(**sizes, bidirectional=not model.bidirectional)
    if family is not None and target not in ("hf", "mlx") and target not in SERVING_FAMILIES:
        raise ExportError(f"--family {family!r} has no meaning for --to {target}; drop it")
    texts: dict[str, str] = {}
    if target == "hf" and model.kind != "decoder":
        encoder = default_encoder(two) if family is None else find_encoder(family)
        texts["config.json"] = encoder_text(schedule, encoder, model, vocab_size, seq_len)
    elif target == "hf":
        chosen = find_family(family or default_family(model.qk_norm))
        texts["config.json"] = config_text(schedule, chosen, model, vocab_size, seq_len)
    elif target == "hf-remote" and model.bidirectional:
        texts = remote_encoder_files(schedule, model, vocab_size, seq_len)
    elif target == "hf-remote":
        texts = remote_files(schedule, stock or stock_config(model, vocab_size, seq_len))
    elif target == "mlx":
        values = stock_config(model, vocab_size, seq_len).to_dict()
        if family is not None and family not in ("llama", "mistral"):
            values = json.loads(config_text(schedule, find_family(family), model, vocab_size, seq_len))
        check_mlx(schedule, values["model_type"], seq_len=seq_len, n_heads=model.n_heads)
        texts["config.json"] = json.dumps(mlx_config(schedule, values), indent=2) + "\n"
    elif target == "gguf":
        raise ExportError("--to gguf writes weights, which a recipe has not; give --model, or export a run on a model")
    elif target == "flex":
        texts[FLEX] = flex_module(schedule, model.n_heads)
    elif target in ENGINES:
        texts[ENGINES[target].file] = engine_text(schedule, target, family, model, vocab_size, seq_len)
    return write_files(out, texts, schedule, evidence, form="json" if target == "json" else "yaml", other=other)
