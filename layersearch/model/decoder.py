"""The proxy model: a Llama-shaped decoder or encoder whose layers differ in their attention span only.

Spans carry no weights, so two schedules of one seed start from the same numbers.

Shape legend: B batch, T tokens, C model width, H query heads, G key-value heads, D head width, V vocabulary.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from layersearch.config.model import ModelConfig
from layersearch.data.source import IGNORE
from layersearch.model.attention.dispatch import attend
from layersearch.schedule import Schedule, Span


class RMSNorm(nn.Module):
    """Root-mean-square normalization (1910.07467, eq. 4)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:  # (..., width) -> (..., width)
        # The weight takes x's precision: under autocast a float32 weight would widen the whole stream.
        return F.rms_norm(x, x.shape[-1:], self.weight.to(x.dtype), eps=1e-6)


def rotary_table(tokens: int, head_dim: int, theta: float, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return cosines and sines of rotary positions (RoFormer, 2104.09864, eq. 15), each (T, D)."""
    rates = theta ** (-torch.arange(0, head_dim, 2, device=device, dtype=torch.float32) / head_dim)  # (D/2)
    angles = torch.outer(torch.arange(tokens, device=device, dtype=torch.float32), rates)  # (T, D/2)
    angles = torch.cat((angles, angles), dim=-1)  # (T, D), halves rotated against each other as in Llama
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:  # (B, T, heads, D), (T, D), (T, D) -> (B, T, heads, D)
    """Rotate each head's halves by their position's angle."""
    first, second = x.chunk(2, dim=-1)
    return x * cos[:, None] + torch.cat((-second, first), dim=-1) * sin[:, None]


class Attention(nn.Module):
    """Grouped-query attention over the keys that ``span`` lets it see."""

    def __init__(self, config: ModelConfig, span: Span) -> None:
        super().__init__()
        self.span = span
        self.n_heads, self.n_kv_heads, self.head_dim = config.n_heads, config.n_kv_heads, config.head_dim
        width, kv_width = self.n_heads * self.head_dim, self.n_kv_heads * self.head_dim
        self.q_proj = nn.Linear(config.d_model, width, bias=False)
        self.k_proj = nn.Linear(config.d_model, kv_width, bias=False)
        self.v_proj = nn.Linear(config.d_model, kv_width, bias=False)
        self.o_proj = nn.Linear(width, config.d_model, bias=False)
        self.q_norm = RMSNorm(self.head_dim) if config.qk_norm else nn.Identity()
        self.k_norm = RMSNorm(self.head_dim) if config.qk_norm else nn.Identity()

    def project(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return rotated queries (B, H, T, D), rotated keys and values (B, G, T, D) of x (B, T, C)."""
        batch, tokens, _ = x.shape
        # One product for all three: a CPU runs narrow products far below its peak.
        weight = torch.cat((self.q_proj.weight, self.k_proj.weight, self.v_proj.weight))
        heads = F.linear(x, weight).view(batch, tokens, -1, self.head_dim)
        q, k, v = heads.split_with_sizes((self.n_heads, self.n_kv_heads, self.n_kv_heads), dim=2)
        q, k = rotate(self.q_norm(q), cos, sin), rotate(self.k_norm(k), cos, sin)
        return q.transpose(1, 2).contiguous(), k.transpose(1, 2).contiguous(), v.transpose(1, 2).contiguous()

    def summarize(self, x: Tensor, cos: Tensor, sin: Tensor, bidirectional: bool) -> tuple[Tensor, Tensor]:
        """Return rotated keys and values (B, G, M, D) of the blocks of x (B, T, C) that the span sums up.

        LongT5 (2112.07916, section 3.1.2): a block's normalized inputs are added up and normalized again, and have the
        projections of tokens. Their positions are the middles of the blocks. In an encoder a rest of the text joins the
        last block. The second norm has no gains, so that spans have no weights.
        """
        batch, tokens, width = x.shape
        size, count = self.span.summary, self.span.summaries(tokens)
        blocks = x[:, : count * size].view(batch, count, size, width).sum(2)
        if bidirectional and tokens % size:
            rest = x[:, count * size :].sum(1, keepdim=True)
            blocks = torch.cat((blocks[:, :-1], blocks[:, -1:] + rest), dim=1)
        weight = torch.cat((self.k_proj.weight, self.v_proj.weight))
        heads = F.linear(F.rms_norm(blocks, (width,), eps=1e-6), weight).view(batch, count, -1, self.head_dim)
        k, v = heads.chunk(2, dim=2)
        places = torch.arange(count, device=x.device) * size + size // 2
        k = rotate(self.k_norm(k), cos[places], sin[places])
        return k.transpose(1, 2).contiguous(), v.transpose(1, 2).contiguous()


class SwiGLU(nn.Module):
    """Gated feed-forward layer (2002.05202, eq. 6)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.d_model, config.d_ff, bias=False)
        self.up_proj = nn.Linear(config.d_model, config.d_ff, bias=False)
        self.down_proj = nn.Linear(config.d_ff, config.d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:  # (B, T, C) -> (B, T, C)
        gate, up = F.linear(x, torch.cat((self.gate_proj.weight, self.up_proj.weight))).chunk(2, dim=-1)
        return self.down_proj(F.silu(gate) * up)


class Layer(nn.Module):
    """One pre-norm decoder layer, in two parts: before attention over the span, and after it."""

    def __init__(self, config: ModelConfig, span: Span) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.d_model)
        self.self_attn = Attention(config, span)
        self.post_attention_layernorm = RMSNorm(config.d_model)
        self.mlp = SwiGLU(config)

    def before(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries (B, H, T, D), keys and values (B, G, T, D) of x (B, T, C)."""
        return self.self_attn.project(self.input_layernorm(x), cos, sin)

    def summaries(self, x: Tensor, cos: Tensor, sin: Tensor, bidirectional: bool) -> tuple[Tensor, Tensor] | None:
        """Return keys and values (B, G, M, D) of the span's summaries of x (B, T, C); None: it has none."""
        if not self.self_attn.span.summaries(x.shape[1]):
            return None
        return self.self_attn.summarize(self.input_layernorm(x), cos, sin, bidirectional)

    def after(self, x: Tensor, out: Tensor) -> Tensor:  # (B, T, C), (B, H, T, D) -> (B, T, C)
        """Return the residual stream after attention's output and the feed-forward layer."""
        x = x + self.self_attn.o_proj(out.transpose(1, 2).flatten(2))
        return x + self.mlp(self.post_attention_layernorm(x))


def token_losses(logits: Tensor, targets: Tensor) -> Tensor:  # (B, T, V), (B, T) -> (B, T)
    """Return each target's cross-entropy in nats, float32, 0 where it is not scored."""
    losses = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORE, reduction="none")
    return losses.view_as(targets)


