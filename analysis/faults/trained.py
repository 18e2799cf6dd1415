"""Faults of runs that train: a killed worker, rank, Ray worker or raylet; a stopped process; NaN; memory; many ranks.

Each run is the smoke recipe's, of 16 trials of 8 steps. `inject.py` runs these after the others.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil

Result = dict[str, Any]
COMMAND = (sys.executable, "-m", "layersearch", "run", "--recipe", "smoke", "--budget", "0.6", "--json")
QUICK = ("--workers", "1", "--set", "training.checkpoint_seconds=0")
WORKER = "layersearch.training.workers.worker"
TOLERANCE = 1e-4
"""Largest difference of losses between ranks and ZeRO stages after 50 steps, nats, float32."""


def _work() -> Path:
    import inject

    return inject.WORK


def _start(out: Path, *more: str) -> subprocess.Popen[bytes]:
    said = (_work() / "said.txt").open("wb")
    return subprocess.Popen([*COMMAND, *QUICK, *more, "--out", str(out)], stdout=subprocess.DEVNULL, stderr=said)


@functools.cache
def _base(*more: str) -> dict[str, Any]:
    out = _work() / f"base-{'-'.join(more).replace('/', '_')}"
    assert _start(out, *more).wait() == 0
    return _latest(out)


def _latest(out: Path) -> dict[str, Any]:
    """Return the state and loss of each trial's later record."""
    found = {}
    for line in (out / "trials.jsonl").read_text().splitlines():
        record = json.loads(line)
        found[f"{record['schedule']} / {record['seed']} / {record['phase']}"] = [record["state"], record["loss"]]
    return found


def _workers(main: int) -> list[psutil.Process]:
    found = []
    with contextlib.suppress(psutil.NoSuchProcess):
        for child in psutil.Process(main).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                if WORKER in " ".join(child.cmdline()):
                    found.append(child)
    return sorted(found, key=lambda process: process.pid)


def _harmed(moment: int, harm: Callable[[list[psutil.Process]], None], *more: str) -> Result:
    """Harm a run's workers after so many records; it must end with the records of an unharmed run."""
    import stage

    out, wanted = _work() / "harmed", _base(*more)
    shutil.rmtree(out, ignore_errors=True)
    process = _start(out, *more)
    while stage.lines(out) < moment and process.poll() is None:
        time.sleep(0.01)
    time.sleep(0.05)
    before, began, noticed = stage.lines(out), time.monotonic(), None
    harm(_workers(process.pid))
    while process.poll() is None:
        if noticed is None and '"failed"' in (out / "trials.jsonl").read_text():
            noticed = time.monotonic() - began
        time.sleep(0.02)
    code, found = process.wait(), _latest(out)
    failed = [
        json.loads(line)["error"] for line in (out / "trials.jsonl").read_text().splitlines() if '"failed"' in line
    ]
    lost = [key for key in wanted if found.get(key) != wanted[key]]
    left = [worker.pid for worker in _workers(process.pid)]
    held = code == 0 and not lost and len(failed) == 1 and not left
    row: Result = {
        "moment": before,
        "exit": code,
        "reason": failed[:1],
        "lost": ", ".join(lost) or "nothing",
        "held": held,
    }
    return row if noticed is None else row | {"noticed": round(noticed, 2)}


def worker() -> Iterator[tuple[str, Callable[[], Result]]]:
    """kill -9 of the only worker: tried once more in the same run."""
    for moment in (0, 3, 6, 9, 12):
        yield f"{moment}", functools.partial(_harmed, moment or 1, lambda found: found[0].kill())


def rank() -> Iterator[tuple[str, Callable[[], Result]]]:
    """kill -9 of one of two ranks: tried once more in the same run."""
    ranks = ("--set", "training.ranks=2", "--set", "training.deepspeed=zero1")
    for moment in (2, 8):
        yield f"{moment}", functools.partial(_harmed, moment, lambda found: found[-1].kill(), *ranks)


def stopped() -> Iterator[tuple[str, Callable[[], Result]]]:
    """SIGSTOP of the only worker: killed after training.hang_seconds=5, tried once more."""
    patience = ("--set", "training.hang_seconds=5", "--set", "training.hang_factor=5")
    for moment in (2, 8):
        yield f"{moment}", functools.partial(_harmed, moment, lambda found: found[0].suspend(), *patience)


def stopped_rank() -> Iterator[tuple[str, Callable[[], Result]]]:
    """SIGSTOP of one of two ranks: both killed after training.hang_seconds=5, tried once more."""
    patience = ("--set", "training.hang_seconds=5", "--set", "training.hang_factor=5")
    ranks = ("--set", "training.ranks=2", "--set", "training.deepspeed=zero1")
    for moment in (2, 8):
        yield f"{moment}", functools.partial(_harmed, moment, lambda found: found[-1].suspend(), *patience, *ranks)


