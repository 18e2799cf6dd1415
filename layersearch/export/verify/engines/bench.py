"""How fast an engine runs an exported model, and the KV memory it really holds, beside all-full of the same model."""

import dataclasses
import json
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from layersearch.errors import ExportError
from layersearch.export.families import FAMILIES
from layersearch.export.files import read_json
from layersearch.export.hf import schedule_fields
from layersearch.export.litgpt import CONFIG, WEIGHTS, litgpt_config
from layersearch.export.mlx import mlx_config
from layersearch.export.verify.engines.environments import checked, find_python, run_engine
from layersearch.export.verify.engines.gguf_files import gguf_of
from layersearch.export.verify.engines.litgpt_files import Checkpoint
from layersearch.export.verify.engines.loading import engine_model
from layersearch.export.verify.loading import weight_files
from layersearch.schedule import Schedule, Span
from layersearch.schedule.cost import kv_cache_bytes
from layersearch.schedule.presets import all_full

Variant = Literal["schedule", "all-full"]
_SIZES = ("num_attention_heads", "num_key_value_heads", "head_dim")


@dataclass(frozen=True, kw_only=True)
class Timing:
    """One pass of an engine: a prompt, then tokens one by one."""

    engine: str
    version: str
    variant: Variant
    tokens: int
    """Length of the prompt."""
    new: int
    """Tokens that were generated after it."""
    prefill_s: float
    decode_s: float
    prefill_cpu_s: float
    decode_cpu_s: float
    kv_bytes: int
    """Bytes of keys and values that the engine holds at the end."""
    cost_bytes: int
    """Bytes that `layersearch.schedule.cost.kv_cache_bytes` counts at the same length and width of a value."""
    details: Mapping[str, Any]
    """What the engine says besides: cells or blocks, and the process's peak memory in bytes."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain data, as ``--json`` prints it."""
        return dataclasses.asdict(self)


@dataclass(frozen=True, kw_only=True)
class _Variant:
    path: Path
    options: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class _Model:
    variants: Mapping[Variant, _Variant]
    schedule: Schedule
    heads: tuple[int, int, int]
    """Query heads, key-value heads, and their width."""
    vocab_size: int


def bench(
    folder: Path,
    engine: str,
    *,
    tokens: Sequence[int],
    new: int = 32,
    repeats: int = 3,
    seconds: float = 1800,
    schedule: Schedule | None = None,
    python: Path | None = None,
    model: Path | None = None,
) -> list[Timing]:
    """Time an exported model and the same model all-full, in turn, on one thread.

    Args:
        folder: what ``layersearch export`` wrote, with weights.
        engine: a key of `layersearch.export.verify.engines.ENVIRONMENTS`.
        tokens: lengths of prompts.
        new: how many tokens are generated after each.
        repeats: how often the two are run; which is first alternates.
        seconds: how long one pass over all the prompts may take, by the wall clock.
        schedule: as `layersearch.export.verify.engines.verify_in_engine`, as are ``python`` and ``model``.

    Raises:
        ExportError: if something is missing or does not run.
    """
    executable = find_python(engine, python)
    found = []
    with tempfile.TemporaryDirectory() as scratch:
        made = _model(folder, engine, schedule, model, Path(scratch), max(tokens) + new + 1)
        generator = torch.Generator().manual_seed(0)
        text = torch.randint(made.vocab_size, (max(tokens),), generator=generator).tolist()
        for repeat in range(repeats):
            # What a busy machine does to the first of two, it does to each of them in turn.
            for name, variant in list(made.variants.items())[:: -1 if repeat % 2 else 1]:
                request = {
                    "model": str(variant.path.absolute()),
                    "text": text,
                    "bench": [[length, new] for length in tokens],
                    "options": {"room": new + 1, **variant.options},
                }
                remedy = "give a higher --timeout or shorter --tokens"
                answers = run_engine(engine, executable, [request], seconds=seconds, remedy=remedy)
                result = checked(engine, answers[0])
                peak = {"peak_rss_bytes": result["peak_rss_bytes"]}
                found += [_timing(engine, result["version"], name, made, dict(one) | peak) for one in result["bench"]]
    return found


def _timing(engine: str, version: str, variant: Variant, made: _Model, one: dict[str, Any]) -> Timing:
    schedule = made.schedule if variant == "schedule" else all_full(len(made.schedule))
    heads, kv_heads, width = made.heads
    cost = kv_cache_bytes(
        schedule,
        seq_len=one["tokens"] + one["new"],
        n_heads=heads,
        n_kv_heads=kv_heads,
        head_dim=width,
        bytes_per_value=one.pop("kv_value_bytes"),
    )
    fields = {field.name for field in dataclasses.fields(Timing)}
    known = {key: one.pop(key) for key in list(one) if key in fields}
    return Timing(engine=engine, version=version, variant=variant, cost_bytes=cost, details=one, **known)


def medians(timings: Sequence[Timing], tokens: int, variant: Variant) -> dict[str, float]:
    """Return the medians over repeats: tokens a second by the wall clock, by CPU time, and bytes."""
    same = [one for one in timings if one.tokens == tokens and one.variant == variant]
    return {
        "prefill": statistics.median(one.tokens / one.prefill_s for one in same),
        "decode": statistics.median(one.new / one.decode_s for one in same),
        "prefill_cpu": statistics.median(one.tokens / one.prefill_cpu_s for one in same),
        "decode_cpu": statistics.median(one.new / one.decode_cpu_s for one in same),
        "kv_bytes": statistics.median(one.kv_bytes for one in same),
        "cost_bytes": same[0].cost_bytes,
    }


