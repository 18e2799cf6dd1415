"""What each engine reads of an exported folder: a ``config.json``, a ``vllm.yaml`` or a GGUF file."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from layersearch.errors import ExportError
from layersearch.export.encoders import is_encoder_file
from layersearch.export.files import read_json
from layersearch.export.verify.engines.gguf_files import gguf_of
from layersearch.export.verify.engines.litgpt_files import Checkpoint
from layersearch.export.verify.engines.small_models import (
    OWN_WEIGHT_BYTES,
    EngineModel,
    own_folder,
    random_folder,
)
from layersearch.export.verify.loading import weight_files
from layersearch.schedule import Schedule
from layersearch.schedule.files import read_schedule

_SIZE_FIELDS = ("sliding_window", "attention_chunk_size", "window_size")


@dataclass(frozen=True, kw_only=True)
class Source:
    """An exported folder, ready to be made into a model of an engine."""

    make: Callable[[Path, int, bool], EngineModel]
    """Takes a path for the model, how many tokens it must take, and whether its own weights are wanted."""
    sizes: tuple[int, ...]
    """Windows that its configuration names, in tokens, used or not."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """The driver's."""


def engine_model(folder: Path, engine: str, schedule: Schedule | None, model: Path | None) -> tuple[Schedule, Source]:
    """Return the expected schedule and the source of the engine's model.

    Raises:
        ExportError: if a file is missing or damaged, or the schedule has other spans than windows and blocks.
    """
    asked = schedule or folder_schedule(folder)
    for layer, span in enumerate(asked):
        other = span.sink or span.summary or span.global_first or span.global_marked or span.is_las or span.is_union
        if span.dilation > 1 or span.offset or other:
            raise ExportError(f"layer {layer}: {span}: --engine compares plain windows and blocks; leave --engine out")
    overrides = folder / "vllm.yaml"
    if engine == "llama.cpp":
        file = gguf_of(folder)
        if (layers := file.key("block_count")) != len(asked):
            raise ExportError(
                f"{file.path}: the schedule has {len(asked)} layers, the file {layers}; give this model's schedule"
            )
        size = file.key("attention.sliding_window")
        return asked, Source(make=file.make, sizes=(size,) if isinstance(size, int) else ())
    if engine == "litgpt":
        checkpoint = Checkpoint(folder)
        if checkpoint.layers != len(asked):
            raise ExportError(
                f"{folder}: the schedule has {len(asked)} layers, the model {checkpoint.layers}; "
                "give this model's schedule"
            )
        size = checkpoint.size
        return asked, Source(make=checkpoint.make, sizes=(size,) if isinstance(size, int) else ())
    if overrides.is_file():
        if engine != "vllm":
            raise ExportError(f"{overrides} is for --engine vllm, not for {engine}")
        return asked, _vllm(overrides, model, asked)
    if model is not None:
        raise ExportError(f"--model goes with a folder that holds vllm.yaml, and {folder} has none; drop it")
    return asked, _folder(folder, asked, {})


def folder_schedule(folder: Path) -> Schedule:
    """Return the schedule in an exported folder.

    Raises:
        ExportError: if there is none.
    """
    files = [folder / "schedule.yaml", folder / "schedule.json"]
    found = next((one for one in files if one.is_file()), None)
    if found is None:
        raise ExportError(f"{files[0]} is missing: it says what to prove; add it, or give --schedule")
    return read_schedule(found)


def _vllm(file: Path, model: Path | None, asked: Schedule) -> Source:
    try:
        given = yaml.safe_load(file.read_text(encoding="utf-8"))
        options = {"overrides": dict(given["hf-overrides"]), "impl": given.get("model-impl")}
    except (OSError, ValueError, yaml.YAMLError, KeyError, TypeError, AttributeError):
        raise ExportError(f"{file}: no overrides that layersearch export --to vllm wrote; export it again") from None
    served = model or file.parent
    if not (served / "config.json").is_file() and not served.is_file():
        raise ExportError(f"{served / 'config.json'} is missing: give --model, the folder of the served model")
    return _folder(served, asked, options)


def _folder(path: Path, asked: Schedule, options: Mapping[str, Any]) -> Source:
    file = path if path.is_file() else path / "config.json"
    values = read_json(file, str(file), "give a folder that 'layersearch export' wrote, or a served model")
    if values.get("auto_map"):
        raise ExportError(f"{file}: auto_map names code of its own, which no engine runs; leave --engine out")
    if is_encoder_file(values):
        raise ExportError(f"{file}: {values['model_type']} is an encoder, and --engine generates; leave --engine out")
    text = values.get("text_config")
    decoder = text if isinstance(text, dict) and text.get("model_type") else values
    if "model_type" not in decoder:
        raise ExportError(f"{file}: the key 'model_type' is missing; add it")
    layers = decoder.get("num_hidden_layers", decoder.get("num_layers"))
    if layers != len(asked):
        raise ExportError(
            f"{path}: the schedule has {len(asked)} layers, config.json {layers}; give the schedule of this model"
        )
    files = weight_files(file.parent)

    def make(out: Path, positions: int, own: bool) -> EngineModel:
        size = sum(one.stat().st_size for one in files)
        longest = decoder.get("max_position_embeddings", positions)
        if own and files and size <= OWN_WEIGHT_BYTES and decoder is values and longest >= positions:
            return own_folder(file.parent, decoder, files, str(file))
        return random_folder(decoder, positions, out, str(file))

    given = decoder | options.get("overrides", {})
    sizes = tuple(size for name in _SIZE_FIELDS if isinstance(size := given.get(name), int))
    return Source(make=make, sizes=sizes, options=options)