def memory() -> Iterator[tuple[str, Callable[[], Result]]]:
    """The kernel kills a worker for memory: tried once more."""
    for moment in (2, 8):
        yield f"{moment}", functools.partial(_harmed, moment, _no_memory)


def _no_memory(found: list[psutil.Process]) -> None:
    """Let the kernel's own killer end a worker at its next allocation: a cgroup of its own, of 256 KiB."""
    group = Path("/sys/fs/cgroup/memory/layersearch-faults")
    if group.parent.is_dir():  # cgroup v1
        group.mkdir(exist_ok=True)
        (group / "memory.limit_in_bytes").write_text(str(256 * 1024))
        (group / "cgroup.procs").write_text(str(found[0].pid))
    else:
        group = Path("/sys/fs/cgroup/layersearch-faults")
        group.mkdir(exist_ok=True)
        (group / "memory.max").write_text(str(256 * 1024))
        (group / "cgroup.procs").write_text(str(found[0].pid))


def nan() -> Iterator[tuple[str, Callable[[], Result]]]:
    """NaN in one trial of many: a failed record with its reason, the others are those of an unharmed run."""

    def at(number: int) -> Result:
        out, wanted = _work() / "nan", _base()
        shutil.rmtree(out, ignore_errors=True)
        poison = _work() / "poison"
        poison.mkdir(exist_ok=True)
        (poison / "sitecustomize.py").write_text(_POISON)
        victim = [key for key in wanted if key.endswith("search")][number]
        os.environ.update(PYTHONPATH=f"{poison}:{os.environ.get('PYTHONPATH', '')}", POISONED=victim.split(" / ")[0])
        try:
            code = _start(out).wait()
        finally:
            os.environ["PYTHONPATH"] = os.environ["PYTHONPATH"].partition(":")[2]
        found = _latest(out)
        failed = [key for key, (state, _) in found.items() if state == "failed"]
        schedule = victim.split(" / ")[0]
        others = [key for key in wanted if key in found and not key.startswith(f"{schedule} /")]
        lost = [key for key in others if found[key] != wanted[key]]
        held = code == 0 and bool(failed) and all(key.startswith(f"{schedule} /") for key in failed) and not lost
        return {"exit": code, "failed": failed, "lost": ", ".join(lost) or "nothing", "held": held}

    for number in (1, 3):
        yield f"trial {number}", functools.partial(at, number)


_POISON = '''
"""Poisons the weights of one schedule's model as soon as a worker makes it."""
import os, sys
if any("worker" in word for word in sys.orig_argv):
    import importlib.abc, importlib.machinery

    class Poison(importlib.abc.MetaPathFinder):
        def find_spec(self, name, path, target=None):
            if name != "layersearch.training.trial":
                return None
            sys.meta_path.remove(self)
            spec = importlib.machinery.PathFinder.find_spec(name, path)
            run = spec.loader.exec_module

            def exec_module(module):
                run(module)
                make = module._model

                def poisoned(recipe, source, schedule, group):
                    model = make(recipe, source, schedule, group)
                    if str(schedule) == os.environ["POISONED"]:
                        next(model.parameters()).data.fill_(float("nan"))
                    return model

                module._model = poisoned

            spec.loader.exec_module = exec_module
            return spec

    sys.meta_path.insert(0, Poison())
'''


def ranks() -> Iterator[tuple[str, Callable[[], Result]]]:
    """One and two ranks, ZeRO 0 to 3, 50 steps in float32: losses agree within 1e-4 nats."""

    def at(stage: int) -> Result:
        alone, found = _losses(1, 0), _losses(2, stage)
        far = max(abs(a - b) for (_, a), (_, b) in zip(alone, found, strict=True))
        return {"difference": far, "lost": "nothing" if far < TOLERANCE else f"{far:.2g} nats", "held": far < TOLERANCE}

    for stage in range(4):
        yield f"zero{stage}", functools.partial(at, stage)


def offload() -> Iterator[tuple[str, Callable[[], Result]]]:
    """ZeRO-Offload to the CPU, two ranks, 50 steps in float32: losses agree with those without it within 1e-4 nats."""

    def at(stage: int) -> Result:
        plain, found = _losses(2, stage), _losses(2, stage, offload=True)
        far = max(abs(a - b) for (_, a), (_, b) in zip(plain, found, strict=True))
        return {"difference": far, "lost": "nothing" if far < TOLERANCE else f"{far:.2g} nats", "held": far < TOLERANCE}

    for stage in (1, 2, 3):
        yield f"zero{stage}", functools.partial(at, stage)


