"""Spans of encoders, summaries and marked tokens: kernels equal the reference."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from layersearch import errors
from layersearch.model.attention.dispatch import attend
from layersearch.model.attention.operator import chunked_attention
from layersearch.model.attention.reference import reference_attention
from layersearch.schedule import Span
from tests.helpers.attention import ENCODER, EXTRA, differences, extra_case, outcome, tensors


@pytest.mark.parametrize("softcap", [0.0, 1.5])
@pytest.mark.parametrize("text", ENCODER)
def test_chunked_attention_of_an_encoder_equals_reference(text: str, softcap: float) -> None:
    span = Span.parse(text)
    for tokens in (35, 331):
        case = tensors(2, 4, 2, tokens, 5)
        found, truth = (
            outcome(
                lambda q, k, v, span, by=by: by(q, k, v, span, softcap, bidirectional=True),
                span,
                *case,
            )
            for by in (chunked_attention, reference_attention)
        )
        assert max(differences(found, truth)) < 1e-10


@pytest.mark.parametrize("text", ["window:130", "window:150+global:first:9", "window:256+las:0/3"])
@pytest.mark.parametrize("softcap", [0.0, 1.5])
def test_chunked_attention_of_an_encoder_with_windows_wide_enough_for_tiles_equals_reference(
    text: str, softcap: float
) -> None:
    span, case = Span.parse(text), tensors(1, 2, 1, 1033, 8)
    found, truth = (
        outcome(lambda q, k, v, span, by=by: by(q, k, v, span, softcap, bidirectional=True), span, *case)
        for by in (chunked_attention, reference_attention)
    )
    assert max(differences(found, truth)) < 1e-10


@pytest.mark.parametrize(("text", "bidirectional"), EXTRA)
@pytest.mark.parametrize("tokens", [35, 131])
def test_chunked_attention_with_summaries_and_marks_equals_reference(
    text: str, bidirectional: bool, tokens: int
) -> None:
    span, case, grad, more = extra_case(text, tokens)
    found = []
    for attention in (chunked_attention, reference_attention):
        summaries = (case[3], case[4]) if len(case) > 3 else None
        out = attention(*case[:3], span, bidirectional=bidirectional, summaries=summaries, **more)
        found.append([out.detach(), *torch.autograd.grad(out, case, grad)])
    assert max(differences(*found)) < 1e-10


def test_summaries_of_a_causal_model_are_of_finished_blocks_only() -> None:
    # Query 8 of blocks of 4 sees the summaries 0 and 1; query 7 sees the first alone.
    q, k = torch.zeros(1, 1, 9, 2), torch.zeros(1, 1, 9, 2)
    v, more = torch.zeros(1, 1, 9, 2), torch.eye(2)[None, None]
    out = attend(q, k, v, Span.parse("window:1+summary:4"), summaries=(torch.zeros(1, 1, 2, 2), more))
    third, half = torch.full((2,), 1 / 3), torch.tensor([0.5, 0.0])
    assert torch.allclose(out[0, 0], torch.stack([torch.zeros(2)] * 4 + [half] * 4 + [third]))


@pytest.mark.parametrize(
    ("text", "given", "said"),
    [
        ("window:4+summary:3", {}, "keys and values of 2 summaries"),
        ("window:4", {"summaries": (torch.zeros(1, 2, 2, 4),) * 2}, "0 summaries"),
        ("window:4+summary:3", {"summaries": (torch.zeros(1, 2, 3, 4),) * 2}, r"expected \(1, 2, 2, 4\)"),
        ("window:4+global:mask:2", {"marked": torch.ones(1, 7).bool()}, r"a mask of \(1, 7\)"),
        ("window:4+global:mask:2", {"marked": torch.arange(8)[None] < 3}, "marks 3 tokens of a text, not 2"),
        ("window:4", {"marked": torch.arange(8)[None] < 3}, "takes no marked tokens"),
    ],
)
def test_attend_wrong_summaries_or_marks_are_refused(text: str, given: dict[str, Any], said: str) -> None:
    q, k, v, _ = tensors(1, 4, 2, 8, 4)
    with pytest.raises(errors.LayersearchError, match=said):
        attend(q, k, v, Span.parse(text), bidirectional=True, **given)


@pytest.mark.parametrize(
    ("text", "bidirectional", "said"),
    [
        ("window:4+sink:2", True, r"are '\+global:first:2'"),
        ("window:4+global:first:2", False, r"are '\+sink:2'"),
        ("strided:4", True, "is for causal models"),
        ("window:4/2", True, "is for causal models"),
        ("full+las:0.1/2", True, "pooling width is odd: give 3"),
    ],
)
def test_attend_span_of_the_other_direction_is_refused(text: str, bidirectional: bool, said: str) -> None:
    q, k, v, _ = tensors(1, 4, 2, 8, 4)
    with pytest.raises(errors.LayersearchError, match=said):
        attend(q, k, v, Span.parse(text), bidirectional=bidirectional)
