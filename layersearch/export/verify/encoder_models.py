"""transformers' model of an encoder's configuration: built narrow with random weights, or loaded with its own."""

from __future__ import annotations

import copy
from typing import Any

import torch

from layersearch.errors import ExportError, one_line
from layersearch.export.encoders import EncoderFamily
from layersearch.export.encoders.reading import read_encoder_config
from layersearch.export.verify.loading import SMALL_WIDTH, Folder, randomize
from layersearch.model.hf_decoder import quiet

_HEADS, _WIDTH = 2, 16


def read_model_config(folder: Folder, family: EncoderFamily) -> Any:
    """Return transformers' configuration object of a folder."""
    return read_encoder_config(folder.config, family, str(folder.path / "config.json"))


def shrunk_config(config: Any, family: EncoderFamily) -> tuple[Any, bool]:
    """Return a copy of a configuration that is narrow, and whether the original was wide."""
    small = copy.deepcopy(config)
    own = family.encoder_part(small)
    if own.hidden_size <= SMALL_WIDTH:
        return small, False
    parts = [own, *([small.decoder] if family.part is not None else [])]
    names = {
        "hidden_size": _HEADS * _WIDTH,
        "intermediate_size": 32,
        "d_ff": 32,
        "encoder_ffn_dim": 32,
        "decoder_ffn_dim": 32,
        "num_attention_heads": _HEADS,
        "num_key_value_heads": _HEADS,
        "decoder_attention_heads": _HEADS,
        "head_dim": _WIDTH,
        "num_decoder_layers": 1,
        "decoder_layers": 1,
    }
    for part in parts:
        for name, value in names.items():
            if getattr(part, name, None) is not None:
                setattr(part, name, value)
    if family.part is not None:
        small.decoder.cross_attention_hidden_size = own.hidden_size
    return small, True


def build(config: Any, folder: Folder, family: EncoderFamily, attention: str | None, seed: int) -> Any:
    """Return the model without a head of a configuration, in float32, with random weights."""
    from transformers import AutoModel

    config = copy.deepcopy(config)
    options: dict[str, Any] = {"dtype": torch.float32}
    if attention is not None:
        options["attn_implementation"] = attention
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            with quiet():
                factory: Any = AutoModel
                model = factory.from_config(config, **options)
        except Exception as error:  # the library raises many kinds
            raise ExportError(f"{folder.path}: {family.architecture} cannot be built ({one_line(error)})") from None
    randomize(model)
    return model.eval()


def load(folder: Folder, attention: str | None) -> Any:
    """Return the model without a head with the folder's own weights, in float32."""
    from transformers import AutoModel

    options: dict[str, Any] = {"dtype": torch.float32, "use_safetensors": True, "output_loading_info": True}
    if attention is not None:
        options["attn_implementation"] = attention
    try:
        with quiet():
            factory: Any = AutoModel
            model, report = factory.from_pretrained(folder.path, **options)
    except Exception as error:
        raise ExportError(
            f"{folder.path}: the weights do not load ({one_line(error)}); give those of this model"
        ) from None
    missing = sorted(str(name) for name in report.get("missing_keys", ()) if "pooler" not in str(name))
    if missing:
        raise ExportError(
            f"{folder.path}: the weights are of another architecture than config.json: {len(missing)} missing such as "
            f"{missing[0]}; give those of this model"
        )
    return model.eval()
