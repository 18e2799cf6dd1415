"""Three counts of one schedule: the closed form, every pair of the mask, and the traced model."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from layersearch.config.model import ModelConfig
from layersearch.model.attention.reference import span_mask
from layersearch.model.decoder import Decoder
from layersearch.model.flops import model_flops
from layersearch.model.fvcore_flops import UnknownAttentionError, traced_flops
from layersearch.schedule import Schedule, Span
from layersearch.schedule.cost import (
    attention_flops,
    budget_ratio,
    cache_tokens,
    kv_cache_bytes,
    layer_costs,
    marked_pairs,
    span_pairs,
)
from layersearch.schedule.span_keys import random_block

BARE = [
    "full",
    "window:9",
    "window:70",
    "window:9/3",
    "window:9/3@1",
    "window:5/80",
    "block:1",
    "block:16",
    "block:70",
    "block:16~5",
]
SINKS = [
    "window:9+sink:4",
    "window:9/3+sink:20",
    "window:9/3@1+sink:4",
    "block:16+sink:4",
    "block:8+sink:30",
    "block:16~9+sink:12",
]
UNIONS = ["strided:9", "fixed:9/2", "bigbird:4/2", "memory:13/9", "strided:9@1", "fixed:9/2@3", "bigbird:4/0"]
KINDS = [
    *BARE,
    *SINKS,
    *UNIONS,
    "full+las:0.1",
    "window:9+las:0.1/3",
    "block:16+sink:4+las:0.1/3",
    "window:9/3@1+las:0/3",
]
HEADS, HEAD_DIM = 4, 8


@pytest.mark.slow
@pytest.mark.parametrize("text", KINDS)
@pytest.mark.parametrize("tokens", [1, 53, 64])
def test_attention_flops_closed_form_mask_and_trace_agree(text: str, tokens: int) -> None:
    schedule = Schedule.parse(text)
    config = ModelConfig(n_layers=1, d_model=HEADS * HEAD_DIM, n_heads=HEADS, n_kv_heads=2, d_ff=24)
    closed = attention_flops(schedule, seq_len=tokens, n_heads=HEADS, head_dim=HEAD_DIM)
    enumerated = 2 * HEAD_DIM * int(span_mask(schedule[0], tokens, HEADS).sum())
    traced = traced_flops(Decoder(config, 11, schedule), tokens)["attend"]
    assert closed == enumerated == traced


@pytest.mark.slow
@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    kind=st.sampled_from(["window", "block"]),
    size=st.integers(1, 90),
    dilation=st.integers(1, 40),
    dilated_heads=st.one_of(st.none(), st.integers(1, 6)),
    offset=st.integers(0, 89),
    sink=st.integers(0, 90),
    tokens=st.integers(1, 80),
)
def test_attended_pairs_closed_form_equals_the_mask_sum(
    kind: str, size: int, dilation: int, dilated_heads: int | None, offset: int, sink: int, tokens: int
) -> None:
    dilated = {"dilation": dilation, "dilated_heads": dilated_heads}
    extra = dilated if kind == "window" else {"offset": offset % size}
    span = Span(kind=kind, size=size, sink=sink, **extra)  # type: ignore[arg-type]
    assert span_pairs(span, tokens, HEADS) == int(span_mask(span, tokens, HEADS).sum())


unions = st.one_of(
    st.builds(Span, kind=st.just("strided"), size=st.integers(2, 20), far_heads=st.sampled_from([None, 1, 4])),
    st.builds(
        Span,
        kind=st.just("fixed"),
        size=st.integers(9, 20),
        columns=st.integers(1, 8),
        far_heads=st.sampled_from([None, 3, 4]),
    ),
    st.builds(Span, kind=st.just("memory"), size=st.integers(1, 20), memory=st.integers(1, 70)),
    st.builds(Span, kind=st.just("bigbird"), size=st.integers(1, 20), random_blocks=st.integers(1, 9)),
)


@pytest.mark.slow
@settings(max_examples=150, deadline=None, derandomize=True)
@given(span=unions, tokens=st.integers(1, 150))
def test_union_pairs_and_what_covers_a_text_equal_the_mask(span: Span, tokens: int) -> None:
    mask = span_mask(span, tokens, HEADS)
    assert span_pairs(span, tokens, HEADS) == int(mask.sum())
    assert Span.parse(str(span)) == Span.from_dict(span.to_dict()) == span
    if span.covers(tokens):
        assert torch.equal(mask[0], torch.ones(tokens, tokens).tril().bool())


ENCODER = [
    "full",
    "window:9",
    "window:70",
    "window:5+global:first:8",
    "block:16",
    "block:16~5",
    "block:8+global:first:20",
    "bigbird:3/2",
    "bigbird:2/0",
    "window:5+summary:3",
    "block:6+global:mask:2+summary:7",
]


@pytest.mark.parametrize("text", ENCODER)
@pytest.mark.parametrize("tokens", [20, 64])
def test_encoder_flops_closed_form_mask_and_trace_agree(text: str, tokens: int) -> None:
    schedule = Schedule.parse(text)
    size = {"n_layers": 1, "d_model": HEADS * HEAD_DIM, "n_heads": HEADS, "n_kv_heads": 2, "d_ff": 24}
    config = ModelConfig(kind="encoder", **size)
    closed = attention_flops(schedule, seq_len=tokens, n_heads=HEADS, head_dim=HEAD_DIM, bidirectional=True)
    pairs = int(span_mask(schedule[0], tokens, HEADS, bidirectional=True).sum())
    pairs += HEADS * tokens * schedule[0].summaries(tokens)
    traced = traced_flops(Decoder(config, 11, schedule), tokens)
    assert closed == 2 * HEAD_DIM * pairs == traced["attend"]
    assert sum(traced.values()) == model_flops(config, 11, schedule, seq_len=tokens)


@pytest.mark.slow
@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    kind=st.sampled_from(["window", "block"]),
    size=st.integers(1, 40),
    offset=st.integers(0, 39),
    first=st.integers(0, 60),
    tokens=st.integers(1, 60),
)
def test_encoder_pairs_closed_form_equals_the_mask_sum(
    kind: str, size: int, offset: int, first: int, tokens: int
) -> None:
    where = {"offset": offset % size} if kind == "block" else {}
    span = Span(kind=kind, size=size, global_first=first, **where)  # type: ignore[arg-type]
    mask = span_mask(span, tokens, 1, bidirectional=True)
    assert span_pairs(span, tokens, HEADS, bidirectional=True) == HEADS * int(mask.sum())
    assert Span.parse(str(span)) == span
    assert bool(mask.all()) or not span.covers(tokens, bidirectional=True)


@pytest.mark.slow
@settings(max_examples=100, deadline=None, derandomize=True)
@given(size=st.integers(1, 12), count=st.integers(0, 9), seed=st.integers(0, 99), tokens=st.integers(1, 90))
def test_bigbird_pairs_of_an_encoder_equal_the_mask_sum(size: int, count: int, seed: int, tokens: int) -> None:
    span = Span(kind="bigbird", size=size, random_blocks=count, seed=seed if count else 0)
    mask = span_mask(span, tokens, 1, bidirectional=True)
    assert span_pairs(span, tokens, HEADS, bidirectional=True) == HEADS * int(mask.sum())
    assert bool(mask.all()) == span.covers(tokens, bidirectional=True)


def test_bigbird_pairs_equal_the_published_count() -> None:
    # Blocks of 64 at 4,096 tokens with 3 random ones (2007.14062, as transformers runs it): 15.2% of n^2.
    blocks, size, count = 64, 64, 3
    pairs = span_pairs(Span.parse("bigbird:64/3"), blocks * size, 1, bidirectional=True)
    assert pairs == size**2 * ((7 + count) * blocks - 12 - 2 * count)
    assert round(pairs / 4096**2, 3) == 0.152


@pytest.mark.parametrize("text", ["window:7+global:mask:3", "block:9~4+global:mask:3"])
def test_marked_pairs_equal_the_mask_of_those_tokens(text: str) -> None:
    span, marked = Span.parse(text), [3, 4, 40]
    mask = span_mask(span.plain, 53, 1, bidirectional=True)[0]
    mask[marked] = True
    mask[:, marked] = True
    assert marked_pairs(span, 53, marked) == int(mask.sum())


def test_longt5_pairs_equal_the_published_share() -> None:
    # A radius of 127 and summaries of 16 tokens at 4,096 tokens: 12.4% of n^2 (2112.07916).
    pairs = span_pairs(Span.parse("window:127+summary:16"), 4096, 1, bidirectional=True)
    assert pairs == 4096 * 255 - 127 * 128 + 4096 * 256
    assert round(pairs / 4096**2, 3) == 0.124


def test_causal_summaries_cost_the_finished_blocks_of_each_query() -> None:
    schedule = Schedule.parse("window:6+summary:5")
    config = ModelConfig(n_layers=1, d_model=HEADS * HEAD_DIM, n_heads=HEADS, n_kv_heads=2, d_ff=24)
    own, finished = span_pairs(Span.parse("window:6"), 53, HEADS), HEADS * sum(i // 5 for i in range(53))
    assert span_pairs(schedule[0], 53, HEADS) == own + finished
    traced = traced_flops(Decoder(config, 11, schedule), 53)
    assert traced["attend"] == 2 * HEAD_DIM * (own + finished)
    assert sum(traced.values()) == model_flops(config, 11, schedule, seq_len=53)


def test_encoder_budget_ratio_of_longformer_equals_hand_computation() -> None:
    # 256 keys on each side of 4,096 tokens (2004.05150): n (2w + 1) - w (w + 1) pairs of n^2, 12.1%.
    ratio = budget_ratio(Schedule.parse("window:256*12"), seq_len=4096, n_heads=12, bidirectional=True)
    assert ratio == (4096 * 513 - 256 * 257) / 4096**2
    assert round(ratio, 3) == 0.121


def test_bigbird_random_blocks_are_distinct_and_lie_between_the_first_and_the_window() -> None:
    span = Span.parse("bigbird:1/4/3")
    for block in range(6, 200):
        drawn = [int(random_block(span, block, at)) for at in range(4)]
        assert len(set(drawn)) == 4
        assert 1 <= min(drawn) <= max(drawn) <= block - 2
    others = {random_block(Span.parse(f"bigbird:1/4/{seed}"), 150, 2) for seed in range(20)}
    assert len(others) > 10


def test_bigbird_random_blocks_of_an_encoder_are_distinct_and_neither_ends_nor_neighbors() -> None:
    span, last = Span.parse("bigbird:1/4/3"), 40
    for block in range(1, last):
        drawn = [int(random_block(span, block, at, last)) for at in range(4)]
        assert len(set(drawn)) == 4
        assert 1 <= min(drawn) <= max(drawn) <= last - 1
        assert not {block - 1, block, block + 1} & set(drawn)


def test_budget_ratio_sparse_transformer_on_enwik8_equals_hand_computation() -> None:
    # 12,288 tokens, blocks of 128 of which the last 32 columns are seen by all (1904.10509, section 7.2).
    blocks, size, columns = 96, 128, 32
    pairs = blocks * size * (size + 1) // 2 + columns * size * blocks * (blocks - 1) // 2
    ratio = budget_ratio(Schedule.parse("fixed:128/32*30"), seq_len=12_288, n_heads=8)
    assert ratio == pairs / (12_288 * 12_289 / 2)
    assert round(ratio, 3) == 0.258


def test_budget_ratio_masformer_equals_its_published_budget() -> None:
    # 24 layers of which the bottom 4 are full, blocks of 1,024 at 8,192 tokens: 27% (2310.12442).
    schedule = Schedule.parse("full*4 block:1024*20")
    assert round(budget_ratio(schedule, seq_len=8192, n_heads=16), 3) == 0.271
    assert budget_ratio(Schedule.parse("full*24"), seq_len=8192, n_heads=16) == 1.0


def test_attention_flops_million_tokens_equal_hand_computation() -> None:
    tokens = 1 << 20
    flops = attention_flops(Schedule.parse("full window:512"), seq_len=tokens, n_heads=1, head_dim=1)
    assert flops == tokens * (tokens + 1) + 2 * (512 * tokens - 512 * 511 // 2)


def test_model_flops_equal_the_traced_count() -> None:
    config = ModelConfig(n_layers=3, d_model=32, n_heads=4, n_kv_heads=2, d_ff=48)
    schedule = Schedule.parse("full window:8 block:16+sink:2")
    traced = traced_flops(Decoder(config, 101, schedule), 50)
    whole = model_flops(config, 101, schedule, seq_len=50)
    assert sum(traced.values()) == whole


class Foreign(nn.Module):
    """A model that attends through torch's own operator."""

    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Linear(4, 4)

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        x = self.proj(F.one_hot(tokens, 4).float())[:, None]
        return F.scaled_dot_product_attention(x, x, x, is_causal=True).sum()


