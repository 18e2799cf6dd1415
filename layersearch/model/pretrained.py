"""Pre-trained models: a Hugging Face folder or hub id, loaded whole or refused in one line."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from layersearch.config.recipe import DataConfig, ModelConfig, Recipe
from layersearch.data import hub
from layersearch.data.source import digest
from layersearch.errors import UserError
from layersearch.model.hf_decoder import Routed, quiet
from layersearch.schedule import Schedule

FLAG = "--model"
_TEXT = ("stdlib", "text", "json", "parquet", "hub", "mix")


def load_config(name: str, *, trust_remote_code: bool = False) -> Any:
    """Return the transformers configuration of a model folder or hub id.

    Raises:
        UserError: if there is none, it cannot be read, or its architecture is no causal language model.
    """
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    if os.path.isdir(name):
        _check_windows(Path(name))
        if (converted := _converted(Path(name))) is not None:
            return converted[0]
    try:
        with quiet():
            config = AutoConfig.from_pretrained(name, trust_remote_code=trust_remote_code, **_where(name))
    except Exception as error:  # transformers and the hub's client raise many kinds
        raise _refusal(name, error, trust_remote_code) from None
    remote = trust_remote_code and "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {})
    if config.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and not remote:
        raise UserError(
            f"{FLAG} {name}: {config.model_type} is no causal language model that transformers knows; give one, for "
            "example a Llama, Qwen, Mistral, Gemma, GPT-2, GPT-NeoX, SmolLM or OLMo"
        )
    return config


def load_pretrained(
    name: str,
    *,
    trust_remote_code: bool = False,
    check: bool = True,
    rope: dict[str, Any] | None = None,
    tokens: int = 0,
) -> Routed:
    """Load a model, float32, and route it; its schedule is then the stock model's own.

    Args:
        name: a folder or a hub id.
        trust_remote_code: run the modelling file that the folder or the hub's repository brings.
        check: compare the routed logits with the stock ones.
        rope: RoPE scaling as transformers' ``rope_parameters`` has it, ``rope_type`` and its factors, to be set before
            the weights are loaded; None: as the configuration says.
        tokens: the longest text in tokens that it will read; 0: not known.

    Raises:
        UserError: if it cannot be loaded whole, or not routed, or its positions do not reach so far.
    """
    import torch
    from transformers import AutoModelForCausalLM

    config = load_config(name, trust_remote_code=trust_remote_code)
    _reach(config, rope, tokens, name)
    try:
        with quiet(), _some_accelerator():
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                name,
                config=config,
                dtype=torch.float32,
                attn_implementation="eager",
                trust_remote_code=trust_remote_code,
                output_loading_info=True,
                **_where(name),
            )
    except Exception as error:
        raise _refusal(name, error, trust_remote_code) from None
    model, report = loaded
    converted = _converted(Path(name)) if os.path.isdir(name) else None
    for what in ("missing_keys", "mismatched_keys", "unexpected_keys"):
        if report.get(what):
            found = sorted(str(key if isinstance(key, str) else key[0]) for key in report[what])
            raise UserError(
                f"{FLAG} {name}: {len(found)} {what.replace('_', ' ')} in its weights, {found[0]} first; "
                "give a complete checkpoint of this very config.json"
            )
    try:
        routed = Routed(model, check=check)
    except UserError:
        raise
    except Exception as error:  # modelling files of others raise what they like
        raise UserError(f"{FLAG} {name} cannot be routed ({hub.one_line(error)}); give another architecture") from None
    if converted is not None:
        routed.original = converted[1]
        routed.set_schedule(converted[1])
    return routed


def fingerprint(name: str) -> str:
    """Return a hash over the whole content of a model's ``config.json`` and weight files.

    Nothing is kept of it: the files are read each time. XXH3 takes 0.25 seconds per GiB once they are in memory.

    Args:
        name: a folder, or a hub id whose files are in the local cache.

    Raises:
        UserError: if a file cannot be read.
    """
    import xxhash
    from huggingface_hub import hf_hub_download

    try:
        folder = Path(name)
        if not folder.is_dir():
            folder = Path(hf_hub_download(name, "config.json", local_files_only=True)).parent
        weights = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("*.bin"))
        found = {}
        for path in (folder / "config.json", *weights):
            with path.open("rb") as file:
                found[path.name] = hashlib.file_digest(file, xxhash.xxh3_128).hexdigest()
    except Exception as error:  # the file system and the hub's client raise their own
        raise _refusal(name, error, trust_remote_code=False) from None
    return digest(found)


def sizes(name: str, routed: Routed) -> ModelConfig:
    """Return what costs, spaces and reports need of a model: layers, heads, widths."""
    config = routed.model.config
    width = config.hidden_size
    inner = getattr(config, "intermediate_size", None) or getattr(config, "n_inner", None) or 4 * width
    try:
        return ModelConfig(
            n_layers=len(routed.attention),
            d_model=width,
            n_heads=routed.n_heads,
            n_kv_heads=routed.n_kv_heads,
            d_ff=inner,
            head_width=routed.head_dim,
            tie_embeddings=bool(config.tie_word_embeddings),
        )
    except UserError as error:
        raise UserError(f"{FLAG} {name}: {error}") from None


def recipe_for(recipe: Recipe, name: str) -> Recipe:
    """Return the recipe of a search on a pre-trained model: its sizes and its tokenizer in place of the recipe's.

    Raises:
        UserError: if the model cannot be loaded or routed, or has no tokenizer for the recipe's text.
    """
    if recipe.training.optimizer != "adamw":
        raise UserError(
            f"training.optimizer {recipe.training.optimizer} trains from scratch; with {FLAG} give --recipe "
            "pretrained, or set training.optimizer=adamw"
        )
    data = with_tokenizer(recipe.data, name)
    routed = load_pretrained(name, tokens=recipe.training.seq_len)
    return replace(recipe, model=sizes(name, routed), data=data, pretrained=name)


def own_tokenizer(name: str) -> str | None:
    """Return what ``data.tokenizer`` has to be for a model: its folder or hub id; None where its folder has none."""
    if not os.path.isdir(name):
        return name
    return name if (Path(name) / "tokenizer.json").is_file() else None


def with_tokenizer(data: DataConfig, name: str) -> DataConfig:
    """Return the data section with the model's own tokenizer, unless it names one or reads no text.

    Raises:
        UserError: if text is to be read and there is no tokenizer.
    """
    if data.source not in _TEXT or data.tokenizer is not None:
        return data
    found = own_tokenizer(name)
    if found is None:
        raise UserError(
            f"{FLAG} {name} holds no tokenizer.json, and another's ids mean nothing to it: save its own there, "
            "or name it with --set data.tokenizer=FILE"
        )
    return replace(data, tokenizer=found)


def check_vocabulary(rows: int, vocab_size: int, tokenizer: str | None) -> None:
    """Refuse token ids that a model has no embedding for.

    Args:
        rows: embeddings of the model.
        vocab_size: tokens of the data.
        tokenizer: that made them, if one did.

    Raises:
        UserError: names both sizes.
    """
    if vocab_size > rows:
        which = f"data.tokenizer {tokenizer}" if tokenizer else "the data"
        raise UserError(
            f"{which} has {vocab_size} tokens and the model embeddings for {rows}: it is not this model's; give its own"
        )


@contextmanager
def _some_accelerator() -> Iterator[None]:
    """Let transformers import DeepSpeed, as it does, without a warning that no accelerator was named."""
    if "DS_ACCELERATOR" in os.environ:
        yield
        return
    os.environ["DS_ACCELERATOR"] = "cpu"
    try:
        yield
    finally:
        del os.environ["DS_ACCELERATOR"]


def _where(name: str) -> dict[str, Any]:
    """Return how transformers is to look for a name: nothing is asked of a hub that does not answer."""
    if os.path.isdir(name):
        return {"local_files_only": True}
    if name.startswith(("/", "./", "../", "~")) or name.count("/") > 1 or not name:
        raise UserError(f"{FLAG} {name}: no such folder; give one that holds config.json and weights, or a hub id")
    return {} if hub.reachable() else {"local_files_only": True}


def _refusal(name: str, error: Exception, trust_remote_code: bool) -> UserError:
    if isinstance(error, UserError):
        return error
    text = hub.one_line(error)
    if "trust_remote_code" in str(error) and not trust_remote_code:
        return UserError(
            f"{FLAG} {name} brings its own modelling code, which is not run unasked: read it, then give "
            "layersearch convert --trust-remote-code"
        )
    folder = Path(name)
    if not folder.is_dir():
        if not hub.reachable():
            return hub.unreachable(FLAG, name, "connect, or give a folder that holds config.json and weights")
        return UserError(
            f"{FLAG} {name} cannot be loaded ({text}); give a folder or a hub id of a causal language model"
        )
    if not (folder / "config.json").is_file():
        return UserError(f"{FLAG} {name}: no config.json there; give a folder that save_pretrained wrote")
    missing = _missing_shards(folder)
    if missing:
        return UserError(
            f"{FLAG} {name}: {len(missing)} of its weight files are missing, {missing[0]} first; copy them there too"
        )
    return UserError(f"{FLAG} {name} cannot be loaded ({text}); mend the folder or give another")


def _missing_shards(folder: Path) -> list[str]:
    """Return the shards that an index names and the folder lacks; the plain file's name where there are no weights."""
    index = folder / "model.safetensors.index.json"
    try:
        named = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return [] if any(folder.glob("*.safetensors")) or any(folder.glob("*.bin")) else ["model.safetensors"]
    return sorted(shard for shard in named if not (folder / shard).is_file())


