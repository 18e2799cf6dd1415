"""Run folders of many trials, and what the commands that read them take.

    python analysis/load/load.py make 1000 /tmp/run      # a search whose trials cost nothing
    python analysis/load/load.py records 10000 /tmp/run  # the same without the sampler's journal
    python analysis/load/load.py measure /tmp/run        # show, plot, solve, resume, three times each: record.jsonl
    python analysis/load/load.py ask /tmp/run            # one proposal of the sampler ``gain`` after all these trials
    python analysis/load/load.py rate 200                # trials a second through a pool, local and Ray's
    python analysis/load/load.py answers /tmp/run        # what learning from fewer trials changes in the predictions
    python analysis/load/load.py table                   # the table of README.md

The training is left out: a trial's loss is a made-up truth plus noise. Proposals are drawn at random, all else is the
search's own.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from concurrent.futures import Future
from pathlib import Path
from random import Random
from statistics import median
from typing import Any

from layersearch.config.recipe import Recipe, deepspeed_file, load_recipe
from layersearch.schedule import Schedule
from layersearch.schedule.space import load_space
from layersearch.study.search import search
from layersearch.training.record import Trial, TrialRecord, blank_record
from layersearch.training.trial import KeepGoing

HERE = Path(__file__).parent
LAYERS, BUDGET, SEEDS, FINALISTS = 48, 0.6, 3, 20
NOISE = 0.01
"""Standard deviation of a trial's loss, nats."""


def truth(schedule: Schedule) -> float:
    """Return the loss without noise: the first full layers help most, late ones more, and wide spans a little."""
    full = schedule.full_layers
    late = max((layer / (LAYERS - 1) for layer in full), default=0.0)
    spans = sum((span.size or 48) for span in schedule) / len(schedule) / 48
    return 3.0 - 0.5 * (1 - 0.8 ** len(full)) - 0.2 * late - 0.1 * spans


class MadeUpPool:
    """Returns made-up records at once, equal for equal trials."""

    def __init__(self, recipe: Recipe, workers: int, logs: Path, cache: Path | None = None) -> None:
        self._recipe = recipe

    def submit(self, trial: Trial, keep_going: KeepGoing | None = None) -> Future[TrialRecord]:
        made: Future[TrialRecord] = Future()
        made.set_result(self._record(trial, keep_going))
        return made

    def _record(self, trial: Trial, keep_going: KeepGoing | None) -> TrialRecord:
        import dataclasses

        steps = self._recipe.training.steps
        rng = Random(hashlib.sha256(f"{trial.schedule}/{trial.seed}".encode()).hexdigest())
        level, curve, state = truth(trial.schedule) + rng.gauss(0, NOISE), [], "complete"
        for step in (*trial.checkpoints, steps):
            curve.append((step, level + 0.5 * (steps / step - 1) + rng.gauss(0, NOISE)))
            if step < steps and keep_going is not None and not keep_going(*curve[-1]):
                state = "stopped"
                break
        step, loss = curve[-1]
        made = {"state": state, "steps": step, "loss": loss, "curve": tuple(curve), "seconds": 1.0}
        # As long as a real record: a loss for each bin of positions, and a kernel for each layer.
        made["position_edges"] = tuple(range(6, 49, 6))
        made["loss_by_position"] = tuple(loss + rng.gauss(0, NOISE) for _ in range(8))
        made["metrics"], made["kernels"] = (("recall_accuracy", rng.random()),), ("chunked-span",) * LAYERS
        return dataclasses.replace(blank_record(trial, self._recipe), **made)

    def close(self) -> None:
        pass


def assignments(records: int) -> list[str]:
    """Return the keys that turn the recipe ``smoke`` into a search with about this many records."""
    confirmed = (FINALISTS + 6) * SEEDS
    return [
        f"model.n_layers={LAYERS}",
        "training.steps=100",
        f"search.trials={records - confirmed}",
        f"search.finalists={FINALISTS}",
        f"search.confirm_seeds={SEEDS}",
        "search.sampler=random",
        "search.pruner=successive_halving",
    ]


