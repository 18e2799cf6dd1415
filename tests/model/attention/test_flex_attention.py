"""FlexAttention sees the keys of every span, and computes what the reference says."""

from __future__ import annotations

import warnings

import pytest
import torch

from layersearch.model.attention.dispatch import attend
from layersearch.model.attention.flex import mask_mod
from layersearch.model.attention.reference import reference_attention, span_mask
from layersearch.schedule import Span
from tests.helpers.attention import AUX, ENCODER, EXTRA, PLAIN, UNIONS, differences, extra_case, tensors


@pytest.mark.parametrize("text", [*PLAIN, *UNIONS])
def test_flex_mask_mod_sees_the_keys_of_span_mask(text: str) -> None:
    span, tokens, heads = Span.parse(text), 60, 4
    mask = mask_mod(span)
    i, j = torch.arange(tokens)[:, None], torch.arange(tokens)[None, :]
    seen = torch.stack([mask(0, torch.tensor(h), i, j).expand(tokens, tokens) for h in range(heads)])
    assert torch.equal(seen, span_mask(span, tokens, heads))


@pytest.mark.slow
@pytest.mark.parametrize(
    "text", ["full", "window:20", "window:4/2@1+sink:3", "block:16", "window:20+las:0.1/3", "bigbird:8/2"]
)
def test_flex_forward_equals_reference(text: str) -> None:
    q, k, v, _ = (x.detach() for x in tensors(1, 4, 2, 130, 16, dtype=torch.float32))
    span = Span.parse(text)
    with warnings.catch_warnings():
        # On CPU the mask is applied to every pair, which torch announces; CUDA runs the compiled kernel.
        warnings.simplefilter("ignore", UserWarning)
        found = attend(q, k, v, span, kernel="flex")
    assert max(differences([found], [reference_attention(q, k, v, span)])) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize(("text", "bidirectional"), EXTRA)
def test_flex_with_summaries_and_marks_equals_reference(text: str, bidirectional: bool) -> None:
    span, case, _, more = extra_case(text, 131)
    case = [x.detach().float() for x in case]
    more |= {"bidirectional": bidirectional, "summaries": (case[3], case[4]) if len(case) > 3 else None}
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # as above
        found = attend(*case[:3], span, kernel="flex", **more)
    assert max(differences([found], [reference_attention(*case[:3], span, **more)])) < 1e-5


@pytest.mark.parametrize("text", ENCODER)
def test_flex_mask_mod_of_an_encoder_sees_the_keys_of_span_mask(text: str) -> None:
    span, i, j = Span.parse(text), torch.arange(60)[:, None], torch.arange(60)[None, :]
    seen = mask_mod(span, bidirectional=True, tokens=60)(0, torch.tensor(0), i, j).expand(60, 60)
    assert torch.equal(seen, span_mask(span, 60, 1, bidirectional=True)[0])


@pytest.mark.slow
@pytest.mark.parametrize("text", ["full", "window:20+sink:3", "window:20+las:0.1/3"])
def test_flex_softcap_and_learned_sink_equal_reference(text: str) -> None:
    span, (q, k, v, _) = Span.parse(text), tensors(1, 4, 2, 150, 16, dtype=torch.float32)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # as above
        found = attend(q.detach(), k.detach(), v.detach(), span, kernel="flex", softcap=1.5, s_aux=AUX.float())
        truth = reference_attention(q, k, v, span, 1.5, AUX.float())
    assert max(differences([found], [truth])) < 1e-5
