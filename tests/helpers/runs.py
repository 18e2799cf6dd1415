"""Searches of the smoke recipe in processes of their own: to start, to wait for and to compare."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

PATIENCE = 120.0
"""Seconds after which a process that should have got somewhere is given up."""
RUN = [sys.executable, "-P", "-m", "layersearch", "run", "--recipe", "smoke"]


def run(out: Path, *more: str) -> str:
    """Run the smoke search to its end; return its result as JSON text."""
    done = subprocess.run([*RUN, "--json", "--out", str(out), *more], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def lines(out: Path) -> list[str]:
    """Return the whole lines of a run's records, the line ends included."""
    file = out / "trials.jsonl"
    found = file.read_text().splitlines(keepends=True) if file.exists() else []
    return [line for line in found if line.endswith("\n")]


def records(out: Path) -> dict[tuple[str, int, str], tuple[str, float | None, str]]:
    """Return what is compared of each record, exactly; no trial may stand there twice."""
    found = {}
    for record in map(json.loads, lines(out)):
        key = (record["schedule"], record["seed"], record["phase"])
        assert key not in found, f"trained twice: {key}"
        found[key] = (record["state"], record["loss"], record["role"])
    return found


def latest(out: Path) -> dict[tuple[str, int, str], tuple[str, float | None, str]]:
    """Return what the later record of each trial says."""
    return {
        (record["schedule"], record["seed"], record["phase"]): (record["state"], record["loss"], record["role"])
        for record in map(json.loads, lines(out))
    }


def study(out: Path) -> list[optuna.trial.FrozenTrial]:
    """Return the trials as plain Optuna loads them."""
    storage = JournalStorage(JournalFileBackend(str(out / "study.journal")))
    return optuna.load_study(study_name="layersearch", storage=storage).trials


def check_study(out: Path) -> None:
    """The journal says of every trial what its record says, and no early loss is told as a full one."""
    searched = {key[0]: value for key, value in latest(out).items() if key[2] == "search"}
    trials = study(out)
    assert {t.state for t in trials} <= {TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL}
    told = {}
    for trial in trials:
        label = trial.user_attrs.get("schedule, role, generation")
        if label is None:
            assert trial.state == TrialState.PRUNED
            assert trial.user_attrs["not trained"]
        else:
            assert label[0] not in told
            told[label[0]] = trial
        if trial.state != TrialState.COMPLETE:
            assert trial.values is None
            assert trial.intermediate_values == {}
    expected = {"complete": TrialState.COMPLETE, "stopped": TrialState.PRUNED, "failed": TrialState.FAIL}
    assert {text: trial.state for text, trial in told.items()} == {
        text: expected[state] for text, (state, _, _) in searched.items()
    }
    for text, trial in told.items():
        if trial.state == TrialState.COMPLETE:
            assert trial.values[0] == searched[text][1]


def wait_until(holds: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Wait for something a running search does."""
    end = time.monotonic() + PATIENCE
    while not holds():
        assert process.poll() is None, "the search ended before it could be disturbed"
        assert time.monotonic() < end
        time.sleep(0.01)


def started(out: Path, *more: str) -> subprocess.Popen[str]:
    quiet = subprocess.DEVNULL
    return subprocess.Popen([*RUN, "--out", str(out), *more], stdout=quiet, stderr=quiet, text=True)
