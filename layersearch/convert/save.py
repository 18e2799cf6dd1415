"""Saving a converted model: in a stock family that can hold its schedule, else with our own modeling file."""

from __future__ import annotations

import copy
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from layersearch.data.gguf_file import is_gguf, save_tokenizer
from layersearch.errors import ExportError, did_you_mean
from layersearch.export.families import FAMILIES
from layersearch.export.files import write_files
from layersearch.export.hf import schedule_fields
from layersearch.model.hf_decoder import PROBE_TOKENS, HFDecoder, quiet
from layersearch.schedule import Schedule

STOCK = {
    "llama": "ministral",  # the same weights and names; Llama itself ignores layer_types
    "mistral": "ministral",
    "ministral": "ministral",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "smollm3": "smollm3",
}
"""By ``model_type``: the family that loads the same weights and whose configuration can hold a schedule."""
REMOTE = "hf-remote"
AGREEMENT = 1e-4
"""Largest allowed difference of the saved model's logits from the trained one's, over their largest size, float32."""


def target_family(model: Any, schedule: Schedule, family: str | None = None) -> str:
    """Return the format of a converted model: a key of `FAMILIES`, or ``hf-remote``.

    Args:
        model: the pre-trained model.
        schedule: one span per layer.
        family: the user's choice; None: a stock family if one can hold the schedule.

    Raises:
        ExportError: if that family, or every family, cannot hold the schedule or the weights.
    """
    config = model.config
    stock = STOCK.get(config.model_type)
    choices = [REMOTE, *([stock] if stock in FAMILIES else [])]
    if family is not None and family not in choices:
        raise ExportError(
            f"--family {family!r}: weights of a {config.model_type} are saved as {' or '.join(choices)}"
            f"{did_you_mean(family, choices)}"
        )
    if stock is not None and stock in FAMILIES and family != REMOTE:
        obstacle = f"holds full layers and one window, not {schedule}"
        sparse = {str(span) for span in schedule} - {"full"}
        if len(sparse) <= 1 and all(re.fullmatch(r"window:\d+", text) for text in sparse):
            misfit = _misfit(_empty_model(model, schedule, stock), model)
            if misfit is None:
                return stock
            obstacle = f"cannot load the weights ({misfit})"
        if family is not None:
            raise ExportError(f"--family {family} {obstacle}; give --family {REMOTE}, or another schedule")
    from layersearch.export.hf import remote_config

    remote_config(schedule, config)  # refuses, before training, a schedule that the modeling file cannot run
    return REMOTE


def save_model(
    routed: HFDecoder,
    family: str,
    out: Path,
    *,
    evidence: Mapping[str, Any],
    tokenizer: Path | None = None,
    weights: dict[str, Tensor] | None = None,
    logits: Tensor | None = None,
) -> None:
    """Write a folder that transformers loads, and check that it gives the model's own logits.

    Args:
        routed: the trained model.
        family: as `target_family` returns it.
        out: the folder; files that a killed process left there are replaced.
        evidence: plain data, kept in ``schedule.yaml``.
        tokenizer: a ``tokenizer.json`` to copy, with the settings beside it, or a GGUF file that holds one.
        weights: the model's weights by name, where it holds only a shard of them.
        logits: its `probe_logits`, where it cannot run alone.

    Raises:
        ExportError: if the folder does not load to the same logits.
        OSError: if the folder cannot be written.
    """
    shutil.rmtree(out, ignore_errors=True)
    model, schedule = routed.model, routed.schedule
    if family == REMOTE:
        from layersearch.export.hf import save_remote

        save_remote(model, schedule, out=out, evidence=evidence, weights=weights)
    else:
        stock = _empty_model(model, schedule, family)
        stock.generation_config = model.generation_config
        with quiet():
            stock.save_pretrained(out, state_dict=weights or model.state_dict())
        write_files(out, {}, schedule, evidence)
    if tokenizer is not None:
        _save_tokenizer(tokenizer, out)
    _check_logits(probe_logits(routed) if logits is None else logits, routed, out)


def _save_tokenizer(file: Path, out: Path) -> None:
    if is_gguf(str(file)):
        save_tokenizer("data.tokenizer", file, out)
        return
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja"):
        if file.with_name(name).is_file():
            shutil.copy(file.with_name(name), out / name)


def _empty_model(model: Any, schedule: Schedule, family: str) -> Any:
    """Return the stock family's model without weights."""
    stock = FAMILIES[family]
    values = copy.deepcopy(model.config.to_dict())
    for name in ("model_type", "architectures", "layer_types", "sliding_window", "use_sliding_window"):
        values.pop(name, None)
    values |= schedule_fields(schedule, stock, model.config.max_position_embeddings)
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


def _probe_tokens(routed: HFDecoder) -> Tensor:
    vocab = routed.model.get_input_embeddings().num_embeddings
    tokens = torch.randint(vocab, (1, PROBE_TOKENS * 2), generator=torch.Generator().manual_seed(0))
    device = next(routed.parameters()).device
    return tokens[:, : getattr(routed.model.config, "max_position_embeddings", tokens.shape[1])].to(device)


def probe_logits(routed: HFDecoder) -> Tensor:
    """Return the logits that a saved model must give: past every window that the probe's length allows."""
    with quiet(), torch.no_grad():
        return routed.logits(_probe_tokens(routed))


def _check_logits(wanted: Tensor, routed: HFDecoder, out: Path) -> None:
    """Load the saved model and compare its logits."""
    from transformers import AutoModelForCausalLM

    with quiet(), torch.no_grad():
        # The remote code is our own file, written a moment ago.
        loaded: Any = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32, trust_remote_code=True)
        found = loaded.to(wanted.device)(input_ids=_probe_tokens(routed), use_cache=False).logits
    difference = float((found - wanted).abs().max() / wanted.abs().max())
    if not difference <= AGREEMENT:
        raise ExportError(
            f"{out}: loaded by transformers, its logits differ from the trained model's by {difference:.2g} of their "
            f"size; give --family {REMOTE}, and report this"
        )
