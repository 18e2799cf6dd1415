"""Whole encoders of transformers with random weights and padded batches: our attention in them gives their outputs.

Each text of a batch runs at its own length in ours: padding is what the library adds and hides by its own rules.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from layersearch.model.attention.dispatch import attend
from layersearch.schedule import Span
from tests.helpers.encoders import biased, by_head, joined, random_weights

LENGTHS = (45, 38)
"""Tokens of the two texts; neither is a multiple of a window or block."""
FULL = Span.parse("full")


def batch(vocab: int, pad: int = 0) -> tuple[Tensor, Tensor]:
    """Return token ids and the attention mask of the two texts."""
    tokens = torch.randint(5, vocab, (2, max(LENGTHS)), generator=torch.Generator().manual_seed(1))
    mask = (torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]).long()
    return tokens.where(mask.bool(), pad), mask


def by_row(run: Callable[[Tensor, int], Tensor], x: Tensor, real: Tensor) -> Tensor:
    """Run attention on the real tokens (B, T) of each row of x (B, T, C); others are 0."""
    out = torch.zeros_like(x)
    for row, here in enumerate(real):
        out[row, here] = run(x[row : row + 1, here], row)[0]
    return out


def longformer(self: Any, hidden_states: Tensor, is_index_masked: Tensor, is_index_global_attn: Tensor) -> Tensor:
    """Return the attention of a layer of Longformer or LED, which has projections of its own for global tokens."""
    heads = self.num_heads

    def run(x: Tensor, row: int) -> Tensor:
        marked = is_index_global_attn[row, ~is_index_masked[row]][None]
        count = int(marked.sum())
        size = self.one_sided_attn_window_size
        span = Span.parse(f"window:{size}" + (f"+global:mask:{count}" if count else ""))
        q, k, v = (by_head(part(x), heads) for part in (self.query, self.key, self.value))
        local = joined(attend(q, k, v, span, bidirectional=True, marked=marked if count else None))
        q, k, v = (by_head(part(x), heads) for part in (self.query_global, self.key_global, self.value_global))
        return torch.where(marked[..., None], joined(attend(q, k, v, FULL, bidirectional=True)), local)

    return by_row(run, hidden_states, ~is_index_masked)


def same(model: Any, patch: pytest.MonkeyPatch, layer: type, ours: Any, mask: Tensor, **given: Any) -> None:
    """Require that a model gives the same with our attention in its layers, where tokens are real."""
    with torch.no_grad():
        wanted = model(attention_mask=mask, **given).last_hidden_state
        ran: list[Any] = []

        def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
            ran.append(self)
            return ours(self, *args, **kwargs)

        patch.setattr(layer, "forward", forward)
        found = model(attention_mask=mask, **given).last_hidden_state
    assert len(ran) >= 2
    if "decoder_input_ids" not in given:
        wanted, found = wanted[mask.bool()], found[mask.bool()]
    assert (found - wanted).abs().max() < 1e-5 < wanted.std()


def test_longformer_with_windows_by_layer_global_tokens_and_padding(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import LongformerConfig, LongformerModel
    from transformers.models.longformer.modeling_longformer import LongformerSelfAttention

    sizes: dict[str, Any] = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 40, "vocab_size": 50}
    config = LongformerConfig(
        **sizes, num_hidden_layers=3, attention_window=[4, 8, 16], max_position_embeddings=80, pad_token_id=1
    )
    model = random_weights(LongformerModel(config, add_pooling_layer=False))
    tokens, mask = batch(50, pad=1)
    marks = torch.zeros_like(tokens)
    marks[0, [0, 7, 44]] = 1  # two texts with different numbers of global tokens
    marks[1, 3] = 1

    def ours(self: Any, hidden_states: Tensor, **kwargs: Any) -> tuple[Tensor]:
        return (longformer(self, hidden_states, kwargs["is_index_masked"], kwargs["is_index_global_attn"]),)

    given = {"input_ids": tokens, "global_attention_mask": marks}
    same(model, monkeypatch, LongformerSelfAttention, ours, mask, **given)


def test_led_with_a_global_first_token_and_padding(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import LEDConfig, LEDModel
    from transformers.models.led.modeling_led import LEDEncoderSelfAttention

    sizes: dict[str, Any] = {"d_model": 32, "encoder_layers": 2, "decoder_layers": 1, "vocab_size": 50}
    heads = {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 40, "decoder_ffn_dim": 40}
    model = random_weights(LEDModel(LEDConfig(**sizes, **heads, attention_window=[4, 8], pad_token_id=1)))
    tokens, mask = batch(50, pad=1)
    first = torch.zeros_like(tokens)
    first[:, 0] = 1
    calls = []

    def ours(self: Any, hidden_states: Tensor, **kwargs: Any) -> tuple[Tensor]:
        calls.append(int(kwargs["is_index_global_attn"].sum()))
        return (longformer(self, hidden_states, kwargs["is_index_masked"], kwargs["is_index_global_attn"]),)

    target = torch.randint(5, 50, (2, 9), generator=torch.Generator().manual_seed(2))
    given = {"input_ids": tokens, "global_attention_mask": first, "decoder_input_ids": target}
    same(model, monkeypatch, LEDEncoderSelfAttention, ours, mask, **given)
    assert calls == [2, 2]


def test_pegasus_x_with_extra_global_tokens_staggered_blocks_and_padding(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import PegasusXConfig, PegasusXModel
    from transformers.models.pegasus_x.modeling_pegasus_x import PegasusXGlobalLocalAttention

    sizes: dict[str, Any] = {"d_model": 32, "encoder_layers": 2, "decoder_layers": 1, "vocab_size": 50}
    heads = {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 40, "decoder_ffn_dim": 40}
    config = PegasusXConfig(**sizes, **heads, block_size=8, num_global_tokens=3, stagger_local_blocks=True)
    model = random_weights(PegasusXModel(config))
    tokens, mask = batch(50)
    before = []

    def ours(
        self: Any, token_hidden_states: Tensor, global_hidden_states: Tensor, attention_mask: Tensor, **_: Any
    ) -> tuple[Tensor, Tensor, None]:
        out, extra = torch.zeros_like(token_hidden_states), torch.zeros_like(global_hidden_states)
        count, size = global_hidden_states.shape[1], self.block_size
        for row, here in enumerate(attention_mask == 0):
            # A staggered layer has half a block of padding first. The extra tokens shift the blocks in turn.
            start = int(here.nonzero()[0])
            before.append(start)
            x = torch.cat((global_hidden_states[row : row + 1], token_hidden_states[row : row + 1, here]), dim=1)
            offset = (start - count) % size
            span = Span.parse(f"block:{size}~{offset}+global:first:{count}")
            q, k, v = (by_head(part(x), self.num_heads) for part in (self.q_proj, self.k_proj, self.v_proj))
            found = self.out_proj(joined(attend(q, k, v, span, bidirectional=True)))
            extra[row], out[row, here] = found[0, :count], found[0, count:]
        return out, extra, None

    target = torch.randint(5, 50, (2, 9), generator=torch.Generator().manual_seed(2))
    given = {"input_ids": tokens, "decoder_input_ids": target}
    same(model, monkeypatch, PegasusXGlobalLocalAttention, ours, mask, **given)
    assert before == [0, 0, 4, 4]


def test_bigbird_that_evaluates_with_padding_in_its_last_block(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import BigBirdConfig, BigBirdModel
    from transformers.models.big_bird.modeling_big_bird import BigBirdBlockSparseAttention

    # Blocks of 4 tokens, 12 of them. The last block of the padded batch is global, and padding beyond it would move it.
    sizes: dict[str, Any] = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 40, "vocab_size": 50}
    config = BigBirdConfig(**sizes, num_hidden_layers=2, block_size=4, num_random_blocks=2, max_position_embeddings=60)
    model = random_weights(BigBirdModel(config, add_pooling_layer=False))
    tokens = torch.randint(5, 50, (2, 47), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(tokens)
    mask[1, 45:] = 0

    def ours(self: Any, hidden_states: Tensor, band_mask: Any, from_mask: Any, to_mask: Tensor, *_: Any, **__: Any):
        def run(x: Tensor, row: int) -> Tensor:
            heads, n = self.num_attention_heads, x.shape[1]
            q, k, v = (by_head(part(x), heads) for part in (self.query, self.key, self.value))
            bias = torch.zeros(heads, n, n, dtype=x.dtype)
            bias[:, 4 : (n - 1) // 4 * 4, :4] = math.log(3)  # two random blocks, both of them the first
            return joined(biased(q, k, v, bias, Span.parse("bigbird:4/0"), (x.shape[2] // heads) ** -0.5))

        return by_row(run, hidden_states, to_mask[:, 0, 0] > 0), None

    same(model, monkeypatch, BigBirdBlockSparseAttention, ours, mask, input_ids=tokens)


def test_longt5_with_summaries_and_padding(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import LongT5Config, LongT5EncoderModel
    from transformers.models.longt5.modeling_longt5 import LongT5TransientGlobalAttention

    sizes: dict[str, Any] = {"d_model": 32, "d_kv": 8, "num_heads": 4, "d_ff": 40, "num_layers": 2, "vocab_size": 50}
    config = LongT5Config(
        **sizes, local_radius=3, global_block_size=5, dropout_rate=0.0, encoder_attention_type="transient-global"
    )
    model = random_weights(LongT5EncoderModel(config))
    tables = model.encoder.block[0].layer[0].TransientGlobalSelfAttention
    tokens, mask = batch(50)

    def ours(self: Any, hidden_states: Tensor, mask: Tensor, **_: Any) -> tuple[Tensor, Tensor]:
        def bias_of(table: Any, distance: Tensor) -> Tensor:
            return table(self._relative_position_bucket(distance, True, 32, 128)).permute(2, 0, 1)

        def run(x: Tensor, row: int) -> Tensor:
            n, at = x.shape[1], torch.arange(x.shape[1])
            count = n // 5
            block = (at // 5).clamp(max=count - 1)
            q, k, v = (by_head(part(x), 4) for part in (self.q, self.k, self.v))
            sums = torch.zeros(1, count, 32, dtype=x.dtype).index_add(1, block, x)
            sums = self.global_input_layer_norm(sums)
            more = by_head(self.k(sums), 4), by_head(self.v(sums), 4)
            near = bias_of(tables.relative_attention_bias, at[None] - at[:, None])
            side = bias_of(tables.global_relative_attention_bias, torch.arange(count)[None] - block[:, None])
            bias = torch.cat((near, side), -1)
            return self.o(joined(biased(q, k, v, bias, Span.parse("window:3+summary:5"), 1.0, more)))

        return by_row(run, hidden_states, mask > 0), torch.zeros(1)

    same(model, monkeypatch, LongT5TransientGlobalAttention, ours, mask, input_ids=tokens)
