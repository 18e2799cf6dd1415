"""The tabular benchmark that ships: whole, the space's own costs, and one line for what it cannot answer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from layersearch.errors import UserError
from layersearch.study.benchmark import load_bench


@pytest.mark.parametrize(("name", "size"), [("mix", 243), ("recall", 243), ("text", 81)])
def test_benchmark_tables_are_whole(name: str, size: int) -> None:
    bench = load_bench(name)
    assert len(bench.schedules) == bench.space.size == size
    assert len(bench.seeds) >= 3
    assert len(bench.steps) >= 8
    assert np.isfinite(bench.losses).all()
    assert (bench.losses > 0).all()
    assert bench.costs.tolist() == [bench.space.cost(schedule) for schedule in bench.schedules]
    assert bench.hypervolume(list(bench.frontier)) == pytest.approx(1.0)
    assert 0 <= bench.hypervolume([bench.schedules[0]]) < 1
    schedule, seed = bench.schedules[17], bench.seeds[1]
    assert bench.query(schedule, seed) == bench.query(str(schedule), seed, bench.steps[-1]) == bench.losses[17, 1, -1]


def test_benchmark_unknown_name_lists_what_there_is() -> None:
    bench = load_bench("recall")
    with pytest.raises(UserError, match="lies outside its space of full, window:2, window:1"):
        bench.query("window:3*5", 0)
    with pytest.raises(UserError, match=r"no seed 99; choose from \[0, 1, 2\]"):
        bench.query(bench.schedules[0], 99)
    with pytest.raises(UserError, match="no step 1; choose from"):
        bench.query(bench.schedules[0], 0, 1)
    with pytest.raises(UserError, match="no file 'nothing' here"):
        load_bench("nothing")


def test_benchmark_what_is_no_table_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "torn.parquet"
    path.write_bytes(b"PAR1 and then nothing")
    with pytest.raises(UserError, match="no benchmark table"):
        load_bench(str(path))
