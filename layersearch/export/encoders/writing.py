"""An encoder's ``config.json``: written for a recipe's size, or edited."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any

from layersearch.config.model import ModelConfig
from layersearch.errors import ExportError, one_line
from layersearch.export.encoders.decoders import both_schedules, check_decoder, decoder_fields
from layersearch.export.encoders.family import SUMMED, WORDS, EncoderFamily
from layersearch.export.encoders.supported import check_supported, problem
from layersearch.export.families import make_config
from layersearch.export.hf import known_fields
from layersearch.schedule import Schedule


def covering_size(schedule: Schedule, family: EncoderFamily, seq_len: int) -> int:
    """Return the size, as the family writes it, of a window that covers a text of ``seq_len`` tokens.

    Where texts are padded to the largest size, it is a multiple of every other size.
    """
    least = family.factor * max(1, seq_len - 1)
    if not family.pads:
        return least
    step = math.lcm(*(family.factor * span.size for span in schedule if span.size is not None), family.factor)
    return -(-least // step) * step


def schedule_fields(schedule: Schedule, family: EncoderFamily, seq_len: int) -> dict[str, Any]:
    """Return the fields of a schedule for texts of up to ``seq_len`` tokens."""
    size = next((span.size for span in schedule if span.size is not None), None)
    if family.form == "none":
        return {}
    assert family.size is not None
    if family.form == "list":
        full = covering_size(schedule, family, seq_len)
        return {family.size: [full if span.size is None else family.factor * span.size for span in schedule]}
    one = covering_size(schedule, family, seq_len) if size is None else family.factor * size
    if family.form == "one":
        summed = {} if family.summary is None or not schedule[0].summary else {family.summary: schedule[0].summary}
        return {family.size: one, **summed, "encoder_attention_type": SUMMED if summed else "local"}
    return {"layer_types": [WORDS[span.kind] for span in schedule], family.size: one}


def padded_length(fields: Mapping[str, Any], family: EncoderFamily, seq_len: int) -> int:
    """Return the positions that a text of ``seq_len`` tokens takes."""
    if not family.pads_positions:
        return seq_len
    largest = max(fields[str(family.size)])
    return -(-seq_len // largest) * largest


def encoder_text(schedule: Schedule, family: EncoderFamily, model: ModelConfig, vocab_size: int, seq_len: int) -> str:
    """Return the ``config.json`` of a family at a recipe's size, after transformers built its model from it.

    The vocabulary gets one more token, for padding, where the family cannot do without.
    """
    encoder, decoder = both_schedules(schedule, model)
    check_decoder(decoder, family, model, seq_len)
    if model.searched != "decoder":
        check_supported(encoder, family, seq_len=seq_len, n_heads=model.n_heads)
    elif (found := problem(encoder, family)) is not None:
        raise ExportError(f"model.other_schedule: {found}; give a schedule that it holds, or --to yaml or json")
    if not family.gqa and model.n_kv_heads != model.n_heads:
        raise ExportError(
            f"n_kv_heads: family {family.name} has one key-value head per query head, the model {model.n_kv_heads} for "
            f"{model.n_heads}; give --family t5gemma, or a --recipe with n_kv_heads: {model.n_heads}"
        )
    if not family.own_head_width and model.head_dim * model.n_heads != model.d_model:
        raise ExportError(
            f"head_width: family {family.name} has heads of d_model / n_heads; give --family t5gemma, or drop the key"
        )
    fields = schedule_fields(encoder, family, seq_len)
    layers = len(encoder), len(decoder)
    values = _sizes(family, model, layers, vocab_size, seq_len, padded_length(fields, family, seq_len))
    if family.part is None:
        values |= fields
    else:
        own = values | fields
        other = values | decoder_fields(decoder, seq_len) | {"num_hidden_layers": len(decoder)}
        values = {family.part: own, "decoder": other, "vocab_size": values["vocab_size"]}
        values["tie_word_embeddings"] = model.tie_embeddings
    values["architectures"] = [family.architecture]
    built = build(family, values, f"family {family.name} at this size")
    return str(built.to_json_string())


def _sizes(
    family: EncoderFamily, model: ModelConfig, layers: tuple[int, int], vocab: int, seq_len: int, padded: int
) -> dict[str, Any]:
    """Return a model's size under every name that a configuration class of these families uses, cut to its own."""
    rope = {"rope_type": "default", "rope_theta": model.rope_theta}
    pad = vocab  # a token of the text must not be the padding: the models hide it, or give it no position
    fields = {
        "vocab_size": vocab if family.name in ("modernbert", "bert") else vocab + 1,
        "hidden_size": model.d_model,
        "d_model": model.d_model,
        "d_kv": model.head_dim,
        "d_ff": model.d_ff,
        "intermediate_size": model.d_ff,
        "encoder_ffn_dim": model.d_ff,
        "decoder_ffn_dim": model.d_ff,
        "num_hidden_layers": layers[0],
        "num_layers": layers[0],
        "num_decoder_layers": layers[1],
        "encoder_layers": layers[0],
        "decoder_layers": layers[1],
        "num_attention_heads": model.n_heads,
        "num_heads": model.n_heads,
        "encoder_attention_heads": model.n_heads,
        "decoder_attention_heads": model.n_heads,
        "num_key_value_heads": model.n_kv_heads,
        "head_dim": model.head_dim,
        "query_pre_attn_scalar": model.head_dim,
        "max_position_embeddings": seq_len + pad + 1 if family.name == "longformer" else seq_len,
        "max_encoder_position_embeddings": padded,
        "max_decoder_position_embeddings": seq_len,
        "hidden_act": "silu",
        "hidden_activation": "silu",
        "activation_function": "silu",
        "feed_forward_proj": "gated-silu",
        "norm_eps": 1e-6,
        "rms_norm_eps": 1e-6,
        "layer_norm_eps": 1e-6,
        "layer_norm_epsilon": 1e-6,
        "rope_parameters": {word: dict(rope) for word in WORDS.values()} if family.rope_by_type else rope,
        "attn_logit_softcapping": None,
        "final_logit_softcapping": None,
        "type_vocab_size": 1,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "dropout": 0.0,
        "dropout_rate": 0.0,
        "tie_word_embeddings": model.tie_embeddings,
        "pad_token_id": None if family.name in ("modernbert", "bert") else pad,
        "decoder_start_token_id": pad,
        **dict.fromkeys(("bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id")),
    }
    kind: Any = family.config_class
    if family.part is not None:
        kind = kind.sub_configs[family.part]
    held = known_fields(kind, fields)
    # T5's own files name the longest text so; its class reads no such field.
    return held | ({"n_positions": seq_len} if family.form == "one" else {})


