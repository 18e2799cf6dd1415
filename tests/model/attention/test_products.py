"""Batched products of small tiles: with tiles of a few queries and keys, every span equals the reference."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from layersearch.model.attention import product_tiles, products, union
from layersearch.model.attention.operator import chunked_attention
from layersearch.model.attention.products import Source
from layersearch.model.attention.reference import reference_attention
from layersearch.model.attention.strips import StripGroup
from layersearch.schedule import Span
from tests.helpers.attention import ENCODER, EXTRA, PLAIN, UNIONS, differences, extra_case, outcome, tensors


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Cut short texts as long ones are cut: several tiles of a strip, and several products of equal tiles."""
    small = {"CACHED_SCORES": 1 << 9, "COPIED_TOKENS": 1 << 6, "MOST_KEYS": 16, "MASKED_QUERIES": 8}
    for name, value in small.items():
        monkeypatch.setattr(product_tiles, name, value)
    for name, value in (("FEWEST_TOKENS", 1), ("DELTA_TOKENS", 1 << 4)):
        monkeypatch.setattr(products, name, value)
    product_tiles.tiles_of.cache_clear()
    yield
    product_tiles.tiles_of.cache_clear()


@pytest.mark.parametrize("text", [*PLAIN[1:], *UNIONS, "bigbird:20/3", "memory:30/100", "fixed:40/33"])
@pytest.mark.parametrize(("tokens", "batch"), [(35, 3), (131, 1)])
def test_products_of_a_causal_span_equal_reference(text: str, tokens: int, batch: int) -> None:
    span, case = Span.parse(text), tensors(batch, 4, 2, tokens, 5)
    found, truth = outcome(chunked_attention, span, *case), outcome(reference_attention, span, *case)
    assert max(differences(found, truth)) < 1e-10


@pytest.mark.parametrize("text", [*ENCODER, "bigbird:20/3"])
def test_products_of_an_encoders_span_equal_reference(text: str) -> None:
    for tokens, batch in ((35, 3), (131, 1)):
        case = tensors(batch, 4, 2, tokens, 5)
        found, truth = (
            outcome(lambda q, k, v, span, by=by: by(q, k, v, span, bidirectional=True), Span.parse(text), *case)
            for by in (chunked_attention, reference_attention)
        )
        assert max(differences(found, truth)) < 1e-10


@pytest.mark.parametrize(("text", "bidirectional"), [*EXTRA, ("window:9+global:mask:40", True)])
def test_products_of_summaries_and_marks_equal_reference(text: str, bidirectional: bool) -> None:
    for tokens in (43, 131):
        span, case, grad, more = extra_case(text, tokens)
        found = []
        for attention in (chunked_attention, reference_attention):
            summaries = (case[3], case[4]) if len(case) > 3 else None
            out = attention(*case[:3], span, bidirectional=bidirectional, summaries=summaries, **more)
            found.append([out.detach(), *torch.autograd.grad(out, case, grad)])
        assert max(differences(*found)) < 1e-10


@pytest.mark.parametrize("factor", [1, 900], ids=["", "beyond the range"])
@pytest.mark.parametrize("whole", [True, False], ids=["", "near keys by another kernel"])
@pytest.mark.parametrize("text", ["window:5+global:mask:3", "block:9~2+global:mask:4+summary:7"])
def test_products_join_further_keys(text: str, whole: bool, factor: int, monkeypatch: pytest.MonkeyPatch) -> None:
    if not whole:
        monkeypatch.setattr(union, "whole", lambda *_: ())  # as for the large blocks of an encoder
    span, case, grad, more = extra_case(text, 67)
    case[0] = (factor * case[0].detach()).requires_grad_()
    found = []
    for attention in (chunked_attention, reference_attention):
        summaries = (case[3], case[4]) if len(case) > 3 else None
        out = attention(*case[:3], span, bidirectional=True, summaries=summaries, **more)
        found.append([out.detach(), *torch.autograd.grad(out, case, grad)])
    assert max(differences(*found)) < 1e-10


@pytest.mark.parametrize(
    ("text", "bidirectional"),
    [("window:5", False), ("bigbird:4/2", False), ("bigbird:6/2", True)],
)
def test_products_of_logits_beyond_the_range_go_another_way(text: str, bidirectional: bool) -> None:
    q, k, v, grad = tensors(1, 2, 2, 70, 4)
    case = [(900 * q.detach()).requires_grad_(), k, v, grad]  # exp of these is infinite in float64
    found, truth = (
        outcome(lambda q, k, v, span, by=by: by(q, k, v, span, bidirectional=bidirectional), Span.parse(text), *case)
        for by in (chunked_attention, reference_attention)
    )
    assert max(differences(found, truth)) < 1e-10


def test_products_out_of_range_return_none() -> None:
    q = torch.full((1, 8, 2), 30.0)
    whole = (StripGroup(0, 1, 8, 0, 8, 0, None, True),)
    assert products.forward(q, [Source(whole, q, q)], 1.0) is None
    assert products.forward(q, [Source(whole, q, q)], 1e-3) is not None


def test_products_serve_long_texts_on_cpu_without_a_softcap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "FEWEST_TOKENS", 1024)
    assert products.serves(torch.empty(2, 1024, 4), 0.0)
    assert not products.serves(torch.empty(2, 1023, 4), 0.0)
    assert not products.serves(torch.empty(2, 1024, 4), 5.0)
    assert not products.serves(torch.empty(2, 1024, 4, device="meta"), 0.0)
