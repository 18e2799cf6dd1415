"""A checkpoint of LitGPT, and as transformers' classes hold the same model.

The names here are read from LitGPT, and do not come from the code that writes an export: an error there shows.
"""

from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from layersearch.errors import ExportError
from layersearch.export.litgpt import CONFIG, WEIGHTS, litgpt_config, save_litgpt
from layersearch.export.verify.engines.references import load_state
from layersearch.export.verify.engines.small_models import OWN_WEIGHT_BYTES, EngineModel, narrow, randomize
from layersearch.schedule import presets

_NAMES = {
    "transformer.wte": "model.embed_tokens",
    "transformer.ln_f": "model.norm",
    "lm_head": "lm_head",
    "norm_1": "input_layernorm",
    "norm_2": "post_attention_layernorm",
    "attn.norm_q": "self_attn.q_norm",
    "attn.norm_k": "self_attn.k_norm",
    "attn.proj": "self_attn.o_proj",
    "mlp.fc_1": "mlp.gate_proj",
    "mlp.fc_2": "mlp.up_proj",
    "mlp.proj": "mlp.down_proj",
}


class Checkpoint:
    """A folder with ``model_config.yaml`` and, if the export was of a model, ``lit_model.pth``."""

    def __init__(self, folder: Path) -> None:
        """Read the configuration.

        Raises:
            ExportError: if it is missing or damaged.
        """
        self._folder = folder
        try:
            given = yaml.safe_load((folder / CONFIG).read_text(encoding="utf-8"))
            self._given: dict[str, Any] = dict(given)
            self.layers, self.size = int(given["n_layer"]), given.get("sliding_window_size")
        except (OSError, ValueError, yaml.YAMLError, KeyError, TypeError):
            raise ExportError(f"{folder / CONFIG}: no file that layersearch export --to litgpt wrote") from None

    def values(self) -> dict[str, Any]:
        """Return the ``config.json`` of the same model in transformers, without its schedule."""
        given = self._given
        rope: dict[str, Any] = {"rope_type": "default", "rope_theta": float(given["rope_base"])}
        if (changed := given.get("rope_adjustments")) is not None:
            changed = dict(changed)
            kind = "llama3" if "low_freq_factor" in changed else "linear"
            if kind == "llama3":
                changed["original_max_position_embeddings"] = changed.pop("original_max_seq_len")
            rope |= {"rope_type": kind, **changed}
        return {
            "model_type": "qwen3" if given["norm_qk"] else "qwen2" if given["attn_bias"] else "llama",
            "vocab_size": given["padded_vocab_size"],
            "hidden_size": given["n_embd"],
            "intermediate_size": given["intermediate_size"],
            "num_hidden_layers": self.layers,
            "num_attention_heads": given["n_head"],
            "num_key_value_heads": given["n_query_groups"],
            "head_dim": given["head_size"],
            "max_position_embeddings": given["block_size"],
            "rms_norm_eps": given["norm_eps"],
            "rope_parameters": rope,
            "tie_word_embeddings": False,
            **dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id")),
        }

    def make(self, out: Path, positions: int, own: bool) -> EngineModel:
        """Return the checkpoint with its own weights if they are small, else a narrow copy with random ones."""
        values, file = self.values(), self._folder / WEIGHTS
        if own and file.is_file() and values["max_position_embeddings"] >= positions:
            held = torch.load(file, weights_only=True, mmap=True)
            if 4 * sum(tensor.numel() for tensor in held.values()) <= OWN_WEIGHT_BYTES:
                return EngineModel(
                    path=self._folder,
                    values=values,
                    state=_state(held, values),
                    weights="the folder's own",
                    vocab_size=values["vocab_size"],
                )
        small = narrow(values, positions, str(self._folder))
        model = load_state(small, None, str(self._folder))
        randomize(model)
        self._save_narrow(small, model.state_dict(), out)
        return EngineModel(
            path=out, values=small, state=model.state_dict(), weights="random", vocab_size=small["vocab_size"]
        )

    def _save_narrow(self, small: dict[str, Any], state: dict[str, Tensor], out: Path) -> None:
        """Write a narrow model; all keys that are no widths stay as they were exported."""
        out.mkdir(parents=True, exist_ok=True)
        widths = litgpt_config(presets.all_full(self.layers), small)
        (out / CONFIG).write_text(yaml.safe_dump(self._given | widths), encoding="utf-8")
        save_litgpt(state, self.layers, out)


def _state(held: dict[str, Tensor], values: dict[str, Any]) -> dict[str, Tensor]:
    """Return weights under transformers' names, in float32."""
    heads, kv_heads, width = (values[key] for key in ("num_attention_heads", "num_key_value_heads", "head_dim"))
    found: dict[str, Tensor] = {}
    for name, tensor in held.items():
        stem, _, part = name.rpartition(".")
        prefix = ""
        if stem.startswith("transformer.h."):
            _, _, layer, stem = stem.split(".", 3)
            prefix = f"model.layers.{layer}."
        if stem == "attn.qkv":
            rows = torch.split(tensor.float(), [heads * width, kv_heads * width, kv_heads * width])
            found |= {f"{prefix}self_attn.{letter}_proj.{part}": row for letter, row in zip("qkv", rows, strict=True)}
        else:
            found[f"{prefix}{_NAMES[stem]}.{part}"] = tensor.float()
    return found
