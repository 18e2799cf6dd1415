"""The library's model of a configuration: built narrow with random weights, or loaded with its own weights."""

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from layersearch.errors import ExportError, located, one_line
from layersearch.export.families import check_no_layer_windows
from layersearch.export.files import read_json
from layersearch.export.layer_spans import text_part
from layersearch.files import parse_json
from layersearch.model.hf_decoder import quiet
from layersearch.schedule import Schedule
from layersearch.schedule.files import read_other_stack, read_schedule

MAX_WEIGHT_BYTES = 2 * 2**30  # larger weights are not loaded: the proof then uses random ones


@dataclass(frozen=True, kw_only=True)
class Folder:
    """An exported folder that was read and is complete."""

    path: Path
    config: dict[str, Any]
    schedule: Schedule
    other: tuple[str, Schedule] | None
    """The name and the schedule of the other stack of a model with two; None: the folder names none."""
    weights: tuple[Path, ...]
    """The safetensors files; may be empty."""
    remote: bool
    """Whether the configuration names code in the folder."""

    @property
    def weight_bytes(self) -> int:
        """Size of the weights on disk."""
        return sum(file.stat().st_size for file in self.weights)


def read_folder(path: Path, schedule: Schedule | None, *, trust_remote_code: bool) -> Folder:
    """Read an exported folder without running its code; arguments as `layersearch.export.verify.verify`.

    Raises:
        ExportError: if a file is missing or damaged, the folder's code is not trusted, or a stock family gets a window
            per layer.
    """
    file = path / "config.json"
    config = read_json(file, str(file), "give a folder that 'layersearch export --to hf' wrote")
    files = [path / "schedule.yaml", path / "schedule.json"]
    found = next((one for one in files if one.is_file()), None)
    if schedule is None:
        if found is None:
            raise ExportError(f"{files[0]} is missing: it says what to prove; add it, or give --schedule")
        schedule = read_schedule(found)
    remote = bool(config.get("auto_map"))
    if not remote:
        check_no_layer_windows(config, str(file))
        with located(str(file)):
            text_part(config)  # refuses a whole that sees later tokens, which its text part would not show
    elif not trust_remote_code:
        raise ExportError(
            f"{file}: auto_map names code in the folder, which does not run without consent; read it, then give "
            "--trust-remote-code"
        )
    other = None if found is None else read_other_stack(found)
    return Folder(path=path, config=config, schedule=schedule, other=other, weights=weight_files(path), remote=remote)


