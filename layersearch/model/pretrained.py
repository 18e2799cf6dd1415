"""Pre-trained models: a Hugging Face folder, a hub id or a GGUF file, loaded whole or refused in one line."""

from __future__ import annotations

import copy
import functools
import hashlib
import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from layersearch.data import hub
from layersearch.data.gguf_file import is_gguf, opened
from layersearch.data.quiet import quiet
from layersearch.data.source import digest
from layersearch.errors import ConfigError, LayersearchError, one_line
from layersearch.files import parse_json
from layersearch.model.hf_decoder import HFDecoder
from layersearch.model.kinds import check_kind, skeleton, wrap
from layersearch.model.weight_checksums import check_weights
from layersearch.schedule import Schedule

if TYPE_CHECKING:
    from torch import Tensor

FLAG = "--model"


def load_config(name: str, *, trust_remote_code: bool = False) -> Any:
    """Return the transformers configuration of a model folder, hub id or GGUF file.

    Raises:
        LayersearchError: it is missing, cannot be read, or is no causal language model.
    """
    if os.path.isdir(name):
        _check_windows(Path(name))
        if (converted := _converted(Path(name))) is not None:
            return converted[0]
    if is_gguf(name) and os.path.exists(name):
        found = os.stat(name)
        config = copy.deepcopy(_read_gguf_config(name, found.st_size, found.st_mtime_ns))
    else:
        config = _read_any_config(name, trust_remote_code)
    check_kind(f"{FLAG} {name}", config, remote=trust_remote_code and _is_remote(config))
    return config


@functools.lru_cache(maxsize=1)  # reading takes seconds, and a run asks several times
def _read_gguf_config(name: str, size: int, mtime_ns: int) -> Any:
    return _read_any_config(name, False)


def _read_any_config(name: str, trust_remote_code: bool) -> Any:
    from transformers import AutoConfig

    with _source(name, trust_remote_code) as source:
        return AutoConfig.from_pretrained(**source)


def load_pretrained(
    name: str,
    *,
    trust_remote_code: bool = False,
    check: bool = True,
    rope: dict[str, Any] | None = None,
    tokens: int = 0,
    dtype: Literal["float32", "bfloat16"] = "float32",
) -> HFDecoder:
    """Load a model as a decoder; its schedule is the stock model's own.

    Args:
        name: a folder, a hub id or a GGUF file, whose weights become plain floats.
        trust_remote_code: run the modeling file of the folder or hub repository.
        check: compare the decoder's logits with the stock model's.
        rope: RoPE scaling to set before the weights are loaded, as transformers' ``rope_parameters``: ``rope_type``
            and its factors. None keeps the configuration's.
        tokens: length of the longest text in tokens; 0: not known.
        dtype: the type of the weights.

    Raises:
        LayersearchError: it cannot be loaded whole, its attention cannot be replaced, or it has too few positions.
    """
    config = load_config(name, trust_remote_code=trust_remote_code)
    _extend_positions(config, rope, tokens, name)
    _check_shards(name)
    if check and not _is_remote(config):
        skeleton(f"{FLAG} {name}", config)  # refuses before the weights are read
    model = _load_model(name, config, trust_remote_code, dtype)
    return _scheduled(wrap(f"{FLAG} {name}", model, check=check), name)


def _load_model(name: str, config: Any, trust_remote_code: bool, dtype: str) -> Any:
    """Return transformers' model with its weights, or refuse weights that do not fit."""
    import torch
    from transformers import AutoModelForCausalLM

    check_weights(Path(name).expanduser(), "restore it, or convert the model again")
    with _source(name, trust_remote_code) as source, _some_accelerator():
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            **source,
            config=config,
            dtype=dtype if dtype == "auto" else getattr(torch, dtype),
            attn_implementation="eager",
            output_loading_info=True,
        )
    model, report = loaded
    _forget_quantization(model)
    for kind in ("missing_keys", "mismatched_keys", "unexpected_keys"):
        if report.get(kind):
            found = sorted(str(key if isinstance(key, str) else key[0]) for key in report[kind])
            raise LayersearchError(
                f"{FLAG} {name}: {len(found)} {kind.replace('_', ' ')} in its weights, {found[0]} first; "
                "give a complete checkpoint of this very config.json"
            )
    return model


def load_tensors(name: str) -> dict[str, Tensor]:
    """Return a model's weights by their names in transformers, each once, in the type that they are stored in.

    Those of a GGUF file are float32. Arguments and errors are as in `load_pretrained`.
    """
    config = load_config(name)
    _check_shards(name)
    state = _load_model(name, config, False, "auto").state_dict()
    if getattr(config, "tie_word_embeddings", False):
        state.pop("lm_head.weight", None)
    return {key: tensor.contiguous() for key, tensor in state.items()}


