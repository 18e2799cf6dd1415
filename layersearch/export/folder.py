"""Export of a whole model: its configuration with the schedule, its weights and its tokenizer."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from layersearch.errors import ExportError
from layersearch.export import gguf_model, litgpt, mlx
from layersearch.export.edit_config import UserConfig, parse_user_config, write_user_config
from layersearch.export.engines import ENGINES, litgpt_text
from layersearch.export.families import LLAMA_SHAPED, WITH_SINKS, Family, make_config
from layersearch.export.files import write_files
from layersearch.export.hf import remote_files
from layersearch.export.source import SourceModel
from layersearch.export.weights import copy_tokenizer, inert_tensors, new_files, save_tensors
from layersearch.schedule import Schedule

if TYPE_CHECKING:
    from torch import Tensor

MODEL_TARGETS = ("hf", "hf-remote", "mlx", "gguf", "litgpt")
"""Targets that take a model's own configuration, weights and tokenizer."""


def export_model(
    schedule: Schedule,
    target: str,
    source: SourceModel,
    *,
    out: Path,
    family: str | None = None,
    evidence: Mapping[str, Any] | None = None,
    seq_len: int | None = None,
    user: UserConfig | None = None,
) -> tuple[list[Path], str | None]:
    """Write a model with a schedule, for one of `MODEL_TARGETS`; sizes, RoPE, norms, vocabulary and dtype stay its own.

    Args:
        schedule: one span per layer of the model.
        target: one of `MODEL_TARGETS`.
        source: the model.
        out: the folder; created if it is missing.
        family: for ``hf``: the family to write; None: the model's own, or for a Llama the one that loads its weights.
        evidence: what supports the schedule, as plain data.
        seq_len: length in tokens at which the nearest supported schedule is found; None: the model's longest.
        user: for ``hf``: the ``config.json`` to edit in place of the one in ``source``.

    Returns:
        The files written, and notes; None: there is nothing to add.

    Raises:
        ExportError: if the target does not support the schedule or the model, or a file cannot be written or exists
            with other content.
    """
    if family is not None and target != "hf":
        raise ExportError(f"--family {family!r} has no meaning for --to {target} of a model; drop it")
    if source.gguf is None or target != "gguf":
        kind, tokens, heads = str(source.values.get("model_type")), *_sizes(source.values)
    else:
        kind, tokens, heads = gguf_model.gguf_sizes(source.gguf)
    layers = _decoder(source.values).get("num_hidden_layers")
    if layers is not None and layers != len(schedule):
        raise ExportError(
            f"the schedule has {len(schedule)} layers, {source.name} {layers}; give a schedule of the model's own depth"
        )
    sizes = {"seq_len": seq_len or tokens, "n_heads": heads}
    schedule.check(seq_len=sizes["seq_len"], n_heads=sizes["n_heads"])
    write = {
        "hf": _write_hf,
        "hf-remote": _write_remote,
        "mlx": _write_mlx,
        "gguf": _write_gguf,
        "litgpt": _write_litgpt,
    }[target]
    request = _Request(schedule, source, kind, sizes, family, evidence or {}, user)
    with new_files(out) as part:
        notes = write(request, part)
        names = sorted((file.name for file in part.iterdir()), key=lambda name: (name == "schedule.yaml", name))
    return [out / name for name in names], "; ".join(notes) or None


class _Request(NamedTuple):
    schedule: Schedule
    source: SourceModel
    kind: str
    """The source's model type."""
    sizes: dict[str, int]
    """Arguments of `Capabilities.check`."""
    family: str | None
    evidence: Mapping[str, Any]
    user: UserConfig | None


def _write_hf(asked: _Request, part: Path) -> list[str]:
    user = asked.user
    if user is None:
        named = asked.family
        if named is None and asked.source.tensors is not None and asked.kind in ("llama", "mistral"):
            named = WITH_SINKS
        user = parse_user_config(asked.source.values, Path(asked.source.name), named)
    user.family.capabilities.check(asked.schedule, **asked.sizes)
    _, note = write_user_config(asked.schedule, user, out=part, evidence=asked.evidence)
    notes = [note] if note else []
    return notes + _add_weights(asked, part, user.family)


def _write_remote(asked: _Request, part: Path) -> list[str]:
    config = make_config(asked.kind, asked.source.values, asked.source.name)
    write_files(part, remote_files(asked.schedule, config), asked.schedule, asked.evidence)
    return _add_weights(asked, part)


def _write_mlx(asked: _Request, part: Path) -> list[str]:
    mlx.check_mlx(asked.schedule, asked.kind, **asked.sizes)
    text = json.dumps(mlx.mlx_config(asked.schedule, asked.source.values), indent=2, ensure_ascii=False) + "\n"
    write_files(part, {"config.json": text}, asked.schedule, asked.evidence)
    return _add_weights(asked, part)


def _write_gguf(asked: _Request, part: Path) -> list[str]:
    schedule, source, missing = asked.schedule, asked.source, None
    gguf_model.check_gguf(schedule, asked.kind, **asked.sizes)
    if source.gguf is not None:
        gguf_model.rewrite_gguf(schedule, source.gguf, part / gguf_model.FILE)
    elif source.tensors is None:
        raise ExportError(f"--to gguf writes weights, and {source.name} holds none; give a model that has them")
    else:
        missing = gguf_model.write_gguf(schedule, source, part / gguf_model.FILE)
    write_files(part, {}, schedule, asked.evidence)
    return [f"{gguf_model.FILE} holds no tokenizer (no_vocab): {missing}"] if missing else []


def _write_litgpt(asked: _Request, part: Path) -> list[str]:
    ENGINES["litgpt"].capabilities.check(asked.schedule, **asked.sizes)
    name = Path(asked.source.name).stem or "layersearch"
    text = litgpt_text(asked.schedule, asked.source.values, name)
    write_files(part, {litgpt.CONFIG: text}, asked.schedule, asked.evidence)
    return _add_weights(asked, part, save=lambda tensors: litgpt.save_litgpt(tensors, len(asked.schedule), part))


def _add_weights(
    asked: _Request,
    part: Path,
    family: Family | None = None,
    save: Callable[[Mapping[str, Tensor]], None] | None = None,
) -> list[str]:
    """Write a model's weights, tokenizer and generation settings to a folder; return notes on what is missing.

    ``save`` writes the weights; None: as transformers names them.
    """
    source, notes = asked.source, []
    if source.tensors is None:
        notes.append(f"{source.name} has no weights, so none were written")
    else:
        tensors = source.tensors()
        if family is not None and asked.kind in LLAMA_SHAPED:
            tensors |= inert_tensors(family, len(asked.schedule), asked.sizes["n_heads"], tensors)
        if save is None:
            save_tensors(tensors, part)
        else:
            save(tensors)
    if source.tokenizer is None or not copy_tokenizer(source.tokenizer, part):
        notes.append(f"{source.name} has no tokenizer, so none was written")
    if source.folder is not None and (settings := source.folder / "generation_config.json").is_file():
        shutil.copy(settings, part / settings.name)
    return notes


def _decoder(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the decoder's part of a configuration, which a model of text and images nests."""
    part = values.get("text_config")
    return part if isinstance(part, Mapping) and "num_hidden_layers" not in values else values


def _sizes(values: Mapping[str, Any]) -> tuple[int, int]:
    """Return a configuration's longest text in tokens and its number of query heads."""
    part = _decoder(values)
    return int(part["max_position_embeddings"]), int(part["num_attention_heads"])
