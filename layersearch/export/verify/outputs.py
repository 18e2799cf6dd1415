"""The model's outputs: logits beside those of layersearch's decoder, and texts with and without a KV cache."""

from dataclasses import dataclass, replace
from typing import Any

import torch

from layersearch.config.model import ModelConfig
from layersearch.errors import LayersearchError, one_line
from layersearch.model.decoder import Decoder
from layersearch.model.hf_decoder import quiet
from layersearch.schedule import Schedule
from layersearch.schedule.presets import all_full

LOGITS_TOLERANCE = 1e-4  # largest difference over the logits' norm, in float32
_SCALES = dict.fromkeys(("embedding_multiplier", "residual_multiplier", "logits_scaling", "logit_scale"), 1.0)
"""Fields of families that use weights of the same names in another way, with the value at which they do not."""
_LOGITS = "attention_multiplier"
"""Another such field: it multiplies the attention logits."""
_INERT = -1e3
"""A sink up to this value changes nothing: attention logits are far above it."""


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
        return self.difference < LOGITS_TOLERANCE


@torch.no_grad()
def compare_logits(model: Any, schedule: Schedule, tokens: int) -> LogitsProof | str:
    """Run a random text through both models; return the comparison, or the reason why there is none."""
    text = model.config.get_text_config(decoder=True)
    size = decoder_size(text, model)
    if isinstance(size, str):
        return size
    # Not named_parameters, which lists tied weights once.
    state = {name.removeprefix("model."): tensor for name, tensor in model.state_dict().items()}
    sinks = {name for name in state if name.endswith(".self_attn.sinks")}
    if all(float(state[name].max()) <= _INERT for name in sinks):
        state = {name: tensor for name, tensor in state.items() if name not in sinks}
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


def decoder_size(text: Any, model: Any) -> ModelConfig | str:
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
    heads = text.num_attention_heads
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // heads
    if any(getattr(text, name, plain) != plain for name, plain in (*_SCALES.items(), (_LOGITS, head_dim**-0.5))):
        return "it scales its hidden states or logits"
    if head_dim * heads != text.hidden_size:
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


TEXTS_TOLERANCE = 1e-3  # largest difference of a logit over the logits' standard deviation, in float32
SHORT = 64
"""Texts up to this many tokens are generated from the start; longer ones a few tokens at each span's edge."""
_PROMPT, _FEW = 3, 8


@dataclass(frozen=True, kw_only=True)
class TextProof:
    """Result of ``generate`` with a cache, compared with the one without."""

    tokens: int
    equal: int
    """How many of them are the same with and without a cache."""
    difference: float
    """Largest difference of a logit over the logits' standard deviation, as long as the tokens agree."""
    longest: int
    """Length of the longest text in tokens, including the prompt."""
    error: str | None
    """The error that ended the generation; None: there was none."""

    @property
    def proven(self) -> bool:
        """True if the texts are the same."""
        return self.error is None and self.equal == self.tokens and self.difference < TEXTS_TOLERANCE


def prompts(schedule: Schedule, tokens: int, longest: int) -> list[tuple[int, int]]:
    """Return (prompt length, new tokens) of the texts: across the edge of every span, and after it.

    ``tokens`` is a length that shows every span; ``longest`` is the longest text that the model takes.
    """
    tokens = min(tokens, longest)
    if tokens <= SHORT:
        return [(_PROMPT, tokens - _PROMPT)]
    edges = {(replace(span, summary=0).reach() or 0) + 1 for span in schedule if span.kind == "window"}
    edges |= {times * span.summary for span in schedule if span.summary for times in (1, 2)}
    blocks = [span for span in schedule if span.kind == "block" or span.is_union]
    edges |= {times * (span.size or 0) - span.offset for span in blocks for times in (1, 2, span.random_blocks + 3)}
    edges |= {span.memory + times * (span.size or 0) for span in blocks if span.memory for times in (0, 1)}
    starts = {max(1, start) for edge in edges for start in (edge - _PROMPT, edge + _FEW)} or {tokens - _FEW}
    return [(start, _FEW) for start in sorted(starts) if start + _FEW <= longest]


@torch.no_grad()
def compare_texts(model: Any, schedule: Schedule, *, tokens: int, longest: int) -> TextProof:
    """Generate greedily with and without a cache, and compare tokens and logits; arguments as `prompts`.

    In a short text no token repeats: with random weights greedy texts would repeat one token, and a wrong position
    would read the same value.
    """
    vocab = model.config.get_text_config(decoder=True).vocab_size
    total = equal = reached = 0
    difference, problem = 0.0, None
    for prompt, new in prompts(schedule, tokens, longest):
        ids = torch.randint(vocab, (1, prompt), generator=torch.Generator().manual_seed(3))
        total, reached = total + new, max(reached, prompt + new)
        found = []
        for cached in (False, True):
            try:
                with quiet():
                    found.append(_generate(model, ids, new, cached, no_repeat=prompt + new < vocab))
            except Exception as error:  # the library and the folder's own code raise many kinds
                how = "with" if cached else "without"
                problem = f"generate() {how} a cache raises {type(error).__name__}: {one_line(error)}"
                break
        if problem is not None:
            break
        (plain, plain_logits), (fast, fast_logits) = found
        same = [int(a == b) for a, b in zip(plain, fast, strict=True)]
        agree = same.index(0) + 1 if 0 in same else len(same)
        off = (plain_logits[:agree] - fast_logits[:agree]).abs().max() / plain_logits.std()
        equal, difference = equal + sum(same), max(difference, float(off))
    return TextProof(tokens=total, equal=equal, difference=difference, longest=reached, error=problem)


def _generate(model: Any, ids: torch.Tensor, new: int, cached: bool, no_repeat: bool) -> tuple[list[int], torch.Tensor]:
    """Return the new tokens and their logits (new, V)."""
    made = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        min_new_tokens=new,
        max_new_tokens=new,
        do_sample=False,
        use_cache=cached,
        no_repeat_ngram_size=1 if no_repeat else 0,
        output_logits=True,
        return_dict_in_generate=True,
    )
    return made.sequences[0, ids.shape[1] :].tolist(), torch.cat(made.logits).float()
