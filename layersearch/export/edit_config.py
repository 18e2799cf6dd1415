"""A user's own ``config.json`` with a schedule in it; the other keys keep their values."""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from layersearch.errors import ExportError, did_you_mean, located
from layersearch.export.families import (
    FAMILIES,
    WITH_SINKS,
    Family,
    check_no_layer_windows,
    converted_family,
    make_config,
)
from layersearch.export.files import read_json, write_files
from layersearch.export.hf import schedule_fields
from layersearch.export.layer_spans import BY_TYPE, changed_positions, readable, text_part
from layersearch.export.uniform import UNIFORM, UniformFamily
from layersearch.schedule import Schedule

_UNUSED = {"pretraining_tp"}  # fields that no class of transformers reads any more
_NOT_CONVERTED = {"model_type", "architectures", "transformers_version", "layer_types", "sliding_window"}
"""Fields that a conversion to another class does not copy: the schedule or the new class defines them."""
_SEEN_ON_TEXT = ("gemma3", "llama4", "llava_onevision")
"""Models of several parts that obey a schedule on texts without images, as seen by experiment."""


@dataclass(frozen=True, kw_only=True)
class UserConfig:
    """A configuration that a user gave, with the family that it belongs to."""

    file: Path
    values: dict[str, Any]
    nested: bool
    """Whether the decoder's configuration is under ``text_config``."""
    family: Family
    note: str | None = None
    """Says what else is to be known, such as a conversion from another class; None: nothing."""
    plain: "UserConfig | None" = None
    """Without that conversion, for a schedule with one span in all layers; None: its class holds no such schedule."""

    @property
    def decoder(self) -> dict[str, Any]:
        """The decoder's part of the values."""
        part: dict[str, Any] = self.values["text_config"] if self.nested else self.values
        return part


def read_user_config(path: Path, family: str | None = None, *, weights: bool = False) -> UserConfig:
    """Read a user's ``config.json``, given as the file or its folder; the rest is `parse_user_config`.

    ``weights`` says that the model's weights are written too, so that a Llama may become a family with more of them.
    """
    file = path / "config.json" if path.is_dir() else path
    values = read_json(file, f"--config {file}", "give a config.json or the folder that holds it")
    if weights and family is None and values.get("model_type") in ("llama", "mistral"):
        family = WITH_SINKS
    return parse_user_config(values, file, family)


def parse_user_config(values: dict[str, Any], file: Path, family: str | None = None) -> UserConfig:
    """Find the family of a ``config.json``; Llama and Mistral are converted to the family that loads their weights.

    Raises:
        ExportError: if no family supports it, ``family`` is another, it names code of its own, or it gives each layer
            its own window.
    """
    where = f"--config {file}"
    check_no_layer_windows(values, where)
    with located(where):
        model_type, decoder, nested = text_part(values)
    note, plain = None, None
    if not nested and (other := converted_family(str(model_type), family)):
        found = FAMILIES[other]
        if model_type in UNIFORM and family != other:
            plain = UserConfig(file=file, values=values, nested=False, family=UNIFORM[model_type])
        values = _convert(values, found, where)
        note = f"{model_type} ignores layer_types: written as {other}, which loads the same weights"
        if found.inert_weights:
            extra = ", ".join(f"{name} of {value:g}" for name, value in found.inert_weights.items())
            note = f"written as {other}: the same weights, and {extra} in each layer, which change nothing"
    elif model_type in BY_TYPE:
        found = BY_TYPE[model_type]
    elif model_type in UNIFORM:
        found = UNIFORM[model_type]
    else:
        raise ExportError(f"{where}: {_no_family(model_type, bool(values.get('auto_map')))}")
    if values.get("auto_map"):
        raise ExportError(f"{where}: auto_map names code of its own, which no stock family runs; drop that key")
    if family not in (None, found.name, plain and plain.family.name):
        raise ExportError(f"--family {family} but {file} is of family {found.name} (its model_type); drop --family")
    if decoder.get("use_bidirectional_attention"):
        raise ExportError(f"{where}: use_bidirectional_attention makes it no causal decoder; set it to false")
    if nested and values.get("model_type") not in _SEEN_ON_TEXT:
        note = (
            f"only the text part was changed and is proven: what {values.get('model_type')}'s images see is not known"
        )
    return UserConfig(file=file, values=values, nested=nested, family=found, note=note, plain=plain)


