"""Encoders of transformers with random weights: attention over our spans gives their outputs."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface, ModernBertConfig, ModernBertModel

from layersearch.model.attention.dispatch import attend
from layersearch.model.attention.reference import span_mask
from layersearch.schedule import Schedule, Span
from layersearch.schedule.span_keys import random_block
from tests.helpers.encoders import biased, by_head, joined, random_weights


@pytest.fixture
def bigbird() -> tuple[Any, Tensor, Any]:
    """Return a BigBird layer with 12 blocks of 4 tokens and 2 random blocks, its input, and how to run it."""
    from transformers.models.big_bird.configuration_big_bird import BigBirdConfig
    from transformers.models.big_bird.modeling_big_bird import BigBirdBlockSparseAttention, BigBirdModel

    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden_size": 32, "num_attention_heads": 4, "max_position_embeddings": 48}
    config = BigBirdConfig(**sizes, block_size=4, num_random_blocks=2, attention_probs_dropout_prob=0.0)
    layer = random_weights(BigBirdBlockSparseAttention(config, seed=3))
    blocked, band, rows, columns = BigBirdModel.create_masks_for_block_sparse_attn(torch.ones(2, 48).double(), 4)
    masks = {"band_mask": band, "from_mask": rows, "to_mask": columns}
    masks |= {"from_blocked_mask": blocked, "to_blocked_mask": blocked}
    return layer, torch.randn(2, 48, 32).double(), lambda x: layer(x, **masks)[0]


@torch.no_grad()
def test_bigbird_that_evaluates_sees_its_first_block_again_in_place_of_random_ones(bigbird: Any) -> None:
    layer, x, run = bigbird
    q, k, v = (by_head(part(x), 4) for part in (layer.query, layer.key, layer.value))
    bias = torch.zeros(4, 48, 48, dtype=q.dtype)
    bias[:, 4:-4, :4] = math.log(3)  # its two random blocks are the first one, which counts three times then
    found = biased(q, k, v, bias, Span.parse("bigbird:4/0"), 8**-0.5)
    assert torch.allclose(joined(found), run(x), atol=1e-10)


@torch.no_grad()
def test_bigbird_that_trains_sees_our_random_blocks_if_it_draws_them(
    bigbird: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer, x, run = bigbird
    q, k, v = (by_head(part(x), 4) for part in (layer.query, layer.key, layer.value))
    layer.train()
    # Its own plan differs by head.
    np.random.seed(3)
    plan = layer._bigbird_block_rand_mask_with_head(48, 48, 4, 4, 4, *layer._get_rand_attn_plan(48, 4, 2))
    seen = span_mask(Span.parse("bigbird:4/0"), 48, 4, bidirectional=True).clone()
    for head in range(4):
        for row in range(1, 11):
            for block in plan[head][row - 1]:
                seen[head, 4 * row : 4 * row + 4, 4 * block : 4 * block + 4] = True
    hidden = torch.zeros(4, 48, 48, dtype=q.dtype).masked_fill_(~seen, -torch.inf)
    wanted = F.scaled_dot_product_attention(q, k, v, attn_mask=hidden)
    assert torch.allclose(joined(wanted), run(x), atol=1e-10)

    span = Span.parse("bigbird:4/2/7")
    ours = np.array([[random_block(span, row, at, 11) for at in range(2)] for row in range(1, 11)])
    monkeypatch.setattr(layer, "_bigbird_block_rand_mask_with_head", lambda *_, **__: np.stack([ours] * 4))
    assert torch.allclose(joined(attend(q, k, v, span, bidirectional=True)), run(x), atol=1e-10)


@pytest.mark.parametrize("tokens", [32, 37])
@pytest.mark.parametrize("summary", [0, 5])
@torch.no_grad()
def test_window_and_summaries_equal_longt5s(tokens: int, summary: int) -> None:
    from transformers.models.longt5 import modeling_longt5 as theirs
    from transformers.models.longt5.configuration_longt5 import LongT5Config

    torch.manual_seed(0)
    config = LongT5Config(d_model=32, d_kv=8, num_heads=4, local_radius=3, global_block_size=5, dropout_rate=0.0)
    kind = theirs.LongT5TransientGlobalAttention if summary else theirs.LongT5LocalAttention
    layer = random_weights(kind(config, has_relative_attention_bias=True))
    x, at, mask = torch.randn(2, tokens, 32).double(), torch.arange(tokens), torch.ones(2, tokens)
    wanted = layer(x, mask=mask if summary else theirs._get_local_attention_mask(mask, 4, x.device))[0]

    def bias_of(table: Any, distance: Tensor) -> Tensor:
        return table(layer._relative_position_bucket(distance, True, 32, 128)).permute(2, 0, 1)

    q, k, v = (by_head(part(x), 4) for part in (layer.q, layer.k, layer.v))
    bias, more, span = bias_of(layer.relative_attention_bias, at[None] - at[:, None]), None, Span.parse("window:3")
    if summary:
        span, count = Span.parse("window:3+summary:5"), tokens // 5
        block = (at // 5).clamp(max=count - 1)
        sums = layer.global_input_layer_norm(torch.zeros(2, count, 32).double().index_add(1, block, x))
        more = by_head(layer.k(sums), 4), by_head(layer.v(sums), 4)
        side = bias_of(layer.global_relative_attention_bias, torch.arange(count)[None] - block[:, None])
        bias = torch.cat((bias, side), -1)
    # Its softmax is in float32.
    found = layer.o(joined(biased(q, k, v, bias, span, 1.0, more)))
    assert torch.allclose(found, wanted, atol=1e-5)


def test_window_and_global_tokens_equal_longformers() -> None:
    from transformers.models.longformer.configuration_longformer import LongformerConfig
    from transformers.models.longformer.modeling_longformer import LongformerSelfAttention

    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 1}
    config = LongformerConfig(**sizes, attention_window=[8], attention_probs_dropout_prob=0.0)
    theirs = LongformerSelfAttention(config, 0).eval()
    # Longformer has projections of its own for global tokens, which it initializes from the others (section 3.1).
    for name in ("query", "key", "value"):
        torch.nn.init.normal_(getattr(theirs, name).weight, std=0.3)
        getattr(theirs, f"{name}_global").load_state_dict(getattr(theirs, name).state_dict())
    x, first = torch.randn(2, 32, 32), 3
    mask = torch.zeros(2, 32)
    mask[:, :first] = 1.0
    with torch.no_grad():
        wanted = theirs(x, mask, is_index_masked=mask < 0, is_index_global_attn=mask > 0, is_global_attn=True)[0]
        q, k, v = (getattr(theirs, name)(x).view(2, 32, 4, 8).transpose(1, 2) for name in ("query", "key", "value"))
        found = attend(q, k, v, Span.parse(f"window:4+global:first:{first}"), bidirectional=True)
    # Their window of 8 is 4 keys on each side.
    assert torch.allclose(found.transpose(1, 2).flatten(2), wanted, atol=1e-5)


def test_schedule_of_an_encoder_equals_modernberts() -> None:
    # Every third layer is full, and 8 tokens of local attention are 4 keys on each side.
    schedule = Schedule.parse("full window:4*2 full")
    sizes: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4}
    more: dict[str, Any] = {"num_hidden_layers": 4, "vocab_size": 61, "local_attention": 8, "pad_token_id": 0}
    more |= {f"{word}_token_id": 1 for word in ("bos", "eos", "cls", "sep")}
    torch.manual_seed(0)
    model = ModernBertModel(ModernBertConfig(**sizes, **more, global_attn_every_n_layers=3)).double().eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    layers = [layer.attn for layer in model.layers]
    ran = []

    def ours(
        module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **_: Any
    ) -> tuple[Tensor, None]:
        span = schedule[layers.index(module)]
        ran.append(span)
        return attend(query, key, value, span, bidirectional=True).transpose(1, 2).contiguous(), None

    tokens = torch.randint(2, 61, (2, 40))
    with torch.no_grad():
        wanted = model(tokens).last_hidden_state
        AttentionInterface.register("layersearch_test", ours)
        model.config._attn_implementation = "layersearch_test"
        found = model(tokens).last_hidden_state
    assert ran == list(schedule)
    assert torch.allclose(found, wanted, atol=1e-5)
    assert (found - wanted).abs().max() < 1e-5 < wanted.std()
