"""Transformer-XL's recurrence (1901.02860, section 3.2): a decoder that reads a text segment by segment.

Each layer sees its segment and the last M inputs of the same layer from before it, M by layer. These are projected with
the current weights; gradients stop at them.

Shape legend: B batch, S tokens of a segment, M tokens of a memory, C model width, H query heads, G key-value heads, D
head width.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from layersearch.config.model import ModelConfig
from layersearch.model.decoder import Attention, Decoder, Layer, mean_over_scored, rotary_table, rotate, token_losses
from layersearch.schedule import Schedule

KERNEL = "segment-sdpa"
"""Name of its attention in records."""


class Recurrent(Decoder):
    """A `Decoder` that keeps memories: from call to call while it trains, within a call while it evaluates.

    Args:
        config: the model's size.
        vocab_size: number of token ids.
        schedule: one span per layer.
        segment: tokens of a segment.
        memories: tokens of each layer's memory, as `Work.memory` gives them.
    """

    stop_gradients = True
    """Whether gradients stop at memories; False: they pass, within a call."""

    def __init__(
        self, config: ModelConfig, vocab_size: int, schedule: Schedule, *, segment: int, memories: tuple[int, ...]
    ) -> None:
        super().__init__(config, vocab_size, schedule)
        self.segment, self.memories = segment, memories
        del self.recomputes  # its layers keep what their memories need
        self.states: list[Tensor] = []
        """The memory of each layer, (B, up to M, C); empty before the first call."""

    def stream(self, tokens: Tensor, marked: Tensor | None = None) -> Tensor:  # (B, T) -> (B, T, C)
        """Return the residual stream after the last layer. In training, its memories go on from the last call's."""
        states = list(self.states) if self.training else []
        found = []
        for first in range(0, tokens.shape[1], self.segment):
            x, states = self._read(tokens[:, first : first + self.segment], states)
            found.append(x)
        if self.training:
            self.states = [state.detach() for state in states]
        return torch.cat(found, dim=1)

    def _read(self, tokens: Tensor, states: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Return the residual stream of one segment (B, S, C), and the memories after it."""
        x, kept = self.embed_tokens(tokens), []
        longest = max([state.shape[1] for state in states], default=0) + tokens.shape[1]
        cos, sin = rotary_table(longest, self.config.head_dim, self.config.rope_theta, tokens.device)
        if torch.is_autocast_enabled(tokens.device.type):
            kind = torch.get_autocast_dtype(tokens.device.type)
            cos, sin = cos.to(kind), sin.to(kind)
        for at, (layer, size) in enumerate(zip(cast(list[Layer], list(self.layers)), self.memories, strict=True)):
            held = torch.cat((states[at], x), dim=1) if states else x
            memory = held[:, max(0, held.shape[1] - size) :] if size else held[:, :0]
            kept.append(memory.detach() if self.stop_gradients else memory)
            out = attend_segment(layer.self_attn, layer.input_layernorm(x), layer.input_layernorm(held), cos, sin)
            x = layer.after(x, out)
        return x, kept

    def forward(
        self, tokens: Tensor, targets: Tensor, reduce: bool = True, marked: Tensor | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Return the cross-entropy of the targets in nats, as `Decoder.forward`; a text is whole segments."""
        logits = self.lm_head(self.norm(self.stream(tokens))).float()
        losses = token_losses(logits, targets)
        if reduce:
            return mean_over_scored(losses, targets)
        return losses, logits.argmax(-1) == targets


def attend_segment(attention: Attention, x: Tensor, held: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Return attention (B, H, S, D) of a segment's inputs x (B, S, C) over ``held``, a memory and x, (B, M + S, C).

    ``cos`` and ``sin`` hold M + S positions or more: relative positions are all that rotation tells.
    """
    batch, tokens, _ = x.shape
    keys = held.shape[1]
    q = F.linear(x, attention.q_proj.weight).view(batch, tokens, -1, attention.head_dim)
    weight = torch.cat((attention.k_proj.weight, attention.v_proj.weight))
    k, v = F.linear(held, weight).view(batch, keys, -1, attention.head_dim).chunk(2, dim=2)
    q = rotate(attention.q_norm(q), cos[keys - tokens : keys], sin[keys - tokens : keys])
    k = rotate(attention.k_norm(k), cos[:keys], sin[:keys])
    group = attention.n_heads // attention.n_kv_heads
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
    seen = torch.ones(tokens, keys, dtype=torch.bool, device=x.device).tril(keys - tokens)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=seen)
