"""The proxy model with two stacks: an encoder reads the source, a decoder writes the target (T5, 1910.10683).

Blocks are those of `layersearch.model.decoder`. A decoder's layer also attends to the encoder's output, without
positions. The stacks share their embeddings.

Shape legend: B batch, S source tokens, T target tokens, C model width, H query heads, G key-value heads, D head width.
"""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from layersearch.config.model import ModelConfig
from layersearch.data.source import IGNORE, TOLD
from layersearch.model.attention.dispatch import attend
from layersearch.model.decoder import Attention, Decoder, Layer, RMSNorm, mean_over_scored, rotary_table, token_losses
from layersearch.schedule import Schedule, Span
from layersearch.schedule.span import FULL
from layersearch.schedule.work import stacks


class CrossLayer(Layer):
    """A decoder's layer: attention over its span, then over the encoder's output, then feed-forward."""

    def __init__(self, config: ModelConfig, span: Span) -> None:
        super().__init__(config, span)
        self.post_self_attn_layernorm = RMSNorm(config.d_model)
        self.cross_attn = Attention(config, FULL)

    def cross(self, x: Tensor, source: Tensor) -> Tensor:  # (B, T, C), (B, S, C) -> (B, T, C)
        """Return the residual stream after attention over the encoder's output."""
        part = self.cross_attn
        batch, width = len(x), part.head_dim
        q = F.linear(self.post_self_attn_layernorm(x), part.q_proj.weight).view(batch, x.shape[1], -1, width)
        weight = torch.cat((part.k_proj.weight, part.v_proj.weight))
        k, v = F.linear(source, weight).view(batch, source.shape[1], -1, width).chunk(2, dim=2)
        q, k, v = part.q_norm(q).transpose(1, 2), part.k_norm(k).transpose(1, 2), v.transpose(1, 2)
        group = part.n_heads // part.n_kv_heads
        k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
        out = F.scaled_dot_product_attention(q, k, v)
        return x + part.o_proj(out.transpose(1, 2).flatten(2))

    def run(self, x: Tensor, source: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Return the residual stream (B, T, C) after the layer; ``source`` is (B, S, C)."""
        q, k, v = self.before(x, cos, sin)
        more = self.summaries(x, cos, sin, False)
        out = attend(q, k, v, self.self_attn.span, summaries=more)
        x = self.cross(x + self.self_attn.o_proj(out.transpose(1, 2).flatten(2)), source)
        return x + self.mlp(self.post_attention_layernorm(x))


class EncoderDecoder(Decoder):
    """An encoder and a decoder.

    Args:
        config: the model's size.
        vocab_size: number of token ids; the last one begins every target.
        schedule: one span per layer of the stack that schedules speak of; the other one has the configuration's.
        compiled: compile the encoder's code between attention calls.
    """

    cross_attends = True
    """Whether torch's own attention in its graph is the cross attention, to be counted as such."""

    def __init__(self, config: ModelConfig, vocab_size: int, schedule: Schedule, compiled: bool = False) -> None:
        encoder, decoder = stacks(config, schedule)
        super().__init__(replace(config, n_layers=len(encoder)), vocab_size, encoder, compiled)
        self.both, self.start = True, vocab_size - 1
        self.encoder_norm = RMSNorm(config.d_model)
        self.decoder_layers = nn.ModuleList(CrossLayer(config, span) for span in decoder)
        self.decoder_layers.apply(self._init_weights)

    def target_stream(self, source: Tensor, targets: Tensor) -> Tensor:  # (B, S), (B, T) -> (B, T, C)
        """Return the residual stream of the target after the last layer, each token before its own is known."""
        held = self.encoder_norm(self.stream(source))
        first = torch.full_like(targets[:, :1], self.start)
        known = torch.where(targets <= TOLD, TOLD - targets, targets.masked_fill(targets == IGNORE, self.start))
        given = torch.cat((first, known[:, :-1]), dim=1)
        x = self.embed_tokens(given)
        cos, sin = rotary_table(given.shape[1], self.config.head_dim, self.config.rope_theta, given.device)
        if not given.is_meta and torch.is_autocast_enabled(given.device.type):
            kind = torch.get_autocast_dtype(given.device.type)
            cos, sin = cos.to(kind), sin.to(kind)
        for layer in cast(list[CrossLayer], list(self.decoder_layers)):
            x = self.kept(layer.run, x, held, cos, sin)
        return x

    def forward(
        self, tokens: Tensor, targets: Tensor, reduce: bool = True, marked: Tensor | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Return the cross-entropy of the targets in nats, as `Decoder.forward`.

        ``tokens`` are the source (B, S), ``targets`` what the decoder writes (B, T), or is told (`TOLD`).
        """
        logits = self.lm_head(self.norm(self.target_stream(tokens, targets))).float()
        targets = targets.clamp_min(IGNORE)
        losses = token_losses(logits, targets)
        if reduce:
            return mean_over_scored(losses, targets)
        return losses, logits.argmax(-1) == targets
