"""One contract for every span kind and every back end: what the reference says, forward and in all gradients."""

from __future__ import annotations

import warnings
from collections.abc import Callable
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
from layersearch.model.attention.flex import mask_mod
from layersearch.model.attention.operator import chunked_attention
from layersearch.model.attention.reference import reference_attention, span_mask
from layersearch.schedule import Span

BASES = [
    "full",
    "window:1",
    "window:5",
    "window:37",
    "window:300",
    "block:1",
    "block:7",
    "block:64",
    "block:300",
    "block:7~3",
]
DILATED = ["window:5/3", "window:40/2", "window:4/2@1", "window:4/7@3", "window:3/400"]
SINKS = [f"{base}+sink:3" for base in BASES[1:] + DILATED] + [
    "window:4+sink:50",
    "window:300+sink:9",
    "block:6+sink:17",
    "block:64~60+sink:9",
    "window:3/5+sink:20",
]
PLAIN = BASES + DILATED + SINKS
LAS = [f"{span}+las:{las}" for span in PLAIN for las in ("0.3", "0.9/3", "0/4")]
UNIONS = ["strided:5", "strided:64", "fixed:8/3", "fixed:16/1", "fixed:70/9", "bigbird:4/2", "bigbird:16/1/7"]
UNIONS += ["memory:9/4", "memory:50/64", "bigbird:6/0"]
BY_HEAD = ["strided:5@2", "strided:9@4", "fixed:8/3@1", "fixed:20/9@4"]
UNIONS += BY_HEAD
KINDS = [*PLAIN, *LAS, *UNIONS]


def tensors(batch: int, heads: int, kv_heads: int, tokens: int, width: int, **options: Any) -> list[Tensor]:
    """Return q, k, v and a gradient of the output, with tokens outermost in memory as a projection leaves them."""
    generator = torch.Generator().manual_seed(tokens)

    def one(count: int) -> Tensor:
        values = torch.randn(batch, tokens, count, width, generator=generator, dtype=torch.float64)
        return values.transpose(1, 2).to(options.get("dtype", torch.float64))

    q, k, v, grad = one(heads), one(kv_heads), one(kv_heads), one(heads)
    return [q.requires_grad_(), k.requires_grad_(), v.requires_grad_(), grad]


def outcome(
    attention: Callable[..., Tensor], span: Span, q: Tensor, k: Tensor, v: Tensor, grad: Tensor
) -> list[Tensor]:
    out = attention(q, k, v, span)
    return [out.detach(), *torch.autograd.grad(out, (q, k, v), grad)]


def differences(found: list[Tensor], truth: list[Tensor]) -> list[float]:
    """Return ||found - truth|| / ||truth||; a gradient that is 0 but for rounding is measured against 1."""
    norms = [((x - y).double().norm(), y.double().norm()) for x, y in zip(found, truth, strict=True)]
    # No maximum passes over infinity, as it may over what is not a number.
    return [float((off / (norm if norm > 1e-12 else 1.0)).nan_to_num(nan=torch.inf)) for off, norm in norms]


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


ENCODER = [
    "full",
    "window:1",
    "window:37",
    "window:5+global:first:3",
    "window:3+global:first:20",
    "block:7~3",
    "block:300",
]
ENCODER += ["block:64", "block:64~60+global:first:9", "block:3~1+global:first:11", "window:60+global:first:2"]
ENCODER += ["bigbird:4/0", "bigbird:6/2", "bigbird:9/1/5", "bigbird:40/2"]
EXTRA = [
    ("window:5+summary:7", True),
    ("block:9~2+global:first:2+summary:4", True),
    ("window:4+global:mask:3", True),
    ("block:16+global:mask:1+summary:20", True),
    ("window:6+summary:4", False),
    ("block:8~3+summary:5+sink:2", False),
    ("window:4/2@1+summary:9", False),
]
"""Spans with keys beside the text's, or with tokens that the task marks, and whether the model is an encoder."""


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


def extra_case(text: str, tokens: int) -> tuple[Span, list[Tensor], Tensor, dict[str, Any]]:
    """Return a span, its q, k, v and summaries, a gradient, and its marks."""
    span, (*case, grad) = Span.parse(text), tensors(3, 4, 2, tokens, 5)
    generator = torch.Generator().manual_seed(1)
    if count := span.summaries(tokens):
        more = torch.randn(2, 3, 2, count, 5, generator=generator, dtype=torch.float64)
        case += [x.requires_grad_() for x in more.unbind()]
    marked = None
    if span.global_marked:
        marked = torch.zeros(3, tokens, dtype=torch.bool)
        for row in marked:
            row[torch.randperm(tokens, generator=generator)[: span.global_marked]] = True
    return span, case, grad, {"marked": marked}


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


@pytest.mark.parametrize("text", ENCODER)
def test_flex_mask_mod_of_an_encoder_sees_the_keys_of_span_mask(text: str) -> None:
    span, i, j = Span.parse(text), torch.arange(60)[:, None], torch.arange(60)[None, :]
    seen = mask_mod(span, bidirectional=True, tokens=60)(0, torch.tensor(0), i, j).expand(60, 60)
    assert torch.equal(seen, span_mask(span, 60, 1, bidirectional=True)[0])


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


AUX = torch.tensor([0.3, -2.0, 4.0, 1.0], dtype=torch.float64)


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


@pytest.mark.slow
@pytest.mark.parametrize("text", ["full", "window:20+sink:3", "window:20+las:0.1/3"])
def test_flex_softcap_and_learned_sink_equal_reference(text: str) -> None:
    span, (q, k, v, _) = Span.parse(text), tensors(1, 4, 2, 150, 16, dtype=torch.float32)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # as above
        found = attend(q.detach(), k.detach(), v.detach(), span, kernel="flex", softcap=1.5, s_aux=AUX.float())
        truth = reference_attention(q, k, v, span, 1.5, AUX.float())
    assert max(differences([found], [truth])) < 1e-5


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
