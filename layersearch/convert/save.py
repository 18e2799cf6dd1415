"""Saving a converted model: in a stock family that holds its schedule, else with a modelling file of our own."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from layersearch.errors import UserError, did_you_mean
from layersearch.export.families import FAMILIES
from layersearch.export.files import write_files
from layersearch.export.hf import schedule_fields
from layersearch.model.hf_decoder import PROBE_TOKENS, Routed, quiet
from layersearch.schedule import Schedule

STOCK = {
    "llama": "ministral",  # the same weights and names; Llama itself ignores layer_types
    "mistral": "ministral",
    "ministral": "ministral",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "smollm3": "smollm3",
}
"""The family whose configuration can hold a schedule for the weights of another, by ``model_type``."""
REMOTE = "hf-remote"
AGREEMENT = 1e-4
"""Largest difference of the saved model's logits from the trained one's, over their largest size, float32."""


def target_family(model: Any, schedule: Schedule, family: str | None = None) -> str:
    """Return where a converted model is saved: a key of `FAMILIES`, or ``hf-remote``.

    Args:
        model: the pre-trained model.
        schedule: one span per layer.
        family: what the user wants; None: the stock family if one holds it.

    Raises:
        UserError: if the family that was asked for cannot hold the schedule or the weights, or none can.
    """
    config = model.config
    stock = STOCK.get(config.model_type)
    choices = [REMOTE, *([stock] if stock in FAMILIES else [])]
    if family is not None and family not in choices:
        raise UserError(
            f"--family {family!r}: weights of a {config.model_type} are saved as {' or '.join(choices)}"
            f"{did_you_mean(family, choices)}"
        )
    if family == REMOTE or stock not in FAMILIES:
        return _remote(config, schedule)
    assert stock is not None
    sparse = {span for span in schedule if not span.is_full}
    plain = all(str(span) == f"window:{span.size}" for span in sparse) and not any(span.is_las for span in schedule)
    if plain and len(sparse) <= 1:
        odd = _misfit(_shell(model, schedule, stock), model)
        if odd is None:
            return stock
        if family is not None:
            raise UserError(f"the weights do not load into family {family} ({odd}); give --family {REMOTE}")
    if family is not None:
        raise UserError(
            f"--family {family} holds full layers and one window, not {schedule}; give --family {REMOTE}, or another "
            "schedule"
        )
    return _remote(config, schedule)


def _remote(config: Any, schedule: Schedule) -> str:
    """Refuse before anything is trained what the modelling file cannot run."""
    from layersearch.export.hf_remote import remote_config

    remote_config(schedule, config)
    return REMOTE


def save_model(
    routed: Routed, family: str, out: Path, *, evidence: Mapping[str, Any], tokenizer: Path | None = None
) -> None:
    """Write a folder that transformers loads, and make sure that it gives the model's own logits.

    Args:
        routed: the trained model.
        family: as `target_family` returns it.
        out: the folder; what a killed process left there is replaced.
        evidence: plain data, kept in ``schedule.yaml``.
        tokenizer: a ``tokenizer.json`` to be copied with the settings beside it.

    Raises:
        UserError: if what was written does not load to the same logits.
        OSError: if the folder cannot be written.
    """
    shutil.rmtree(out, ignore_errors=True)
    model, schedule = routed.model, routed.schedule
    if family == REMOTE:
        from layersearch.export.hf_remote import save_remote

        save_remote(model, schedule, out=out, evidence=evidence)
    else:
        shell = _shell(model, schedule, family)
        shell.generation_config = model.generation_config
        with quiet():
            shell.save_pretrained(out, state_dict=model.state_dict())
        write_files(out, {}, schedule, evidence)
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        if tokenizer is not None and tokenizer.with_name(name).is_file():
            shutil.copy(tokenizer.with_name(name), out / name)
    _check(routed, out)


def _shell(model: Any, schedule: Schedule, family: str) -> Any:
    """Return the stock family's model without weights."""
    held = FAMILIES[family]
    values = copy.deepcopy(model.config.to_dict())
    for name in ("model_type", "architectures", "layer_types", "sliding_window", "use_sliding_window"):
        values.pop(name, None)
    values |= schedule_fields(schedule, held, model.config.max_position_embeddings)
    if all(span.is_full for span in schedule):
        values.pop("use_sliding_window", None)
    config = held.config_class.from_dict(values)
    config.architectures = [held.architecture]
    with torch.device("meta"), quiet():
        return held.model_class(config)


def _misfit(shell: Any, model: Any) -> str | None:
    """Return the first weight that one has and the other lacks, or has in another shape; None: they fit."""
    theirs, ours = ({name: value.shape for name, value in one.state_dict().items()} for one in (shell, model))
    return next((name for name in sorted(theirs.keys() | ours.keys()) if theirs.get(name) != ours.get(name)), None)


def _check(routed: Routed, out: Path) -> None:
    """Load what was written and compare its logits, past every window that the probe's length allows."""
    from transformers import AutoModelForCausalLM

    device = next(routed.parameters()).device
    vocab = routed.model.get_input_embeddings().num_embeddings
    tokens = torch.randint(vocab, (1, PROBE_TOKENS * 2), generator=torch.Generator().manual_seed(0)).to(device)
    tokens = tokens[:, : getattr(routed.model.config, "max_position_embeddings", tokens.shape[1])]
    with quiet(), torch.no_grad():
        # The code is the file that was written just now.
        loaded: Any = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32, trust_remote_code=True)
        found, wanted = loaded.to(device)(input_ids=tokens, use_cache=False).logits, routed.logits(tokens)
    difference = float((found - wanted).abs().max() / wanted.abs().max())
    if not difference <= AGREEMENT:
        raise UserError(
            f"{out}: loaded by transformers its logits differ from the trained model's by {difference:.2g} of their "
            f"size; give --family {REMOTE}, and report this"
        )
