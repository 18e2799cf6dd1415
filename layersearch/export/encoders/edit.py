"""A user's ``config.json`` of an encoder, or of a model with two stacks, with a schedule in it."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from layersearch.errors import ExportError
from layersearch.export.capabilities import Capabilities
from layersearch.export.encoders.decoders import decoder_fields, decoder_schedule
from layersearch.export.encoders.family import ENCODERS, WORDS, EncoderFamily
from layersearch.export.encoders.reading import encoder_schedule, encoder_sizes
from layersearch.export.encoders.supported import check_supported
from layersearch.export.encoders.writing import build, padded_length, schedule_fields, usage
from layersearch.export.families import make_config
from layersearch.export.files import write_files
from layersearch.export.weights import copy_tokenizer, new_files
from layersearch.schedule import Schedule

_PERIOD = "global_attn_every_n_layers"
"""ModernBERT's older form of ``layer_types``; transformers 4 reads nothing else."""


def edit_encoder(
    schedule: Schedule,
    values: dict[str, Any],
    source: Path,
    *,
    out: Path,
    family: str | None = None,
    stack: Literal["encoder", "decoder"] = "encoder",
    evidence: Mapping[str, Any] | None = None,
) -> tuple[list[Path], str | None]:
    """Write an encoder's ``config.json`` with a schedule in it, its weights and its tokenizer as they are.

    Args:
        schedule: one span per layer of the stack.
        values: the ``config.json``.
        source: the file, or the folder that also holds weights and a tokenizer.
        out: the folder to write.
        family: what the user named; it must be the file's own.
        stack: the stack that the schedule is of; ``decoder`` for T5Gemma only.
        evidence: what supports the schedule, as plain data.

    Returns:
        The files written, and notes.

    Raises:
        ExportError: the family does not support the schedule, the sizes differ, or a file exists with other content.
    """
    where = f"--config {source}"
    held = ENCODERS[values["model_type"]]
    if family not in (None, held.name):
        raise ExportError(f"--family {family} but {source} is of family {held.name} (its model_type); drop --family")
    before = make_config(held.model_type, values, where)
    edit = _edit_decoder if stack == "decoder" else _edit_encoder
    changed, notes = edit(schedule, values, before, held, source)
    after = build(held, changed, where)
    if held.rope_by_type and before.rope_parameters["full_attention"] != before.rope_parameters["sliding_attention"]:
        old, new = before.layer_types, after.layer_types
        if moved := [str(layer) for layer in range(len(schedule)) if old[layer] != new[layer]]:
            notes.append(
                f"each layer type has a RoPE base of its own: the positions of layers {', '.join(moved)} change; "
                "trained weights need further training"
            )
    other = None
    if held.decoder_windows and stack == "encoder":
        other = "decoder", decoder_schedule(after, where)
    elif held.decoder_windows:
        other = "encoder", encoder_schedule(after, held, where)
    text = json.dumps(changed, indent=2, ensure_ascii=False) + "\n"
    if not source.is_dir():
        return write_files(out, {"config.json": text}, schedule, evidence, other=other), "; ".join(notes) or None
    with new_files(out) as part:
        write_files(part, {"config.json": text}, schedule, evidence, other=other)
        weights = sorted({*source.glob("*.safetensors"), *source.glob("*.safetensors.index.json")})
        if weights and held.summary is not None and before.encoder_attention_type != after.encoder_attention_type:
            raise ExportError(
                f"{where}: weights of encoder_attention_type {before.encoder_attention_type} have other names than "
                f"{after.encoder_attention_type} needs; give the config.json alone, or a schedule that keeps the type"
            )
        for file in weights:
            shutil.copy(file, part / file.name)
        if not weights:
            notes.append(f"{source} has no safetensors weights, so none were written")
        if not copy_tokenizer(source, part):
            notes.append(f"{source} has no tokenizer, so none was written")
        names = sorted((file.name for file in part.iterdir()), key=lambda name: (name == "schedule.yaml", name))
    return [out / name for name in names], "; ".join(notes) or None


def _edit_encoder(
    schedule: Schedule, values: dict[str, Any], before: Any, family: EncoderFamily, source: Path
) -> tuple[dict[str, Any], list[str]]:
    """Return a ``config.json`` with the encoder's schedule, and notes; ``before`` is its configuration object."""
    where, sizes = f"--config {source}", encoder_sizes(before, family)
    _check_depth(schedule, sizes.n_layers, source, "encoder")
    tokens = sizes.positions or values.get("n_positions")
    longest = tokens or max(max(2 * (span.size or 1) + 1, span.summary, span.global_first) for span in schedule)
    schedule.check(seq_len=longest, n_heads=sizes.n_heads, bidirectional=True)
    check_supported(schedule, family, seq_len=longest, n_heads=sizes.n_heads)
    if tokens is None and family.form == "one" and schedule.n_full:
        raise ExportError(f"{where}: a radius that covers the text needs its length; add n_positions")
    fields = schedule_fields(schedule, family, longest)
    if schedule.n_full == len(schedule) and family.form == "types":
        del fields[str(family.size)]  # no layer uses it
    needed = padded_length(fields, family, longest) if family.pads else longest
    if needed > longest and family.pads_positions:
        raise ExportError(
            f"{where}: {family.name} pads a text of {longest} tokens to {needed}, more than its positions: give "
            f"max_encoder_position_embeddings of {needed} and weights for them, or windows that divide {longest // 2}"
        )
    note = usage(schedule, family, longest)
    return _edited(values, fields, family), [] if note is None else [note]


def _edit_decoder(
    schedule: Schedule, values: dict[str, Any], before: Any, family: EncoderFamily, source: Path
) -> tuple[dict[str, Any], list[str]]:
    """Return a ``config.json`` with the decoder's schedule, and notes; ``before`` is its configuration object."""
    if not family.decoder_windows:
        has = f"the decoder of family {family.name} is full and holds no schedule" if family.decoder else "no decoder"
        raise ExportError(f"--config {source}: {has}; give the schedule of the encoder")
    own = before.decoder
    _check_depth(schedule, own.num_hidden_layers, source, "decoder")
    sizes: dict[str, Any] = {"seq_len": own.max_position_embeddings, "n_heads": own.num_attention_heads}
    schedule.check(**sizes)
    Capabilities(name=f"the decoder of family {family.name}").check(schedule, **sizes)
    fields = decoder_fields(schedule, own.sliding_window)  # the size stays where no layer uses it
    changed = copy.deepcopy(dict(values))
    changed.setdefault("decoder", {}).update(fields)
    return changed, []


def _check_depth(schedule: Schedule, layers: int, source: Path, stack: str) -> None:
    if layers != len(schedule):
        raise ExportError(
            f"the schedule has {len(schedule)} layers, {source} {layers}; give a schedule of the {stack}'s depth"
        )


def _edited(values: Mapping[str, Any], fields: Mapping[str, Any], family: EncoderFamily) -> dict[str, Any]:
    """Return a ``config.json`` with the fields of a schedule."""
    changed = copy.deepcopy(dict(values))
    own: dict[str, Any] = changed if family.part is None else changed.setdefault(family.part, {})
    own.update(fields)
    if family.rope_by_type and _PERIOD in own:
        words = own["layer_types"]
        full = [word == WORDS["full"] for word in words]
        periods = [n for n in range(1, len(full) + 1) if full == [at % n == 0 for at in range(len(full))]]
        if not periods:
            del own[_PERIOD]
        else:
            own[_PERIOD] = periods[0]
    return changed
