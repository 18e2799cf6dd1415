"""Searches on a real Ray cluster of two nodes, of one CPU each: what it records, shards, survives and refuses."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from layersearch.cli.main import main
from layersearch.config.recipe import Recipe, load_recipe
from layersearch.errors import UserError
from layersearch.model.flops import num_parameters
from layersearch.schedule import Schedule
from layersearch.schedule.bound_space import BoundSpace
from layersearch.schedule.space import load_space
from layersearch.study.search import search
from layersearch.training.record import Trial, TrialRecord
from layersearch.training.workers import ray_pool
from layersearch.training.workers.pool import LocalPool
from layersearch.training.workers.ray_pool import RayPool
from tests.helpers.runs import PATIENCE, RUN, check_study, lines, records, run, wait_until

pytestmark = pytest.mark.integration

TRIAL = Trial(schedule=Schedule.parse("full window:8"), seed=3, checkpoints=(4,))
OF_THE_MOMENT = ("seconds", "train_seconds", "eval_seconds", "peak_memory_bytes", "crc32")
"""What no two trainings share."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """Start a cluster; return its address."""
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        node = {"num_cpus": 1, "num_gpus": 0, "include_dashboard": False}
        found = Cluster(initialize_head=True, head_node_args=node)
        found.add_node(num_cpus=1, num_gpus=0)
        found.wait_for_nodes()
        yield found.address
        found.shutdown()


@pytest.fixture(scope="module")
def connected(cluster: str) -> Iterator[str]:
    """Connect this process, once for the tests that need no connection of their own."""
    import ray

    ray.init(address=cluster, log_to_driver=False)
    yield cluster
    ray.shutdown()


def small(*overrides: str) -> Recipe:
    return load_recipe("smoke", overrides)


def whole(out: Path) -> dict[tuple[str, int, str], dict[str, Any]]:
    """Return the records of a run, but for what no two trainings share."""
    found = {}
    for record in map(json.loads, lines(out)):
        key = (record["schedule"], record["seed"], record["phase"])
        assert key not in found, f"trained twice: {key}"
        found[key] = {name: value for name, value in record.items() if name not in OF_THE_MOMENT}
    return found


def workers() -> list[psutil.Process]:
    """Return the worker processes below this process, which has started the cluster."""
    return workers_among(psutil.Process().children(recursive=True))


def workers_among(processes: list[psutil.Process]) -> list[psutil.Process]:
    found = []
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):  # it ended since, or nobody has asked yet how
            if "layersearch.training.workers.worker" in " ".join(process.cmdline()):
                found.append(process)
    return found


def on_ray(cluster: str, out: Path) -> None:
    """Search the smoke space on the cluster, or go on with a search that was begun."""
    pool = functools.partial(RayPool, address=cluster)
    space = load_space("smoke")
    assert space.budget is not None
    search(small(), space, space.budget, out, pool=pool)


def test_ray_pool_records_equal_local_pool(cluster: str, tmp_path: Path, smoke_run: Path) -> None:
    """To the bit: states, steps, losses, what really ran. And the run does not remember which pool it was."""
    import ray

    out = tmp_path / "run"
    on_ray(cluster, out)
    assert not ray.is_initialized()
    assert whole(out) == whole(smoke_run)
    check_study(out)
    for name in ("frontier.json", "winner.yaml"):
        assert (out / name).read_text() == (smoke_run / name).read_text()
    asked, before = (json.loads((folder / "config.json").read_text()) for folder in (out, smoke_run))
    assert {**asked, "git_commit": None} == {**before, "git_commit": None}
    assert "ray" not in json.dumps(asked["recipe"])


def test_ray_confirm_records_equal_local_pool(
    cluster: str, tmp_path: Path, smoke_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    held = {(record["schedule"], record["phase"]) for record in map(json.loads, lines(smoke_run))}
    space = BoundSpace(load_space("smoke"), n_layers=small().model.n_layers, seq_len=48, n_heads=2)
    schedule = next(str(s) for s in space.schedules() if (str(s), "confirm") not in held)
    said = []
    for name, flags in (("here", []), ("there", ["--pool", "ray", "--ray-address", cluster])):
        shutil.copytree(smoke_run, tmp_path / name)
        assert main(["confirm", str(tmp_path / name), schedule, *flags]) == 0
        said.append(capsys.readouterr().out)
    assert len(lines(tmp_path / "there")) > len(lines(smoke_run))
    assert whole(tmp_path / "there") == whole(tmp_path / "here")
    assert said[0] == said[1]


def test_ray_optimal_l_answer_equals_local(cluster: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In the converted regime, whose two pools would each fill the cluster."""
    line = ["optimal-l", "--recipe", "smoke", "--regime", "converted", "--placements", "bottom,searched", "--l", "0,2"]
    line += ["--seeds", "2", "--max-seeds", "2", "--workers", "2", "--out"]
    where = {"here": [], "there": ["--pool", "ray", "--ray-address", cluster]}
    for name, flags in where.items():
        assert main([*line, str(tmp_path / name), *flags]) == 0, capsys.readouterr().err
    assert whole(tmp_path / "there") == whole(tmp_path / "here")
    assert whole(tmp_path / "there" / "start") == whole(tmp_path / "here" / "start")
    answers = []
    for name in where:
        (answer,) = json.loads((tmp_path / name / "answer.json").read_text())["settings"]
        answers.append({key: value for key, value in answer.items() if "seconds" not in key})
    assert answers[0] == answers[1]


