"""Proof of an encoder that runs by the exported modeling file: its masks, and its logits beside the encoder's own."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from layersearch.errors import ExportError, one_line
from layersearch.export.verify.encoder_proof import EncoderProof, candidates, drawn_marks, text_length
from layersearch.export.verify.loading import MAX_WEIGHT_BYTES, Folder, decoder_layers, randomize, shrink
from layersearch.export.verify.mask_probe import changed_keys, prove_masks
from layersearch.export.verify.nearness import compare
from layersearch.export.verify.outputs import decoder_size
from layersearch.model.decoder import Decoder
from layersearch.model.hf_decoder import quiet
from layersearch.schedule import Schedule, Span


def verify_remote_encoder(folder: Folder, *, seed: int = 0) -> EncoderProof:
    """Compare the encoder that the folder's code makes with its schedule, and with `Decoder` under other schedules.

    Args:
        folder: with ``config.json`` of `layersearch.export.encoders.remote`, whose code is trusted.
        seed: of random weights and of the text.

    Raises:
        ExportError: the folder cannot be loaded. An encoder that differs is no error: its proof is not ``proven``.
    """
    from transformers import AutoConfig

    schedule = folder.schedule
    try:
        with quiet():
            config = AutoConfig.from_pretrained(folder.path, trust_remote_code=True)
    except Exception as error:  # the library and the folder's own code raise many kinds
        raise ExportError(f"{folder.path}: transformers refuses its config.json ({one_line(error)})") from None
    if config.num_hidden_layers != len(schedule):
        raise ExportError(
            f"{folder.path}: the schedule has {len(schedule)} layers, config.json {config.num_hidden_layers}; "
            "give the schedule of this model"
        )
    longest = int(config.max_position_embeddings)
    schedule.check(seq_len=longest, n_heads=config.num_attention_heads, bidirectional=True)
    tokens = text_length([_edge(span) for span in schedule], longest)
    small = copy.deepcopy(config)
    small.rms_norm_eps = 1e-6
    shrunk = shrink(small, keep_heads=any(span.is_las for span in schedule))
    model = _build(small, folder)
    randomize(model)
    layers, marked = decoder_layers(model, len(schedule)), drawn_marks(schedule, tokens, seed)

    def given(rows: int) -> dict[str, Tensor]:
        return {} if marked is None else {"global_attention_mask": marked.long().expand(rows, -1)}

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        masks = prove_masks(
            model,
            layers,
            schedule,
            tokens=tokens,
            n_heads=small.num_attention_heads,
            call=lambda rows: model(torch.zeros(rows, tokens, dtype=torch.long), **given(rows)),
            joins="self_attn.o_proj",
            bidirectional=True,
            marked=marked,
        )
    weights = "random"
    if folder.weights and folder.weight_bytes <= MAX_WEIGHT_BYTES:
        model, weights = _load(folder), "the folder's own"
    ids = torch.randint(model.config.vocab_size, (1, tokens), generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        found = model(ids, **given(1)).logits.float()

    def apart(other: Schedule) -> float:
        wanted = _logits(model, other, ids, marked)
        return float(((found - wanted).abs().max() / wanted.std()).nan_to_num(torch.inf))

    return EncoderProof(
        architecture=type(model).__name__,
        schedule=str(schedule),
        tokens=tokens,
        keys=len(changed_keys(schedule, tokens)),
        shrunk=shrunk,
        weights=weights,
        layers=tuple(masks),
        **compare(candidates(schedule, tokens), apart)._asdict(),
    )


def _edge(span: Span) -> int:
    """Return the tokens that show what a span sees and what not."""
    blocks = {"block": 2, "bigbird": span.random_blocks + 6}.get(span.kind, 1)
    near = (span.size or 0) * blocks + span.pool
    return max(near, span.global_first, 2 * span.global_marked, 3 * span.summary)


def _build(config: Any, folder: Folder) -> Any:
    from transformers import AutoModelForMaskedLM

    try:
        with quiet():
            factory: Any = AutoModelForMaskedLM
            return factory.from_config(config, trust_remote_code=True, dtype=torch.float32).eval()
    except Exception as error:  # the library and the folder's own code raise many kinds
        raise ExportError(f"{folder.path}: AutoModelForMaskedLM cannot build it ({one_line(error)})") from None


def _load(folder: Folder) -> Any:
    from transformers import AutoModelForMaskedLM

    try:
        with quiet():
            factory: Any = AutoModelForMaskedLM
            model, report = factory.from_pretrained(
                folder.path, trust_remote_code=True, dtype=torch.float32, output_loading_info=True
            )
    except Exception as error:
        raise ExportError(
            f"{folder.path}: the weights do not load ({one_line(error)}); give those of this model"
        ) from None
    wrong = sorted(map(str, (*report.get("missing_keys", ()), *report.get("unexpected_keys", ()))))
    if wrong:
        raise ExportError(
            f"{folder.path}: {len(wrong)} tensors missing or unexpected, such as {wrong[0]}; give this model's weights"
        )
    return model.eval()


@torch.no_grad()
def _logits(model: nn.Module, schedule: Schedule, ids: Tensor, marked: Tensor | None) -> Tensor:
    """Return the logits of layersearch's own encoder with these weights, under a schedule, with marked tokens (T,)."""
    config: Any = model.config
    size = decoder_size(config, model)
    if isinstance(size, str):
        raise ExportError(f"config.json is of no encoder of layersearch's: {size}; export it again")
    encoder = Decoder(replace(size, kind="encoder"), config.vocab_size, schedule).eval()
    encoder.load_state_dict({name.removeprefix("model."): value for name, value in model.state_dict().items()})
    marks = marked[None] if marked is not None and any(span.global_marked for span in schedule) else None
    found: Tensor = encoder.lm_head(encoder.norm(encoder.stream(ids, marks)))
    return found
