"""Export: a schedule in the form that other programs read, or a refusal that says what they cannot hold."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from layersearch.config.recipe import ModelConfig
from layersearch.errors import UserError, did_you_mean
from layersearch.export.engine_files import write_engine
from layersearch.export.engines import ENGINES, SERVING_FAMILIES
from layersearch.export.families import FAMILIES, IGNORE_LAYER_TYPES
from layersearch.export.files import write_schedule
from layersearch.export.flex import write_flex
from layersearch.export.hf import save_weights, write_config
from layersearch.export.hf_remote import save_remote, stock_config, write_remote
from layersearch.schedule import Schedule

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

__all__ = ["FAMILIES", "TARGETS", "export", "save_remote", "save_weights", "write_remote"]

TARGETS: dict[str, str] = {
    "hf": "config.json for Hugging Face transformers, and schedule.yaml",
    "hf-remote": "a folder for transformers that runs any schedule, with a modelling file of its own",
    "flex": "a Python module of FlexAttention's mask_mod and score_mod per layer that needs torch only",
    **{name: f"{engine.file} for {engine.name}" for name, engine in ENGINES.items()},
    "yaml": "schedule.yaml: the schedule with its evidence",
    "json": "schedule.json: the schedule with its evidence",
}
"""What can be exported to, with one line each."""


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
    """Write a schedule for another program.

    Args:
        schedule: one span per layer of ``model``.
        target: a key of `TARGETS`.
        model: the model's size, which need not be the proxy's.
        vocab_size: tokens of the vocabulary.
        seq_len: the longest text in tokens.
        out: the folder to write to; made where it is missing.
        family: for ``hf``: a key of `FAMILIES`; for ``vllm`` and ``sglang``: that of the model served.
        evidence: what supports the schedule (plain data), kept beside it.
        stock: for ``hf-remote``: the configuration of a stock model; None: that of ``model``.

    Returns:
        The files written.

    Raises:
        UserError: if the target or family is not known or cannot hold the schedule (names the layer and what it would
            hold), the schedule does not fit the model, or the folder cannot be written or holds other files of the
            same names.
    """
    if target not in TARGETS:
        raise UserError(f"--to {target!r} is no export target{did_you_mean(target, TARGETS)}")
    if len(schedule) != model.n_layers:
        raise UserError(
            f"the schedule has {len(schedule)} layers, the model {model.n_layers}; export it at its own depth"
        )
    schedule.check(seq_len=seq_len, n_heads=model.n_heads)
    if target != "hf":
        if family is not None and target not in SERVING_FAMILIES:
            raise UserError(f"--family {family!r} has no meaning for --to {target}; drop it")
        if target == "hf-remote":
            stock = stock or stock_config(model, vocab_size=vocab_size, seq_len=seq_len)
            return write_remote(schedule, config=stock, out=out, evidence=evidence)
        if target == "flex":
            return write_flex(schedule, n_heads=model.n_heads, out=out, evidence=evidence)
        if target in ENGINES:
            sizes: dict[str, Any] = {"model": model, "vocab_size": vocab_size, "seq_len": seq_len}
            return write_engine(schedule, target, **sizes, out=out, family=family, evidence=evidence)
        return [write_schedule(schedule, target, out, evidence or {})]
    if family is None:
        raise UserError(f"--to hf needs --family: one of {', '.join(FAMILIES)}")
    if family in IGNORE_LAYER_TYPES:
        remedy = (
            f"--family {IGNORE_LAYER_TYPES[family]}, which loads its weights"
            if IGNORE_LAYER_TYPES[family]
            else "--to hf-remote"
        )
        raise UserError(f"--family {family}: transformers' {family} passes over layer_types; give {remedy}")
    if family not in FAMILIES:
        raise UserError(f"--family {family!r} is not known{did_you_mean(family, FAMILIES)}")
    config = write_config(schedule, family, model=model, vocab_size=vocab_size, seq_len=seq_len, out=out)
    return [config, write_schedule(schedule, "yaml", out, evidence or {})]
