"""Encoders of transformers with random weights: attention over our spans gives their outputs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, ModernBertConfig, ModernBertModel

from layersearch.model.attention.dispatch import attend
from layersearch.schedule import Schedule, Span


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