def mean_over_scored(losses: Tensor, targets: Tensor) -> Tensor:  # (B, T), (B, T) -> ()
    """Return the mean over sequences of each one's mean loss over its scored targets.

    So sequences weigh alike, however few of their tokens are scored. Each must have one, as in all sources.
    """
    return (losses.sum(dim=1) / (targets != IGNORE).sum(dim=1)).mean()


def mean_loss(head: nn.Linear, norm: RMSNorm, x: Tensor, targets: Tensor) -> Tensor:  # (B, T, C), (B, T) -> ()
    """Return the mean cross-entropy of the next tokens in nats, as `mean_over_scored` takes it."""
    return mean_over_scored(token_losses(head(norm(x)).float(), targets), targets)


@functools.cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a region once per process. Its weights are inputs, so all layers of all schedules share it."""
    return torch.compile(function, dynamic=False)


class Decoder(nn.Module):
    """The proxy model. Its parameters have the names of Hugging Face's Llama, without the ``model.`` prefix."""

    def __init__(self, config: ModelConfig, vocab_size: int, schedule: Schedule, compiled: bool = False) -> None:
        """Build the model from the current random state.

        ``compiled`` compiles the code between attention calls with torch.compile, once for all schedules.
        """
        super().__init__()
        if len(schedule) != config.n_layers:
            raise ValueError(f"a schedule of {len(schedule)} layers for a model of {config.n_layers}")
        self.config, self.compiled, self.softcap, self.sinks = config, compiled, 0.0, False
        self.both = config.bidirectional
        """Whether tokens see later ones."""
        self.recomputes = False
        """Whether layers keep their inputs only, and compute the rest again in the backward pass."""
        self.embed_tokens = nn.Embedding(vocab_size, config.d_model)
        self.layers = nn.ModuleList(Layer(config, span) for span in schedule)
        self.norm = RMSNorm(config.d_model)
        self.lm_head = nn.Linear(config.d_model, vocab_size, bias=False)
        if config.tie_embeddings:
            self.lm_head.weight = self.embed_tokens.weight
        self.apply(self._init_weights)

    def set_schedule(self, schedule: Schedule) -> None:
        """Let each layer attend over another span; weights stay."""
        for layer, span in zip(cast(list[Layer], list(self.layers)), schedule, strict=True):
            layer.self_attn.span = span

    def _init_weights(self, module: nn.Module) -> None:
        """Draw the weights; those that write to the residual stream are smaller by sqrt(2L), as in GPT-2."""
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=self._init_std(module))
        if isinstance(module, Attention | SwiGLU):
            writer = module.o_proj if isinstance(module, Attention) else module.down_proj
            nn.init.normal_(writer.weight, std=self._init_std(writer) / math.sqrt(2 * self.config.n_layers))

    def _init_std(self, module: nn.Linear | nn.Embedding) -> float:
        if self.config.init == "gpt2":
            return 0.02
        return 1.0 if isinstance(module, nn.Embedding) else module.in_features**-0.5

    def stream(self, tokens: Tensor, marked: Tensor | None = None) -> Tensor:  # (B, T), (B, T) -> (B, T, C)
        """Return the residual stream after the last layer; ``marked`` as in `forward`."""
        both = self.both
        before, after = map(_compiled, (Layer.before, Layer.after)) if self.compiled else (Layer.before, Layer.after)
        x = self.embed_tokens(tokens)
        cos, sin = rotary_table(tokens.shape[1], self.config.head_dim, self.config.rope_theta, tokens.device)
        if not tokens.is_meta and torch.is_autocast_enabled(tokens.device.type):  # meta has no autocast
            # The residual stream stays float32. The tables are cast once, so rotation stays in q's precision.
            kind = torch.get_autocast_dtype(tokens.device.type)
            cos, sin = cos.to(kind), sin.to(kind)

        def run(layer: Layer, x: Tensor) -> Tensor:
            q, k, v = before(layer, x, cos, sin)
            span, more = layer.self_attn.span, layer.summaries(x, cos, sin, both)
            own = marked if span.global_marked else None
            out: Tensor = after(layer, x, attend(q, k, v, span, bidirectional=both, summaries=more, marked=own))
            return out

        for layer in cast(list[Layer], list(self.layers)):
            x = self.kept(run, layer, x)
        return x

    def kept(self, run: Callable[..., Tensor], *given: Any) -> Tensor:
        """Return ``run(*given)``; where the model `recomputes`, all that it made is freed until the backward pass."""
        if self.recomputes and self.training and torch.is_grad_enabled():
            made: Tensor = checkpoint(run, *given, use_reentrant=False, preserve_rng_state=False)
            return made
        return run(*given)

    def logits(self, tokens: Tensor) -> Tensor:  # (B, T) -> (B, T, V)
        """Return the scores of every next token."""
        return self.lm_head(self.norm(self.stream(tokens)))

    def forward(
        self, tokens: Tensor, targets: Tensor, reduce: bool = True, marked: Tensor | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Return the cross-entropy of the targets in nats.

        Args:
            tokens: (B, T) token ids.
            targets: (B, T) token ids to predict after each token, or in its place by an encoder; `IGNORE` where not
                scored.
            reduce: True returns the mean over scored targets, (). False returns each target's loss, 0 where not scored,
                and whether it was predicted, both (B, T).
            marked: (B, T), the tokens that the task marks for spans of ``+global:mask``; None: the first ones.
        """
        x = self.stream(tokens, marked)
        if reduce:
            return (_compiled(mean_loss) if self.compiled else mean_loss)(self.lm_head, self.norm, x, targets)
        logits = self.lm_head(self.norm(x)).float()
        return token_losses(logits, targets), logits.argmax(-1) == targets
