"""Attention of compiled proxies over short texts equals the reference, and a layer of them its two parts."""

import pytest
import torch

from layersearch.config.recipe import ModelConfig
from layersearch.model.attention import attend, reference_attention
from layersearch.model.attention.dense import MOST_TOKENS, dense_attention, hidden, serves
from layersearch.model.decoder import Decoder, Layer, rotary_table
from layersearch.schedule import Schedule, Span

SPANS = ("full", "window:4", "window:8+sink:2", "block:16", "window:4/2@1", "window:6/3")


@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("text", SPANS)
def test_dense_attention_and_its_gradients_equal_reference(text: str, both: bool) -> None:
    span, generator = Span.parse(text), torch.Generator().manual_seed(1)
    if both and span.dilation > 1:
        pytest.skip("encoders have no dilated windows")
    given = [torch.randn(2, heads, 32, 8, generator=generator) for heads in (4, 2, 2)]
    dense, literal = ([x.clone().requires_grad_() for x in given] for _ in range(2))
    found = dense_attention(*dense, hidden(span, 32, 4, both))
    truth = reference_attention(*literal, span, bidirectional=both)
    grad = torch.randn(found.shape, generator=generator)
    found.backward(grad)
    truth.backward(grad)
    assert torch.allclose(found, truth, atol=1e-6)
    for a, b in zip(dense, literal, strict=True):
        assert a.grad is not None
        assert b.grad is not None
        assert torch.allclose(a.grad, b.grad, atol=2e-6)


def test_dense_attention_serves_masks_in_short_texts_on_a_cpu() -> None:
    cpu = torch.device("cpu")
    assert serves(Span.parse("window:4+sink:1"), MOST_TOKENS, cpu)
    assert not serves(Span.parse("full"), MOST_TOKENS + 1, cpu)
    assert not serves(Span.parse("full"), 8, torch.device("cuda"))
    assert not serves(Span.parse("full+las:0.1"), 8, cpu)


def test_dense_layer_in_bf16_is_near_the_layer_with_span_kernels() -> None:
    torch.manual_seed(0)
    config = ModelConfig(n_layers=1, d_model=32, n_heads=2, n_kv_heads=1, d_ff=64, qk_norm=True)
    layer = Decoder(config, 16, Schedule.parse("window:4")).layers[0]
    assert isinstance(layer, Layer)
    x, (cos, sin) = torch.randn(2, 24, 32), rotary_table(24, 16, 1e4, torch.device("cpu"))
    with torch.autocast("cpu", torch.bfloat16):
        found = layer.dense(x, cos, sin, hidden(layer.self_attn.span, 24, 2))
        q, k, v = layer.before(x, cos, sin)
        truth = layer.after(x, attend(q, k, v, layer.self_attn.span))
    assert (found - truth).abs().max().item() < 0.02 * truth.abs().max().item()
