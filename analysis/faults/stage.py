"""Commands in processes that a test can harm: forked from one that has imported everything, so one takes 0.1 seconds.

Their trials cost nothing: a trial's loss is made up, and equal for equal trials. All else is the command's own.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shutil
import signal
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

from layersearch.config.recipe import Recipe
from layersearch.training.record import State, Trial, TrialRecord, blank_record
from layersearch.training.trial import KeepGoing

RUN = ("run", "--recipe", "smoke", "--budget", "0.6", "--set", "search.trials=14", "--set", "search.finalists=2")
PATIENCE = 300.0


class MadeUpPool:
    """Returns made-up records after some time."""

    seconds = 0.02

    def __init__(self, recipe: Recipe, workers: int, logs: Path, cache: Path | None = None) -> None:
        self._recipe = recipe

    def submit(self, trial: Trial, keep_going: KeepGoing | None = None) -> Future[TrialRecord]:
        made: Future[TrialRecord] = Future()
        time.sleep(self.seconds)
        made.set_result(self._record(trial, keep_going))
        return made

    def _record(self, trial: Trial, keep_going: KeepGoing | None) -> TrialRecord:
        steps, rng = self._recipe.training.steps, Random(f"{trial.schedule}/{trial.seed}")
        level, curve, state = 3.0 - 0.1 * trial.schedule.n_full + rng.gauss(0, 0.01), [], "complete"
        for step in (*trial.checkpoints, steps):
            curve.append((step, level + 0.5 * (steps / step - 1)))
            if step < steps and keep_going is not None and not keep_going(*curve[-1]):
                state = "stopped"
                break
        made: State = "stopped" if state == "stopped" else "complete"
        step, loss = curve[-1]
        return replace(
            blank_record(trial, self._recipe), state=made, steps=step, loss=loss, curve=tuple(curve), seconds=0.02
        )

    def close(self) -> None:
        pass


def import_everything() -> None:
    """Import what the commands import, so that no fork does."""
    import matplotlib.pyplot  # noqa: F401
    import optuna  # noqa: F401

    import layersearch.cli.run
    import layersearch.report.page
    import layersearch.results.plots.noise
    import layersearch.results.plots.pareto
    import layersearch.study.search  # noqa: F401


@dataclass
class Child:
    """One command in a process of its own."""

    pid: int
    log: Path
    began: float
    code: int | None = None

    def poll(self) -> int | None:
        """Return the exit code, negative for a signal; None: it still runs."""
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.code = os.waitstatus_to_exitcode(status)
        return self.code

    def wait(self) -> int:
        """Wait for the end and return the exit code; kill it after `PATIENCE`."""
        end = time.monotonic() + PATIENCE
        while (code := self.poll()) is None:
            if time.monotonic() > end:
                os.kill(self.pid, signal.SIGKILL)
            time.sleep(0.002)
        return code

    def kill(self, number: int) -> None:
        """Send a signal, if it still runs."""
        if self.poll() is None:
            os.kill(self.pid, number)

    @property
    def said(self) -> str:
        """What it wrote on standard error."""
        return self.log.read_text(errors="replace")


def start(
    words: tuple[str, ...], log: Path, *, figures: bool = False, prepare: Callable[[], Any] = lambda: None
) -> Child:
    """Start a command."""
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return Child(pid, log, time.monotonic())
    code = 70
    try:
        os.setsid()
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        import layersearch.cli.run as command
        from layersearch.cli.main import main

        command.pool_of = lambda options: MadeUpPool  # type: ignore[assignment,attr-defined]
        if not figures:
            _leave_out_figures()
        prepare()
        code = main(words)
    finally:
        with contextlib.suppress(BaseException):
            sys.stderr.flush()
        os._exit(code)


def _leave_out_figures() -> None:
    import layersearch.report.page as page
    import layersearch.results.plots.noise as noise
    import layersearch.results.plots.pareto as pareto

    noise.plot_signal = pareto.plot_pareto = lambda result, stem: []  # type: ignore[assignment]
    page.report_beside = lambda out: ""


def run(out: Path, log: Path, **more: Any) -> tuple[int, str]:
    """Run the search to its end; return its exit code and what it said."""
    child = start((*RUN, "--out", str(out)), log, **more)
    return child.wait(), child.said


def lines(out: Path) -> int:
    """Return how many records there are."""
    file = out / "trials.jsonl"
    return file.read_bytes().count(b"\n") if file.exists() else 0


def content(out: Path) -> dict[str, Any]:
    """Return what a run found: its records but for what no two runs share, and its result."""
    records: dict[str, Any] = {}
    for line in (out / "trials.jsonl").read_text().splitlines():
        record = json.loads(line)
        key = f"{record['schedule']} / {record['seed']} / {record['phase']}"
        twice = key in records and records[key]["state"] != "failed"
        records[key + (" twice" if twice else "")] = {name: record[name] for name in ("state", "loss", "role", "steps")}
    result = json.loads((out / "frontier.json").read_text())
    winner = (out / "winner.yaml").read_text() if (out / "winner.yaml").exists() else ""
    return {"records": records, "result": result, "winner": winner}


def difference(wanted: dict[str, Any], out: Path) -> str:
    """Return in one line what a run lacks or has else; empty: nothing."""
    found = content(out)
    lost = sorted(wanted["records"].keys() - found["records"].keys())
    added = sorted(found["records"].keys() - wanted["records"].keys())
    other = [
        key for key in wanted["records"] if key in found["records"] and found["records"][key] != wanted["records"][key]
    ]
    parts = [
        f"{name}: {len(keys)}, first {keys[0]}"
        for name, keys in (("lost", lost), ("new", added), ("other", other))
        if keys
    ]
    if not parts:
        parts = [f"another {name}" for name in ("result", "winner") if found[name] != wanted[name]]
    return "; ".join(parts)


def limit_file_size(size: int) -> None:
    """Let every write past this size fail, as on a full disk."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def copied(folder: Path, to: Path) -> Path:
    """Return a fresh copy of a run folder."""
    shutil.rmtree(to, ignore_errors=True)
    return Path(shutil.copytree(folder, to))
