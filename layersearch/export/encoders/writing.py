"""An encoder's ``config.json``: written for a recipe's size, or edited."""

from __future__ import annotations

import copy
import json
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from layersearch.config.model import ModelConfig
from layersearch.errors import ExportError, one_line
from layersearch.export.encoders.decoders import both_schedules, check_decoder, decoder_fields
from layersearch.export.encoders.family import ENCODERS, SUMMED, WORDS, EncoderFamily
from layersearch.export.encoders.reading import encoder_sizes
from layersearch.export.encoders.supported import check_supported, problem
from layersearch.export.families import make_config
from layersearch.export.files import write_files
from layersearch.export.hf import known_fields
from layersearch.export.weights import copy_tokenizer, new_files
from layersearch.schedule import Schedule

_PERIOD = "global_attn_every_n_layers"
"""ModernBERT's older form of ``layer_types``; transformers 4 reads nothing else."""


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


def edit_encoder(
    schedule: Schedule,
    values: dict[str, Any],
    source: Path,
    *,
    out: Path,
    family: str | None = None,
    evidence: Mapping[str, Any] | None = None,
) -> tuple[list[Path], str | None]:
    """Write an encoder's ``config.json`` with a schedule in it, its weights and its tokenizer as they are.

    Args:
        schedule: one span per layer of the encoder.
        values: the ``config.json``.
        source: the file, or the folder that also holds weights and a tokenizer.
        out: the folder to write.
        family: what the user named; it must be the file's own.
        evidence: what supports the schedule, as plain data.

    Returns:
        The files written, and notes.

    Raises:
        ExportError: the family does not support the schedule, the sizes differ, or a file exists with other content.
    """
    where = f"--config {source}"
    held = ENCODERS[values["model_type"]]
    if family not in (None, held.name):
        raise ExportError(f"--family {family} but {source} is of family {held.name} (its model_type); drop --family")
    before = make_config(held.model_type, values, where)
    sizes = encoder_sizes(before, held)
    if sizes.n_layers != len(schedule):
        raise ExportError(
            f"the schedule has {len(schedule)} layers, {source} {sizes.n_layers}; give a schedule of the encoder's "
            "depth"
        )
    tokens = sizes.positions or values.get("n_positions")
    longest = tokens or max(max(2 * (span.size or 1) + 1, span.summary, span.global_first) for span in schedule)
    schedule.check(seq_len=longest, n_heads=sizes.n_heads, bidirectional=True)
    check_supported(schedule, held, seq_len=longest, n_heads=sizes.n_heads)
    if tokens is None and held.form == "one" and schedule.n_full:
        raise ExportError(f"{where}: a radius that covers the text needs its length; add n_positions")
    fields = schedule_fields(schedule, held, longest)
    if schedule.n_full == len(schedule) and held.form == "types":
        del fields[str(held.size)]  # no layer uses it
    if (needed := padded_length(fields, held, longest) if held.pads else longest) > longest and held.pads_positions:
        raise ExportError(
            f"{where}: {held.name} pads a text of {longest} tokens to {needed}, more than its positions: give "
            f"max_encoder_position_embeddings of {needed} and weights for them, or windows that divide {longest // 2}"
        )
    changed = _edited(values, fields, held)
    after = build(held, changed, where)
    notes = [usage(schedule, held, longest)]
    if held.rope_by_type and before.rope_parameters["full_attention"] != before.rope_parameters["sliding_attention"]:
        old, new = before.layer_types, after.layer_types
        if moved := [str(layer) for layer in range(len(schedule)) if old[layer] != new[layer]]:
            notes.append(
                f"each layer type has a RoPE base of its own: the positions of layers {', '.join(moved)} change; "
                "trained weights need further training"
            )
    text = json.dumps(changed, indent=2, ensure_ascii=False) + "\n"
    if not source.is_dir():
        return write_files(out, {"config.json": text}, schedule, evidence), "; ".join(filter(None, notes)) or None
    with new_files(out) as part:
        write_files(part, {"config.json": text}, schedule, evidence)
        weights = sorted({*source.glob("*.safetensors"), *source.glob("*.safetensors.index.json")})
        if weights and held.summary is not None and before.encoder_attention_type != after.encoder_attention_type:
            raise ExportError(
                f"{where}: weights of encoder_attention_type {before.encoder_attention_type} have other names than "
                f"{after.encoder_attention_type} needs; give the config.json alone, or a schedule that keeps the type"
            )
        for file in weights:
            shutil.copy(file, part / file.name)
        if not weights:
            notes.append(f"{source} has no safetensors weights, so none were written")
        if not copy_tokenizer(source, part):
            notes.append(f"{source} has no tokenizer, so none was written")
        names = sorted((file.name for file in part.iterdir()), key=lambda name: (name == "schedule.yaml", name))
    return [out / name for name in names], "; ".join(filter(None, notes)) or None


def _edited(values: Mapping[str, Any], fields: Mapping[str, Any], family: EncoderFamily) -> dict[str, Any]:
    """Return a ``config.json`` with the fields of a schedule."""
    changed = copy.deepcopy(dict(values))
    own: dict[str, Any] = changed if family.part is None else changed[family.part]
    own.update(fields)
    if family.rope_by_type and _PERIOD in own:
        words = own["layer_types"]
        full = [word == WORDS["full"] for word in words]
        periods = [n for n in range(1, len(full) + 1) if full == [at % n == 0 for at in range(len(full))]]
        if not periods:
            del own[_PERIOD]
        else:
            own[_PERIOD] = periods[0]
    return changed


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
