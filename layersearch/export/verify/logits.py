"""Compare the logits of the same weights in `layersearch.model.decoder.Decoder` and in the library's model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from layersearch.config.recipe import ModelConfig
from layersearch.errors import UserError
from layersearch.model.decoder import Decoder
from layersearch.schedule import Schedule

TOLERANCE = 1e-4
"""Largest difference, as a share of the logits' norm, in float32."""
_SCALES = ("embedding_multiplier", "attention_multiplier", "residual_multiplier", "logits_scaling", "logit_scale")
"""Fields of families whose weights bear the same names but are used otherwise."""


@dataclass(frozen=True, kw_only=True)
class LogitsProof:
    """The library's logits against our own decoder's."""

    difference: float
    """Norm of the difference over that of our logits."""
    all_full: float
    """The same between our decoder and itself with full attention everywhere: what an ignored schedule would show."""

    @property
    def proven(self) -> bool:
        """Tell whether the two agree."""
        return self.difference < TOLERANCE


@torch.no_grad()
def compare_logits(model: Any, schedule: Schedule, tokens: int) -> LogitsProof | str:
    """Run a random text through both models.

    Args:
        model: a causal language model of transformers.
        schedule: one span per layer.
        tokens: length of the text.

    Returns:
        The comparison, or why there is none.
    """
    text = model.config.get_text_config(decoder=True)
    size = _size(text, model)
    if isinstance(size, str):
        return size
    # Not named_parameters, which shows tied weights once.
    state = {name.removeprefix("model."): tensor for name, tensor in model.state_dict().items()}
    decoder = Decoder(size, text.vocab_size, schedule).eval()
    ours = decoder.state_dict()
    if {name: value.shape for name, value in ours.items()} != {name: value.shape for name, value in state.items()}:
        return "its weights have other names or shapes than layersearch.model.decoder.Decoder's"
    ids = torch.randint(text.vocab_size, (1, tokens), generator=torch.Generator().manual_seed(2))
    theirs = model(ids, use_cache=False).logits.float()
    wanted = _logits(decoder, state, ids)
    full = _logits(Decoder(size, text.vocab_size, Schedule.parse(f"full*{len(schedule)}")).eval(), state, ids)
    norm = wanted.norm()
    return LogitsProof(difference=float((theirs - wanted).norm() / norm), all_full=float((full - wanted).norm() / norm))


def _logits(decoder: Decoder, state: dict[str, Tensor], ids: Tensor) -> Tensor:
    decoder.load_state_dict(state)
    return decoder.logits(ids)


def _size(text: Any, model: Any) -> ModelConfig | str:
    """Return the decoder's size, or why it would not be the same model."""
    rope = getattr(text, "rope_parameters", None) or {}
    if not rope:
        return "it has no RoPE"
    if rope.get("rope_type") != "default" or "rope_theta" not in rope:
        return "its positions are not plain RoPE of one base for all layers"
    if getattr(text, "partial_rotary_factor", None) not in (None, 1.0) or not all(getattr(text, "no_rope_layers", [1])):
        return "not every layer has RoPE in all of its dimensions"
    if getattr(text, "hidden_act", None) != "silu":
        return "its feed-forward layers are no SwiGLU"
    if any(hasattr(text, name) for name in _SCALES):
        return "it scales its streams"
    heads = text.num_attention_heads
    if (getattr(text, "head_dim", None) or text.hidden_size // heads) * heads != text.hidden_size:
        return "its heads are together not as wide as the stream"
    if getattr(text, "rms_norm_eps", None) != 1e-6:
        return f"rms_norm_eps is {getattr(text, 'rms_norm_eps', None)}, the decoder's 1e-06"
    try:
        return ModelConfig(
            n_layers=text.num_hidden_layers,
            d_model=text.hidden_size,
            n_heads=heads,
            n_kv_heads=getattr(text, "num_key_value_heads", None) or heads,
            d_ff=text.intermediate_size,
            rope_theta=rope["rope_theta"],
            qk_norm=any(name.endswith("self_attn.q_norm.weight") for name, _ in model.named_parameters()),
            tie_embeddings=bool(text.tie_word_embeddings),
        )
    except UserError as error:
        return str(error)