def _converted(folder: Path) -> tuple[Any, Schedule] | None:
    """Return the stock configuration and the schedule of a folder that was exported or converted to ``hf-remote``.

    Its weights have the stock model's names: nothing of its modelling file is run.
    """
    try:
        values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        base, spans = values.pop("base_model_type"), values.pop("layer_spans")
        if values.pop("model_type") != "layersearch":
            return None
    except (OSError, ValueError, AttributeError, KeyError):
        return None
    from transformers import AutoConfig

    for key in ("auto_map", "architectures"):
        values.pop(key, None)
    try:
        return AutoConfig.for_model(base, **values), Schedule.from_dicts(spans)
    except (ValueError, TypeError) as error:
        raise UserError(f"{folder / 'config.json'}: damaged ({hub.one_line(error)}); restore it") from None


def _check_windows(folder: Path) -> None:
    """Refuse a configuration with a list of windows, before transformers says so in words of its own."""
    try:
        values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        windows = values.get("sliding_window")
    except (OSError, ValueError, AttributeError):
        return  # transformers' own refusal is turned into a line
    if isinstance(windows, list | dict):
        raise UserError(
            f"{folder / 'config.json'}: sliding_window holds a window per layer, and the stock family "
            f"{values.get('model_type')} holds one for all; take it out and give the spans with --schedule"
        )


def _reach(config: Any, rope: dict[str, Any] | None, tokens: int, name: str) -> None:
    """Let the positions reach as far as the text, or refuse."""
    most = getattr(config, "max_position_embeddings", None)
    if rope is None:
        if most is not None and tokens > most:
            raise UserError(
                f"{FLAG} {name} knows {most} positions, the text has {tokens} tokens: lower training.seq_len, or scale "
                "its RoPE with --set rope.rope_type=yarn"
            )
        return
    if getattr(config, "rope_parameters", None) is None:
        raise UserError(f"{FLAG} {name}: {config.model_type} has no RoPE to scale; drop rope")
    if any(isinstance(value, dict) for value in config.rope_parameters.values()):
        raise UserError(f"{FLAG} {name}: {config.model_type} has a RoPE per layer type; scaling it is not supported")
    assert most is not None
    wanted = {key: value for key, value in rope.items() if value is not None}
    if wanted["rope_type"] != "default":
        wanted.setdefault("factor", max(1.0, tokens / most))
        wanted["original_max_position_embeddings"] = most
    config.rope_parameters = dict(config.rope_parameters) | wanted
    config.max_position_embeddings = max(most, tokens)