def test_traced_flops_unknown_attention_operator_is_an_error() -> None:
    with pytest.raises(UnknownAttentionError, match="scaled_dot_product_attention"):
        traced_flops(Foreign(), 16)


def test_traced_flops_attention_operator_of_another_library_is_an_error() -> None:
    library = torch.library.Library("elsewhere", "DEF")
    library.define("sparse_attention(Tensor x) -> Tensor")
    library.impl("sparse_attention", torch.clone, "CompositeExplicitAutograd")

    class Elsewhere(Foreign):
        def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
            return torch.ops.elsewhere.sparse_attention(self.proj(F.one_hot(tokens, 4).float())).sum()

    with pytest.raises(UnknownAttentionError, match="elsewhere::sparse_attention"):
        traced_flops(Elsewhere(), 16)


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("full", 1000),
        ("window:64", 64),
        ("window:64/4", 253),
        ("window:64+sink:4", 68),
        ("window:64+las:0.1/3", 66),
        ("block:128", 128),
        ("block:2000", 1000),
        ("window:999+sink:9", 1000),
        ("strided:64", 1000),
        ("bigbird:64/2", 1000),
        ("memory:100/64", 164),
        ("window:64+summary:16", 64 + 62),
        # At the end of the last whole block: the columns of 14 blocks, and a whole one. The text's end needs fewer.
        ("fixed:64/16", 14 * 16 + 64),
        ("fixed:500/16", 16 + 500),
    ],
)
def test_cached_tokens_equal_hand_counts(text: str, tokens: int) -> None:
    assert cache_tokens(Span.parse(text), 1000) == tokens


