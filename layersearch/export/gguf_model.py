"""Export to llama.cpp: a GGUF file with the schedule in its metadata and the model's weights.

Read from, and executed in, llama.cpp b11549 on a CPU. Its ``llama`` passes over windows silently. Its ``granite_swa``
obeys a list of windowed layers, and is a Llama with one learned sink per head. So a Llama with windows is written as
that, with sinks that change nothing. A window counts the token itself, and all layers share one size.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from layersearch.errors import ExportError
from layersearch.export.capabilities import Capabilities
from layersearch.export.families import FAMILIES, LLAMA_SHAPED, WITH_SINKS, make_config
from layersearch.export.gguf_tokenizer import add_tokenizer
from layersearch.export.source import SourceModel, check_yarn
from layersearch.schedule import Schedule

if TYPE_CHECKING:
    from torch import Tensor

RELEASE = "llama.cpp b11549"
CAPABILITIES = Capabilities(name=RELEASE)
FILE = "model.gguf"
SCHEDULE_KEY = "layersearch.schedule"
"""A key of ours, which llama.cpp passes over."""

_LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "post_attention_layernorm": "ffn_norm",
}
_AFTER = {
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "post_attention_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
_TOP = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """How llama.cpp holds the models of one type."""

    name: str
    full: str | None
    """Its name for an all-full schedule; None: it holds none."""
    layer: Mapping[str, str] = field(default_factory=lambda: _LAYER)
    """Names of a layer's weights."""
    interleaved: bool = False
    """Whether rotated pairs lie side by side in the rows of queries and keys; transformers has two halves."""
    norm_offset: int = 0
    """Added to the weights of norms."""


_LLAMA = Architecture(name=WITH_SINKS, full="llama", interleaved=True)
ARCHITECTURES: dict[str, Architecture] = {
    **dict.fromkeys(LLAMA_SHAPED, _LLAMA),
    WITH_SINKS: Architecture(name=WITH_SINKS, full=None, interleaved=True, layer=_LAYER),
    "olmo3": Architecture(name="olmo2", full=None, layer=_LAYER | _AFTER),
    "gemma3_text": Architecture(
        name="gemma3", full=None, layer=_LAYER | _AFTER | {"pre_feedforward_layernorm": "ffn_norm"}, norm_offset=1
    ),
}
"""By transformers' model type. llama.cpp's qwen2, qwen3, smollm3, mistral3 and exaone4 pass over windows."""


def check_gguf(schedule: Schedule, model_type: str, *, seq_len: int, n_heads: int) -> None:
    """Refuse a schedule that llama.cpp does not run in models of this type; sizes are as in `Capabilities.check`.

    Raises:
        ExportError: names the reason and the remedy.
    """
    CAPABILITIES.check(schedule, seq_len=seq_len, n_heads=n_heads)
    if model_type not in ARCHITECTURES:
        raise ExportError(
            f"{RELEASE} passes over windows in a {model_type}, or has none; give a model of type "
            f"{', '.join(ARCHITECTURES)}"
        )
    if all(span.is_full for span in schedule) and ARCHITECTURES[model_type].full is None:
        raise ExportError(f"{RELEASE} runs a {model_type} with windows only; give one layer a window")


def write_gguf(schedule: Schedule, source: SourceModel, path: Path) -> str | None:
    """Write a model of transformers as a GGUF file; `check_gguf` came before.

    Returns:
        Why the file holds no tokenizer; None: it holds one.

    Raises:
        ExportError: the model has something that the architecture lacks.
    """
    import gguf

    assert source.tensors is not None
    values = source.values
    config = make_config(str(values["model_type"]), values, f"--model {source.name}")
    architecture = ARCHITECTURES[config.model_type]
    _check_features(config, source.name)
    windows = any(not span.is_full for span in schedule)
    name = architecture.name if windows or architecture.full is None else architecture.full
    tensors = source.tensors()
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer = gguf.GGUFWriter(path, name)
    writer.add_name(Path(source.name).name or source.name)
    _add_sizes(writer, config, head_dim)
    _add_rope(writer, config, head_dim)
    if name == WITH_SINKS:
        add_multipliers(writer, name, config, head_dim)
    _add_schedule(writer, name, schedule)
    missing = add_tokenizer(writer, source.tokenizer, config)
    kinds = {tensor.dtype for tensor in tensors.values() if tensor.ndim > 1}
    writer.add_file_type(_file_type(kinds))
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for key, tensor in tensors.items():
        new = _name(key, architecture, source.name)
        if architecture.norm_offset and "norm" in key:
            tensor = tensor.float() + architecture.norm_offset
        if architecture.interleaved and (count := heads.get(key.split(".")[-2])):
            tensor = _interleaved(tensor, count)
        _add_tensor(writer, new, tensor)
    if name == WITH_SINKS and config.model_type != WITH_SINKS:
        add_inert_sinks(writer, len(schedule), config.num_attention_heads)
    _finish(writer)
    return missing