def make(records: int, out: Path, *, journal: bool = True) -> None:
    """Make a finished run folder with about this many records.

    Its proposals are random schedules, half of them stopped at a rung. The search then goes on: it confirms the best.
    Without a journal, which takes most of the time, the best ten are confirmed here, and the run cannot be resumed.
    """
    from layersearch.results.result import PROPOSED
    from layersearch.schedule.bound_space import BoundSpace
    from layersearch.study.journal import Study
    from layersearch.study.plan import GENERATION, make_plan
    from layersearch.study.prepare import open_data, open_run_folder

    os.fsync = lambda file: None  # type: ignore[assignment]  # nothing here is worth waiting for the disk
    began, used = time.perf_counter(), time.process_time()
    recipe, space = load_recipe("smoke", overrides=assignments(records)), load_space("smoke")
    bound, rng, pool = BoundSpace.of(space, recipe), Random(0), MadeUpPool(recipe, 1, out)
    plan = make_plan(recipe, bound, BUDGET, 0)
    source = open_data(recipe.data, recipe.training, deepspeed_file(recipe))
    folder = open_run_folder(out, recipe, bound, source, budget=BUDGET, seed=0)
    study = Study(folder.journal, bound, BUDGET, recipe.search, 0) if journal else None
    entered = {schedule: (name, 0) for name, schedule in plan.baselines}
    while len(entered) < plan.proposals + len(plan.baselines):
        params = bound.encode(bound.sample(rng))
        assert params is not None
        number = len(entered) - len(plan.baselines)
        entered.setdefault(bound.repair(params, BUDGET, rng), (PROPOSED, 1 + number // GENERATION))
    for number, (schedule, (role, generation)) in enumerate(entered.items()):
        if study is not None:
            study.enter(schedule, role, generation)
        trial = Trial(schedule=schedule, seed=0, role=role, checkpoints=plan.checkpoints)
        stops = role == PROPOSED and number % 2 == 1
        record = pool.submit(trial, (lambda step, loss: False) if stops else None).result()
        folder.append(record)
        if study is not None:
            study.tell(record)
    folder.release()
    made: Any = MadeUpPool
    best = [s for s, (role, _) in entered.items() if role != PROPOSED] + sorted(entered, key=truth)[:10]
    search(recipe, space, BUDGET, out, pool=made, confirm=None if journal else best)
    print(f"{records} records: {time.perf_counter() - began:.1f} s, {time.process_time() - used:.1f} s of processor")


def commands(run: Path) -> dict[str, list[str]]:
    """Return the commands to measure."""
    recipe = json.loads((run / "config.json").read_text())["recipe"]
    records = recipe["search"]["trials"] + (FINALISTS + 6) * SEEDS
    sets = [word for key in assignments(records) for word in ("--set", key)]
    return {
        "show": ["show", str(run)],
        "plot": ["plot", str(run)],
        "solve": ["solve", str(run), "--budget", "0.4"],
        "report": ["report", str(run)],
        "resume": ["run", "--recipe", "smoke", *sets, "--budget", str(BUDGET), "--out", str(run)],
        "resume, the page is missing": ["run", "--recipe", "smoke", *sets, "--budget", str(BUDGET), "--out", str(run)],
    }


_MEASURE = """
import json, os, subprocess, sys, time
began = time.perf_counter()
process = subprocess.Popen([sys.executable, "-m", "layersearch", *sys.argv[1:]], stdout=subprocess.DEVNULL)
_, status, used = os.wait4(process.pid, 0)
print(json.dumps({
    "seconds": round(time.perf_counter() - began, 2),
    "processor_seconds": round(used.ru_utime + used.ru_stime, 2),
    "megabytes": round(used.ru_maxrss / 1000),
    "exit": os.waitstatus_to_exitcode(status),
}))
"""
# A small process starts the command: the memory of the one that forks counts as its own.


def measure(run: Path, names: list[str]) -> None:
    """Run each command three times in a process of its own and append a line each to ``record.jsonl``."""
    lines = sum(1 for _ in (run / "trials.jsonl").open())
    for name, words in commands(run).items():
        if names and name not in names:
            continue
        for _ in range(3):
            if "page" in name:
                (run / "report.html").unlink(missing_ok=True)
            ran = subprocess.run([sys.executable, "-c", _MEASURE, *words], capture_output=True, text=True, check=True)
            _note(**{"records": lines, "command": name, **json.loads(ran.stdout.splitlines()[-1])})


def _note(**facts: Any) -> None:
    with (HERE / "record.jsonl").open("a") as file:
        file.write(json.dumps(facts) + "\n")
    print(facts, flush=True)


def ask(run: Path) -> None:
    """Time proposals of the sampler ``gain`` that knows a run's trials."""
    import dataclasses
    import shutil
    import tempfile

    from layersearch.schedule.bound_space import BoundSpace
    from layersearch.study.journal import Study
    from layersearch.study.saved_run import load_records, load_request

    recipe, space, budget = load_request(run)
    records = [record for record in load_records(run) if record.phase == "search"]
    with tempfile.TemporaryDirectory() as folder:
        journal = Path(shutil.copy(run / "study.journal", folder))
        search_config = dataclasses.replace(recipe.search, sampler="gain", pruner="none", rungs=(), reduction=None)
        study = Study(journal, BoundSpace.of(space, recipe), budget, search_config, 0)
        for record in records:
            study.tell(record)
        seen = {record.schedule for record in records}
        for index in range(3):
            began, used = time.perf_counter(), time.process_time()
            schedule = study.propose(seen, 10**6, index)
            assert schedule is not None
            seen.add(schedule)
            spent = {"seconds": round(time.perf_counter() - began, 2)}
            spent["processor_seconds"] = round(time.process_time() - used, 2)
            _note(records=len(records), command="ask", **spent)


def rate(trials: int) -> None:
    """Time trials that train nothing through a pool of two workers."""
    import tempfile

    from idle import IdleActor, IdleWorker

    from layersearch.training.workers import pool as pools
    from layersearch.training.workers import ray_pool
    from layersearch.training.workers.run_trials import run_trials

    os.environ["PYTHONPATH"] = f"{HERE}:{os.environ.get('PYTHONPATH', '')}"
    pools.WorkerProcess, ray_pool._Actor = IdleWorker, IdleActor  # type: ignore[misc]
    recipe, schedule = load_recipe("smoke"), Schedule.parse("full window:4")
    with tempfile.TemporaryDirectory() as logs:
        for name, kind in (("local", pools.LocalPool), ("Ray", ray_pool.RayPool)):
            pool = kind(recipe, 2, Path(logs))
            try:
                list(run_trials(pool, [Trial(schedule=schedule, seed=seed) for seed in (-1, -2)]))  # starts the workers
                began, used = time.perf_counter(), time.process_time()
                done = list(run_trials(pool, [Trial(schedule=schedule, seed=seed) for seed in range(trials)]))
                took = time.perf_counter() - began
            finally:
                pool.close()
            assert len(done) == trials
            assert all(record.state == "complete" for record in done)
            spent = {"seconds": round(took, 2), "processor_seconds": round(time.process_time() - used, 2)}
            _note(records=trials, command=f"{trials} idle trials, pool {name}", **spent)
            began, used = time.perf_counter(), time.process_time()
            keys = assignments(trials)
            keys[keys.index("search.pruner=successive_halving")] = "search.pruner=none"
            whole = load_recipe("smoke", overrides=[*keys, "search.workers=2"])
            search(whole, load_space("smoke"), BUDGET, Path(logs, f"run-{name}"), pool=kind)
            spent = {"seconds": round(time.perf_counter() - began, 2)}
            spent["processor_seconds"] = round(time.process_time() - used, 2)
            _note(records=trials, command=f"a whole search of {trials} idle trials, pool {name}", **spent)


def answers(run: Path) -> None:
    """Predict new schedules from all trials of a run and from fewer, and compare with the truth."""
    import numpy as np

    from layersearch.schedule.bound_space import BoundSpace
    from layersearch.study.saved_run import load_records, load_request
    from layersearch.surrogate import fit, gp

    recipe, space, budget = load_request(run)
    bound, rng = BoundSpace.of(space, recipe), Random(1)
    trials = fit.training_trials(load_records(run), bound)
    drawn = [bound.encode(bound.sample(rng)) for _ in range(300)]
    new = [bound.repair(params, budget, rng) for params in drawn if params is not None]
    exact = np.array([truth(schedule) for schedule in new])
    before: dict[bool, Any] = {}
    for fitted, most in ((300, 1500), (300, 600), (200, 600), (128, 600), (64, 600), (128, 400)):
        gp._MOST_FITTED, fit.MOST_TRIALS = fitted, most
        for pairwise in (False, True):
            used = time.process_time()
            mean, std = (surrogate := fit.fit_surrogate(trials, bound, pairwise=pairwise)).predict(new)
            spent = time.process_time() - used
            off = mean - exact
            before.setdefault(pairwise, (mean, std))
            moved = np.abs(mean - before[pairwise][0]) <= 1.96 * before[pairwise][1]
            _note(
                records=len(trials),
                command="answers",
                pairwise=pairwise,
                fitted=fitted,
                trials=most,
                losses=len(surrogate._y),
                processor_seconds=round(spent, 2),
                error=round(float(np.sqrt((off**2).mean())), 5),
                std=round(float(std.mean()), 5),
                covered=round(float((np.abs(off) <= 1.96 * std).mean()), 3),
                within_first=round(float(moved.mean()), 3),
            )


def table() -> None:
    """Print the median of the latest three measurements of each command and size."""
    rows = [json.loads(line) for line in (HERE / "record.jsonl").read_text().splitlines()]
    found: dict[tuple[int, str], list[dict[str, Any]]] = {}
    for row in rows:
        if row["command"] != "answers":
            found.setdefault((row["records"], row["command"]), []).append(row)
    print("| records | command | runs | processor s | wall s | MB |\n|---|---|---|---|---|---|")
    for (records, command), all_of_it in sorted(found.items(), key=lambda item: item[0][0]):
        last = all_of_it[-3:]
        middle = [median(row[key] for row in last) for key in ("processor_seconds", "seconds")]
        most = max((row["megabytes"] for row in last if "megabytes" in row), default="")
        print(f"| {records:,} | {command} | {len(last)} | {middle[0]:.2f} | {middle[1]:.2f} | {most} |")


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["make", number, folder]:
            make(int(number), Path(folder))
        case ["records", number, folder]:
            make(int(number), Path(folder), journal=False)
        case ["measure", folder, *some]:
            measure(Path(folder), some)
        case ["ask", folder]:
            ask(Path(folder))
        case ["rate", number]:
            rate(int(number))
        case ["answers", folder]:
            answers(Path(folder))
        case ["table"]:
            table()
        case _:
            print(__doc__)
