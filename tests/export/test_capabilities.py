"""The nearest supported schedule: the same full layers, and the closest FLOPs by exhaustive comparison."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from layersearch.errors import ExportError
from layersearch.export.capabilities import Capabilities, nearest
from layersearch.schedule import Schedule
from layersearch.schedule.cost import attention_flops

TOKENS, HEADS = 40, 4
WINDOWS = Capabilities(name="family stock")
BLOCKS = Capabilities(name="blocks", sparse="block")
PER_LAYER = Capabilities(name="per layer", size_per_layer=True)
TERMS = ["full", "full+las:0.1", "window:3", "window:9", "window:4/3", "window:5/2@1", "block:8", "block:5+sink:2",
         "window:6+sink:3", "block:8~3", "fixed:8/2", "window:4+las:0.2/3"]  # fmt: skip


def flops(schedule: Schedule) -> int:
    return attention_flops(schedule, seq_len=TOKENS, n_heads=HEADS, head_dim=1)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.sampled_from(TERMS), min_size=1, max_size=5), st.sampled_from([WINDOWS, BLOCKS, PER_LAYER]))
def test_nearest_schedule_is_held_keeps_full_layers_and_no_other_size_is_closer(
    terms: list[str], target: Capabilities
) -> None:
    asked = Schedule.parse(" ".join(terms))
    found = nearest(asked, target, seq_len=TOKENS, n_heads=HEADS)
    assert target.problem(found) is None
    assert found.full_layers == asked.full_layers
    if target.problem(asked) is None:
        assert found == asked
    elif not target.size_per_layer:
        others = [
            Schedule.parse(" ".join("full" if span.is_full else f"{target.sparse}:{size}" for span in asked))
            for size in range(1, TOKENS + 1)
        ]
        assert abs(flops(found) - flops(asked)) == min(abs(flops(other) - flops(asked)) for other in others)


@pytest.mark.parametrize(
    ("text", "target", "expected"),
    [
        ("full block:8 block:8", WINDOWS, "full window:5*2"),
        ("window:4 window:12 full", WINDOWS, "window:8*2 full"),
        ("window:4 window:12 full", PER_LAYER, "window:4 window:12 full"),
        ("window:4/2@1 window:7 full+las:0.1", PER_LAYER, "window:4 window:7 full"),
        ("window:5+sink:2 block:8", BLOCKS, "block:10*2"),
        ("strided:8 bigbird:4/1", WINDOWS, "window:12*2"),
        ("block:8~4 block:8", BLOCKS, "block:8*2"),
        ("window:4 full+las:0.1 window:4", WINDOWS, "window:4 full window:4"),
    ],
)
def test_nearest_known_cases_equal_hand_computation(text: str, target: Capabilities, expected: str) -> None:
    asked = Schedule.parse(text)
    assert str(nearest(asked, target, seq_len=TOKENS, n_heads=HEADS)) == expected


def test_check_unsupported_schedule_error_names_layer_reason_nearest_and_flops() -> None:
    asked, other = Schedule.parse("full block:8"), Schedule.parse("full window:5")
    with pytest.raises(ExportError) as error:
        WINDOWS.check(asked, seq_len=TOKENS, n_heads=HEADS)
    assert str(error.value) == (
        "layer 1: block:8: family stock supports no blocks; the nearest supported schedule is 'full window:5', "
        f"with {flops(other) / flops(asked):.4f} times the attention FLOPs"
    )
    WINDOWS.check(other, seq_len=TOKENS, n_heads=HEADS)
