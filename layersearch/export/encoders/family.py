"""Stock encoders: the configuration fields through which each one obeys a schedule.

Read from, and verified with, transformers 5.23 (`layersearch verify-export`). A span ``window:W`` of an encoder sees W
keys on each side and the token itself. Each family writes that number in its own way: see `EncoderFamily.factor`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from layersearch.errors import ExportError, did_you_mean
from layersearch.export.families import FAMILIES

if TYPE_CHECKING:
    from torch.nn import Module
    from transformers import PreTrainedConfig

SUMMED = "transient-global"
"""LongT5's ``encoder_attention_type`` with summaries; without, it is ``local``."""


@dataclass(frozen=True, kw_only=True)
class EncoderFamily:
    """How one encoder's ``config.json`` holds a schedule."""

    model_type: str
    form: Literal["types", "list", "one", "none"]
    """``types``: a word per layer and one size. ``list``: a size per layer. ``one``: one size for all layers. ``none``:
    every layer is full."""
    size: str | None = None
    """The field of the size, or of the sizes."""
    factor: int = 1
    """The number written for ``window:W``, over W. Longformer, LED and ModernBERT count both sides: 2. LongT5's radius
    and the window of T5Gemma's encoder count one: 1."""
    summary: str | None = None
    """The field of the tokens of a summary (``encoder_attention_type: transient-global``); None: it has none."""
    takes_globals: bool = False
    """Whether a call may name tokens that see all and are seen by all; the configuration names none."""
    pads: bool = False
    """Whether a text is padded to a multiple of the largest size, which every other size must divide."""
    pads_positions: bool = False
    """Whether padding takes positions of the model."""
    part: str | None = None
    """The part of the configuration that is the encoder's; None: all of it."""
    decoder: bool = False
    """Whether the model has a decoder too."""
    decoder_windows: bool = False
    """Whether the decoder's layers may have a window; those of the other families are full."""
    gqa: bool = False
    """Whether there may be fewer key-value heads than query heads."""
    own_head_width: bool = False
    """Whether a head may have another width than the model's, over the number of heads."""
    rope_by_type: bool = False
    """Whether each layer type has RoPE parameters of its own."""
    layers: str = "layers"
    """Where the encoder keeps its layers."""
    attention: str = "self_attn"
    """Where a layer keeps its attention."""
    joins: str = "o_proj"
    """Where a layer keeps the projection that joins the heads."""

    @property
    def name(self) -> str:
        """The name for ``--family``."""
        return self.model_type

    @property
    def config_class(self) -> type[PreTrainedConfig]:
        """The configuration class in transformers."""
        from transformers import CONFIG_MAPPING

        return CONFIG_MAPPING[self.model_type]

    @property
    def model_class(self) -> Any:
        """The class of the model without a head in transformers."""
        from transformers import MODEL_MAPPING

        return MODEL_MAPPING[self.config_class]

    @property
    def architecture(self) -> str:
        """Name of `model_class`."""
        return str(self.model_class.__name__)

    def encoder_part(self, config: Any) -> Any:
        """Return the encoder's part of a configuration object."""
        return config if self.part is None else getattr(config, self.part)

    @property
    def attention_paths(self) -> tuple[str, ...]:
        """Where a layer may keep its attention: LongT5's names its type."""
        return self.attention, self.attention.replace("LocalSelf", "TransientGlobalSelf")

    def attention_of(self, layer: Module) -> str:
        """Return where a layer keeps its attention."""
        held = {name for name, _ in layer.named_modules()}
        return next(path for path in self.attention_paths if path in held)

    def joins_of(self, layer: Module) -> str:
        """Return where a layer keeps the projection that joins the heads."""
        return self.joins.replace(self.attention, self.attention_of(layer))

    def positions(self, config: Any) -> int | None:
        """Return the longest text in tokens that a configuration allows; None: it names none."""
        own = self.encoder_part(config)
        if self.model_type == "longformer":  # positions begin after the padding's
            return int(own.max_position_embeddings) - int(own.pad_token_id or 0) - 1
        names = ("max_encoder_position_embeddings", "max_position_embeddings", "n_positions")
        held = next((value for name in names if isinstance(value := getattr(own, name, None), int)), None)
        return None if held is None else int(held)


_FAMILIES = (
    EncoderFamily(
        model_type="modernbert",
        form="types",
        size="local_attention",
        factor=2,
        rope_by_type=True,
        attention="attn",
        joins="attn.Wo",
    ),
    EncoderFamily(
        model_type="longformer",
        form="list",
        size="attention_window",
        factor=2,
        takes_globals=True,
        pads=True,
        layers="encoder.layer",
        attention="attention.self",
        joins="attention.output.dense",
    ),
    EncoderFamily(
        model_type="led",
        form="list",
        size="attention_window",
        factor=2,
        takes_globals=True,
        pads=True,
        pads_positions=True,
        decoder=True,
        attention="self_attn.longformer_self_attn",
        joins="self_attn.output",
    ),
    EncoderFamily(
        model_type="longt5",
        form="one",
        size="local_radius",
        summary="global_block_size",
        decoder=True,
        own_head_width=True,
        layers="block",
        attention="layer.0.LocalSelfAttention",
        joins="layer.0.LocalSelfAttention.o",
    ),
    EncoderFamily(
        model_type="t5gemma",
        form="types",
        size="sliding_window",
        part="encoder",
        decoder=True,
        decoder_windows=True,
        gqa=True,
        own_head_width=True,
        joins="self_attn.o_proj",
    ),
    EncoderFamily(
        model_type="bert",
        form="none",
        layers="encoder.layer",
        attention="attention.self",
        joins="attention.output.dense",
    ),
)
ENCODERS = {family.name: family for family in _FAMILIES}
"""Every encoder family by its name for ``--family``."""
WORDS = {"full": "full_attention", "window": "sliding_attention"}
"""The word of a layer where the form is ``types``."""


def default_encoder(two_stacks: bool = False) -> EncoderFamily:
    """Return the family of an encoder, or of an encoder-decoder, for ``--to hf`` where none is named."""
    return ENCODERS["t5gemma" if two_stacks else "modernbert"]


def find_encoder(name: str) -> EncoderFamily:
    """Return the family that ``--family`` names for an encoder, or refuse a decoder's and an unknown name."""
    if name in ENCODERS:
        return ENCODERS[name]
    if name in FAMILIES:
        raise ExportError(f"--family {name} is a decoder's, and the model is an encoder; give {', '.join(ENCODERS)}")
    raise ExportError(f"--family {name!r} is not known{did_you_mean(name, ENCODERS)}")


def is_encoder_file(values: Mapping[str, Any]) -> bool:
    """Return whether a ``config.json`` is of one of `ENCODERS`."""
    return str(values.get("model_type")) in ENCODERS
