"""Compare the logits of `layersearch.model.decoder.Decoder` and of the library's model with the same weights."""

from dataclasses import dataclass
from typing import Any

import torch

from layersearch.config.recipe import ModelConfig
from layersearch.errors import LayersearchError
from layersearch.model.decoder import Decoder
from layersearch.schedule import Schedule
from layersearch.schedule.presets import all_full

TOLERANCE = 1e-4  # largest difference over the logits' norm, in float32
_SCALES = ("embedding_multiplier", "attention_multiplier", "residual_multiplier", "logits_scaling", "logit_scale")
"""Fields of families that use weights of the same names in another way."""


@dataclass(frozen=True, kw_only=True)
class LogitsProof:
    """The library's logits, compared with those of layersearch's decoder."""

    difference: float
    """Norm of the difference over the norm of the decoder's logits."""
    all_full: float
    """The same for the decoder with full attention everywhere: the difference that an ignored schedule would show."""

    @property
    def proven(self) -> bool:
        """True if the two agree."""
        return self.difference < TOLERANCE


@torch.no_grad()
def compare_logits(model: Any, schedule: Schedule, tokens: int) -> LogitsProof | str:
    """Run a random text through both models; return the comparison, or the reason why there is none."""
    text = model.config.get_text_config(decoder=True)
    size = _size(text, model)
    if isinstance(size, str):
        return size
    # Not named_parameters, which lists tied weights once.
    state = {name.removeprefix("model."): tensor for name, tensor in model.state_dict().items()}
    decoders = [Decoder(size, text.vocab_size, each).eval() for each in (schedule, all_full(len(schedule)))]
    shapes = {name: value.shape for name, value in decoders[0].state_dict().items()}
    if shapes != {name: value.shape for name, value in state.items()}:
        return "its weights have other names or shapes than layersearch.model.decoder.Decoder's"
    ids = torch.randint(text.vocab_size, (1, tokens), generator=torch.Generator().manual_seed(2))
    for decoder in decoders:
        decoder.load_state_dict(state)
    wanted, full = (decoder.logits(ids) for decoder in decoders)
    found = model(ids, use_cache=False).logits.float()
    difference, ignored = (float((other - wanted).norm() / wanted.norm()) for other in (found, full))
    return LogitsProof(difference=difference, all_full=ignored)


def _size(text: Any, model: Any) -> ModelConfig | str:
    """Return the decoder's size, or the reason why the decoder is not the same model."""
    rope = getattr(text, "rope_parameters", None) or {}
    if not rope:
        return "it has no RoPE"
    if rope.get("rope_type") != "default" or "rope_theta" not in rope:
        return "its positions are not plain RoPE with one base for all layers"
    if getattr(text, "partial_rotary_factor", None) not in (None, 1.0) or not all(getattr(text, "no_rope_layers", [1])):
        return "not every layer applies RoPE to all dimensions"
    if getattr(text, "hidden_act", None) != "silu":
        return "its feed-forward layers are no SwiGLU"
    if any(hasattr(text, name) for name in _SCALES):
        return "it scales its hidden states or logits"
    heads = text.num_attention_heads
    if (getattr(text, "head_dim", None) or text.hidden_size // heads) * heads != text.hidden_size:
        return "its heads together are not as wide as the hidden states"
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
    except LayersearchError as error:
        return str(error)
