"""Proof of an encoder's export: its masks by experiment, and the schedule that its outputs are nearest to.

The model's own code runs with small random weights, or with the folder's own. Beside it runs a reference: the same
modules with layersearch's dense mask in every layer, for the schedule asked for and for every other of `candidates`.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from layersearch.errors import ExportError, one_line
from layersearch.export.encoders import ENCODERS, EncoderFamily, encoder_schedule, encoder_sizes
from layersearch.export.verify.dense_encoders import dense_layers
from layersearch.export.verify.loading import MAX_WEIGHT_BYTES, SMALL_WIDTH, Folder, randomize
from layersearch.export.verify.mask_probe import MIN_TOKENS, LayerProof, changed_keys, prove_masks
from layersearch.model.hf_decoder import quiet
from layersearch.schedule import Schedule, Span
from layersearch.schedule.span import FULL

MARGIN = 4
"""The schedule that ran must be so many times nearer than the next."""
TOLERANCE = 1e-4
"""Largest difference of an output over the outputs' standard deviation, in float32."""
MOST_TOKENS = 8192
_HEADS, _WIDTH = 2, 16


@dataclass(frozen=True, kw_only=True)
class Nearness:
    """One schedule that the encoder may have run."""

    name: str
    schedule: str
    error: float
    """Largest difference of an output from the encoder's, over the outputs' standard deviation."""


@dataclass(frozen=True, kw_only=True)
class EncoderProof:
    """Result of both experiments on an exported encoder."""

    architecture: str
    """The class that transformers built."""
    schedule: str
    """Text form of the expected schedule."""
    tokens: int
    """Length of the text."""
    keys: int
    """How many of its tokens were changed; each is compared with all queries."""
    shrunk: bool
    """Whether the model was made narrower for the mask experiment."""
    weights: str
    """Weights of the outputs that are compared: ``random``, or ``the folder's own``."""
    layers: tuple[LayerProof, ...]
    asked: Nearness
    nearest: Nearness
    next_nearest: Nearness
    tried: int
    """How many schedules were compared."""

    @property
    def problem(self) -> str | None:
        """The first difference, in one line; None if everything agrees."""
        near = self.nearest
        ran = f"{self.architecture} ran {near.name} ('{near.schedule}')" if near.error <= TOLERANCE else None
        wrong = [layer for layer in self.layers if not layer.proven]
        if wrong:
            others = f" (and layers {', '.join(str(layer.layer) for layer in wrong[1:])})" if wrong[1:] else ""
            return f"{wrong[0].example}{others}{f': {ran}' if ran and near.name != self.asked.name else ''}"
        if ran and near.name != self.asked.name:
            return f"{ran}, not the schedule asked for"
        if self.asked.error > TOLERANCE:
            return f"its outputs differ by {self.asked.error:.2g} from those of its own modules under these masks"
        if not self.told_apart:
            return f"'{self.next_nearest.name}' is as near: these weights do not tell them apart"
        return None

    @property
    def told_apart(self) -> bool:
        """False if the schedule asked for is the nearest, and another is as near."""
        return self.nearest.name != self.asked.name or self.asked.error * MARGIN <= self.next_nearest.error

    @property
    def proven(self) -> bool:
        """True if the encoder ran the schedule asked for."""
        return self.problem is None

    def to_dict(self) -> dict[str, Any]:
        """Return plain data, as ``--json`` prints it."""
        return dataclasses.asdict(self) | {"proven": self.proven, "problem": self.problem}


