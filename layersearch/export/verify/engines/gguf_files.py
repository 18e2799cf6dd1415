"""A GGUF file as llama.cpp gets it, and as transformers' classes hold the same model.

The names here are read from files, and do not come from the code that writes an export: an error there shows.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from layersearch.errors import ExportError, one_line
from layersearch.export.verify.engines.references import load_state
from layersearch.export.verify.engines.small_models import OWN_WEIGHT_BYTES, EngineModel, narrow, randomize

_ATTENTION = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_NORMED = {
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "post_attention_norm": "post_attention_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_TOP = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_PRE_NORM = _ATTENTION | {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}


@dataclass(frozen=True, kw_only=True)
class _Kind:
    """One of llama.cpp's architectures, as a model type of transformers."""

    model_type: str
    layer: Mapping[str, str]
    interleaved: bool = False
    """Whether rotated pairs of queries and keys lie side by side."""
    norm_offset: float = 0.0


_KINDS = {
    "llama": _Kind(model_type="llama", layer=_PRE_NORM, interleaved=True),
    "granite_swa": _Kind(
        model_type="granite_swa", layer=_PRE_NORM | {"attn_sinks": "self_attn.sinks"}, interleaved=True
    ),
    "olmo2": _Kind(model_type="olmo3", layer=_ATTENTION | _NORMED),
    "gemma3": _Kind(
        model_type="gemma3_text",
        layer=_PRE_NORM | _NORMED | {"ffn_norm": "pre_feedforward_layernorm"},
        norm_offset=1.0,
    ),
}
"""By the architecture's name."""