def test_ray_search_killed_here_resumes_on_the_cluster(cluster: str, tmp_path: Path, smoke_run: Path) -> None:
    """What a kill leaves after five of 16 records; other tests kill processes."""
    out = tmp_path / "run"
    out.mkdir()
    shutil.copy(smoke_run / "config.json", out)
    kept = lines(smoke_run)[:5]
    (out / "trials.jsonl").write_text("".join(kept))
    on_ray(cluster, out)
    assert lines(out)[: len(kept)] == kept
    assert whole(out) == whole(smoke_run)
    check_study(out)


def test_ray_search_killed_on_its_own_cluster_resumes_here(tmp_path: Path, smoke_run: Path) -> None:
    """Its workers and Ray's servers end with it, and there is nothing but its own lines on the terminal."""
    out = tmp_path / "run"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    with (tmp_path / "terminal").open("w") as terminal:
        process = subprocess.Popen(
            [*RUN, "--out", str(out), "--pool", "ray"], stdout=terminal, stderr=terminal, text=True, env=environment
        )
    wait_until(lambda: len(lines(out)) >= 5, process)
    below = psutil.Process(process.pid).children(recursive=True)
    servers = [child for child in below if child.name() in ("raylet", "gcs_server")]
    trainers = workers_among(below)
    assert (len(servers), len(trainers)) == (2, 2)
    process.kill()
    process.wait()
    _, alive = psutil.wait_procs(below, timeout=40)  # Ray's agents too, which would wait for over a minute
    assert alive == []
    said = (tmp_path / "terminal").read_text().splitlines()
    assert said
    assert [line for line in said if "/16 trials" not in line] == []
    kept = lines(out)
    assert len(kept) < 16
    run(out)
    assert lines(out)[: len(kept)] == kept
    assert records(out) == records(smoke_run)
    check_study(out)


def test_ray_two_ranks_shard_across_two_nodes(connected: str, tmp_path: Path) -> None:
    """They meet over TCP at the first one's address, listen nowhere else, and train as two ranks on one machine."""
    import ray
    from ray.util import placement_group_table

    recipe = small("training.ranks=2", "training.deepspeed=zero1")
    heard: set[str] = set()
    nodes: set[str] = set()

    def look(step: int, loss: float) -> bool:
        for process in workers():
            heard.update(at.laddr.ip for at in process.net_connections() if at.status == psutil.CONN_LISTEN)
        for group in placement_group_table().values():
            nodes.update(group["bundles_to_node_id"].values())
        return True

    found: list[TrialRecord] = []
    for pool in (RayPool(recipe, 1, tmp_path / "ray"), LocalPool(recipe, 1, tmp_path / "local")):
        try:
            found.append(pool.submit(TRIAL, look if isinstance(pool, RayPool) else None).result())
        finally:
            pool.close()
    here, there = found[1], found[0]
    assert there.state == "complete", there.error
    assert len(nodes) == 2
    assert heard == {ray.util.get_node_ip_address()}
    assert (there.ranks, there.zero_stage, there.device) == (2, 1, "cpu")
    assert (there.curve, there.loss_by_position) == (here.curve, here.loss_by_position)
    half = 8 * num_parameters(recipe.model, recipe.data.vocab_size) / 2  # AdamW's two moments, float32
    for held in there.optimizer_state_bytes:
        assert half <= held <= half + 512  # padded by DeepSpeed
    assert here.optimizer_state_bytes == there.optimizer_state_bytes


def test_ray_pool_actors_are_kept_and_a_dead_one_fails_its_trial_alone(connected: str, tmp_path: Path) -> None:
    """Whether the actor is killed or the worker that it holds: a failed record says why, and the next trial runs."""
    pool = RayPool(small(), 1, tmp_path / "logs")
    seen: list[int] = []
    held: list[psutil.Process] = []

    def look(step: int, loss: float) -> bool:
        seen.extend(pool.process_ids)
        held.extend(workers())
        return False

    def kill_actor(step: int, loss: float) -> bool:
        os.kill(pool.process_ids[0], signal.SIGKILL)
        return True

    def kill_worker(step: int, loss: float) -> bool:
        for process in workers():
            process.kill()
        return True

    try:
        stopped = [pool.submit(TRIAL, look).result() for _ in range(2)]
        without_actor = pool.submit(TRIAL, kill_actor).result()
        complete = pool.submit(TRIAL).result()
        second = pool.process_ids
        without_worker = pool.submit(TRIAL, kill_worker).result()
        pool.submit(TRIAL, look).result()
    finally:
        pool.close()
    assert [(record.state, record.steps) for record in stopped] == [("stopped", 4)] * 2
    assert seen[0] == seen[1]
    assert seen[1] not in second
    assert seen[2] not in second
    assert complete.state == "complete", complete.error
    assert complete.curve[:1] == stopped[0].curve == stopped[1].curve
    for record, reason in ((without_actor, "its Ray actor died"), (without_worker, "-9")):
        assert (record.state, record.loss) == ("failed", None)
        assert record.error is not None
        assert record.error.startswith(f"a worker process died (exit codes [{reason}]): out of memory? see ")
    assert pool.process_ids == ()
    assert len({process.pid for process in held}) == 2
    _, alive = psutil.wait_procs(held, timeout=PATIENCE)
    assert alive == []
    (log,) = (tmp_path / "logs").iterdir()
    assert log.read_text() == ""


