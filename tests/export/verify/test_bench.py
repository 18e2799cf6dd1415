"""Milliseconds by span from timings of whole models."""

from __future__ import annotations

import pytest

from layersearch.errors import ExportError
from layersearch.export.verify.engines.bench import Timing, Variant, layer_milliseconds
from layersearch.schedule import Schedule

ASKED = Schedule.parse("full window:4*3")


def timing(variant: Variant, decode_cpu_s: float) -> Timing:
    return Timing(
        engine="mlx",
        version="mlx-lm 0",
        variant=variant,
        tokens=64,
        new=10,
        prefill_s=1.0,
        decode_s=9.0,
        prefill_cpu_s=1.0,
        decode_cpu_s=decode_cpu_s,
        kv_bytes=1,
        cost_bytes=1,
        details={},
    )


def test_layer_milliseconds_sums_are_those_of_the_two_models() -> None:
    timings = [timing("schedule", one) for one in (0.25, 0.1, 0.26)] + [timing("all-full", 0.4)]
    table = {str(span): value for span, value in layer_milliseconds(timings, ASKED, 64).items()}
    assert 4 * table["full"] == pytest.approx(40.0)
    assert table["full"] + 3 * table["window:4"] == pytest.approx(25.0)


@pytest.mark.parametrize(
    ("schedule", "seconds", "words"),
    [
        ("full*4", 0.2, "the schedule has 0"),
        ("full window:4 window:8*2", 0.2, "the schedule has 2"),
        ("full window:4*3", 0.09, "give more --repeats"),
    ],
)
def test_layer_milliseconds_without_one_other_span_or_a_gain_are_refused(
    schedule: str, seconds: float, words: str
) -> None:
    timings = [timing("schedule", seconds), timing("all-full", 0.4)]
    with pytest.raises(ExportError, match=words):
        layer_milliseconds(timings, Schedule.parse(schedule), 64)