def rewrite_gguf(schedule: Schedule, source: Path, path: Path) -> None:
    """Copy a GGUF file with the schedule in it: its weights stay as they are stored, quantized ones too.

    Raises:
        ExportError: it cannot be read, or is of an architecture that llama.cpp runs without our schedules.
    """
    import gguf

    reader, old = open_gguf(source)
    windows = any(not span.is_full for span in schedule)
    new = old
    if old == "llama" and windows:
        new = WITH_SINKS
    layers = int(_number(reader, f"{old}.block_count", source))
    if layers != len(schedule):
        raise ExportError(f"the schedule has {len(schedule)} layers, {source} {layers}; give one of its own depth")
    writer = gguf.GGUFWriter(path, new)
    own = (f"{old}.attention.sliding_window", f"{old}.attention.sliding_window_pattern", SCHEDULE_KEY)
    for key, entry in reader.fields.items():
        if key.startswith("GGUF.") or key == "general.architecture" or key in own:
            continue
        kind, part = entry.types[0], entry.types[-1] if len(entry.types) > 1 else None
        renamed = f"{new}{key.removeprefix(old)}" if key.startswith(f"{old}.") else key
        writer.add_key_value(renamed, entry.contents(), kind, sub_type=part)
    heads = int(_number(reader, f"{old}.attention.head_count", source))
    if new != old:
        width = int(_number(reader, f"{old}.embedding_length", source))
        length = reader.get_field(f"{old}.attention.key_length")
        add_multipliers(writer, new, None, int(length.contents()) if length else width // heads)
    _add_schedule(writer, new, schedule)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    if new != old:
        add_inert_sinks(writer, layers, heads)
    _finish(writer)


def gguf_sizes(source: Path) -> tuple[str, int, int]:
    """Return a GGUF file's model type in `ARCHITECTURES`, its context length in tokens, and its query heads.

    Raises:
        ExportError: it cannot be read, or is of another architecture.
    """
    reader, name = open_gguf(source)
    types = {"llama": "llama", **{one.name: kind for kind, one in ARCHITECTURES.items() if one is not _LLAMA}}
    if name not in types or reader.get_field(f"{name}.expert_count") is not None:
        raise ExportError(
            f"--model {source}: {RELEASE} passes over windows in its architecture {name!r}; give one of "
            f"{', '.join(types)}"
        )
    tokens = int(_number(reader, f"{name}.context_length", source))
    return types[name], tokens, int(_number(reader, f"{name}.attention.head_count", source))


def open_gguf(source: Path) -> tuple[Any, str]:
    """Return gguf's reader of a file, and the file's architecture."""
    import gguf

    from layersearch.data.gguf_file import opened

    with opened(f"--model {source}"):  # refuses what is missing, no GGUF file or cut off
        reader = gguf.GGUFReader(source)
        entry = reader.get_field("general.architecture")
        assert entry is not None, "general.architecture is missing"
    return reader, str(entry.contents())


def _number(reader: Any, key: str, source: Path) -> Any:
    entry = reader.get_field(key)
    if entry is None or isinstance(entry.contents(), list):
        raise ExportError(f"--model {source}: {key} is no number; give a file of one size for all layers")
    return entry.contents()


def _check_features(config: Any, name: str) -> None:
    """Refuse what an architecture of llama.cpp computes otherwise."""
    if getattr(config, "hidden_act", "silu") != "silu" and config.model_type != "gemma3_text":
        raise ExportError(f"--model {name}: hidden_act is {config.hidden_act}; {RELEASE} computes silu there")
    if config.model_type == "gemma3_text":
        scalar, width = config.query_pre_attn_scalar, config.head_dim
        if scalar != width:
            raise ExportError(
                f"--model {name}: query_pre_attn_scalar is {scalar}; {RELEASE} takes head_dim, {width}: set it"
            )
        if config.final_logit_softcapping or config.attn_logit_softcapping:
            raise ExportError(f"--model {name}: logits are capped, which {RELEASE} does not do in a gemma3")
    thetas = getattr(config, "layer_rope_theta", None) or [None]
    if len(set(thetas)) > 1:
        raise ExportError(f"--model {name}: layer_rope_theta differs among layers; give one base of RoPE for all")


def _add_sizes(writer: Any, config: Any, head_dim: int) -> None:
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)