def test_ray_pool_foreign_connection_is_left_open(connected: str, tmp_path: Path) -> None:
    """And all of the cluster free, though it is closed as soon as it is opened, with more workers than fit."""
    import ray

    for workers in (2, 1, 3, 2, 1):
        RayPool(small(), workers, tmp_path, address=connected).close()
        end = time.monotonic() + PATIENCE
        while ray.available_resources().get("CPU") != 2.0 and time.monotonic() < end:
            time.sleep(0.1)
        assert ray.available_resources().get("CPU") == 2.0
    assert ray.is_initialized()
    with pytest.raises(UserError, match=r"--ray-address 127\.0\.0\.1:1: this process is connected to "):
        RayPool(small(), 2, tmp_path, address="127.0.0.1:1")


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        (("training.threads=2",), r"ranks 1 of 2 CPU, and the cluster \(2 CPU on 2 machines\) has room for 0: lower "),
        (("training.ranks=4",), r"ranks 4 of 1 CPU, and the cluster \(2 CPU on 2 machines\) has room for 2: lower "),
        (("training.gpus=1",), r"ranks 1 of 1 CPU and 1 GPU, and the cluster \(2 CPU and 0 GPU on 2 machines\)"),
    ],
)
def test_ray_cluster_too_small_for_one_trial_is_refused(
    settings: tuple[str, ...], line: str, connected: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=line):
        RayPool(small(*settings), 1, tmp_path)


def test_ray_machine_without_the_package_is_refused(
    connected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The actor's class lies in a module that only this process has."""
    here = types.ModuleType("only_here")
    monkeypatch.setattr(here, "_Actor", ray_pool._Actor, raising=False)
    monkeypatch.setattr(ray_pool._Actor, "__module__", "only_here")
    monkeypatch.setitem(sys.modules, "only_here", here)
    pool = RayPool(small(), 1, tmp_path)
    try:
        with pytest.raises(UserError, match=r"no worker can be started on the cluster \(.*only_here.*\): install "):
            pool.submit(TRIAL).result()
    finally:
        pool.close()


def test_ray_data_that_differ_on_the_worker_machine_are_refused(connected: str, tmp_path: Path) -> None:
    """A relative path of another folder: the machine that trains would read other text than the one that asks."""
    text = tmp_path / "text.txt"
    text.write_text("to be or not to be " * 500)
    recipe = small("data.source=text", f"data.files=['{text}']", "data.vocab_size=300")
    pool = RayPool(recipe, 1, tmp_path / "logs", tmp_path / "cache")
    try:
        text.write_text("not to be or to be " * 500)
        with pytest.raises(UserError, match=r"its data differ from those here .*give every machine the same files"):
            pool.submit(TRIAL).result()
    finally:
        pool.close()


def test_local_search_imports_no_ray(tmp_path: Path) -> None:
    script = """
import sys
from layersearch import load_recipe, load_space, search
small = ["search.trials=3", "search.finalists=1", "search.workers=1", "training.steps=2", "training.warmup_steps=0"]
assert search(load_recipe("smoke", small), load_space("smoke"), 0.6, "run").winner is not None
import layersearch.training.workers.ray_pool
assert "ray" not in sys.modules
"""
    done = subprocess.run(
        [sys.executable, "-P", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_ray_cluster_whose_token_is_not_given_is_refused(tmp_path: Path) -> None:
    """Ray guards a cluster that it starts with a token, which a stranger has to be given."""
    script = """
import ray
ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False)
print(ray.get_runtime_context().gcs_address, flush=True)
input()
"""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    with subprocess.Popen(
        [sys.executable, "-P", "-c", script],
        env=clean,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as host:
        assert host.stdout is not None
        address = host.stdout.readline().strip()
        command = [*RUN, "--out", "new", "--pool", "ray", "--ray-address", address]
        done = subprocess.run(command, cwd=tmp_path, env=clean, capture_output=True, text=True, check=False)
        host.communicate("\n")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        f"layersearch: --ray-address {address}: the cluster asks for its token: "
        "set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN\n"
    )
    assert list(tmp_path.iterdir()) == []