def weight_files(path: Path) -> tuple[Path, ...]:
    """Return the weight files, after a check that each is complete."""
    index, single = path / "model.safetensors.index.json", path / "model.safetensors"
    names = [single.name] if single.is_file() else []
    if index.is_file():
        try:
            names = sorted(set(parse_json(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (OSError, ValueError, KeyError, AttributeError, TypeError):
            raise ExportError(f"{index}: no index of weights; copy it again") from None
        missing = [name for name in names if not (path / str(name)).is_file()]
        if missing:
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise ExportError(f"{path}: shard {missing[0]}{more} of {len(names)} is missing; copy it there")
    pickled = sorted(file for pattern in ("pytorch_model*.bin", "*.pt", "*.pth") for file in path.glob(pattern))
    if pickled and not names:
        raise ExportError(f"{pickled[0]}: pickled weights can run code and are not read; save as safetensors")
    for name in names:
        try:
            with safe_open(path / name, "pt"):
                pass
        except (SafetensorError, OSError) as error:
            raise ExportError(f"{path / name}: damaged or no safetensors file ({error}); copy it again") from None
    return tuple(path / name for name in names)


SMALL_WIDTH = 128  # models up to this width are used unchanged
_HEAD_DIM = 8
_MAX_SIZES = {
    "intermediate_size": 32,
    "intermediate_size_mlp": 32,
    "moe_intermediate_size": 32,
    "vocab_size": 256,
    "num_local_experts": 4,
    "num_experts": 4,
    "num_experts_per_tok": 2,
}
"""Largest values of fields that do not hold the schedule."""
_SPECIAL = ("pad_token_id", "bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id")
QUERIES_AND_KEYS = ("q_proj", "k_proj", "qkv", "query", "key", "SelfAttention.q.", "SelfAttention.k.")


def read_config(folder: Folder) -> Any:
    """Return transformers' configuration object of a folder, with the model type that ``config.json`` names.

    Raises:
        ExportError: if transformers refuses it, it is no decoder's, or the schedule has another number of layers.
    """
    from transformers import CONFIG_MAPPING, AutoConfig

    file = folder.path / "config.json"
    try:
        with quiet():
            config = AutoConfig.from_pretrained(folder.path, trust_remote_code=folder.remote)
            named = str(folder.config.get("model_type"))
            if not folder.remote and config.model_type != named:
                # AutoConfig reads some types as others that obey. Loading the named class directly does not.
                config = CONFIG_MAPPING[named].from_pretrained(folder.path)
            text = config.get_text_config(decoder=True)
    except Exception as error:  # the library and the folder's own code raise many kinds
        raise ExportError(f"{file}: transformers refuses it ({one_line(error)}); export it again") from None
    layers = getattr(text, "num_hidden_layers", None)
    if layers != len(folder.schedule):
        raise ExportError(
            f"{folder.path}: the schedule has {len(folder.schedule)} layers, config.json {layers}; "
            "give the schedule of this model"
        )
    return config


def random_model(folder: Folder, config: Any, tokens: int, seed: int, attention: str | None = None) -> tuple[Any, bool]:
    """Return the model with random weights and ``tokens`` positions, and whether a wide one was made narrower.

    Nothing that holds the schedule changes, nor does ``config``.

    Raises:
        ExportError: if it is no causal language model, or cannot be built.
    """
    # In a model of text and images the text part holds the schedule, and is a model of its own.
    original = copy.deepcopy(config if folder.remote else config.get_text_config(decoder=True))
    text = original.get_text_config(decoder=True)
    if getattr(text, "max_position_embeddings", tokens) < tokens:
        text.max_position_embeddings = tokens
    if hasattr(text, "rms_norm_eps"):
        text.rms_norm_eps = 1e-6  # the decoder's, for the comparison of logits
    text.use_cache = True
    small = copy.deepcopy(original)
    per_head = any(span.dilated_heads is not None or span.is_las for span in folder.schedule)
    shrunk = shrink(small.get_text_config(decoder=True), keep_heads=per_head)
    try:
        model = _build_model(small, folder, seed, attention)
    except ExportError:
        if not shrunk or not folder.remote:
            raise
        model, shrunk = _build_model(original, folder, seed, attention), False
    randomize(model)
    return model, shrunk


def load_model(folder: Folder, attention: str | None = None) -> Any:
    """Load the model with the folder's own weights, in float32.

    Raises:
        ExportError: if the weights belong to another architecture; names a tensor.
    """
    from transformers import AutoModelForCausalLM

    try:
        with quiet():
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                folder.path,
                use_safetensors=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # the report names them
                **_options(folder, attention),
            )
    except Exception as error:
        raise ExportError(
            f"{folder.path}: the weights do not load ({one_line(error)}); give those of this model"
        ) from None
    model, report = loaded
    for kind in ("missing", "mismatched", "unexpected"):
        names = sorted(name if isinstance(name, str) else str(name[0]) for name in report.get(f"{kind}_keys", ()))
        if names:
            raise ExportError(
                f"{folder.path}: the weights are of another architecture than config.json: {len(names)} "
                f"{kind} such as {names[0]}; give those of this model"
            )
    return model.eval()


def decoder_layers(model: Any, n_layers: int) -> nn.ModuleList:
    """Return the model's list of decoder layers, or refuse a model without such a list."""
    lists = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == n_layers and "vision" not in name
    }
    named = [name for name in lists if name.rpartition(".")[2] in ("layers", "h", "blocks")] or list(lists)
    if not named:
        raise ExportError(f"{type(model).__name__} has no list of {n_layers} layers for the experiment")
    return lists[min(named, key=lambda name: name.count("."))]


def shrink(text: Any, *, keep_heads: bool) -> bool:
    """Make a configuration narrower in place; return whether it was wide."""
    heads = getattr(text, "num_attention_heads", None)
    if not isinstance(heads, int) or getattr(text, "hidden_size", 0) <= SMALL_WIDTH:
        return False
    kv_heads = getattr(text, "num_key_value_heads", None) or heads
    if not keep_heads:
        text.num_attention_heads = min(heads, 4)
        if hasattr(text, "num_key_value_heads"):
            text.num_key_value_heads = text.num_attention_heads if kv_heads == heads else 1
    text.hidden_size = text.num_attention_heads * _HEAD_DIM
    if getattr(text, "head_dim", None) is not None:
        text.head_dim = _HEAD_DIM
    for name, limit in _MAX_SIZES.items():
        value = getattr(text, name, None)
        if isinstance(value, int):
            setattr(text, name, min(value, limit))
    if hasattr(text, "rope_parameters"):
        text.rope_parameters = _default_rope(text.rope_parameters)
    for name in _SPECIAL:
        value = getattr(text, name, None)
        if isinstance(value, list) or (isinstance(value, int) and value >= text.vocab_size):
            setattr(text, name, None if name == "eos_token_id" else 0)
    return True


def _default_rope(rope: Any) -> Any:
    """Return RoPE parameters for any head width: factors per dimension fit only one width."""
    if not isinstance(rope, dict):
        return rope
    if any(isinstance(value, list) for value in rope.values()):
        return {"rope_type": "default", "rope_theta": rope.get("rope_theta", 10_000.0)}
    return {key: _default_rope(value) for key, value in rope.items()}


def _options(folder: Folder, attention: str | None) -> dict[str, Any]:
    options: dict[str, Any] = {"trust_remote_code": folder.remote, "dtype": torch.float32}
    return options if attention is None else options | {"attn_implementation": attention}


def _build_model(config: Any, folder: Folder, seed: int, attention: str | None) -> Any:
    from transformers import AutoModelForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            with quiet():
                factory: Any = AutoModelForCausalLM
                model = factory.from_config(config, **_options(folder, attention))
        except Exception as error:
            raise ExportError(f"{folder.path}: AutoModelForCausalLM cannot build it ({one_line(error)})") from None
    return model.eval()


@torch.no_grad()
def randomize(model: nn.Module) -> None:
    """Draw matrices with gain 1, for queries and keys 0.2: attention is then even, and every visible key has weight."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if parameter.ndim >= 2:
            gain = 0.2 if any(part in name for part in QUERIES_AND_KEYS) else 1.0
            parameter.normal_(0.0, gain * parameter.shape[-1] ** -0.5, generator=generator)
