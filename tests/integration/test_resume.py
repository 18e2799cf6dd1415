"""A search that was killed, wherever it was, ends as an unbroken one would, and trains nothing twice."""

from __future__ import annotations

import hashlib
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import optuna
import psutil
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from layersearch.ladder import Ladder, LocalPool, RunFolder, make_plan, read_config
from layersearch.ladder.study import Study
from layersearch.recipe import load_recipe
from layersearch.space import load_space

PATIENCE = 120.0
"""Seconds after which a process that should have got somewhere is given up."""
RUN = [sys.executable, "-P", "-m", "layersearch.cli", "run", "--recipe", "smoke"]


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


def study(out: Path) -> list[optuna.trial.FrozenTrial]:
    """Return the trials as plain Optuna loads them."""
    storage = JournalStorage(JournalFileBackend(str(out / "study.journal")))
    return optuna.load_study(study_name="layersearch", storage=storage).trials


def check_study(out: Path) -> None:
    """The journal says of every trial what its record says, and no early loss is told as a full one."""
    searched = {key[0]: value for key, value in records(out).items() if key[2] == "search"}
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


def digests(out: Path) -> dict[str, str]:
    return {
        str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(out.rglob("*"))
        if path.is_file()
    }


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


def workers_of(process: subprocess.Popen[str]) -> list[psutil.Process]:
    found = psutil.Process(process.pid).children(recursive=True)
    return [child for child in found if "layersearch.worker" in " ".join(child.cmdline())]


MOMENTS: dict[str, Callable[[Path], bool]] = {
    "baselines": lambda out: len(lines(out)) >= 1,
    "search": lambda out: len(lines(out)) >= 5,
    "confirm": lambda out: len(lines(out)) >= 9,
}
"""When the search is killed: with so many of its 16 records."""


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_killed_search_ends_as_an_unbroken_one(moment: str, tmp_path: Path, smoke_run: Path) -> None:
    out = tmp_path / "run"
    process = started(out)
    wait_until(lambda: MOMENTS[moment](out), process)
    workers = workers_of(process)
    process.kill()
    process.wait()
    assert workers
    _, alive = psutil.wait_procs(workers, timeout=PATIENCE)
    assert alive == []  # their standard input ended
    kept = lines(out)
    assert len(kept) < 16
    run(out)
    assert lines(out)[: len(kept)] == kept
    assert records(out) == records(smoke_run)
    check_study(out)


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalPool]:
    """Return workers that many searches share, to pay their start once."""
    found = LocalPool(load_recipe("smoke"), 2, tmp_path_factory.mktemp("logs"))
    yield found
    found.close()


def go_on(out: Path, pool: LocalPool) -> None:
    """Take up a smoke search as `layersearch.search` does, with workers that are there already."""
    recipe, config = load_recipe("smoke"), read_config(out)
    model = recipe.model
    space = load_space("smoke").bind(n_layers=model.n_layers, seq_len=recipe.training.seq_len, n_heads=model.n_heads)
    folder = RunFolder(out, {key: config[key] for key in ("recipe", "space", "budget", "seed", "data")})
    study = Study(folder.journal, space, config["budget"], recipe.search, config["seed"])
    folder.mend()
    plan = make_plan(recipe, space, config["budget"], config["seed"])
    Ladder(plan, space, folder, study, pool, lambda progress: None).run()
    folder.release()


LABEL = "schedule, role, generation"


def torn(run: Path) -> dict[str, tuple[int, int, bytes]]:
    """Return what kills in the middle of writes leave: (whole records, bytes of the next one, the journal)."""
    journal = (run / "study.journal").read_bytes().splitlines(keepends=True)
    entries = [json.loads(line) for line in journal]
    labelled = [n for n, e in enumerate(entries) if LABEL in {**e.get("user_attrs", {}), **e.get("user_attr", {})}]
    asked = [n for n, e in enumerate(entries) if e["op_code"] == 4 and "user_attrs" not in e]
    entered = [n for n in labelled if entries[n]["op_code"] == 4]
    stand_in = next(n for n in entered if n > asked[0])
    phases = [json.loads(line)["phase"] for line in lines(run)]
    searched = phases.index("confirm")
    baselines = sum(json.loads(line)["role"] != "proposed" for line in lines(run)[:searched])

    def until(number: int, part: int) -> bytes:
        return b"".join(journal[:number]) + journal[number][:part]

    return {
        "the study's own line": (0, 0, until(0, 30)),
        "a baseline half entered": (0, 0, until(entered[1], 99)),
        "the first byte of the first record": (0, 1, until(entered[baselines - 1] + 1, 0)),
        "a baseline told, the next one half": (baselines, 0, until(entered[baselines - 1] + 5, 20)),
        "the first proposal half asked": (baselines, 0, until(asked[0], 60)),
        "a proposal without all its parameters": (baselines, 0, until(asked[0] + 2, 1)),
        "a proposal set aside, its stand-in half entered": (baselines, 0, until(stand_in, 150)),
        "a record without its line end": (baselines, -1, until(labelled[-1] + 1, 0)),
        "a record that the study was not told": (searched, 0, until(len(journal) - 1, 40)),
        "a confirmation half written": (searched + 3, 200, b"".join(journal)),
        "the journal lost": (searched, 0, b""),
    }


def test_a_write_torn_anywhere_is_made_good(tmp_path: Path, smoke_run: Path, pool: LocalPool) -> None:
    written = (smoke_run / "trials.jsonl").read_bytes().splitlines(keepends=True)
    for number, (name, (whole, part, journal)) in enumerate(torn(smoke_run).items()):
        out = tmp_path / str(number)
        out.mkdir()
        shutil.copy(smoke_run / "config.json", out)
        (out / "trials.jsonl").write_bytes(b"".join(written[:whole]) + written[whole][:part])
        (out / "study.journal").write_bytes(journal)
        kept = lines(out)
        go_on(out, pool)
        assert lines(out)[: len(kept)] == kept, name
        assert records(out) == records(smoke_run), name
        check_study(out)


def test_one_worker_finds_what_two_find(tmp_path: Path, smoke_run: Path) -> None:
    out = tmp_path / "run"
    run(out, "--workers", "1")
    assert records(out) == records(smoke_run)
    check_study(out)


def test_a_finished_search_trains_nothing_again(tmp_path: Path, smoke_run: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(smoke_run, out)
    before = digests(out)
    assert json.loads(run(out)) == json.loads((smoke_run / "frontier.json").read_text())
    assert digests(out) == before


def test_a_search_goes_on_without_a_worker_that_was_killed(tmp_path: Path, smoke_run: Path) -> None:
    out = tmp_path / "run"
    process = started(out)
    wait_until(lambda: len(lines(out)) >= 1, process)
    workers_of(process)[0].send_signal(signal.SIGKILL)  # as the system does where memory runs out
    assert process.wait() == 0
    failed = [record for record in map(json.loads, lines(out)) if record["state"] == "failed"]
    assert len(failed) == 1
    assert failed[0]["loss"] is None
    assert "a worker process died (exit codes [-9]): out of memory?" in failed[0]["error"]
    assert json.loads((out / "frontier.json").read_text())["failed"] == 1
    assert json.loads((out / "frontier.json").read_text())["winner"] is not None
    check_study(out)
