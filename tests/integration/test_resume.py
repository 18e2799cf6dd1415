"""A search that was killed, wherever it was, ends as an unbroken one would, and trains nothing twice."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from optuna.trial import TrialState

from layersearch.config.recipe import load_recipe
from layersearch.results.result import PROPOSED
from layersearch.schedule import Schedule
from layersearch.schedule.bound_space import BoundSpace
from layersearch.schedule.space import load_space
from layersearch.study.journal import Study
from layersearch.study.loop import SearchLoop
from layersearch.study.plan import make_plan
from layersearch.study.run_folder import RunFolder, read_config
from layersearch.training.record import Trial, TrialRecord, blank_record
from layersearch.training.trial import KeepGoing
from layersearch.training.workers.pool import LocalPool, Pool
from tests.helpers.runs import PATIENCE, check_study, latest, lines, records, run, started, study, wait_until

pytestmark = pytest.mark.integration


def digests(out: Path) -> dict[str, str]:
    return {
        str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(out.rglob("*"))
        if path.is_file()
    }


def workers_of(process: subprocess.Popen[str]) -> list[psutil.Process]:
    found = psutil.Process(process.pid).children(recursive=True)
    return [child for child in found if "layersearch.training.workers.worker" in " ".join(child.cmdline())]


def test_run_killed_in_the_search_ends_as_unbroken(tmp_path: Path, smoke_run: Path) -> None:
    """The tests below put every other moment in place by its files, and kill nothing."""
    out = tmp_path / "run"
    process = started(out)
    wait_until(lambda: len(lines(out)) >= 1, process)
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


def go_on(out: Path, pool: LocalPool, *overrides: str) -> None:
    """Take up a smoke search as `layersearch.search` does, with workers that are there already."""
    recipe, config = load_recipe("smoke", overrides), read_config(out)
    space = BoundSpace.of(load_space("smoke"), recipe)
    folder = RunFolder(out, {key: config[key] for key in ("recipe", "space", "budget", "seed", "data")})
    study = functools.partial(Study, folder.journal, space, config["budget"], recipe.search, config["seed"])
    folder.drop_torn_line()
    plan = make_plan(recipe, space, config["budget"], config["seed"])
    SearchLoop(plan, space, folder, study, pool, lambda progress: None).run()
    folder.release()


def test_run_gain_sampler_killed_ends_as_unbroken(tmp_path: Path, smoke_run: Path, pool: LocalPool) -> None:
    """What `gain` proposes and stops depends on what was known, not on the process or the number of workers."""
    keys = ("search.sampler=gain", "search.rungs=[0.5]", "search.trials=10")
    own = [word for key in keys for word in ("--set", key)]
    out, whole = tmp_path / "killed", tmp_path / "whole"
    process = started(out, *own, "--workers", "1")
    wait_until(lambda: len(lines(out)) >= 7, process)
    process.kill()
    process.wait()
    whole.mkdir()
    shutil.copy(out / "config.json", whole)
    go_on(out, pool, *keys)
    go_on(whole, pool, *keys)
    assert records(out) == records(whole)
    check_study(out)


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


def test_run_torn_write_anywhere_ends_as_unbroken(tmp_path: Path, smoke_run: Path, pool: LocalPool) -> None:
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


def test_run_records_lost_from_every_generation_are_trained_again(
    tmp_path: Path, smoke_run: Path, pool: LocalPool
) -> None:
    """A baseline, a proposal of the first of two generations, one of the last, and a confirmation, all at once."""
    more, whole, out = "search.trials=10", tmp_path / "whole", tmp_path / "run"
    config = json.loads((smoke_run / "config.json").read_text())
    config["recipe"]["search"]["trials"] = 10
    whole.mkdir()
    (whole / "config.json").write_text(json.dumps(config))
    go_on(whole, pool, more)
    labels = [trial.user_attrs[LABEL] for trial in study(whole) if LABEL in trial.user_attrs]
    generation = {text: number for text, _, number in labels}
    at = [(generation[r["schedule"]], r["phase"]) for r in map(json.loads, lines(whole))]
    dropped = {at.index(one) for one in ((0, "search"), (1, "search"), (2, "search"), (0, "confirm"))}
    shutil.copytree(whole, out)
    (out / "trials.jsonl").write_text("".join(line for n, line in enumerate(lines(whole)) if n not in dropped))
    go_on(out, pool, more)
    assert records(out) == records(whole)
    check_study(out)


DAMAGES: dict[str, Callable[[list[bytes]], list[bytes]]] = {
    "one bad line": lambda journal: [*journal[:7], b"\x00garbage\n", *journal[8:]],
    "a bad last line": lambda journal: [*journal[:-1], b"garbage\n"],
    "another program's": lambda journal: [b'{"a": 1}\n'],
    "another study's": lambda journal: [
        line.replace(b'"study_name":"layersearch"', b'"study_name":"o"') for line in journal
    ],
    "a label that is none": lambda journal: [line.replace(b'"all_full",0]', b'"all_full"]') for line in journal],
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_search_with_a_damaged_journal_makes_it_anew_from_its_records(
    damage: str, tmp_path: Path, smoke_run: Path, pool: LocalPool, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "run"
    shutil.copytree(smoke_run, out)
    whole = (out / "study.journal").read_bytes()
    damaged = b"".join(DAMAGES[damage](whole.splitlines(keepends=True)))
    assert damaged != whole
    (out / "study.journal").write_bytes(damaged)
    go_on(out, pool)
    assert lines(out) == lines(smoke_run)  # nothing is trained again
    check_study(out)
    assert (out / "study.journal.damaged").read_bytes() == damaged
    assert "study.journal is damaged" in caplog.text


def test_journal_without_its_last_label_keeps_every_whole_trial(
    tmp_path: Path, smoke_run: Path, pool: LocalPool
) -> None:
    """A kill in the middle of a proposal costs that proposal, and nothing that plain Optuna knew before it."""
    out = tmp_path / "run"
    shutil.copytree(smoke_run, out)
    journal = (out / "study.journal").read_bytes().splitlines(keepends=True)
    label = max(n for n, line in enumerate(journal) if LABEL.encode() in line)
    (out / "study.journal").write_bytes(b"".join(journal[:label]))
    before = study(smoke_run)
    go_on(out, pool)
    assert lines(out) == lines(smoke_run)
    check_study(out)
    after = study(out)
    assert [(t.number, t.params, t.values, t.state) for t in after] == [
        (t.number, t.params, t.values, t.state) for t in before
    ]
    assert not list(out.glob("study.journal.*"))


def test_run_one_worker_finds_what_two_find(tmp_path: Path, smoke_run: Path) -> None:
    out = tmp_path / "run"
    out.mkdir()
    shutil.copy(smoke_run / "config.json", out)
    alone = LocalPool(load_recipe("smoke"), 1, tmp_path / "logs")
    try:
        go_on(out, alone)
    finally:
        alone.close()
    assert records(out) == records(smoke_run)
    check_study(out)


def test_run_finished_trains_nothing_again(tmp_path: Path, smoke_run: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(smoke_run, out)
    before = digests(out)
    assert json.loads(run(out)) == json.loads((smoke_run / "frontier.json").read_text())
    after = digests(out)
    for found in (before, after):
        found.pop("report.html", None)  # the page names the run folder, and this one is a copy
    assert after == before


def test_run_finished_opens_no_study_and_keeps_its_figures(tmp_path: Path, smoke_run: Path, pool: LocalPool) -> None:
    out = tmp_path / "run"
    shutil.copytree(smoke_run, out)
    (out / "study.journal").write_text("no journal\n")  # nobody looks at it
    os.utime(out / "study.journal", ns=(0, 0))
    (out / "pareto.svg").write_text("drawn before")
    go_on(out, pool)
    assert (out / "study.journal").read_text() == "no journal\n"
    assert (out / "pareto.svg").read_text() == "drawn before"
    (out / "frontier.json").write_text("{}")  # of other records: its figures are others too
    os.utime(out / "study.journal", ns=(0, 0))
    go_on(out, pool)
    assert (out / "pareto.svg").read_bytes() == (smoke_run / "pareto.svg").read_bytes()
    assert (out / "frontier.json").read_bytes() == (smoke_run / "frontier.json").read_bytes()
    (out / "signal.png").unlink()
    go_on(out, pool)
    assert (out / "signal.png").read_bytes() == (smoke_run / "signal.png").read_bytes()


def test_run_killed_worker_has_its_trial_tried_once_more(tmp_path: Path, smoke_run: Path) -> None:
    """In the same run, so that its records and its result are those of an unbroken one."""
    out = tmp_path / "run"
    process = started(out)
    wait_until(lambda: len(lines(out)) >= 1, process)
    workers_of(process)[0].send_signal(signal.SIGKILL)  # as the system does where memory runs out
    assert process.wait() == 0
    failed = [record for record in map(json.loads, lines(out)) if record["state"] == "failed"]
    assert len(failed) == 1
    assert failed[0]["loss"] is None
    assert "a worker process died (exit codes [-9]): out of memory?" in failed[0]["error"]
    assert json.loads((out / "frontier.json").read_text())["failed"] == 0
    assert latest(out) == records(smoke_run)
    check_study(out)
    before = lines(out)
    run(out)
    assert lines(out) == before  # nothing is left to try


class FailsOnce:
    """A pool in which chosen trials fail, as where memory runs out; another pool runs the rest."""

    def __init__(self, pool: LocalPool, fails: Callable[[Trial], bool]) -> None:
        self._pool, self._fails, self.failed = pool, fails, list[Trial]()

    def submit(self, trial: Trial, keep_going: KeepGoing | None = None) -> Future[TrialRecord]:
        if not self._fails(trial):
            return self._pool.submit(trial, keep_going)
        self.failed.append(trial)
        future: Future[TrialRecord] = Future()
        future.set_result(replace(blank_record(trial, load_recipe("smoke")), error="out of memory?"))
        return future

    def close(self) -> None:
        self._pool.close()


def test_run_failed_trials_of_every_phase_are_tried_again(tmp_path: Path, smoke_run: Path, pool: LocalPool) -> None:
    recipe = load_recipe("smoke", ["search.trials=10"])
    config = read_config(smoke_run)
    space = BoundSpace.of(load_space("smoke"), recipe)
    plan = make_plan(recipe, space, config["budget"], config["seed"])
    out = tmp_path / "run"
    asked = {key: config[key] for key in ("space", "budget", "seed", "data")} | {"recipe": recipe.to_dict()}

    def go(found: Pool) -> Study:
        folder = RunFolder(out, asked)
        study = Study(folder.journal, space, config["budget"], recipe.search, config["seed"])
        SearchLoop(plan, space, folder, lambda: study, found, lambda progress: None).run()
        folder.release()
        return study

    proposed: list[Schedule] = []

    def unlucky(trial: Trial) -> bool:
        if trial.phase == "search" and trial.role == PROPOSED:
            proposed.append(trial.schedule)
        return trial.schedule in proposed[:1] or (trial.phase, trial.role, trial.seed) == ("confirm", "all_full", 1)

    failing = FailsOnce(pool, unlucky)
    generations = go(failing).generations()
    assert [trial.phase for trial in failing.failed] == ["search", "confirm"]
    assert generations[proposed[0]] == 1
    assert max(generations.values()) == 2
    before = lines(out)
    assert json.loads((out / "frontier.json").read_text())["failed"] == 2
    go(pool)
    assert lines(out)[: len(before)] == before
    found = latest(out)
    for trial in failing.failed:
        assert found[str(trial.schedule), trial.seed, trial.phase][0] in ("complete", "stopped")
    assert json.loads((out / "frontier.json").read_text())["failed"] == 0
    # Plain Optuna sees the failure and the new attempt, with the loss of the record.
    text = str(proposed[0])
    told = [trial for trial in study(out) if trial.user_attrs.get(LABEL, [None])[0] == text]
    state, loss, _ = found[text, 0, "search"]
    finished = {"complete": TrialState.COMPLETE, "stopped": TrialState.PRUNED}
    assert [trial.state for trial in told] == [TrialState.FAIL, finished[state]]
    assert told[1].values is None or told[1].values[0] == loss
    after = lines(out)
    go(pool)
    assert lines(out) == after