def test_cached_tokens_are_what_the_last_query_sees() -> None:
    # A window's or sink's cache holds exactly the reach of the last query: the first and last keys it sees.
    for text in ("window:20", "window:5/7", "window:20+sink:3"):
        span = Span.parse(text)
        seen = [j for j in range(500) if span.visible(499, j)]
        near = [j for j in seen if j >= span.sink]
        assert cache_tokens(span, 500) == 500 - near[0] + span.sink


def test_kv_cache_bytes_of_grouped_heads_hold_the_neediest() -> None:
    shape = {"seq_len": 4096, "n_heads": 8, "n_kv_heads": 4, "head_dim": 64}
    # Three dilated query heads of eight touch two of four key-value heads: 2 * 253 + 2 * 64 tokens.
    assert kv_cache_bytes(Schedule.parse("window:64/4@3"), **shape) == 2 * (2 * 253 + 2 * 64) * 64 * 2
    assert kv_cache_bytes(Schedule.parse("full*2"), **shape, bytes_per_value=4) == 2 * 2 * 4 * 4096 * 64 * 4


def test_attention_flops_of_layers_add_up() -> None:
    schedule = Schedule.parse("full window:64/4@3 block:128+sink:4")
    layers = layer_costs(schedule, seq_len=4096, n_heads=8, n_kv_heads=4, head_dim=64)
    assert sum(layer.flops for layer in layers) == attention_flops(schedule, seq_len=4096, n_heads=8, head_dim=64)
    total = kv_cache_bytes(schedule, seq_len=4096, n_heads=8, n_kv_heads=4, head_dim=64)
    assert sum(layer.cache_bytes for layer in layers) == total
    assert sum(layer.share for layer in layers) == pytest.approx(1.0)
    ratio = budget_ratio(schedule, seq_len=4096, n_heads=8)
    assert sum(layer.ratio for layer in layers) / 3 == pytest.approx(ratio)
    assert [layer.layer for layer in layers] == [0, 1, 2]


def test_cost_imports_no_torch() -> None:
    code = "import sys, layersearch.schedule.cost; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
