"""Proof of an encoder's export: its masks by experiment, and the schedule that its outputs are nearest to.

The model's own code runs with small random weights, or with the folder's own. Beside it runs a reference: the same
modules with layersearch's dense mask in every layer, for the schedule asked for and for every other of `candidates`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from layersearch.errors import ExportError
from layersearch.export.encoders import ENCODERS, EncoderFamily, encoder_schedule, encoder_sizes
from layersearch.export.verify.dense_encoders import dense_layers
from layersearch.export.verify.encoder_models import build, load, read_model_config, shrunk_config
from layersearch.export.verify.encoder_proof import EncoderProof, candidates, drawn_marks, text_length
from layersearch.export.verify.loading import MAX_WEIGHT_BYTES, Folder
from layersearch.export.verify.mask_probe import changed_keys, prove_masks
from layersearch.export.verify.nearness import Comparison, compare
from layersearch.model.hf_decoder import quiet
from layersearch.schedule import Schedule


def verify_encoder(folder: Folder, schedule: Schedule, *, attention: str | None = None, seed: int = 0) -> EncoderProof:
    """Compare the encoder that transformers makes of an exported folder with its schedule.

    Args:
        folder: with ``config.json`` of one of `ENCODERS`.
        schedule: one span per layer of the encoder.
        attention: transformers' name of an attention implementation; None: its default.
        seed: of random weights and of the text.

    Raises:
        LayersearchError: if the folder cannot be loaded. An encoder that differs from the schedule is no error: its
            `EncoderProof` is not ``proven``.
    """
    family = ENCODERS[str(folder.config["model_type"])]
    config = read_model_config(folder, family)
    sizes = encoder_sizes(config, family)
    if sizes.n_layers != len(schedule):
        raise ExportError(
            f"{folder.path}: the schedule has {len(schedule)} layers, the encoder in config.json {sizes.n_layers}; "
            "give the schedule of this model"
        )
    tokens, padded = _text_length(family, config, schedule)
    schedule.check(seq_len=max(tokens, sizes.positions or 0), bidirectional=True)
    small, shrunk = shrunk_config(config, family)
    written = _with_globals(encoder_schedule(config, family, str(folder.path / "config.json")), schedule)
    marks = drawn_marks(schedule, tokens, seed)
    model = _Encoder(family, build(small, folder, family, attention, seed), tokens, marks)
    heads = encoder_sizes(small, family).n_heads
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        masks = prove_masks(
            model.stack,
            model.layers,
            schedule,
            tokens=tokens,
            n_heads=heads,
            padded=padded,
            call=lambda rows: model.run(torch.full((rows, tokens), model.token), schedule),
            joins=family.joins_of(model.layers[0]),
            bidirectional=True,
            marked=marks,
        )
        weights = "random"
        if folder.weights and folder.weight_bytes <= MAX_WEIGHT_BYTES:
            weights = "the folder's own"
            own = _Encoder(family, load(folder, attention), tokens, marks)
            found = _compare(own, schedule, written, seed)
            if not found.told_apart:
                weights, found = "random", _compare(model, schedule, written, seed)
        else:
            found = _compare(model, schedule, written, seed)
    return EncoderProof(
        architecture=type(model.whole).__name__,
        schedule=str(schedule),
        tokens=tokens,
        keys=len(changed_keys(schedule, tokens)),
        shrunk=shrunk,
        weights=weights,
        layers=tuple(masks),
        **found._asdict(),
    )


def _with_globals(written: Schedule, asked: Schedule) -> Schedule:
    """Return a configuration's schedule with the global tokens of the calls that test another."""
    first, marked = (max(getattr(span, name) for span in asked) for name in ("global_first", "global_marked"))
    named = {"global_first": first, "global_marked": marked}
    return Schedule(tuple(span if span.is_full else replace(span, **named) for span in written))


def _text_length(family: EncoderFamily, config: Any, schedule: Schedule) -> tuple[int, int]:
    """Return the tokens of a text that shows every span and every size of a configuration, and those with padding.

    Raises:
        ExportError: that is too long to test.
    """
    longest = family.positions(config)
    held = getattr(family.encoder_part(config), family.size, None) if family.size else None
    sides = [size // family.factor for size in (held if isinstance(held, list | tuple) else [held]) if size]
    if family.pads_positions and schedule.n_full and sides:
        # A full layer is a window, and the padded text has more positions than any text that it covers.
        longest = min(longest or max(sides) + 1, max(sides) + 1)
    edges = [min(side, longest or side) for side in sides] + [span.size or 0 for span in schedule]
    edges += [max(span.global_first, 2 * span.global_marked, 3 * span.summary) for span in schedule]
    if longest is not None and schedule.n_full and family.form in ("list", "one"):
        edges.append(longest)
    tokens = text_length(edges, longest)
    largest = max(sides, default=0) * family.factor if family.pads else 0
    return tokens, -(-tokens // largest) * largest if largest else tokens


class _Encoder:
    """A model whose encoder is called alone."""

    def __init__(self, family: EncoderFamily, whole: Any, tokens: int, marks: Tensor | None) -> None:
        self.family, self.whole, self.tokens, self.marks = family, whole, tokens, marks
        self.stack = whole.encoder if family.decoder else whole
        self.layers: nn.ModuleList = self.stack.get_submodule(family.layers)
        pad = getattr(family.encoder_part(whole.config), "pad_token_id", None)
        self.token = next(token for token in range(2) if token != pad)
        """A token that is no padding."""

    @torch.no_grad()
    def run(self, ids: Tensor, schedule: Schedule) -> Tensor:
        """Return the last hidden states (rows, tokens, width) of token ids (rows, tokens)."""
        inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        first = max(span.global_first for span in schedule)
        if self.marks is not None and any(span.global_marked for span in schedule):
            inputs["global_attention_mask"] = self.marks.long().expand_as(ids)
        elif self.family.takes_globals and first:
            inputs["global_attention_mask"] = (torch.arange(ids.shape[1]) < first).long().expand_as(ids)
        with quiet():
            found: Tensor = self.stack(**inputs).last_hidden_state
        return found.float()


def _compare(model: _Encoder, schedule: Schedule, written: Schedule, seed: int) -> Comparison:
    """Return how near the schedule asked for is, and the nearest two."""
    vocab = model.whole.get_input_embeddings().weight.shape[0]
    pad = getattr(model.family.encoder_part(model.whole.config), "pad_token_id", None)
    ids = torch.randint(vocab, (1, model.tokens), generator=torch.Generator().manual_seed(seed))
    ids[ids == pad] = model.token
    found = model.run(ids, schedule)

    def error(other: Schedule) -> float:
        with dense_layers(model.family, model.layers, other, model.tokens):
            wanted = model.run(ids, other)
        return float(((found - wanted).abs().max() / wanted.std()).nan_to_num(torch.inf))

    return compare(candidates(schedule, model.tokens, written), error)