def candidates(asked: Schedule, tokens: int, written: Schedule | None = None) -> Iterator[tuple[str, Schedule]]:
    """Yield names and schedules that an encoder may run instead of ``asked``, which comes first.

    They are the one that is ``written`` in a configuration, one key less and one more on each side, all-full, every
    layer sparse, each layer flipped, and one global token less and one more. Those that see the same in a text of
    ``tokens`` tokens are left out.
    """
    sparse = next((span for span in asked if not span.is_full), Span(kind="window", size=max(1, tokens // 4)))

    def resized(by: int) -> Schedule:
        return Schedule(tuple(s if s.size is None else replace(s, size=max(1, s.size + by)) for s in asked))

    def regarded(by: int) -> Schedule:
        return Schedule(
            tuple(s if s.size is None else replace(s, global_first=max(0, s.global_first + by)) for s in asked)
        )

    others = [
        ("one key less on each side", resized(-1)),
        ("one key more on each side", resized(1)),
        ("all-full", Schedule((FULL,) * len(asked))),
        ("every layer sparse", Schedule((sparse,) * len(asked))),
    ]
    if written is not None:
        others.insert(0, ("as config.json says", written))
    if any(span.global_first for span in asked):
        others += [("one global token less", regarded(-1)), ("one global token more", regarded(1))]
    for layer, span in enumerate(asked):
        other = sparse if span.is_full else FULL
        flipped = Schedule(tuple(other if at == layer else one for at, one in enumerate(asked)))
        others.append((f"layer {layer} as {other}", flipped))

    def seen(schedule: Schedule) -> tuple[Span, ...]:
        return tuple(FULL if span.covers(tokens, bidirectional=True) else span for span in schedule)

    met = {seen(asked)}
    yield "as asked", asked
    for name, schedule in others:
        if seen(schedule) not in met:
            met.add(seen(schedule))
            yield name, schedule


def verify_encoder(folder: Folder, *, attention: str | None = None, seed: int = 0) -> EncoderProof:
    """Compare the encoder that transformers makes of an exported folder with its schedule.

    Args:
        folder: with ``config.json`` of one of `ENCODERS`.
        attention: transformers' name of an attention implementation; None: its default.
        seed: of random weights and of the text.

    Raises:
        LayersearchError: if the folder cannot be loaded. An encoder that differs from the schedule is no error: its
            `EncoderProof` is not ``proven``.
    """
    family, schedule = ENCODERS[str(folder.config["model_type"])], folder.schedule
    config = _config(folder, family)
    sizes = encoder_sizes(config, family)
    if sizes.n_layers != len(schedule):
        raise ExportError(
            f"{folder.path}: the schedule has {len(schedule)} layers, the encoder in config.json {sizes.n_layers}; "
            "give the schedule of this model"
        )
    tokens, padded = _text_length(family, config, schedule)
    schedule.check(seq_len=max(tokens, sizes.positions or 0), bidirectional=True)
    small, shrunk = _shrunk(config, family)
    written = _with_globals(encoder_schedule(config, family, str(folder.path / "config.json")), schedule)
    model = _Encoder(family, _build(small, folder, family, attention, seed), tokens)
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
            joins=family.joins,
            bidirectional=True,
        )
        weights = "random"
        if folder.weights and folder.weight_bytes <= MAX_WEIGHT_BYTES:
            weights = "the folder's own"
            own = _Encoder(family, _load(folder, attention), tokens)
            found = _compare(own, schedule, written, seed)
            if not found[0].error * MARGIN <= found[2].error and found[1].name == found[0].name:
                weights, found = "random", _compare(model, schedule, written, seed)
        else:
            found = _compare(model, schedule, written, seed)
    asked, nearest, following, tried = found
    return EncoderProof(
        architecture=type(model.whole).__name__,
        schedule=str(schedule),
        tokens=tokens,
        keys=len(changed_keys(schedule, tokens)),
        shrunk=shrunk,
        weights=weights,
        layers=tuple(masks),
        asked=asked,
        nearest=nearest,
        next_nearest=following,
        tried=tried,
    )


def _config(folder: Folder, family: EncoderFamily) -> Any:
    from layersearch.export.encoders.reading import read_encoder_config

    return read_encoder_config(folder.config, family, str(folder.path / "config.json"))


def text_length(edges: Sequence[int], longest: int | None) -> int:
    """Return the tokens of a text that is longer than distances ``edges``, and no longer than ``longest``.

    Raises:
        ExportError: that is too long to test.
    """
    tokens = max([MIN_TOKENS] + [edge + 1 + max(4, min(64, edge // 2)) for edge in edges])
    tokens = min(tokens, longest or tokens)
    if tokens > MOST_TOKENS:
        raise ExportError(f"the spans need a text of {tokens} tokens; more than {MOST_TOKENS} are not tested")
    return tokens


def _with_globals(written: Schedule, asked: Schedule) -> Schedule:
    """Return a configuration's schedule with the global tokens of the calls that test another."""
    first = max(span.global_first for span in asked)
    return Schedule(tuple(span if span.is_full else replace(span, global_first=first) for span in written))


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
    edges += [span.global_first for span in schedule]
    if longest is not None and schedule.n_full and family.form in ("list", "one"):
        edges.append(longest)
    tokens = text_length(edges, longest)
    largest = max(sides, default=0) * family.factor if family.pads else 0
    return tokens, -(-tokens // largest) * largest if largest else tokens


def _shrunk(config: Any, family: EncoderFamily) -> tuple[Any, bool]:
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


def _build(config: Any, folder: Folder, family: EncoderFamily, attention: str | None, seed: int) -> Any:
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


def _load(folder: Folder, attention: str | None) -> Any:
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


class _Encoder:
    """A model whose encoder is called alone."""

    def __init__(self, family: EncoderFamily, whole: Any, tokens: int) -> None:
        self.family, self.whole, self.tokens = family, whole, tokens
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
        if self.family.takes_globals and first:
            inputs["global_attention_mask"] = (torch.arange(ids.shape[1]) < first).long().expand_as(ids)
        with quiet():
            found: Tensor = self.stack(**inputs).last_hidden_state
        return found.float()


def _compare(
    model: _Encoder, schedule: Schedule, written: Schedule, seed: int
) -> tuple[Nearness, Nearness, Nearness, int]:
    """Return how near the schedule asked for is, the nearest two, and how many were compared."""
    vocab = model.whole.get_input_embeddings().weight.shape[0]
    pad = getattr(model.family.encoder_part(model.whole.config), "pad_token_id", None)
    ids = torch.randint(vocab, (1, model.tokens), generator=torch.Generator().manual_seed(seed))
    ids[ids == pad] = model.token
    found = model.run(ids, schedule)
    matches = []
    for name, other in candidates(schedule, model.tokens, written):
        with dense_layers(model.family, model.layers, other, model.tokens):
            wanted = model.run(ids, other)
        error = float(((found - wanted).abs().max() / wanted.std()).nan_to_num(torch.inf))
        matches.append(Nearness(name=name, schedule=str(other), error=error))
    nearest, following = sorted(matches, key=lambda match: match.error)[:2]
    return matches[0], nearest, following, len(matches)