def build(family: EncoderFamily, values: Mapping[str, Any], where: str) -> Any:
    """Return the configuration object of a ``config.json``, after its model was built on the meta device.

    Raises:
        ExportError: begins with ``where``; transformers refuses the values or cannot build the model.
    """
    import torch

    from layersearch.data.quiet import quiet

    config = make_config(family.model_type, copy.deepcopy(dict(values)), where)
    try:
        with torch.device("meta"), quiet():
            family.model_class(copy.deepcopy(config))
    except Exception as error:  # models raise many kinds for sizes that do not fit together
        raise ExportError(
            f"{where}: transformers cannot build {family.architecture} ({one_line(error)}); correct it"
        ) from None
    return config


def usage(schedule: Schedule, family: EncoderFamily, seq_len: int) -> str | None:
    """Return what a caller has to know for the schedule to hold in texts of ``seq_len`` tokens; None: nothing."""
    first, notes = max(span.global_first for span in schedule), []
    marked = max(span.global_marked for span in schedule)
    if first or marked:
        tokens = f"{first or marked} tokens" if (first or marked) > 1 else "token"
        which = f"the first {tokens}" if first else f"the {tokens} that the task marks"
        notes.append(
            f"no config.json holds global tokens: give global_attention_mask with 1 at {which} at each call of "
            f"{family.architecture}"
        )
    if family.pads_positions and schedule.n_full:
        notes.append(f"full layers are windows that cover {seq_len} tokens; a longer text is not seen whole")
    return "; ".join(notes) or None
