"""One contract for every span kind and every back end: what the reference says, forward and in all gradients."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from layersearch import errors
from layersearch.model.attention import operator
from layersearch.model.attention.dispatch import attend, kernel_for
from layersearch.model.attention.operator import chunked_attention
from layersearch.model.attention.reference import reference_attention
from layersearch.schedule import Span
from tests.helpers.attention import AUX, KINDS, PLAIN, UNIONS, differences, outcome, tensors


@pytest.mark.parametrize("text", KINDS)
@pytest.mark.parametrize(("tokens", "kv_heads"), [(35, 2), (131, 4)])
def test_chunked_attention_any_span_equals_reference(text: str, tokens: int, kv_heads: int) -> None:
    span, case = Span.parse(text), tensors(2, 4, kv_heads, tokens, 5)
    found, truth = outcome(chunked_attention, span, *case), outcome(reference_attention, span, *case)
    assert max(differences(found, truth)) < 1e-10


@pytest.mark.parametrize("text", [*PLAIN, *UNIONS])
def test_chunked_attention_shortest_texts_equals_reference(text: str) -> None:
    for tokens in (1, 2):
        span, case = Span.parse(text), tensors(1, 4, 2, tokens, 3)
        found, truth = outcome(chunked_attention, span, *case), outcome(reference_attention, span, *case)
        assert max(differences(found, truth)) < 1e-10


@pytest.mark.parametrize(
    "text",
    [
        "window:300",
        "window:520",
        "block:520",
        "block:520~400",
        "block:200~120+sink:99",
        "window:300+sink:9",
        "block:300+sink:7",
        "window:260/2@1+las:0.01/3",
    ],
)
def test_chunked_attention_spans_wide_enough_for_tiles_equals_reference(text: str) -> None:
    span, case = Span.parse(text), tensors(1, 2, 1, 733, 8)
    found, truth = outcome(chunked_attention, span, *case), outcome(reference_attention, span, *case)
    assert max(differences(found, truth)) < 1e-10


spans = st.one_of(
    st.just({"kind": "full"}),
    st.fixed_dictionaries(
        {"kind": st.just("window"), "size": st.integers(1, 90), "dilation": st.integers(1, 9)},
        optional={"dilated_heads": st.integers(1, 4), "sink": st.integers(1, 40)},
    ),
    st.fixed_dictionaries(
        {"kind": st.just("block"), "size": st.integers(20, 90)},
        optional={"sink": st.integers(1, 120), "offset": st.integers(0, 19)},
    ),
)


@pytest.mark.slow
@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    span=spans,
    decay=st.sampled_from([0.0, 0.05, 0.95]),
    pool=st.sampled_from([1, 2, 5]),
    tokens=st.integers(1, 260),
    batch=st.integers(1, 3),
    kv_heads=st.sampled_from([1, 2, 4]),
    width=st.integers(1, 9),
)
def test_chunked_attention_random_shapes_equals_reference(
    span: dict[str, Any], decay: float, pool: int, tokens: int, batch: int, kv_heads: int, width: int
) -> None:
    drawn, case = Span(**span, decay=decay, pool=pool), tensors(batch, 4, kv_heads, tokens, width)
    found, truth = outcome(chunked_attention, drawn, *case), outcome(reference_attention, drawn, *case)
    assert max(differences(found, truth)) < 1e-10


unions = st.one_of(
    st.builds(Span, kind=st.just("strided"), size=st.integers(2, 70), far_heads=st.sampled_from([None, 1, 2])),
    st.builds(
        Span,
        kind=st.just("fixed"),
        size=st.integers(9, 70),
        columns=st.integers(1, 8),
        far_heads=st.sampled_from([None, 1, 2]),
    ),
    st.builds(Span, kind=st.just("memory"), size=st.integers(1, 70), memory=st.integers(1, 150)),
    st.builds(
        Span,
        kind=st.just("bigbird"),
        size=st.integers(1, 30),
        random_blocks=st.integers(1, 9),
        seed=st.integers(0, 10**17),
    ),
)


@pytest.mark.slow
@settings(max_examples=25, deadline=None, derandomize=True)
@given(span=unions, tokens=st.integers(1, 300), kv_heads=st.sampled_from([1, 2]), softcap=st.sampled_from([0.0, 1.5]))
def test_chunked_attention_union_of_random_shape_equals_reference(
    span: Span, tokens: int, kv_heads: int, softcap: float
) -> None:
    case = tensors(2, 2, kv_heads, tokens, 4)
    found, truth = (
        outcome(lambda q, k, v, span, by=by: by(q, k, v, span, softcap), span, *case)
        for by in (chunked_attention, reference_attention)
    )
    assert max(differences(found, truth)) < 1e-10


def test_memory_span_equals_a_loop_over_segments_that_keeps_the_last_keys() -> None:
    # As Transformer-XL runs (1901.02860, sec. 3.2): one segment at a time, with the last M keys and values before it.
    q, k, v, _ = (x.detach() for x in tensors(1, 2, 2, 53, 4))
    segment, memory = 8, 13
    held, found = (k[:, :, :0], v[:, :, :0]), []
    for first in range(0, 53, segment):
        part = slice(first, first + segment)
        keys, values = torch.cat((held[0], k[:, :, part]), dim=2), torch.cat((held[1], v[:, :, part]), dim=2)
        seen = torch.ones(q[:, :, part].shape[2], keys.shape[2], dtype=torch.bool).tril(held[0].shape[2])
        found.append(F.scaled_dot_product_attention(q[:, :, part], keys, values, attn_mask=seen))
        held = keys[:, :, -memory:], values[:, :, -memory:]
    out = chunked_attention(q, k, v, Span(kind="memory", size=segment, memory=memory))
    assert torch.allclose(torch.cat(found, dim=2), out, atol=1e-12)


NARROW = ["full", "window:32", "window:32/4", "window:8/4@1+sink:4", "window:520", "block:20", "block:64", "block:520"]


# Rounding the output to bf16 alone is off by 2^-9 = 0.002.
@pytest.mark.slow
@pytest.mark.parametrize("text", [*NARROW, *UNIONS[3:], "full+las:0.1/3", "window:32+las:0.1/3"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.bfloat16, 3e-3)])
@pytest.mark.parametrize("tokens", [61, 600])
def test_chunked_attention_narrow_precisions_stay_near_reference(
    text: str, dtype: torch.dtype, tolerance: float, tokens: int
) -> None:
    span, case = Span.parse(text), tensors(2, 4, 2, tokens, 16, dtype=dtype)
    truth_case = [x.detach().double().requires_grad_() for x in case]
    found, truth = outcome(attend, span, *case), outcome(reference_attention, span, *truth_case)
    assert [x.dtype for x in found] == [dtype] * 4
    assert max(differences(found, truth)) < tolerance


@pytest.mark.slow
@pytest.mark.parametrize("text", ["window:3+sink:1", "block:4+las:0.2/2"])
def test_chunked_attention_gradients_equal_finite_differences(text: str) -> None:
    q, k, v, _ = tensors(1, 2, 1, 9, 2)
    assert torch.autograd.gradcheck(lambda *x: attend(*x, Span.parse(text)), (q, k, v))


def test_attend_full_span_equals_torch_sdpa() -> None:
    q, k, v, _ = tensors(2, 4, 4, 33, 8)
    assert torch.allclose(attend(q, k, v, Span.parse("full")), F.scaled_dot_product_attention(q, k, v, is_causal=True))


def test_reference_attention_pooled_rows_equal_hand_computation() -> None:
    # Equal logits: row i of A is 1/(i+1) over its keys; P=2 adds the next key's weight, divided by 2, zero beyond.
    q, k = torch.zeros(1, 1, 3, 1), torch.zeros(1, 1, 3, 1)
    v = torch.tensor([1.0, 10.0, 100.0]).view(1, 1, 3, 1)
    rows = torch.tensor([[0.5, 0, 0], [0.5, 0.25, 0], [1 / 3, 1 / 3, 1 / 6]])
    expected = rows @ v[0, 0]
    for attention in (attend, reference_attention):
        assert torch.allclose(attention(q, k, v, Span.parse("full+las:0/2"))[0, 0], expected)


def test_reference_attention_decayed_logits_equal_hand_computation() -> None:
    # Two heads: alpha 0 and 0.5; query 1 against keys 0 and 1, logits 2 and 2, the far one times exp(-0.5).
    q, k = torch.full((1, 2, 2, 1), 2.0), torch.ones(1, 2, 2, 1)
    v = torch.tensor([0.0, 1.0]).view(1, 1, 2, 1).expand(1, 2, 2, 1)
    weights = torch.tensor([2.0 * torch.e**-0.5, 2.0]).softmax(0)[1]
    for attention in (attend, reference_attention):
        out = attention(q, k, v, Span.parse("full+las:0.5"))[0, :, 1, 0]
        assert torch.allclose(out, torch.stack((torch.tensor(0.5), weights)))


def test_attend_large_logits_stay_finite() -> None:
    q, k, v, grad = tensors(1, 2, 2, 150, 4, dtype=torch.float32)
    case = [(200 * q.detach()).requires_grad_(), k, v, grad]
    exact = [x.detach().double().requires_grad_() for x in case]
    for text in ("full", "window:16+sink:2", "window:5/3+sink:4", "full+las:0.9", "block:40"):
        found, truth = outcome(attend, Span.parse(text), *case), outcome(reference_attention, Span.parse(text), *exact)
        assert max(differences(found, truth)) < 1e-3


@pytest.mark.parametrize("text", ["full+las:0.5", "window:300", "window:270/2+sink:2", "block:300"])
def test_attend_unseen_keys_with_infinite_weights_change_nothing(text: str) -> None:
    q, k, v, grad = tensors(1, 1, 1, 700, 4)
    q, k = q.detach().abs().requires_grad_(), k.detach().clone()
    # exp(1000) overflows. The last key is unseen by all queries but the last, the first by most of a window's.
    k[:, :, [0, -1]] = 1000.0
    case = [q, k.requires_grad_(), v, grad]
    found, truth = outcome(attend, Span.parse(text), *case), outcome(reference_attention, Span.parse(text), *case)
    assert max(differences(found, truth)) < 1e-10


class Largest(TorchDispatchMode):
    """Records the most values that any tensor made inside holds in memory of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.values = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for x in result if isinstance(result, tuple | list) else (result,):
            if isinstance(x, Tensor):
                self.values = max(self.values, x.untyped_storage().nbytes() // x.element_size())
        return result


@pytest.mark.parametrize(
    "text",
    [
        "full",
        "window:64",
        "window:300",
        "window:16/4@1",
        "block:256",
        "window:64+sink:4",
        "full+las:0.1",
        "strided:64",
        "fixed:64/16",
        "bigbird:64/2",
    ],
)
def test_chunked_attention_memory_grows_with_the_span(text: str) -> None:
    span, largest = Span.parse(text), {}
    for tokens in (2048, 4096):
        case = tensors(1, 1, 1, tokens, 8, dtype=torch.float32)
        with Largest() as seen:
            # The operators' bodies run below the mode: they are called here so that their tensors are seen.
            out, lse = operator._forward(*(x.detach() for x in case[:3]), str(span))
            operator._backward(case[3], *(x.detach() for x in case[:3]), out, lse, str(span))
        largest[tokens] = seen.values
    assert largest[4096] <= 2.2 * largest[2048]
    assert largest[4096] < 4096**2 / 8


def test_attend_autocast_and_mixed_precisions_keep_dtypes() -> None:
    q, k, v, _ = tensors(1, 2, 2, 40, 8, dtype=torch.float32)
    span = Span.parse("window:8")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = attend(q, k, v.bfloat16(), span)
    assert out.dtype is torch.bfloat16
    out.float().sum().backward()
    assert q.grad is not None
    assert q.grad.dtype is torch.float32
    assert attend(q, k, v.bfloat16(), span).dtype is torch.float32


@pytest.mark.slow
def test_chunked_operator_passes_torch_opcheck() -> None:
    q, k, v, _ = tensors(1, 2, 1, 20, 4)
    with warnings.catch_warnings():
        # The checker itself calls parts of torch that announce their own end.
        warnings.simplefilter("ignore")
        torch.library.opcheck(torch.ops.layersearch.attend.default, (q, k, v, "window:4+sink:1"))
        aux = AUX[:2].clone().requires_grad_()
        torch.library.opcheck(torch.ops.layersearch.attend.default, (q, k, v, "window:4+sink:1", 2.0, aux))


def test_kernel_for_span_and_device_names_the_kernel() -> None:
    window = Span.parse("window:64")
    assert kernel_for(window, "cpu") == "chunked-span"
    assert kernel_for(Span.parse("full"), "cpu") == "chunked-flash"
    assert kernel_for(Span.parse("full+las:0.1"), "cpu") == "chunked-span"
    assert kernel_for(window, "cuda") == "flex"
    assert kernel_for(Span.parse("full"), "cpu", softcap=50.0) == "chunked-span"


def test_attend_wrong_input_is_refused() -> None:
    q, k, v, _ = tensors(1, 4, 2, 8, 4)
    with pytest.raises(errors.UserError, match="did you mean 'chunked'"):
        attend(q, k, v, Span.parse("full"), kernel="chunk")  # type: ignore[arg-type]
    with pytest.raises(errors.UserError, match="dilates more heads"):
        attend(q, k, v, Span.parse("window:4/2@5"))
    with pytest.raises(errors.LayersearchError, match="one number for each of the"):
        attend(q, k, v, Span.parse("full"), s_aux=torch.zeros(1))
    with pytest.raises(errors.UserError, match="no multiple"):
        attend(q[:, :3], k, v, Span.parse("full"))
    with pytest.raises(errors.UserError, match="expected"):
        attend(q[:, :, :5], k, v, Span.parse("full"))
    with pytest.raises(errors.UserError, match="no backward pass on CPU"):
        attend(q, k, v, Span.parse("full"), kernel="flex")
