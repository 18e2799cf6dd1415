"""The nearest schedule a target holds: the same full layers, and the closest FLOPs by exhaustive comparison."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from layersearch.export.capabilities import CannotHold, Capabilities, check_held, nearest
from layersearch.schedule import Schedule
from layersearch.schedule.cost import attention_flops

TOKENS, HEADS = 40, 4
STOCK = Capabilities(name="family stock")
CHUNKS = Capabilities(name="chunks", kinds=("full", "block"))
OWN = Capabilities(name="own", size_per_layer=True)
FREE = Capabilities(
    name="free",
    kinds=("full", "window", "block"),
    size_per_layer=True,
    dilation=True,
    dilated_heads=True,
    sinks=True,
    las=True,
)
TERMS = ["full", "full+las:0.1", "window:3", "window:9", "window:4/3", "window:5/2@1", "block:8", "block:5+sink:2",
         "window:6+sink:3", "window:4+las:0.2/3"]  # fmt: skip


def flops(schedule: Schedule) -> int:
    return attention_flops(schedule, seq_len=TOKENS, n_heads=HEADS, head_dim=1)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.sampled_from(TERMS), min_size=1, max_size=5), st.sampled_from([STOCK, CHUNKS, OWN, FREE]))
def test_nearest_schedule_is_held_keeps_full_layers_and_no_other_size_is_closer(
    terms: list[str], target: Capabilities
) -> None:
    asked = Schedule.parse(" ".join(terms))
    found = nearest(asked, target, seq_len=TOKENS, n_heads=HEADS)
    assert target.problem(found) is None
    assert found.full_layers == asked.full_layers
    if target.problem(asked) is None:
        assert found == asked
    elif target in (STOCK, CHUNKS):
        others = [
            Schedule.parse(" ".join("full" if span.is_full else f"{target.kinds[1]}:{size}" for span in asked))
            for size in range(1, TOKENS + 1)
        ]
        assert abs(flops(found) - flops(asked)) == min(abs(flops(other) - flops(asked)) for other in others)


@pytest.mark.parametrize(
    ("text", "target", "expected"),
    [
        ("full block:8 block:8", STOCK, "full window:5*2"),
        ("window:4 window:12 full", STOCK, "window:8*2 full"),
        ("window:4 window:12 full", OWN, "window:4 window:12 full"),
        ("window:4/2@1 window:7 full+las:0.1", OWN, "window:4 window:7 full"),
        ("window:5+sink:2 block:8", CHUNKS, "block:10*2"),
        ("window:5 full", Capabilities(name="dense", kinds=("full",)), "full*2"),
        ("window:4/2@1 block:8", FREE, "window:4/2@1 block:8"),
        ("window:4/2@1", Capabilities(name="d", dilation=True), "window:4"),
        ("window:4/2+sink:1", Capabilities(name="d", dilation=True), "window:5/2"),
    ],
)
def test_nearest_known_cases_equal_hand_computation(text: str, target: Capabilities, expected: str) -> None:
    asked = Schedule.parse(text)
    assert str(nearest(asked, target, seq_len=TOKENS, n_heads=HEADS)) == expected


def test_check_held_refusal_names_layer_reason_schedule_and_flops() -> None:
    asked = Schedule.parse("full block:8")
    with pytest.raises(CannotHold) as error:
        check_held(asked, STOCK, seq_len=TOKENS, n_heads=HEADS)
    ratio = flops(Schedule.parse("full window:5")) / flops(asked)
    assert str(error.value) == (
        "layer 1: block:8: family stock holds no blocks; the nearest schedule it holds is 'full window:5', "
        f"of {ratio:.4f} times the attention FLOPs"
    )
    assert (error.value.asked, str(error.value.nearest), error.value.ratio) == (asked, "full window:5", ratio)
    check_held(error.value.nearest, STOCK, seq_len=TOKENS, n_heads=HEADS)
