"""A user's own ``config.json``, changed where it holds the schedule and nowhere else."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from layersearch.errors import UserError, did_you_mean
from layersearch.export.capabilities import check_held
from layersearch.export.families import DEAF, FAMILIES, Family, check_stock
from layersearch.export.files import write_schedule, write_text
from layersearch.export.hf import schedule_fields
from layersearch.export.json_edit import set_members
from layersearch.schedule import Schedule

_BY_TYPE = {family.model_type: name for name, family in FAMILIES.items()}


@dataclass(frozen=True, kw_only=True)
class OwnConfig:
    """A configuration that a user gave, read and understood."""

    file: Path
    text: str
    """As it is written."""
    values: dict[str, Any]
    path: tuple[str, ...]
    """Keys that lead to the decoder's part; empty: the whole is the decoder's."""
    family: str
    """A key of `FAMILIES`."""

    @property
    def part(self) -> Mapping[str, Any]:
        """The decoder's part of the values."""
        part: Mapping[str, Any] = self.values
        for key in self.path:
            part = part[key]
        return part

    @property
    def held(self) -> Family:
        """The family itself."""
        return FAMILIES[self.family]

    def built(self, values: Mapping[str, Any]) -> Any:
        """Return transformers' configuration object of the decoder's part.

        Raises:
            UserError: if transformers refuses it.
        """
        import transformers

        part = values
        for key in self.path:
            part = part[key]
        try:
            return getattr(transformers, self.held.config_class).from_dict(dict(part))
        except Exception as error:  # whatever the library's own checks make of it
            words = " ".join(str(error).split())[:200]
            raise UserError(f"{self.file}: transformers refuses it ({words}); correct it") from None


def read_own_config(path: Path, family: str | None = None) -> OwnConfig:
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
        text = file.read_bytes().decode("utf-8")
        values = json.loads(text)
    except FileNotFoundError:
        raise UserError(
            f"--config {path}: there is no {file}; give a config.json or the folder that holds it"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"--config {file}: no JSON text ({error}); give a config.json") from None
    if not isinstance(values, dict):
        raise UserError(f"--config {file}: expected a mapping, found {type(values).__name__}; give a config.json")
    if values.get("auto_map"):
        raise UserError(f"--config {file}: auto_map names code of its own, which no stock family runs; drop that key")
    check_stock(values, f"--config {file}")
    own_type = values.get("model_type")
    nested = values.get("text_config")
    found: tuple[tuple[str, ...], str] | None = None
    if own_type in _BY_TYPE:
        found = (), _BY_TYPE[own_type]
    elif isinstance(nested, dict) and nested.get("model_type") in _BY_TYPE:
        found = ("text_config",), _BY_TYPE[nested["model_type"]]
    if found is None:
        raise UserError(f"--config {file}: {_stranger(own_type)}")
    if family is not None and family != found[1]:
        raise UserError(f"--family {family} but {file} is of family {found[1]} (its model_type); drop --family")
    config = OwnConfig(file=file, text=text, values=values, path=found[0], family=found[1])
    if config.part.get("use_bidirectional_attention"):
        raise UserError(f"--config {file}: use_bidirectional_attention makes it no causal decoder; set it to false")
    return config


def _stranger(own_type: Any) -> str:
    if own_type is None:
        return f"the key 'model_type' is missing; add it, one of {', '.join(_BY_TYPE)}"
    if own_type in DEAF:
        other = DEAF[own_type]
        remedy = f"its weights load as model_type {other!r}: set that" if other else "export with --to hf-remote"
        return f"transformers' {own_type!r} passes over layer_types, so that no schedule is obeyed; {remedy}"
    return f"model_type {own_type!r} is of no family that holds schedules{did_you_mean(str(own_type), _BY_TYPE)}"


def write_own_config(
    schedule: Schedule, config: OwnConfig, *, out: Path, evidence: Mapping[str, Any] | None = None
) -> tuple[list[Path], str | None]:
    """Write a user's configuration with the schedule in it, and ``schedule.yaml``.

    Args:
        schedule: one span per layer.
        config: as `read_own_config` returns it.
        out: another folder than the one it came from.
        evidence: what supports the schedule, kept beside it.

    Returns:
        The files written, and what else changes with the schedule in this family, in words; None: nothing does.

    Raises:
        CannotHold: if the family cannot hold the schedule.
        UserError: if the schedule has another number of layers, transformers refuses the result, or the folder holds
            other files of these names.
    """
    held = config.held
    before = config.built(config.values)
    if before.num_hidden_layers != len(schedule):
        raise UserError(
            f"the schedule has {len(schedule)} layers, {config.file} {before.num_hidden_layers}; "
            "give a schedule of the model's own depth"
        )
    longest = before.max_position_embeddings
    schedule.check(seq_len=longest, n_heads=before.num_attention_heads)
    check_held(schedule, held.capabilities(config.family), seq_len=longest, n_heads=before.num_attention_heads)
    fields = _changes(schedule, config, longest)
    try:
        text = set_members(config.text, config.path, fields)
    except ValueError as error:
        raise UserError(f"--config {config.file}: {error}; write each key once") from None
    after = config.built(json.loads(text))
    words = next(iter(held.layer_fields)) if "layer_types" in held.layer_fields else "attention_layers"
    flipped = [
        layer
        for layer, (old, new) in enumerate(zip(getattr(before, words), getattr(after, words), strict=True))
        if old != new
    ]
    note = None
    if flipped and held.types_turn_positions is not None:
        note = (
            f"in family {config.family} {held.types_turn_positions}: layers {', '.join(map(str, flipped))} changed "
            "type, and their positions with it; trained weights need further training"
        )
    file = write_text(out / "config.json", text)
    return [file, write_schedule(schedule, "yaml", out, evidence or {})], note


def _changes(schedule: Schedule, config: OwnConfig, longest: int) -> dict[str, Any]:
    """Return the fields to set: those that hold the schedule, and of the derived ones those that stand there."""
    held, part = config.held, config.part
    wanted = schedule_fields(schedule, config.family, seq_len=longest)
    first = next(iter(held.layer_fields))
    fields = {name: wanted[name] for name in held.layer_fields if name == first or name in part}
    if held.layer_fields[first] == "runs" and _unrolled(part.get(first)) == _unrolled(wanted[first]):
        del fields[first]  # the same layers in other runs
    used = {span.kind for span in schedule}
    for kind, names in held.size_fields.items():
        first = next(iter(names))
        for name in names:
            missing = name == first and name in part and part[name] is None and held.unused_size
            if (kind in used and (name == first or name in part)) or missing:
                fields[name] = wanted[name]
    if used - {"full"}:
        fields |= held.sparse_flags
    return fields


def _unrolled(runs: Any) -> list[Any] | None:
    """Return one word a layer of ``[[words], times]`` by run; None if it is something else."""
    try:
        return [word for words, times in runs for _ in range(times) for word in words]
    except (TypeError, ValueError):
        return None
