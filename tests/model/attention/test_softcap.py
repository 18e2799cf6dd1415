"""Capped logits and learned sinks: kernels equal the reference."""

from __future__ import annotations

import pytest
import torch

from layersearch.model.attention.dispatch import attend
from layersearch.model.attention.operator import chunked_attention
from layersearch.model.attention.reference import reference_attention, span_mask
from layersearch.schedule import Span
from tests.helpers.attention import AUX, PLAIN, UNIONS, differences, tensors


@pytest.mark.slow
@pytest.mark.parametrize("softcap", [0.0, 1.5])
@pytest.mark.parametrize("aux", [False, True])
@pytest.mark.parametrize("text", [*PLAIN, *UNIONS, "full+las:0.3/2", "window:5+sink:3+las:0.3"])
def test_chunked_attention_softcap_and_learned_sink_equal_reference(text: str, aux: bool, softcap: float) -> None:
    span, (*case, grad) = Span.parse(text), tensors(2, 4, 2, 131, 5)
    found = []
    for attention in (chunked_attention, reference_attention):
        s_aux = AUX.clone().requires_grad_() if aux else None
        inputs = [*case] if s_aux is None else [*case, s_aux]
        # Strong queries, so that the cap shows.
        out = attention(3 * case[0], case[1], case[2], span, softcap, s_aux)
        found.append([out.detach(), *torch.autograd.grad(out, inputs, grad)])
    assert max(differences(*found)) < 1e-10
    if aux or (softcap and span_mask(span, 131, 4).sum() > 131 * 4):  # a cap does nothing where there is one key
        plain = reference_attention(3 * case[0], case[1], case[2], span).detach()
        assert differences(found[0][:1], [plain])[0] > 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("text", ["full", "window:300+sink:4", "block:20"])
def test_attend_softcap_and_learned_sink_narrow_precisions_stay_near_reference(text: str, dtype: torch.dtype) -> None:
    span, (*case, grad) = Span.parse(text), tensors(1, 4, 2, 600, 8, dtype=dtype)
    exact = [x.detach().double().requires_grad_() for x in case]
    found = []
    for attention, inputs in ((attend, case), (reference_attention, exact)):
        s_aux = AUX.to(torch.float32 if attention is attend else torch.float64).requires_grad_()
        out = attention(*inputs, span, softcap=2.0, s_aux=s_aux)
        found.append([out.detach(), *torch.autograd.grad(out, [*inputs, s_aux], grad.to(out.dtype))])
    assert max(differences(*found)) < (2e-6 if dtype is torch.float32 else 1e-2)


@pytest.mark.slow
def test_attend_learned_sink_gradients_equal_finite_differences() -> None:
    q, k, v, _ = tensors(1, 4, 2, 7, 3)
    s_aux = AUX.clone().requires_grad_()
    span = Span.parse("window:3+sink:1")
    assert torch.autograd.gradcheck(lambda *x: attend(*x[:3], span, softcap=0.8, s_aux=x[3]), (q, k, v, s_aux))
