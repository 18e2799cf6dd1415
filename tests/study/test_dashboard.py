"""What optuna-dashboard shows of a study: costs and losses by name, and the budget as a constraint."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from layersearch.config.recipe import load_recipe
from layersearch.schedule import Schedule
from layersearch.schedule.bound_space import BoundSpace
from layersearch.schedule.space import Space
from layersearch.study.journal import NAME, Study
from tests.helpers.browser import WAIT, chromium
from tests.helpers.synthetic import record

KILLED = Path(__file__).parents[1] / "data_runs" / "killed" / "study.journal"
CHOICES = ("full", "window:4", "window:8", "block:12")
BUDGET = 0.6


def opened(path: Path, **keys: Any) -> tuple[Study, BoundSpace]:
    space = BoundSpace(Space(name="small", choices=CHOICES, **keys), n_layers=2, seq_len=32, n_heads=2)
    return Study(path, space, BUDGET, load_recipe("smoke").search, 0), space


def loaded(path: Path) -> optuna.Study:
    return optuna.load_study(study_name=NAME, storage=JournalStorage(JournalFileBackend(str(path))))


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    """Return the journal of three trials, the first over the budget."""
    path = tmp_path / "study.journal"
    study, space = opened(path)
    full = Schedule.parse("full*2")
    study.enter(full, "all_full", 0)
    schedules = [full, study.propose([full], 1, 0)]
    schedules.append(study.propose(schedules, 1, 1))
    for number, schedule in enumerate(schedules):
        study.tell(record(schedule, 1.5 + 0.25 * number, cost=space.cost(schedule)))
    return path


def test_study_trial_over_the_budget_violates_its_constraint_and_no_other_does(journal: Path) -> None:
    study, (_, space) = loaded(journal), opened(journal)
    assert study.user_attrs["budget (attention cost, share of all-full)"] == BUDGET
    assert study.user_attrs["search space"] == "small: full, window:4, window:8, block:12"
    complete = [trial for trial in study.trials if trial.values is not None]
    assert len(complete) == 3
    for trial in study.trials:
        assert list(trial.constraints.values()) == [space.cost(space.decode(trial.params)) - BUDGET]
    for trial in complete:
        named = [trial.user_attrs[name] for name in study.metric_names]
        assert named == pytest.approx(trial.values, abs=1e-6)  # the helper rounds costs
    assert [trial.constraints["0"] > 0 for trial in complete] == [True, False, False]
    assert all(trial.constraints["0"] <= 0 for trial in study.best_trials)


def test_study_names_the_layers_that_share_a_parameter(tmp_path: Path) -> None:
    opened(tmp_path / "study.journal", tied=[[0, 1]])
    assert loaded(tmp_path / "study.journal").user_attrs["layers that share a parameter"] == "layer_00: 0, 1"


def test_study_of_a_journal_without_constraints_adds_none(tmp_path: Path) -> None:
    """A sampler takes all trials with constraints, or none."""
    path = Path(shutil.copy(KILLED, tmp_path))
    study, _ = opened(path)
    study.enter(Schedule.parse("block:12*2"), "proposed", 9)
    trials = loaded(path).trials
    assert len(trials) > 5
    assert not any(trial.constraints for trial in trials)


@pytest.fixture
def dashboard(journal: Path) -> Iterator[str]:
    """Serve the dashboard on this machine; return its address."""
    library = pytest.importorskip("optuna_dashboard", reason="needs the extra: pip install 'layersearch[dashboard]'")

    class Server(ThreadingMixIn, WSGIServer):
        daemon_threads = True

    class Quiet(WSGIRequestHandler):
        def log_message(self, *args: object) -> None: ...

    app = library.wsgi(JournalStorage(JournalFileBackend(str(journal))))
    with make_server("127.0.0.1", 0, app, Server, Quiet) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/dashboard"
        server.shutdown()


@pytest.mark.slow
@pytest.mark.integration
def test_dashboard_in_a_browser_shows_names_schedules_and_what_is_over_the_budget(dashboard: str) -> None:
    with chromium() as browser:
        page = browser.new_page(viewport={"width": 1400, "height": 1500})
        page.set_default_timeout(WAIT)
        page.goto(f"{dashboard}/studies/0")
        page.get_by_text("attention cost (share of all-full)").first.wait_for()
        page.get_by_text("validation loss (nats)").first.wait_for()
        page.get_by_text("budget (attention cost, share of all-full)").first.wait_for()
        page.get_by_text("Infeasible", exact=True).first.wait_for()  # in the timeline: all-full
        page.goto(f"{dashboard}/studies/0/trials?numbers=0")
        page.get_by_text("full*2").first.wait_for()
        page.get_by_text("validation loss (nats) 1.5", exact=True).wait_for()
        page.get_by_text("attention cost (share of all-full) 1.0", exact=True).wait_for()