def load_sharded(
    name: str,
    deepspeed: dict[str, Any],
    *,
    trust_remote_code: bool = False,
    rope: dict[str, Any] | None = None,
    tokens: int = 0,
) -> HFDecoder:
    """Load a model of which each rank keeps a shard of every weight (ZeRO-3). All ranks call this after joining.

    Rank 0 reads one layer's weights after another; no rank holds the whole model. A GGUF file is the exception: its
    reader returns all weights at once, so each rank holds them whole until DeepSpeed shards them.

    Args:
        name: as in `load_pretrained`, as are the others and the errors.
        deepspeed: DeepSpeed's configuration, of ZeRO stage 3.
    """
    if is_gguf(name):
        return load_pretrained(name, trust_remote_code=trust_remote_code, rope=rope, tokens=tokens)
    integration: Any = importlib.import_module("transformers.integrations.deepspeed")
    decoder = load_skeleton(name, trust_remote_code=trust_remote_code, rope=rope, tokens=tokens)
    config = load_config(name, trust_remote_code=trust_remote_code)
    _extend_positions(config, rope, tokens, name)
    kept = integration.HfDeepSpeedConfig(deepspeed)  # transformers shards what it loads while this object lives
    try:
        decoder.take_weights_of(_load_model(name, config, trust_remote_code, "float32"))
    finally:
        integration.unset_hf_deepspeed_config()
        del kept
    return decoder


def load_skeleton(
    name: str, *, trust_remote_code: bool = False, rope: dict[str, Any] | None = None, tokens: int = 0
) -> HFDecoder:
    """Return a model without its weights, on torch's meta device: seconds and little memory for any size.

    A model that cannot run there is loaded whole, then moved there. Arguments and errors are as in `load_pretrained`.
    """
    config = load_config(name, trust_remote_code=trust_remote_code)
    _extend_positions(config, rope, tokens, name)
    _check_shards(name)
    found = None if _is_remote(config) else skeleton(f"{FLAG} {name}", config)
    if found is not None:
        return _scheduled(found, name)
    return load_pretrained(name, trust_remote_code=trust_remote_code, rope=rope, tokens=tokens).to("meta")


def _scheduled(decoder: HFDecoder, name: str) -> HFDecoder:
    """Give the decoder of a converted folder that folder's schedule."""
    if os.path.isdir(name) and (converted := _converted(Path(name))) is not None:
        decoder.original = converted[1]
        decoder.set_schedule(converted[1])
    return decoder


def fingerprint(name: str) -> str:
    """Return a hash of the full content of a model's ``config.json`` and weight files, or of its GGUF file.

    ``name`` is a folder, a GGUF file, or a hub id whose files are in the local cache. The files are read each time.
    XXH3 takes 0.25 seconds per GiB once they are in memory.

    Raises:
        LayersearchError: a file cannot be read.
    """
    import xxhash
    from huggingface_hub import hf_hub_download

    try:
        folder, found = Path(name).expanduser(), {}
        if is_gguf(name):
            files = {"model.gguf": folder}  # whatever its name
        else:
            if not folder.is_dir():
                folder = Path(hf_hub_download(name, "config.json", local_files_only=True)).parent
            weights = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("*.bin"))
            files = {path.name: path for path in (folder / "config.json", *weights)}
        for key, path in files.items():
            with path.open("rb") as file:
                found[key] = hashlib.file_digest(file, xxhash.xxh3_128).hexdigest()
    except Exception as error:  # the file system and the hub's client raise their own
        raise _refusal(name, error, trust_remote_code=False) from None
    return digest(found)


def _check_shards(name: str) -> None:
    """Refuse a folder whose weight files are missing or cut off, which costs only their headers."""
    from safetensors import safe_open

    folder = Path(name)
    if not folder.is_dir():
        return
    if missing := _missing_shards(folder):
        raise LayersearchError(
            f"{FLAG} {name} lacks {len(missing)} of its weight files, {missing[0]} first; copy them there too"
        )
    for shard in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(shard, framework="pt"):
                pass
        except Exception as error:  # safetensors' own, and the file system's
            raise LayersearchError(
                f"{FLAG} {name}: {shard.name} is cut off or damaged ({one_line(error)}); copy it there again"
            ) from None


def _is_remote(config: Any) -> bool:
    return "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {})


@contextmanager
def _source(name: str, trust_remote_code: bool) -> Iterator[dict[str, Any]]:
    """Yield where transformers' ``from_pretrained`` finds a model; refuse in one line what fails inside."""
    if is_gguf(name):
        with opened(f"{FLAG} {name}") as found:
            yield found
        return
    try:
        with quiet():
            yield {
                "pretrained_model_name_or_path": name,
                "trust_remote_code": trust_remote_code,
                **_hub_options(name),
            }
    except Exception as error:  # transformers and the hub's client raise many kinds
        raise _refusal(name, error, trust_remote_code) from None


def _forget_quantization(model: Any) -> None:
    """Remove what says that a GGUF's weights are quantized: they are floats now, and transformers would not save."""
    for holder in (model, model.config):
        for name in ("hf_quantizer", "is_quantized", "quantization_method", "quantization_config"):
            vars(holder).pop(name, None)


