"""A user's own ``config.json`` with the schedule in it; the other keys keep their values."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from layersearch.errors import UserError, did_you_mean
from layersearch.export.capabilities import check_held
from layersearch.export.families import FAMILIES, IGNORE_LAYER_TYPES, Family, check_no_layer_windows, configuration
from layersearch.export.files import write_schedule, write_text
from layersearch.export.hf import schedule_fields
from layersearch.schedule import Schedule

_BY_TYPE = {family.model_type: name for name, family in FAMILIES.items()}


_UNUSED = {"pretraining_tp"}
"""Fields that no class of transformers reads any more."""
_LEFT_OUT = {"model_type", "architectures", "transformers_version", "layer_types", "sliding_window"}
"""Fields that another class's configuration does not hand on: the schedule and the new class say them."""


@dataclass(frozen=True, kw_only=True)
class UserConfig:
    """A configuration that a user gave, read and understood."""

    file: Path
    values: dict[str, Any]
    nested: bool
    """The decoder's part is ``text_config``."""
    family: str
    """A key of `FAMILIES`."""
    note: str | None = None
    """Whose configuration it was, where the family is another's; None: the family's own."""

    @property
    def part(self) -> dict[str, Any]:
        """The decoder's part of the values."""
        part: dict[str, Any] = self.values["text_config"] if self.nested else self.values
        return part

    @property
    def held(self) -> Family:
        """The family itself."""
        return FAMILIES[self.family]


