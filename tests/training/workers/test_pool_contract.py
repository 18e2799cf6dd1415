"""What every pool must hold, in real workers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from layersearch.config.recipe import load_recipe
from layersearch.schedule import Schedule
from layersearch.schedule.files import plain
from layersearch.training.record import Trial, TrialRecord
from layersearch.training.workers.pool import LocalPool, PoolFactory
from layersearch.training.workers.ray_pool import RayPool
from layersearch.training.workers.run_trials import run_trials
from tests.helpers.runs import PATIENCE

pytestmark = pytest.mark.integration

POOLS: dict[str, PoolFactory] = {"local": LocalPool, "ray": RayPool}
TRIALS = [
    Trial(schedule=Schedule.parse(text), seed=seed, checkpoints=(4,))
    for text in ("full*2", "window:4*2")
    for seed in (1, 2)
]
OF_THE_MOMENT = ("seconds", "train_seconds", "eval_seconds", "peak_memory_bytes")
"""What no two trainings share."""


@pytest.fixture(scope="module", params=POOLS)
def make(request: pytest.FixtureRequest) -> Iterator[PoolFactory]:
    """Return what makes a pool. The pools on Ray share a cluster of two CPUs, whose start is paid once."""
    if request.param == "ray":
        import ray

        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
            patch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
            ray.init(address="local", num_cpus=2, num_gpus=0, include_dashboard=False, log_to_driver=False)
            yield RayPool
            ray.shutdown()
    else:
        yield POOLS[request.param]


def lasting(record: TrialRecord) -> dict[str, Any]:
    return {key: value for key, value in plain(record).items() if key not in OF_THE_MOMENT}


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Train the trials one after another on this machine."""
    pool = LocalPool(load_recipe("smoke"), 1, tmp_path_factory.mktemp("logs"))
    try:
        return [lasting(pool.submit(trial).result()) for trial in TRIALS]
    finally:
        pool.close()


def test_pool_records_do_not_depend_on_pool_workers_or_order(
    make: PoolFactory, expected: list[dict[str, Any]], tmp_path: Path
) -> None:
    pool = make(load_recipe("smoke"), 2, tmp_path, None)
    try:
        futures = [pool.submit(trial) for trial in reversed(TRIALS)]
        assert [lasting(future.result()) for future in reversed(futures)] == expected
    finally:
        pool.close()
    assert {record["state"] for record in expected} == {"complete"}


def test_pool_trial_stopped_by_its_caller_is_recorded_as_stopped(make: PoolFactory, tmp_path: Path) -> None:
    pool = make(load_recipe("smoke"), 1, tmp_path, None)
    try:
        record = pool.submit(TRIALS[0], lambda step, loss: False).result()
    finally:
        pool.close()
    assert (record.state, record.steps) == ("stopped", 4)


def test_pool_failing_trial_is_recorded_and_the_next_one_runs(make: PoolFactory, tmp_path: Path) -> None:
    recipe = load_recipe("smoke", ["training.learning_rate=1.0e+30", "training.warmup_steps=0"])
    pool = make(recipe, 1, tmp_path, None)
    try:
        records = [pool.submit(trial).result() for trial in TRIALS[:2]]
    finally:
        pool.close()
    assert [(record.state, record.loss) for record in records] == [("failed", None)] * 2
    assert all("not finite" in (record.error or "") for record in records)


def test_pool_worker_that_hangs_is_killed_and_its_trial_goes_on_from_its_last_state(
    make: PoolFactory, expected: list[dict[str, Any]], tmp_path: Path
) -> None:
    pool = make(load_recipe("smoke", ["training.hang_seconds=2", "training.checkpoint_seconds=0"]), 1, tmp_path, None)
    stopped: list[psutil.Process] = []

    def stop_worker(step: int, loss: float) -> bool:
        if not stopped:
            process = psutil.Process(pool.process_ids[0])  # on Ray, the actor that holds the worker
            stopped.append(next(iter(process.children()), process))
            stopped[0].suspend()
        return True

    try:
        failed, again = run_trials(pool, TRIALS[:1], lambda trial: stop_worker)
    finally:
        pool.close()
    assert (failed.state, failed.loss) == ("failed", None)
    assert (failed.error or "").startswith("a worker made no progress for 3 s and was killed")
    assert lasting(again) == expected[0]
    assert "goes on from step 3" in (tmp_path / "worker-0-rank-0.log").read_text()
    _, alive = psutil.wait_procs(stopped, timeout=PATIENCE)
    assert alive == []
    assert not (tmp_path / "unfinished").exists()


def test_pool_unused_ends_quietly_and_writes_nothing(make: PoolFactory, tmp_path: Path) -> None:
    make(load_recipe("smoke"), 1, tmp_path / "logs", None).close()
    assert not (tmp_path / "logs").exists()


def test_pool_closed_twice_ends_quietly(make: PoolFactory, tmp_path: Path) -> None:
    pool = make(load_recipe("smoke"), 1, tmp_path / "logs", None)
    pool.close()
    pool.close()