class GgufFile:
    """A GGUF file that was opened."""

    def __init__(self, path: Path) -> None:
        """Open a file.

        Raises:
            ExportError: if it is no GGUF file, its architecture is not known here, or the package gguf is missing.
        """
        try:
            import gguf
        except ImportError:
            raise ExportError(f'{path} needs the package gguf: pip install "layersearch[gguf]"') from None
        try:
            self._reader: Any = gguf.GGUFReader(path)
        except (OSError, ValueError, IndexError) as error:
            raise ExportError(f"{path}: no GGUF file ({one_line(error)}); export it again") from None
        self.path = path
        self.fields = {
            name: entry.contents() for name, entry in self._reader.fields.items() if not name.startswith("GGUF.")
        }
        self.architecture = str(self.fields.get("general.architecture"))
        if self.architecture not in _KINDS:
            known = ", ".join(_KINDS)
            raise ExportError(f"{path}: no reference for architecture {self.architecture!r}; known: {known}")
        self._kind = _KINDS[self.architecture]

    def key(self, name: str, default: Any = None) -> Any:
        """Return a value of the architecture's own."""
        return self.fields.get(f"{self.architecture}.{name}", default)

    @property
    def float_bytes(self) -> int:
        """Size of its weights in float32."""
        return 4 * sum(int(tensor.n_elements) for tensor in self._reader.tensors)

    def values(self) -> dict[str, Any]:
        """Return the ``config.json`` of the same model in transformers, without its schedule."""
        heads, width = self.key("attention.head_count"), self.key("embedding_length")
        head_dim = self.key("attention.key_length", width // heads)
        names = {tensor.name for tensor in self._reader.tensors}
        vocab = next(int(tensor.shape[1]) for tensor in self._reader.tensors if tensor.name == "token_embd.weight")
        found = {
            "model_type": self._kind.model_type,
            "vocab_size": vocab,
            "hidden_size": width,
            "intermediate_size": self.key("feed_forward_length"),
            "num_hidden_layers": self.key("block_count"),
            "num_attention_heads": heads,
            "num_key_value_heads": self.key("attention.head_count_kv", heads),
            "head_dim": head_dim,
            "max_position_embeddings": self.key("context_length"),
            "rms_norm_eps": self.key("attention.layer_norm_rms_epsilon"),
            "tie_word_embeddings": "output.weight" not in names,
            "attention_bias": "blk.0.attn_q.bias" in names,
            "mlp_bias": "blk.0.ffn_up.bias" in names,
            **dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id")),
        }
        rope = self._rope()
        if self.architecture == "granite_swa":
            found |= {
                "attention_multiplier": self.key("attention.scale", head_dim**-0.5),
                "embedding_multiplier": self.key("embedding_scale", 1.0),
                "residual_multiplier": self.key("residual_scale", 1.0),
                "logits_scaling": self.key("logit_scale", 1.0),
            }
        elif self.architecture == "gemma3":
            local = {"rope_type": "default", "rope_theta": self.key("rope.freq_base_swa", 10_000.0)}
            rope = {"full_attention": rope, "sliding_attention": local}
            found |= {"query_pre_attn_scalar": head_dim}
        elif self.architecture == "olmo2":
            rope = {"full_attention": rope, "sliding_attention": dict(rope)}
        return found | {"rope_parameters": rope}

    def _rope(self) -> dict[str, Any]:
        base = {"rope_type": "default", "rope_theta": self.key("rope.freq_base", 10_000.0)}
        scaling = self.key("rope.scaling.type", "none")
        if scaling == "none":
            return base
        factor = self.key("rope.scaling.factor", 1.0)
        if scaling == "linear":
            return base | {"rope_type": "linear", "factor": factor}
        if scaling == "yarn":
            return base | {
                "rope_type": "yarn",
                "factor": factor,
                "original_max_position_embeddings": self.key("rope.scaling.original_context_length"),
                "beta_fast": self.key("rope.scaling.yarn_beta_fast", 32.0),
                "beta_slow": self.key("rope.scaling.yarn_beta_slow", 1.0),
            }
        raise ExportError(f"{self.path}: no reference for rope.scaling.type {scaling!r}; known: none, linear, yarn")

    def rope_factors(self) -> Tensor | None:
        """Return by how much each rotation is slower than ``rope_theta`` says, (D/2,); None: by nothing."""
        return next((self._float(one) for one in self._reader.tensors if one.name == "rope_freqs.weight"), None)

    @staticmethod
    def _float(tensor: Any) -> Tensor:
        import gguf

        return torch.from_numpy(gguf.quants.dequantize(tensor.data, tensor.tensor_type).copy()).float()

    def state(self, values: Mapping[str, Any]) -> dict[str, Tensor]:
        """Return the weights as transformers names and orders them, in float32."""
        found = {}
        for tensor in self._reader.tensors:
            if tensor.name != "rope_freqs.weight":
                name, value = self._name(tensor.name), self._float(tensor)
                found[name] = self._ordered(name, value, values, back=True)
        return found

    def _name(self, name: str) -> str:
        stem, _, end = name.rpartition(".")
        if stem in _TOP:
            return f"{_TOP[stem]}.{end}"
        _, layer, part = [*stem.split(".", 2), "", ""][:3]
        if part not in self._kind.layer:
            raise ExportError(f"{self.path}: no reference for tensor {name} of {self.architecture}; leave it out")
        own = self._kind.layer[part]
        return f"model.layers.{layer}.{own}" + ("" if own.endswith("sinks") else f".{end}")

    def _ordered(self, name: str, value: Tensor, values: Mapping[str, Any], *, back: bool) -> Tensor:
        """Return a weight in transformers' order (``back``), or in the file's."""
        if self._kind.norm_offset and "norm" in name:
            return value - self._kind.norm_offset if back else value + self._kind.norm_offset
        heads = {"q_proj": values["num_attention_heads"], "k_proj": values["num_key_value_heads"]}
        count = heads.get(name.split(".")[-2])
        if not self._kind.interleaved or count is None:
            return value
        inner = (-1, 2) if back else (2, -1)
        return value.reshape(count, *inner, *value.shape[1:]).transpose(1, 2).reshape(value.shape)

    def make(self, out: Path, positions: int, own: bool) -> EngineModel:
        """Write the file that the engine gets, in float32: its ``own`` weights if they are small, else random ones."""
        values = self.values()
        own = own and self.float_bytes <= OWN_WEIGHT_BYTES and values["max_position_embeddings"] >= positions
        if own:
            state, factors = self.state(values), self.rope_factors()
        else:
            values = narrow(values, positions, str(self.path))
            if "query_pre_attn_scalar" in values:
                values["query_pre_attn_scalar"] = values["head_dim"]
            model = load_state(values, None, str(self.path))
            randomize(model)
            state, factors = dict(model.state_dict()), None
            if values["tie_word_embeddings"]:
                state.pop("lm_head.weight", None)
        file = out.with_suffix(".gguf")
        self._write(file, values, state, factors)
        return EngineModel(
            path=file,
            values=values,
            state=state,
            weights="the folder's own" if own else "random",
            vocab_size=int(values["vocab_size"]),
            prepare=_slower(factors),
        )

    def _write(
        self, file: Path, values: Mapping[str, Any], state: Mapping[str, Tensor], factors: Tensor | None
    ) -> None:
        """Copy the file with other weights; every key that is no width, and no tokenizer's, stays."""
        import gguf

        widths = {
            "embedding_length": values["hidden_size"],
            "feed_forward_length": values["intermediate_size"],
            "attention.head_count": values["num_attention_heads"],
            "attention.head_count_kv": values["num_key_value_heads"],
            **dict.fromkeys(("attention.key_length", "attention.value_length"), values["head_dim"]),
            "rope.dimension_count": values["head_dim"],
            "context_length": values["max_position_embeddings"],
        }
        writer = gguf.GGUFWriter(file, self.architecture)
        for name, entry in self._reader.fields.items():
            short = name.removeprefix(f"{self.architecture}.")
            if name.startswith(("GGUF.", "general.", "tokenizer.")) or short in (*widths, "vocab_size"):
                continue
            part = entry.types[-1] if len(entry.types) > 1 else None
            writer.add_key_value(name, entry.contents(), entry.types[0], sub_type=part)
        for short, width in widths.items():
            writer.add_uint32(f"{self.architecture}.{short}", int(width))
        writer.add_vocab_size(int(values["vocab_size"]))
        writer.add_string("tokenizer.ggml.model", "no_vocab")
        top = {full: short for short, full in _TOP.items()}
        layers = {full: short for short, full in self._kind.layer.items()}
        for name, value in state.items():
            stem, _, end = name.rpartition(".")
            if stem in top:
                new = f"{top[stem]}.{end}"
            else:
                part = name.split(".", 3)[3]
                new = f"blk.{name.split('.')[2]}.{layers[part.removesuffix('.weight').removesuffix('.bias')]}."
                new += "bias" if part.endswith(".bias") else "weight"
            writer.add_tensor(new, self._ordered(name, value, values, back=False).contiguous().numpy())
        if factors is not None:
            writer.add_tensor("rope_freqs.weight", factors.numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


def _slower(factors: Tensor | None) -> Callable[[Any], None] | None:
    def prepare(model: Any) -> None:
        model.model.rotary_emb.inv_freq.div_(factors)

    return None if factors is None else prepare


def gguf_of(folder: Path) -> GgufFile:
    """Open the one GGUF file of an exported folder; ``folder`` may be the file itself."""
    if folder.is_file():
        return GgufFile(folder)
    files = sorted(folder.glob("*.gguf"))
    if len(files) != 1:
        raise ExportError(f"{folder} holds {len(files)} GGUF files; give a folder that 'export --to gguf' wrote")
    return GgufFile(files[0])
