"""Saving a converted model: in a stock family that can hold its schedule, else with our own modeling file."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from layersearch.data.gguf_file import is_gguf, save_tokenizer
from layersearch.errors import ExportError, did_you_mean
from layersearch.export.families import FAMILIES, Family
from layersearch.export.files import write_files
from layersearch.export.hf import schedule_fields
from layersearch.export.layer_spans import BY_TYPE, changed_positions
from layersearch.export.uniform import UNIFORM, UniformFamily
from layersearch.model.hf_decoder import PROBE_TOKENS, HFDecoder, quiet
from layersearch.model.weight_checksums import write_checksums
from layersearch.schedule import Schedule

STOCK = {
    "llama": "ministral",  # the same weights and names; Llama itself ignores layer_types
    "mistral": "ministral",
}
"""By ``model_type``: another family that loads the same weights and whose configuration can hold a schedule."""
REMOTE = "hf-remote"
AGREEMENT = 1e-4
"""Largest allowed difference of the saved model's logits from the trained one's, over their largest size, float32."""


def formats(model_type: str) -> dict[str, Family | None]:
    """Return the formats in which a converted model can be saved, best first: families by name, and ``hf-remote``.

    A family's value is the family; that of ``hf-remote``, which holds every schedule, is None.
    """
    from layersearch.export.remote.modeling_layersearch import BASES

    family = FAMILIES.get(STOCK.get(model_type, "")) or BY_TYPE.get(model_type) or UNIFORM.get(model_type)
    found: dict[str, Family | None] = {} if family is None else {family.name: family}
    return found | ({REMOTE: None} if model_type in BASES else {})


def limits(model_type: str) -> str | None:
    """Return which schedules no conversion of a model can save, in one sentence; None: it can save every one."""
    held = formats(model_type)
    if REMOTE in held:
        return None
    if not held:
        return (
            f"layersearch convert cannot save another schedule for a model of type {model_type}: neither a family of "
            "transformers nor our modeling file holds one for its weights"
        )
    family = next(iter(held.values()))
    if isinstance(family, UniformFamily):
        return f"layersearch convert saves a model of type {model_type} only with one window in all layers or none"
    change = getattr(family, "position_change", None)
    most = f", and only where no layer's positions change ({change})" if change else ""
    return f"layersearch convert saves a model of type {model_type} only with full layers and one window size{most}"


def target_family(model: Any, schedule: Schedule, family: str | None = None) -> str:
    """Return the format of a converted model: a key of `formats`.

    Args:
        model: the pre-trained model.
        schedule: one span per layer.
        family: the user's choice; None: a stock family if one can hold the schedule.

    Raises:
        ExportError: if that family, or every family, cannot hold the schedule or the weights.
    """
    config = model.config
    choices = formats(config.model_type)
    if not choices:
        raise ExportError(f"{limits(config.model_type)}; give a model such as a Llama, Qwen3, SmolLM3, Gemma or OLMo 2")
    if family is not None and family not in choices:
        raise ExportError(
            f"--family {family!r}: weights of a {config.model_type} are saved as {' or '.join(choices)}"
            f"{did_you_mean(family, choices)}"
        )
    stock = next(iter(choices.values()))
    if stock is not None and family != REMOTE:
        obstacle = _obstacle(model, schedule, stock)
        if obstacle is None:
            return stock.name
        if REMOTE not in choices:
            raise ExportError(
                f"--schedule cannot be saved: a {config.model_type} fits family {stock.name} alone, which {obstacle}; "
                "give another schedule"
            )
        if family is not None:
            raise ExportError(f"--family {family} {obstacle}; give --family {REMOTE}, or another schedule")
    from layersearch.export.hf import remote_config

    remote_config(schedule, config)  # refuses, before training, a schedule that the modeling file cannot run
    return REMOTE


def _obstacle(model: Any, schedule: Schedule, family: Family) -> str | None:
    """Return why a stock family cannot hold the schedule with a model's weights; None: it can."""
    if family.capabilities.problem(schedule) is not None:
        held = (
            "one window in all layers, or none" if isinstance(family, UniformFamily) else "full layers and one window"
        )
        return f"holds {held}, not {schedule}"
    empty = _empty_model(model, schedule, family)
    if (misfit := _misfit(empty, model)) is not None:
        return f"cannot load the weights ({misfit})"
    if family.position_change is not None:
        changed = changed_positions(family, model.config, empty.config)
        if changed is not None:
            return f"changes the positions of {changed} with {schedule}: {family.position_change}"
    return None


def round_weights(model: Any, dtype: torch.dtype) -> None:
    """Round a model's weights in place to values of the type that they are saved in, those of a shard too.

    So the last evaluation measures the model that is saved.
    """
    for parameter in model.parameters():
        held = getattr(parameter, "ds_tensor", parameter).data
        if held.is_floating_point():
            held.copy_(held.to(dtype))


