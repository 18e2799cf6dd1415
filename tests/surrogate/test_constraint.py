"""Constraints hold to the last unit, and a schedule at exactly the limit is admitted."""

from __future__ import annotations

import itertools
import math

import pytest

from layersearch.config.model import ModelConfig
from layersearch.errors import ConfigError
from layersearch.schedule import Schedule, Span
from layersearch.schedule.bound_space import BoundSpace
from layersearch.schedule.cost import kv_cache_bytes
from layersearch.schedule.space import Space
from layersearch.surrogate.constraint import cache_limit, cost_limit, latency_limit, parse_bytes

CHOICES = ("full", "window:7", "window:16/2@1+sink:2", "block:12")
MODEL = ModelConfig(n_layers=3, d_model=32, n_heads=4, n_kv_heads=2, d_ff=64)


def small_space(*, tied: tuple[tuple[int, ...], ...] = ()) -> BoundSpace:
    return BoundSpace(Space(name="small", choices=CHOICES, tied=tied), n_layers=3, seq_len=49, n_heads=4)


def schedules(space: BoundSpace) -> list[Schedule]:
    return [
        space.decode(dict(zip(space.variables, chosen, strict=True)))
        for chosen in itertools.product(*space.variables.values())
    ]


@pytest.mark.parametrize("tied", [(), ((0, 2),)])
def test_cost_limit_admits_what_the_search_would(tied: tuple[tuple[int, ...], ...]) -> None:
    space = small_space(tied=tied)
    costs = {schedule: space.cost(schedule) for schedule in schedules(space)}
    for cost in set(costs.values()):
        for budget in (cost, math.nextafter(cost, 0.0), math.nextafter(cost, 1.0)):
            if budget < min(costs.values()) or budget > 1:
                continue
            limit = cost_limit(space, budget)
            assert {s for s in costs if limit.admits(s)} == {s for s, c in costs.items() if c <= budget}
            assert all(limit.measure(schedule) == pytest.approx(cost) for schedule, cost in costs.items())


@pytest.mark.parametrize("length", [1 << 20, 1 << 24])
def test_cost_limit_long_text_is_exact(length: int) -> None:
    space = BoundSpace(Space(name="long", choices=("full", "window:4096")), n_layers=64, seq_len=length, n_heads=64)
    schedule = Schedule.parse("full*5 window:4096*59")
    limit = cost_limit(space, space.cost(schedule))
    assert limit.admits(schedule)
    assert not limit.admits(Schedule.parse("full*6 window:4096*58"))


def test_cache_limit_counts_as_the_cost_command() -> None:
    space = small_space()
    size = {"seq_len": 49, "n_heads": 4, "n_kv_heads": 2, "head_dim": 8, "bytes_per_value": 4}
    for schedule in schedules(space):
        wanted = kv_cache_bytes(schedule, **size)
        assert cache_limit(space, wanted, MODEL, 4).measure(schedule) == wanted
        assert cache_limit(space, wanted, MODEL, 4).admits(schedule)
        if str(schedule) != "window:7*3":
            assert not cache_limit(space, wanted - 1, MODEL, 4).admits(schedule)


def test_latency_limit_adds_up_exactly() -> None:
    space = small_space()
    table = dict(zip(map(Span.parse, CHOICES), (0.7, 0.1, 0.2, 0.3), strict=True))
    limit = latency_limit(space, 0.6, table)
    assert 0.1 + 0.2 + 0.3 > 0.6  # in floating point, which must not decide
    for schedule in schedules(space):
        tenths = sum(round(10 * table[span]) for span in schedule)
        assert limit.admits(schedule) == (tenths <= 6)
        assert limit.measure(schedule) == pytest.approx(tenths / 10)


def test_parse_bytes_reads_units() -> None:
    read = {text: parse_bytes(text) for text in ("65536", "64KiB", "64 KiB", "1.5MiB", "2GiB", "0.5 TiB", "7B")}
    assert read == {
        "65536": 65536,
        "64KiB": 65536,
        "64 KiB": 65536,
        "1.5MiB": 3 * 2**19,
        "2GiB": 2**31,
        "0.5 TiB": 2**39,
        "7B": 7,
    }


@pytest.mark.parametrize("text", ["", "KiB", "nan", "1e99999999999", "-3", "3 XB", "3kb", "9" * 99, "²"])
def test_parse_bytes_other_text_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--kv-cache"):
        parse_bytes(text)


def test_cache_limit_of_an_encoder_is_refused() -> None:
    encoder = ModelConfig(kind="encoder", n_layers=3, d_model=32, n_heads=4, n_kv_heads=2, d_ff=64)
    space = BoundSpace(Space(name="small", choices=("full", "block:12")), n_layers=3, seq_len=49, n_heads=4)
    with pytest.raises(ConfigError, match="an encoder keeps no KV cache; give --budget"):
        cache_limit(space, 10**9, encoder)
