"""Proof of both stacks of an encoder-decoder's export: the encoder's, and the decoder's where it holds a schedule.

T5Gemma's decoder is proven as its encoder is: masks by experiment, and outputs beside the same modules with
layersearch's dense mask. Its outputs with the library's own cache, token by token, must be those of one pass too.
"""

from __future__ import annotations

import inspect
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from layersearch.errors import ExportError
from layersearch.export.encoders import ENCODERS
from layersearch.export.encoders.decoders import decoder_schedule
from layersearch.export.verify.dense_encoders import dense_layers
from layersearch.export.verify.encoder_models import build, load, read_model_config, shrunk_config
from layersearch.export.verify.encoder_proof import EncoderProof, candidates, text_length
from layersearch.export.verify.encoders import verify_encoder
from layersearch.export.verify.loading import MAX_WEIGHT_BYTES, Folder
from layersearch.export.verify.mask_probe import changed_keys, prove_masks
from layersearch.export.verify.nearness import Comparison, compare
from layersearch.model.hf_decoder import quiet
from layersearch.schedule import Schedule

SOURCE_TOKENS = 4
"""Tokens that the encoder reads where the decoder is tested: cross attention is full."""
NEW_TOKENS = 24
"""Tokens that are decoded one by one with a cache, across the edge of the window."""


def verify_stacks(folder: Folder, *, attention: str | None = None, seed: int = 0) -> EncoderProof:
    """Compare the encoder of an exported folder with its schedule, and the decoder where the folder names its schedule.

    Args:
        folder: with ``config.json`` of one of `ENCODERS`.
        attention: transformers' name of an attention implementation; None: its default.
        seed: of random weights and of the text.

    Returns:
        The proof of the stack that the folder's schedule is of; the other stack's is its ``other``.

    Raises:
        LayersearchError: if the folder cannot be loaded. A stack that differs from its schedule is no error: its
            `EncoderProof` is not ``proven``.
    """
    given: dict[str, Any] = {"attention": attention, "seed": seed}
    if folder.other is None or not ENCODERS[str(folder.config["model_type"])].decoder_windows:
        return verify_encoder(folder, folder.schedule, **given)
    name, other = folder.other
    if name == "decoder":
        proof = verify_encoder(folder, folder.schedule, **given)
        return replace(proof, other=verify_decoder(folder, other, **given))
    proof = verify_decoder(folder, folder.schedule, **given)
    return replace(proof, other=verify_encoder(folder, other, **given))


def verify_decoder(folder: Folder, schedule: Schedule, *, attention: str | None = None, seed: int = 0) -> EncoderProof:
    """Compare T5Gemma's decoder with a schedule; arguments and errors as in `verify_stacks`."""
    family, where = ENCODERS[str(folder.config["model_type"])], str(folder.path / "config.json")
    config = read_model_config(folder, family)
    written = decoder_schedule(config, where)
    if len(written) != len(schedule):
        raise ExportError(
            f"{folder.path}: the schedule has {len(schedule)} layers, the decoder in config.json {len(written)}; "
            "give the schedule of this model"
        )
    longest = int(config.decoder.max_position_embeddings)
    edges = [min(int(config.decoder.sliding_window), longest), *(span.size or 0 for span in schedule)]
    tokens = text_length(edges, longest)
    schedule.check(seq_len=max(tokens, longest))
    small, shrunk = shrunk_config(config, family)
    model = _Decoder(build(small, folder, family, attention, seed), tokens, seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        masks = prove_masks(
            model.whole.decoder,
            model.layers,
            schedule,
            tokens=tokens,
            n_heads=small.decoder.num_attention_heads,
            call=lambda rows: model.run(model.ids.expand(rows, -1)),
            joins="self_attn.o_proj",
        )
        weights = "random"
        if folder.weights and folder.weight_bytes <= MAX_WEIGHT_BYTES:
            own = _Decoder(load(folder, attention), tokens, seed)
            found = own.compare(schedule, written)
            if found.told_apart:
                model, weights = own, "the folder's own"
        if weights == "random":
            found = model.compare(schedule, written)
    return EncoderProof(
        architecture=type(model.whole.decoder).__name__,
        stack="decoder",
        schedule=str(schedule),
        tokens=tokens,
        keys=len(changed_keys(schedule, tokens)),
        shrunk=shrunk,
        weights=weights,
        layers=tuple(masks),
        cache_error=model.cache_error(schedule),
        **found._asdict(),
    )


class _Decoder:
    """A model whose decoder reads a text, after its encoder has read another."""

    def __init__(self, whole: Any, tokens: int, seed: int) -> None:
        self.whole, self.layers, self.tokens = whole, whole.decoder.layers, tokens
        vocab, pad = whole.get_input_embeddings().weight.shape[0], whole.config.decoder.pad_token_id
        drawn = torch.randint(vocab, (1, SOURCE_TOKENS + tokens), generator=torch.Generator().manual_seed(seed))
        drawn[drawn == pad] = next(token for token in range(2) if token != pad)
        self.ids = drawn[:, SOURCE_TOKENS:]
        with torch.no_grad():
            self.source: Tensor = whole.encoder(drawn[:, :SOURCE_TOKENS]).last_hidden_state

    @torch.no_grad()
    def run(self, ids: Tensor, **given: Any) -> Any:
        """Return the decoder's output for token ids (rows, tokens)."""
        with quiet():
            source = self.source.expand(len(ids), -1, -1)
            return self.whole.decoder(ids, encoder_hidden_states=source, **{"use_cache": False} | given)

    def compare(self, schedule: Schedule, written: Schedule) -> Comparison:
        """Return how near the schedule asked for is, and the nearest two."""
        found = self.run(self.ids).last_hidden_state

        def error(other: Schedule) -> float:
            with dense_layers(ENCODERS["t5gemma"], self.layers, other, self.tokens, bidirectional=False):
                wanted = self.run(self.ids).last_hidden_state
            return float(((found - wanted).abs().max() / wanted.std()).nan_to_num(torch.inf))

        return compare(candidates(schedule, self.tokens, written, bidirectional=False), error)

    def cache_error(self, schedule: Schedule) -> float:
        """Return the largest difference of an output with the cache from the one without, over their deviation."""
        wanted = self.run(self.ids).last_hidden_state
        name = next(one for one in ("cache", "past_key_values") if one in inspect.signature(self._forward).parameters)
        edge = min((span.size for span in schedule if span.size is not None), default=0)
        start = max(1, min(edge, self.tokens) - NEW_TOKENS // 2)
        out, worst = self.run(self.ids[:, :start], use_cache=True), 0.0
        for at in range(start, min(self.tokens, start + NEW_TOKENS)):
            out = self.run(self.ids[:, at : at + 1], use_cache=True, **{name: getattr(out, name)})
            difference = out.last_hidden_state[:, 0] - wanted[:, at]
            worst = max(worst, float(difference.abs().max() / wanted.std()))
        return worst

    @property
    def _forward(self) -> Any:
        return type(self.whole.decoder).forward