def save_model(
    decoder: HFDecoder,
    family: str,
    out: Path,
    *,
    evidence: Mapping[str, Any],
    tokenizer: Path | None = None,
    weights: dict[str, Tensor] | None = None,
    logits: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Write a folder that transformers loads, and check that it gives the model's own logits.

    Args:
        decoder: the trained model.
        family: as `target_family` returns it.
        out: the folder; files that a killed process left there are replaced.
        evidence: plain data, kept in ``schedule.yaml``.
        tokenizer: a ``tokenizer.json`` to copy, with the settings beside it, or a GGUF file that holds one.
        weights: the model's weights by name, where it holds only a shard of them.
        logits: its `probe_logits`, where it cannot run alone.
        dtype: the type of the saved weights; the model's have values of it already (`round_weights`).

    Raises:
        ExportError: if the folder does not load to the same logits.
        OSError: if the folder cannot be written.
    """
    shutil.rmtree(out, ignore_errors=True)
    model, schedule = decoder.model, decoder.schedule
    held = {
        name: value.to(dtype) if value.is_floating_point() else value
        for name, value in (weights or model.state_dict()).items()
    }
    if family == REMOTE:
        from layersearch.export.hf import save_remote

        save_remote(model, schedule, out=out, evidence=evidence, weights=held)
    else:
        stock = _empty_model(model, schedule, _family(family)).to(dtype)
        stock.generation_config = model.generation_config
        with quiet():
            stock.save_pretrained(out, state_dict=held)
        write_files(out, {}, schedule, evidence)
    write_checksums(out)
    if tokenizer is not None:
        _save_tokenizer(tokenizer, out)
    # Only transformers' own eager attention has softcapping and learned sinks; our modeling file names its own.
    attention = {} if family == REMOTE else {"attn_implementation": "eager"}
    _check_logits(probe_logits(decoder) if logits is None else logits, decoder, out, attention)


def _save_tokenizer(file: Path, out: Path) -> None:
    if is_gguf(str(file)):
        save_tokenizer("data.tokenizer", file, out)
        return
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja"):
        if file.with_name(name).is_file():
            shutil.copy(file.with_name(name), out / name)


def _family(name: str) -> Family:
    return FAMILIES.get(name) or UNIFORM[name]


def _empty_model(model: Any, schedule: Schedule, stock: Family) -> Any:
    """Return the stock family's model without weights."""
    values = copy.deepcopy(model.config.to_dict())
    for name in ("model_type", "architectures", "layer_types", "sliding_window", "use_sliding_window"):
        values.pop(name, None)
    values |= schedule_fields(schedule, stock, model.config.max_position_embeddings)
    if isinstance(stock, UniformFamily):
        del values["layer_types"]
    if all(span.is_full for span in schedule):
        values.pop("use_sliding_window", None)
    config = stock.config_class.from_dict(values)
    config.architectures = [stock.architecture]
    with torch.device("meta"), quiet():
        return stock.model_class(config)


def _misfit(stock: Any, model: Any) -> str | None:
    """Return the first weight that only one of the models has, or that differs in shape; None: they fit."""
    theirs, ours = ({name: value.shape for name, value in one.state_dict().items()} for one in (stock, model))
    return next((name for name in sorted(theirs.keys() | ours.keys()) if theirs.get(name) != ours.get(name)), None)


def _probe_tokens(decoder: HFDecoder) -> Tensor:
    vocab = decoder.model.get_input_embeddings().num_embeddings
    tokens = torch.randint(vocab, (1, PROBE_TOKENS * 2), generator=torch.Generator().manual_seed(0))
    device = next(decoder.parameters()).device
    return tokens[:, : getattr(decoder.model.config, "max_position_embeddings", tokens.shape[1])].to(device)


def probe_logits(decoder: HFDecoder) -> Tensor:
    """Return the logits that a saved model must give: past every window that the probe's length allows."""
    with quiet(), torch.no_grad():
        return decoder.logits(_probe_tokens(decoder))


def _check_logits(wanted: Tensor, decoder: HFDecoder, out: Path, attention: Mapping[str, str]) -> None:
    """Load the saved model and compare its logits."""
    from transformers import AutoModelForCausalLM

    with quiet(), torch.no_grad():
        # The remote code is our own file, written a moment ago.
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            out, dtype=torch.float32, trust_remote_code=True, **attention
        )
        found = loaded.to(wanted.device)(input_ids=_probe_tokens(decoder), use_cache=False).logits
    difference = float((found - wanted).abs().max() / wanted.abs().max())
    if not difference <= AGREEMENT:
        raise ExportError(
            f"{out}: loaded by transformers, its logits differ from the trained model's by {difference:.2g} of their "
            f"size; give --family {REMOTE}, and report this"
        )