def _add_rope(writer: Any, config: Any, head_dim: int) -> None:
    """Add the base and the scaling of RoPE; the factors of Llama 3 are a tensor."""
    import gguf

    rope = config.rope_parameters
    full = rope.get("full_attention", rope)
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(float(full["rope_theta"]))
    if config.model_type == "gemma3_text":
        writer.add_rope_freq_base_swa(float(rope["sliding_attention"]["rope_theta"]))
    kind = full.get("rope_type", "default")
    check_yarn(full, RELEASE)
    if kind == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(float(full["factor"]))
    elif kind == "llama3":
        _add_tensor(writer, "rope_freqs.weight", _llama3_factors(full, head_dim))
    elif kind == "yarn":
        positions = full.get("original_max_position_embeddings") or config.max_position_embeddings
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(float(full["factor"]))
        writer.add_rope_scaling_orig_ctx_len(int(positions))
        writer.add_rope_scaling_yarn_beta_fast(float(full.get("beta_fast") or 32))
        writer.add_rope_scaling_yarn_beta_slow(float(full.get("beta_slow") or 1))
    elif kind != "default":
        raise ExportError(f"rope_type {kind!r} is not written to GGUF; give default, linear, llama3 or yarn")


def _llama3_factors(rope: Mapping[str, Any], head_dim: int) -> Tensor:
    """Return how many times slower than by ``rope_theta`` alone each pair rotates in Llama 3.1, (head_dim / 2,)."""
    import torch

    rates = rope["rope_theta"] ** (-torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
    turns = rope["original_max_position_embeddings"] * rates / (2 * torch.pi)  # in the original length
    low, high = float(rope["low_freq_factor"]), float(rope["high_freq_factor"])
    share = ((turns - low) / (high - low)).clamp(0, 1)
    return (1 / ((1 - share) / rope["factor"] + share)).float()


def add_multipliers(writer: Any, name: str, config: Any, head_dim: int) -> None:
    """Add Granite's four multipliers: those of a Granite, or the values at which it is a Llama (``config`` None)."""
    own = config if config is not None and config.model_type == WITH_SINKS else None
    for key, attribute, plain in (
        ("attention.scale", "attention_multiplier", head_dim**-0.5),
        ("embedding_scale", "embedding_multiplier", 1.0),
        ("residual_scale", "residual_multiplier", 1.0),
        ("logit_scale", "logits_scaling", 1.0),
    ):
        writer.add_float32(f"{name}.{key}", float(getattr(own, attribute, plain)))


def _add_schedule(writer: Any, name: str, schedule: Schedule) -> None:
    size = next((span.size for span in schedule if span.size is not None), None)
    writer.add_string(SCHEDULE_KEY, str(schedule))
    if size is not None:
        writer.add_uint32(f"{name}.attention.sliding_window", size)
        writer.add_array(f"{name}.attention.sliding_window_pattern", [not span.is_full for span in schedule])


def add_inert_sinks(writer: Any, n_layers: int, n_heads: int) -> None:
    """Add sinks that change no logits, one per query head and layer."""
    import numpy as np

    value = FAMILIES[WITH_SINKS].inert_weights["self_attn.sinks"]
    for layer in range(n_layers):
        writer.add_tensor(f"blk.{layer}.attn_sinks.weight", np.full(n_heads, value, np.float32))


def _name(key: str, architecture: Architecture, source: str) -> str:
    """Return llama.cpp's name of a weight."""
    stem, _, kind = key.rpartition(".")
    if stem in _TOP:
        return f"{_TOP[stem]}.{kind}"
    if key.endswith(".self_attn.sinks"):
        return f"blk.{key.split('.')[2]}.attn_sinks.weight"
    _, _, layer, rest = (stem.split(".", 3) + [""] * 4)[:4]
    if rest not in architecture.layer:
        raise ExportError(f"--model {source}: llama.cpp's {architecture.name} has no weight {key}; it is not written")
    return f"blk.{layer}.{architecture.layer[rest]}.{kind}"


def _interleaved(tensor: Tensor, heads: int) -> Tensor:
    """Return rows (heads, 2, D/2) in the order (heads, D/2, 2)."""
    return tensor.reshape(heads, 2, -1, *tensor.shape[1:]).transpose(1, 2).reshape(tensor.shape)


def _add_tensor(writer: Any, name: str, tensor: Tensor) -> None:
    """Add a tensor in its own type; vectors are float32, as llama.cpp wants them."""
    import gguf
    import torch

    kind = tensor.dtype if tensor.ndim > 1 else torch.float32
    if kind == torch.bfloat16:
        values = gguf.quants.quantize(tensor.float().numpy(), gguf.GGMLQuantizationType.BF16)
        writer.add_tensor(name, values, raw_dtype=gguf.GGMLQuantizationType.BF16)
    else:
        kind = kind if kind == torch.float16 else torch.float32
        writer.add_tensor(name, tensor.to(kind).contiguous().numpy())


def _file_type(kinds: set[Any]) -> int:
    import gguf
    import torch

    if kinds == {torch.bfloat16}:
        return int(gguf.LlamaFileType.MOSTLY_BF16)
    return int(gguf.LlamaFileType.MOSTLY_F16 if kinds == {torch.float16} else gguf.LlamaFileType.ALL_F32)


def _finish(writer: Any) -> None:
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()