def _convert(values: Mapping[str, Any], family: Family, where: str) -> dict[str, Any]:
    """Return a family's configuration with another class's values and defaults; refuse fields that it lacks."""
    before = make_config(values["model_type"], values, where)
    new = {**values, "model_type": family.model_type, "architectures": [family.architecture]}
    after = make_config(family.model_type, new, where)
    defaults, known = ({entry.name: entry.default for entry in dataclasses.fields(one)} for one in (before, after))
    for name in sorted(defaults.keys() - known.keys() - _UNUSED - {*family.undeclared}):
        if getattr(before, name) != defaults[name]:
            raise ExportError(
                f"{where}: {name} is {getattr(before, name)}, and {family.model_type} has no {name}: the weights would "
                "not load; layersearch convert --model saves such a model with code of its own"
            )
    # Granite's multipliers, at the values of a Llama: all are 1 by default but that of the attention logits.
    head_dim = getattr(before, "head_dim", None) or before.hidden_size // before.num_attention_heads
    new |= {name: head_dim**-0.5 for name, source in family.copies.items() if source == "attention_scale"}
    if "head_dim" in family.undeclared:
        new["head_dim"] = head_dim
    for name in sorted((known.keys() & defaults.keys()) - _NOT_CONVERTED):
        if getattr(before, name) != getattr(after, name):
            new[name] = getattr(before, name)
    return new


def _no_family(model_type: str | None, own_code: bool) -> str:
    from transformers import CONFIG_MAPPING

    if model_type is None:
        return f"the key 'model_type' is missing; add it, one of {', '.join(BY_TYPE)}"
    problem = f"model_type {model_type!r} is of no family that supports schedules"
    if model_type not in CONFIG_MAPPING and not own_code:
        return problem + did_you_mean(model_type, BY_TYPE)
    from layersearch.export.remote.modeling_layersearch import BASES

    if model_type in BASES:
        return f"{problem}; layersearch convert --model saves it with code of its own"
    return f"{problem}, nor does layersearch convert save one for its weights; known: {', '.join(BY_TYPE)}"


def write_user_config(
    schedule: Schedule, config: UserConfig, *, out: Path, evidence: Mapping[str, Any] | None = None
) -> tuple[list[Path], str | None]:
    """Write a user's configuration with the schedule in it, and ``schedule.yaml``, to another folder.

    Returns:
        The files written, and a note on what else changes; None: nothing does.

    Raises:
        ExportError: if the family does not support the schedule, the number of layers differs, transformers refuses
            the result, or the folder holds other files of the same names.
    """
    if config.plain is not None and len(set(schedule)) == 1:
        config = config.plain
    family, where = config.family, str(config.file)
    given = readable(family.model_type, config.decoder)
    before = make_config(family.model_type, given, where)
    if before.num_hidden_layers != len(schedule):
        raise ExportError(
            f"the schedule has {len(schedule)} layers, {config.file} {before.num_hidden_layers}; "
            "give a schedule of the model's own depth"
        )
    sizes = {"seq_len": before.max_position_embeddings, "n_heads": before.num_attention_heads}
    schedule.check(**sizes)
    family.capabilities.check(schedule, **sizes)
    decoder = config.decoder | _changes(schedule, config, sizes["seq_len"])
    after = family.build(decoder, where)
    changed = changed_positions(family, before, after)
    notes = [config.note] if config.note else []
    if changed:
        notes.append(
            f"in family {family.name} {family.position_change}: the positions of {changed} change; "
            "trained weights need further training"
        )
    values = config.values | {"text_config": decoder} if config.nested else decoder
    text = json.dumps(values, indent=2, ensure_ascii=False) + "\n"
    return write_files(out, {"config.json": text}, schedule, evidence), "; ".join(notes) or None


def _changes(schedule: Schedule, config: UserConfig, seq_len: int) -> dict[str, Any]:
    """Return the fields to set: the main ones, and the derived ones that the configuration has already."""
    family, decoder = config.family, config.decoder
    wanted = schedule_fields(schedule, family, seq_len)
    main, main_size = next(iter(family.layer_fields)), next(iter(family.size_fields))
    one = isinstance(family, UniformFamily)
    keys = {name for name in family.layer_fields if (name == main and not one) or name in decoder}
    if any(not span.is_full for span in schedule):
        keys |= {name for name in family.size_fields if name == main_size or name in decoder} | set(family.sparse_flags)
    elif one or (family.size_required and main_size in decoder and decoder[main_size] is None):
        keys.add(main_size)  # the window of a uniform family holds in every layer unless it is None
    return {name: value for name, value in wanted.items() if name in keys}
