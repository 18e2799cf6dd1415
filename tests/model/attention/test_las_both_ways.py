"""LaS in an encoder: decay with |i-j| and smoothing around each token, alone, together and neither."""

from __future__ import annotations

import math
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

from layersearch.config.model import ModelConfig
from layersearch.model.attention.dispatch import attend
from layersearch.model.attention.las_both_ways import _tiles, center_values
from layersearch.model.attention.operator import chunked_attention
from layersearch.model.attention.reference import reference_attention
from layersearch.model.decoder import Decoder
from layersearch.schedule import Schedule, Span
from layersearch.schedule.cost import span_pairs

LAS = ["", "+las:0.2", "+las:0.0/3", "+las:0.05/5"]
SPANS = ["full", "window:5", "window:3+global:first:20", "block:7~3", "block:64~60+global:first:9", "window:400"]


def tensors(batch: int, heads: int, kv_heads: int, tokens: int, width: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)

    def draw(count: int) -> Tensor:
        return torch.randn(batch, count, tokens, width, generator=generator, dtype=torch.float64)

    return draw(heads), draw(kv_heads), draw(kv_heads), draw(heads)


def outcome(attention: Any, q: Tensor, k: Tensor, v: Tensor, grad: Tensor) -> list[Tensor]:
    leaves = [x.clone().requires_grad_() for x in (q, k, v)]
    out = attention(*leaves)
    return [out.detach(), *torch.autograd.grad(out, leaves, grad)]


@pytest.mark.parametrize("softcap", [0.0, 1.5])
@pytest.mark.parametrize("las", LAS)
@pytest.mark.parametrize("span", SPANS)
def test_chunked_las_of_an_encoder_equals_reference_forward_and_gradient(span: str, las: str, softcap: float) -> None:
    asked = Span.parse(span + las)
    for tokens in (23, 150):
        case = tensors(2, 4, 2, tokens, 4)
        found, truth = (
            outcome(lambda q, k, v, by=by: by(q, k, v, asked, softcap, bidirectional=True), *case)
            for by in (chunked_attention, reference_attention)
        )
        assert max(float((a - b).abs().max()) for a, b in zip(found, truth, strict=True)) < 1e-11


def test_reference_las_of_an_encoder_equals_the_definition_written_as_loops() -> None:
    tokens, width, heads, span = 9, 4, 2, Span.parse("window:3+las:0.3/3")
    q, k, v, _ = tensors(1, heads, heads, tokens, width)
    found = reference_attention(q, k, v, span, bidirectional=True)[0]
    for head, alpha in enumerate(span.alphas(heads)):
        for i in range(tokens):
            logits = {
                j: float(q[0, head, i] @ k[0, head, j]) / math.sqrt(width) * math.exp(-alpha * abs(i - j))
                for j in range(tokens)
                if abs(i - j) <= 3
            }
            total = sum(map(math.exp, logits.values()))
            weights = [math.exp(logits[j]) / total if j in logits else 0.0 for j in range(tokens)]
            smooth = [sum(weights[max(0, j - 1) : j + 2]) / 3 for j in range(tokens)]
            wanted = sum(smooth[j] * v[0, head, j] for j in range(tokens))
            assert torch.allclose(found[head, i], wanted, atol=1e-12)


def test_las_looks_the_same_both_ways() -> None:
    span = Span.parse("window:6+las:0.2/3")
    q, k, v, _ = tensors(1, 4, 4, 40, 4)
    found = attend(q, k, v, span, bidirectional=True)
    turned = attend(*(x.flip(2) for x in (q, k, v)), span, bidirectional=True).flip(2)
    assert torch.allclose(found, turned, atol=1e-12)


@pytest.mark.parametrize("las", LAS)
@pytest.mark.parametrize("span", ["full", "window:5+global:first:2", "block:7~3"])
def test_flex_las_of_an_encoder_equals_reference(span: str, las: str) -> None:
    asked = Span.parse(span + las)
    q, k, v = (x.float() for x in tensors(1, 4, 2, 64, 16)[:3])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # on CPU the mask is applied to every pair
        found = attend(q, k, v, asked, kernel="flex", bidirectional=True)
    wanted = reference_attention(q, k, v, asked, bidirectional=True)
    assert float((found - wanted).abs().max()) < 1e-5


def test_center_values_is_its_own_transpose() -> None:
    x, y = torch.randn(2, 7, 3, dtype=torch.float64), torch.randn(2, 7, 3, dtype=torch.float64)
    for width in (1, 3, 5, 21):
        assert torch.allclose((center_values(x, width) * y).sum(), (x * center_values(y, width)).sum())


@pytest.mark.parametrize("text", ["window:16+las:0.1", "block:32+las:0.1", "window:8+global:first:4+las:0.1"])
def test_work_grows_with_the_span(text: str) -> None:
    span, tokens = Span.parse(text), 4096
    tiles = list(_tiles(span, tokens))
    assert [one.first for one in tiles[1:]] == [one.last for one in tiles[:-1]]
    assert (tiles[0].first, tiles[-1].last) == (0, tokens)
    scores = sum((one.last - one.first) * (one.high - one.low + one.far) for one in tiles)
    # A tile of 64 queries has at most 64 keys more than its queries see.
    assert span_pairs(span, tokens, 1, bidirectional=True) <= scores <= tokens * (64 + 2 * (span.size or 0) + 4 + 4)


@pytest.mark.parametrize("las", LAS)
def test_encoder_with_las_trains_and_reaches_farther_by_half_the_pooling_width(las: str) -> None:
    schedule = Schedule.parse(f"window:2{las}")
    torch.manual_seed(0)
    config = ModelConfig(kind="encoder", n_layers=1, d_model=32, n_heads=4, n_kv_heads=2, d_ff=48)
    model = Decoder(config, 11, schedule).double()
    tokens = torch.arange(24)[None] % 7
    other = tokens.clone()
    other[0, 12] = 9
    with torch.no_grad():
        moved = (model.stream(tokens) - model.stream(other)).abs().amax(-1)[0] > 1e-12
    side = 2 + schedule[0].pool // 2
    assert moved.nonzero()[:, 0].tolist() == list(range(12 - side, 13 + side))
    before = model(tokens, tokens)
    before.backward()
    with torch.no_grad():
        for parameter in model.parameters():
            assert parameter.grad is not None
            parameter -= 0.1 * parameter.grad
        assert model(tokens, tokens) < before
