"""The real library's model of a configuration: built small with random weights, or loaded with its own."""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from layersearch.errors import UserError
from layersearch.export.verify.folder import Folder

SMALL_WIDTH = 128
"""Models of this width and less are taken as they are."""
_HEAD_DIM = 8
_SMALLER = {
    "intermediate_size": 32,
    "intermediate_size_mlp": 32,
    "moe_intermediate_size": 32,
    "vocab_size": 256,
    "num_local_experts": 4,
    "num_experts": 4,
    "num_experts_per_tok": 2,
}
"""Largest values of what holds no schedule."""
_SPECIAL = ("pad_token_id", "bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id")
_QUERIES_AND_KEYS = ("q_proj", "k_proj", "qkv", "query", "key")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers' notices and progress bars off the screen."""
    from transformers.utils import logging as library

    logging: Any = library
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def read_config(folder: Folder) -> Any:
    """Return transformers' configuration object of a folder, of the model type that it names.

    Raises:
        UserError: if transformers refuses it, it is no decoder's, or the schedule has another number of layers.
    """
    from transformers import CONFIG_MAPPING, AutoConfig

    file = folder.path / "config.json"
    try:
        with quiet():
            config = AutoConfig.from_pretrained(folder.path, trust_remote_code=folder.remote)
            named = str(folder.config.get("model_type"))
            if not folder.remote and config.model_type != named:
                # Some types are read as others that obey; whoever loads the class that is named gets no such help.
                config = CONFIG_MAPPING[named].from_pretrained(folder.path)
            text = config.get_text_config(decoder=True)
    except Exception as error:  # whatever the library or the folder's own code makes of it
        raise UserError(f"{file}: transformers refuses it ({_line(error)}); export it again") from None
    layers = getattr(text, "num_hidden_layers", None)
    if layers != len(folder.schedule):
        raise UserError(
            f"{folder.path}: the schedule has {len(folder.schedule)} layers, config.json {layers}; "
            "give the schedule of this model"
        )
    return config


def random_model(folder: Folder, config: Any, tokens: int, seed: int, attention: str | None = None) -> tuple[Any, bool]:
    """Build the model with random weights, narrow where it is wide; nothing that holds the schedule changes.

    Args:
        folder: where it comes from.
        config: as `read_config` returns it; not changed.
        tokens: positions that the model must have.
        seed: of the weights.
        attention: transformers' name of an attention implementation; None: its default.

    Returns:
        The model, in evaluation, and whether its widths were shrunk.

    Raises:
        UserError: if it is no causal language model, or cannot be built.
    """
    # Of a model of text and images the text's part holds the schedule, and is a model of its own.
    asked = copy.deepcopy(config if folder.remote else config.get_text_config(decoder=True))
    _prepare(asked.get_text_config(decoder=True), tokens)
    small = copy.deepcopy(asked)
    shrunk = _shrink(small.get_text_config(decoder=True), keep_heads=_by_head(folder))
    try:
        model = _built(small, folder, seed, attention)
    except UserError:
        if not shrunk or not folder.remote:
            raise
        model, shrunk = _built(asked, folder, seed, attention), False
    _strengthen(model)
    return model, shrunk


def loaded_model(folder: Folder, attention: str | None = None) -> Any:
    """Load the model with the folder's own weights, in float32.

    Raises:
        UserError: if the weights are those of another architecture; names a tensor.
    """
    from transformers import AutoModelForCausalLM

    given: dict[str, Any] = {} if attention is None else {"attn_implementation": attention}
    try:
        with quiet():
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                folder.path,
                trust_remote_code=folder.remote,
                dtype=torch.float32,
                use_safetensors=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # they are in the report, by name
                **given,
            )
    except Exception as error:
        raise UserError(f"{folder.path}: the weights do not load ({_line(error)}); give those of this model") from None
    model, report = loaded
    for what in ("missing_keys", "mismatched_keys", "unexpected_keys"):
        names = sorted(name if isinstance(name, str) else str(name[0]) for name in report.get(what, ()))
        if names:
            raise UserError(
                f"{folder.path}: the weights are of another architecture than config.json: {len(names)} "
                f"{what.replace('_keys', '')} such as {names[0]}; give those of this model"
            )
    return model.eval()


def decoder_layers(model: Any, n_layers: int) -> nn.ModuleList:
    """Return the model's list of decoder layers.

    Raises:
        UserError: if it has no such list.
    """
    lists = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == n_layers and "vision" not in name
    }
    named = [name for name in lists if name.rpartition(".")[2] in ("layers", "h", "blocks")] or list(lists)
    if not named:
        raise UserError(f"{type(model).__name__} has no list of {n_layers} layers to experiment on")
    return lists[min(named, key=lambda name: name.count("."))]


def _by_head(folder: Folder) -> bool:
    return any(span.dilated_heads is not None or span.is_las for span in folder.schedule)


def _prepare(text: Any, tokens: int) -> None:
    """Give the text as many positions as the experiment needs, and take away what would end it early."""
    if getattr(text, "max_position_embeddings", tokens) < tokens:
        text.max_position_embeddings = tokens
    if hasattr(text, "rms_norm_eps"):
        text.rms_norm_eps = 1e-6  # that of layersearch.model.decoder, for the comparison of logits
    text.use_cache = True


def _shrink(text: Any, *, keep_heads: bool) -> bool:
    """Narrow a configuration in place; tell whether it was wide."""
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
    for name, most in _SMALLER.items():
        value = getattr(text, name, None)
        if isinstance(value, int):
            setattr(text, name, min(value, most))
    if hasattr(text, "rope_parameters"):
        text.rope_parameters = _plain(text.rope_parameters)
    for name in _SPECIAL:
        value = getattr(text, name, None)
        if isinstance(value, list) or (isinstance(value, int) and value >= text.vocab_size):
            setattr(text, name, 0 if name == "pad_token_id" else None if name == "eos_token_id" else 0)
    return True


def _plain(rope: Any) -> Any:
    """Return RoPE parameters that fit any head width: factors given dimension by dimension fit one only."""
    if not isinstance(rope, dict):
        return rope
    if any(isinstance(value, list) for value in rope.values()):
        return {"rope_type": "default", "rope_theta": rope.get("rope_theta", 10_000.0)}
    return {key: _plain(value) for key, value in rope.items()}


def _built(config: Any, folder: Folder, seed: int, attention: str | None) -> Any:
    import transformers

    kind: Any = transformers.AutoModelForCausalLM
    given: dict[str, Any] = {} if attention is None else {"attn_implementation": attention}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            with quiet():
                model = kind.from_config(config, trust_remote_code=folder.remote, dtype=torch.float32, **given)
        except Exception as error:
            raise UserError(f"{folder.path}: AutoModelForCausalLM cannot build it ({_line(error)})") from None
    return model.eval()


@torch.no_grad()
def _strengthen(model: nn.Module) -> None:
    """Draw matrices of unit gain, queries and keys smaller: then attention is even, and every visible key shows."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if parameter.ndim >= 2:
            gain = 0.2 if any(part in name for part in _QUERIES_AND_KEYS) else 1.0
            parameter.normal_(0.0, gain * parameter.shape[-1] ** -0.5, generator=generator)


def _line(error: Exception) -> str:
    """Return an error's first words, in one line."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else text[:200] + " ..."