def read_user_config(path: Path, family: str | None = None) -> UserConfig:
    """Read a user's configuration.

    Args:
        path: a ``config.json`` or the folder that holds one.
        family: what the user says it is; None: what its ``model_type`` says.

    Raises:
        UserError: if it is no configuration of a family that holds schedules, names code of its own, or gives layers
            windows of their own.
    """
    file = path / "config.json" if path.is_dir() else path
    try:
        values = json.loads(file.read_bytes().decode("utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"--config {path}: there is no {file}; give a config.json or the folder that holds it"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"--config {file}: no JSON text ({error}); give a config.json") from None
    if not isinstance(values, dict):
        raise UserError(f"--config {file}: expected a mapping, found {type(values).__name__}; give a config.json")
    return parse_user_config(values, file, family)


def parse_user_config(values: dict[str, Any], file: Path, family: str | None = None) -> UserConfig:
    """Return what `read_user_config` does, of a configuration that was read already.

    A Llama's or Mistral's becomes the one of the family that loads its weights.

    Args:
        values: what ``config.json`` holds.
        file: where it lies, for errors.
        family: as in `read_user_config`.

    Raises:
        UserError: as `read_user_config`.
    """
    where = f"--config {file}"
    if values.get("auto_map"):
        raise UserError(f"{where}: auto_map names code of its own, which no stock family runs; drop that key")
    check_no_layer_windows(values, where)
    own_type, nested, note = values.get("model_type"), values.get("text_config"), None
    is_nested = own_type not in _BY_TYPE and isinstance(nested, dict) and nested.get("model_type") in _BY_TYPE
    part = nested if is_nested and isinstance(nested, dict) else values
    if part is values and IGNORE_LAYER_TYPES.get(str(own_type)):
        found = IGNORE_LAYER_TYPES[str(own_type)]
        values = _converted(values, FAMILIES[found], where)
        note = f"{own_type} passes over layer_types: written as {found}, which loads the same weights"
    elif part.get("model_type") in _BY_TYPE:
        found = _BY_TYPE[part["model_type"]]
    else:
        raise UserError(f"{where}: {_stranger(own_type)}")
    if family is not None and family != found:
        raise UserError(f"--family {family} but {file} is of family {found} (its model_type); drop --family")
    config = UserConfig(file=file, values=values, nested=is_nested, family=found, note=note)
    if config.part.get("use_bidirectional_attention"):
        raise UserError(f"{where}: use_bidirectional_attention makes it no causal decoder; set it to false")
    return config


def _converted(values: Mapping[str, Any], held: Family, where: str) -> dict[str, Any]:
    """Return the configuration of the family that loads another class's weights; it says what that class would fill in.

    Raises:
        UserError: if the class has a field at work that the family lacks: its weights are others.
    """
    before = configuration(values["model_type"], values, where)
    new = {**values, "model_type": held.model_type, "architectures": [held.architecture]}
    after = configuration(held.model_type, new, where)
    defaults, known = ({entry.name: entry.default for entry in dataclasses.fields(one)} for one in (before, after))
    for name in sorted(defaults.keys() - known.keys() - _UNUSED):
        if getattr(before, name) != defaults[name]:
            raise UserError(
                f"{where}: {name} is {getattr(before, name)}, and {held.model_type} has no {name}: the weights would "
                "not load; layersearch convert --model saves such a model with code of its own"
            )
    for name in sorted(known.keys() - _LEFT_OUT):
        if getattr(before, name) != getattr(after, name):
            new[name] = getattr(before, name)
    return new


def _stranger(own_type: Any) -> str:
    if own_type is None:
        return f"the key 'model_type' is missing; add it, one of {', '.join(_BY_TYPE)}"
    if own_type in IGNORE_LAYER_TYPES:
        return (
            f"transformers' {own_type!r} passes over layer_types, and no export holds a schedule for its weights; "
            f"give a model of {', '.join(_BY_TYPE)}, llama or mistral"
        )
    return f"model_type {own_type!r} is of no family that holds schedules{did_you_mean(str(own_type), _BY_TYPE)}"


def write_user_config(
    schedule: Schedule, config: UserConfig, *, out: Path, evidence: Mapping[str, Any] | None = None
) -> tuple[list[Path], str | None]:
    """Write a user's configuration with the schedule in it, and ``schedule.yaml``.

    Args:
        schedule: one span per layer.
        config: as `read_user_config` returns it.
        out: another folder than the one it came from.
        evidence: what supports the schedule, kept beside it.

    Returns:
        The files written, and what else changes with the schedule in this family, in words; None: nothing does.

    Raises:
        CannotHold: if the family cannot hold the schedule.
        UserError: if the schedule has another number of layers, transformers refuses the result, or the folder holds
            other files of these names.
    """
    held, where = config.held, str(config.file)
    before = configuration(held.model_type, config.part, where)
    if before.num_hidden_layers != len(schedule):
        raise UserError(
            f"the schedule has {len(schedule)} layers, {config.file} {before.num_hidden_layers}; "
            "give a schedule of the model's own depth"
        )
    longest = before.max_position_embeddings
    schedule.check(seq_len=longest, n_heads=before.num_attention_heads)
    check_held(schedule, held.capabilities(config.family), seq_len=longest, n_heads=before.num_attention_heads)
    fields = _changes(schedule, config, longest)
    part = config.part | fields
    after = held.build(part, where)
    words = next(iter(held.layer_fields)) if "layer_types" in held.layer_fields else "attention_layers"
    flipped = [
        layer
        for layer, (old, new) in enumerate(zip(getattr(before, words), getattr(after, words), strict=True))
        if old != new
    ]
    notes = [config.note] if config.note else []
    if flipped and held.position_change is not None:
        notes.append(
            f"in family {config.family} {held.position_change}: layers {', '.join(map(str, flipped))} changed "
            "type, and their positions with it; trained weights need further training"
        )
    values = config.values | {"text_config": part} if config.nested else part
    file = write_text(out / "config.json", json.dumps(values, indent=2, ensure_ascii=False) + "\n")
    return [file, write_schedule(schedule, "yaml", out, evidence or {})], "; ".join(notes) or None


def _changes(schedule: Schedule, config: UserConfig, longest: int) -> dict[str, Any]:
    """Return the fields to set: those that hold the schedule, and of the derived ones those that stand there."""
    held, part = config.held, config.part
    wanted = schedule_fields(schedule, config.family, seq_len=longest)
    first = next(iter(held.layer_fields))
    fields = {name: wanted[name] for name in held.layer_fields if name == first or name in part}
    used = {span.kind for span in schedule}
    for kind, names in held.size_fields.items():
        first = next(iter(names))
        for name in names:
            missing = name == first and name in part and part[name] is None and held.size_required
            if (kind in used and (name == first or name in part)) or missing:
                fields[name] = wanted[name]
    if used - {"full"}:
        fields |= held.sparse_flags
    return fields