def layer_milliseconds(timings: Sequence[Timing], schedule: Schedule, tokens: int) -> dict[Span, float]:
    """Return milliseconds of one decoded token by span of a layer, as ``solve --latency-table`` reads them.

    A full layer's are those of all-full, shared evenly by its layers; the schedule's own span gets what is left of the
    schedule's. So sums over layers are exact for both. They are medians of CPU time on one thread.

    Args:
        timings: of `bench`.
        schedule: the one that was timed.
        tokens: length of the prompts.

    Raises:
        ExportError: if the schedule has not exactly one span beside full, or the difference is lost in noise.
    """
    sparse = {span for span in schedule if not span.is_full}
    if len(sparse) != 1:
        raise ExportError(f"--latency-table: one span beside full can be timed, the schedule has {len(sparse)}")
    total = {variant: 1000 / medians(timings, tokens, variant)["decode_cpu"] for variant in ("schedule", "all-full")}
    full, n_full = total["all-full"] / len(schedule), sum(span.is_full for span in schedule)
    other = (total["schedule"] - n_full * full) / (len(schedule) - n_full)
    if other <= 0:
        raise ExportError("--latency-table: the schedule took less than its full layers alone; give more --repeats")
    return {Span(kind="full"): full, sparse.pop(): other}


def _model(
    folder: Path, engine: str, schedule: Schedule | None, model: Path | None, scratch: Path, longest: int
) -> _Model:
    asked, source = engine_model(folder, engine, schedule, model)
    if engine == "llama.cpp":
        return _gguf(folder, asked, longest)
    if engine == "litgpt":
        return _litgpt(folder, asked, scratch, longest)
    home = model or folder
    home = home.parent if home.is_file() else home
    values = read_json(home / "config.json", str(home / "config.json"), "give an exported folder")
    if not weight_files(home):
        raise ExportError(f"{home} holds no weights to run; export a model that has them, with --model")
    if values.get("max_position_embeddings", longest) < longest:
        raise ExportError(f"{home}: max_position_embeddings is less than {longest} tokens; give shorter --tokens")
    full = all_full(len(asked))
    options = dict(source.options)
    if "overrides" in options:
        other = _Variant(path=home, options=options | {"overrides": {"layer_types": ["full_attention"] * len(full)}})
    else:
        other = _Variant(path=_copy(home, _all_full(values, engine, full, longest), scratch / "full"), options={})
    heads = values["num_attention_heads"]
    return _Model(
        variants={"schedule": _Variant(path=home, options=options), "all-full": other},
        schedule=asked,
        heads=(
            heads,
            values.get("num_key_value_heads") or heads,
            values.get("head_dim") or values["hidden_size"] // heads,
        ),
        vocab_size=int(values["vocab_size"]),
    )


def _all_full(values: dict[str, Any], engine: str, full: Schedule, longest: int) -> dict[str, Any]:
    if engine == "mlx":
        return mlx_config(full, values)
    family = next((one for one in FAMILIES.values() if one.model_type == values["model_type"]), None)
    if family is None:
        raise ExportError(
            f"model_type {values['model_type']!r} is of no family that supports schedules; export it again"
        )
    return values | schedule_fields(full, family, values.get("max_position_embeddings", longest))


def _copy(home: Path, values: Mapping[str, Any], out: Path, name: str = "config.json") -> Path:
    """Return a folder that has another configuration and the same weights; YAML reads JSON too."""
    out.mkdir()
    for file in home.iterdir():
        if file.is_file() and file.name != name:
            (out / file.name).symlink_to(file.absolute())
    (out / name).write_text(json.dumps(values), encoding="utf-8")
    return out


def _litgpt(folder: Path, asked: Schedule, scratch: Path, longest: int) -> _Model:
    checkpoint = Checkpoint(folder)
    values = checkpoint.values()
    if not (folder / WEIGHTS).is_file():
        raise ExportError(f"{folder} holds no weights to run; export a model that has them, with --model")
    if values["max_position_embeddings"] < longest:
        raise ExportError(f"{folder}: block_size is less than {longest} tokens; give shorter --tokens")
    other = _copy(folder, litgpt_config(all_full(len(asked)), values), scratch / "full", CONFIG)
    return _Model(
        variants={"schedule": _Variant(path=folder, options={}), "all-full": _Variant(path=other, options={})},
        schedule=asked,
        heads=(values["num_attention_heads"], values["num_key_value_heads"], values["head_dim"]),
        vocab_size=values["vocab_size"],
    )


def _gguf(folder: Path, asked: Schedule, longest: int) -> _Model:
    file = gguf_of(folder)
    values = file.values()
    if values["max_position_embeddings"] < longest:
        raise ExportError(f"{file.path}: context_length is less than {longest} tokens; give shorter --tokens")
    options: dict[str, Any] = {"half": True}
    # A window longer than the text is full attention, in the same graph and with as long a cache.
    wide = {"window": 2 * longest, "window_key": f"{file.architecture}.attention.sliding_window"}
    return _Model(
        variants={
            "schedule": _Variant(path=file.path, options=options),
            "all-full": _Variant(path=file.path, options=options | wide),
        },
        schedule=asked,
        heads=(values["num_attention_heads"], values["num_key_value_heads"], values["head_dim"]),
        vocab_size=values["vocab_size"],
    )