@contextmanager
def _some_accelerator() -> Iterator[None]:
    """Name an accelerator: transformers imports DeepSpeed, which warns where none is named."""
    named = "DS_ACCELERATOR" in os.environ
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    try:
        yield
    finally:
        if not named:
            del os.environ["DS_ACCELERATOR"]


def _hub_options(name: str) -> dict[str, Any]:
    """Return how transformers looks for a name: a hub that does not answer is not asked."""
    if os.path.isdir(name):
        return {"local_files_only": True}
    if os.path.isfile(name):
        raise LayersearchError(f"{FLAG} {name} is a file; give the folder that holds it, or a GGUF file")
    if name.startswith(("/", "./", "../", "~")) or name.count("/") > 1 or not name:
        raise LayersearchError(
            f"{FLAG} {name}: no such folder; give one that holds config.json and weights, a GGUF file, or a hub id"
        )
    return {} if hub.reachable() else {"local_files_only": True}


def _refusal(name: str, error: Exception, trust_remote_code: bool) -> LayersearchError:
    if isinstance(error, LayersearchError):
        return error
    folder, text = Path(name), one_line(error)
    if "trust_remote_code" in str(error) and not trust_remote_code:
        problem = (
            "brings its own modeling code, which run never runs, and convert only when asked: read it, then give "
            "layersearch convert --trust-remote-code with a --schedule"
        )
    elif not folder.is_dir():
        if not hub.reachable():
            return hub.unreachable(FLAG, name, "connect, or give a folder that holds config.json and weights")
        problem = f"cannot be loaded ({text}); give a folder or a hub id of a causal language model"
    elif not (folder / "config.json").is_file() and (held := sorted(folder.glob("*.gguf"))):
        problem = f"holds GGUF files: name one of them, for example {FLAG} {held[0]}"
    elif not (folder / "config.json").is_file():
        problem = "has no config.json; give a folder that save_pretrained wrote"
    else:
        problem = f"cannot be loaded ({text}); repair the folder or give another"
    return LayersearchError(f"{FLAG} {name} {problem}")


def _missing_shards(folder: Path) -> list[str]:
    """Return the shards that an index names and the folder lacks; the plain file's name where there are no weights."""
    index = folder / "model.safetensors.index.json"
    try:
        named = set(parse_json(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return [] if any(folder.glob("*.safetensors")) or any(folder.glob("*.bin")) else ["model.safetensors"]
    return sorted(shard for shard in named if not (folder / shard).is_file())


def _read_config(folder: Path) -> dict[str, Any]:
    """Return what ``config.json`` holds; nothing where it is damaged, which transformers then refuses."""
    try:
        values = parse_json((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


def _converted(folder: Path) -> tuple[Any, Schedule] | None:
    """Return the stock configuration and the schedule of a folder exported or converted to ``hf-remote``.

    Its weights have the stock model's names, so its modeling file is not run.
    """
    values = _read_config(folder)
    if values.get("model_type") != "layersearch" or not {"base_model_type", "layer_spans"} <= values.keys():
        return None
    from transformers import AutoConfig

    base, spans = values.pop("base_model_type"), values.pop("layer_spans")
    for key in ("model_type", "auto_map", "architectures"):
        values.pop(key, None)
    try:
        return AutoConfig.for_model(base, **values), Schedule.from_dicts(spans)
    except (ValueError, TypeError) as error:
        raise LayersearchError(f"{folder / 'config.json'}: damaged ({one_line(error)}); restore it") from None


def _check_windows(folder: Path) -> None:
    """Refuse a configuration with a list of windows in one line, before transformers refuses it in several."""
    values = _read_config(folder)
    if isinstance(values.get("sliding_window"), list | dict):
        raise LayersearchError(
            f"{folder / 'config.json'}: sliding_window holds a window per layer, and the stock family "
            f"{values.get('model_type')} holds one for all; take it out and give the spans with --schedule"
        )


def _extend_positions(config: Any, rope: dict[str, Any] | None, tokens: int, name: str) -> None:
    """Extend the positions to the text by RoPE scaling, or refuse a text that is too long."""
    most = getattr(config, "max_position_embeddings", None)
    if rope is None:
        if most is not None and tokens > most:
            raise ConfigError(
                f"{FLAG} {name} knows {most} positions, the text has {tokens} tokens: lower training.seq_len, or scale "
                "its RoPE with --set rope.rope_type=yarn"
            )
        return
    if getattr(config, "rope_parameters", None) is None:
        raise ConfigError(f"{FLAG} {name}: {config.model_type} has no RoPE to scale; drop rope")
    if any(isinstance(value, dict) for value in config.rope_parameters.values()):
        raise ConfigError(f"{FLAG} {name}: {config.model_type} has a RoPE per layer type; scaling it is not supported")
    assert most is not None
    wanted = {key: value for key, value in rope.items() if value is not None}
    if wanted["rope_type"] != "default":
        wanted.setdefault("factor", max(1.0, tokens / most))
        wanted["original_max_position_embeddings"] = most
    config.rope_parameters = dict(config.rope_parameters) | wanted
    config.max_position_embeddings = max(most, tokens)