@functools.cache
def _losses(ranks: int, stage: int, *, offload: bool = False) -> tuple[tuple[int, float], ...]:
    from layersearch.config.recipe import load_recipe
    from layersearch.schedule import Schedule
    from layersearch.training.record import Trial
    from layersearch.training.workers.pool import LocalPool

    name = f"zero{stage}"
    if offload:
        name = str(_work() / f"offload{stage}.json")
        zero = {"stage": stage, "offload_optimizer": {"device": "cpu"}}
        Path(name).write_text(json.dumps({"zero_optimization": zero}))
    sets = [f"training.ranks={ranks}", f"training.deepspeed={name}", "training.steps=50"]
    pool = LocalPool(load_recipe("smoke", sets), 1, _work() / "logs")
    try:
        trial = Trial(schedule=Schedule.parse("full window:8"), seed=3, checkpoints=(10, 25))
        record = pool.submit(trial).result()
    finally:
        pool.close()
    assert record.state == "complete", record.error
    return record.curve


def raylet() -> Iterator[tuple[str, Callable[[], Result]]]:
    """kill -9 of a raylet under ranks: 2 ranks a trial, 2 trials at once, 4 nodes; the run ends with all trials."""
    for moment in (2, 4, 6, 8):
        yield f"{moment}", functools.partial(_cluster, moment, "raylet")


def ray_worker() -> Iterator[tuple[str, Callable[[], Result]]]:
    """kill -9 of one rank's process in a Ray cluster of 4 nodes: tried once more."""
    yield "5", functools.partial(_cluster, 5, "rank")


def _cluster(moment: int, harm: str) -> Result:
    """Search on several raylets of this machine, and end one after so many records."""
    import stage
    from ray.cluster_utils import Cluster

    os.environ.update(RAY_USAGE_STATS_ENABLED="0", RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO="0")
    sets = ("--set", "training.ranks=2", "--set", "training.deepspeed=zero1")
    wanted, out = _base(*sets), _work() / "ray"
    shutil.rmtree(out, ignore_errors=True)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "num_gpus": 0, "include_dashboard": False})
    try:
        nodes = [cluster.add_node(num_cpus=2, num_gpus=0) for _ in range(3)]
        cluster.wait_for_nodes()
        process = _start(out, *sets, "--workers", "2", "--pool", "ray", "--ray-address", cluster.address)
        while stage.lines(out) < moment and process.poll() is None:
            time.sleep(0.02)
        began, noticed = time.monotonic(), None
        busy = _busiest(nodes)
        if harm == "raylet":
            cluster.remove_node(busy, allow_graceful=False)
        else:
            _ranks_of(busy)[0].kill()
        while process.poll() is None:
            if noticed is None and out.exists() and '"failed"' in (out / "trials.jsonl").read_text():
                noticed = time.monotonic() - began
            time.sleep(0.05)
        code = process.wait()
    finally:
        cluster.shutdown()
    found = _latest(out)
    lost = [key for key in wanted if key not in found or found[key][0] != wanted[key][0]]
    far = max(abs((found[key][1] or 0) - (wanted[key][1] or 0)) for key in wanted if key in found)
    lines = (out / "trials.jsonl").read_text().splitlines()
    failed = [json.loads(line)["error"] for line in lines if '"failed"' in line]
    held = code == 0 and not lost and far < TOLERANCE
    row: Result = {"moment": moment, "exit": code, "failed": len(failed), "reason": failed[:1], "difference": far}
    row |= {"lost": ", ".join(lost) or "nothing", "held": held}
    return row if noticed is None else row | {"noticed": round(noticed, 2)}


def _ranks_of(node: Any) -> list[psutil.Process]:
    raylets = [info.process.pid for info in node.all_processes["raylet"]]
    return [found for pid in raylets for found in _workers(pid)]


def _busiest(nodes: list[Any]) -> Any:
    """Return a node that runs ranks now."""
    end = time.monotonic() + 300
    while time.monotonic() < end:
        best = max(nodes, key=lambda node: len(_ranks_of(node)))
        if _ranks_of(best):
            return best
        time.sleep(0.05)
    raise AssertionError("no node runs a rank")


TRAINED: dict[str, Callable[[], Iterator[tuple[str, Callable[[], Result]]]]] = {
    "worker": worker,
    "rank": rank,
    "stopped": stopped,
    "stopped rank": stopped_rank,
    "memory": memory,
    "NaN": nan,
    "ranks": ranks,
    "offload": offload,
    "Ray worker": ray_worker,
    "raylet": raylet,
}
