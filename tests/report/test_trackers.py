"""Trackers write a finished run into their real stores, offline; a store that fails does not stop a run."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest

from layersearch.errors import ConfigError
from layersearch.report.trackers.base import trial_name
from layersearch.report.trackers.tracking import KINDS, Tracking, check_trackers
from layersearch.training.record import TrialRecord, read


@pytest.fixture
def run(saved_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved_run, tmp_path / "run"))


@pytest.fixture
def records(run: Path) -> list[TrialRecord]:
    return list(read(run / "trials.jsonl"))


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_csv_holds_every_trial_and_every_evaluation(run: Path, records: list[TrialRecord]) -> None:
    tracking = Tracking(["csv"], run)
    tracking.finish()
    trials, curves = rows(run / "tracking" / "csv" / "trials.csv"), rows(run / "tracking" / "csv" / "curves.csv")
    assert [(row["schedule"], float(row["cost"])) for row in trials] == [(str(r.schedule), r.cost) for r in records]
    assert [row["loss"] for row in trials] == [str(record.loss) for record in records]
    wanted = [(n, step, loss) for n, record in enumerate(records) for step, loss in record.curve]
    assert [(int(row["trial"]), int(row["step"]), float(row["loss"])) for row in curves] == wanted


def test_tracking_logs_each_record_once_as_the_file_grows_and_after_a_restart(
    run: Path, records: list[TrialRecord]
) -> None:
    file = run / "trials.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join(lines[:2]) + lines[2][:40])  # the third is being written
    first = Tracking(["csv"], run)
    first.update()
    first.update()
    first.close()
    assert len(rows(run / "tracking" / "csv" / "trials.csv")) == 2
    file.write_bytes(b"".join(lines))
    Tracking(["csv"], run).finish()
    numbers = [int(row["trial"]) for row in rows(run / "tracking" / "csv" / "trials.csv")]
    assert numbers == [*range(len(records))]


@pytest.mark.parametrize("text", ["{", '{"id": null, "logged": 1, "crc32": "00000000"}'])
def test_csv_whose_count_was_damaged_holds_each_trial_once(run: Path, records: list[TrialRecord], text: str) -> None:
    Tracking(["csv"], run).finish()
    (run / "tracking" / "csv.json").write_text(text)
    Tracking(["csv"], run).finish()
    numbers = [int(row["trial"]) for row in rows(run / "tracking" / "csv" / "trials.csv")]
    assert numbers == [*range(len(records))]


def test_csv_a_later_metric_becomes_a_column(run: Path) -> None:
    file = run / "trials.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    lines[0]["metrics"] = []
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    Tracking(["csv"], run).finish()
    found = rows(run / "tracking" / "csv" / "trials.csv")
    assert len(found) == len(lines)
    name = lines[1]["metrics"][0][0]
    assert (found[0][name], found[1][name]) == ("", str(lines[1]["metrics"][0][1]))


def test_tracker_that_cannot_write_is_named_and_does_not_stop_the_run(
    run: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (run / "tracking").write_text("a file where the folder should be")
    tracking = Tracking(["csv"], run)
    with caplog.at_level("WARNING"):
        tracking.update()
        tracking.finish()
    assert [record.message.partition(" (")[0] for record in caplog.records] == ["--log csv: not started"]


def test_tracking_without_trackers_makes_nothing(run: Path) -> None:
    Tracking([], run).finish()
    assert not (run / "tracking").exists()


def test_check_trackers_names_the_extra_of_a_library_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(KINDS, "wandb", ("no_such_library",))
    with pytest.raises(ConfigError, match=r"--log wandb .* 'layersearch\[wandb\]'"):
        check_trackers(["csv", "wandb"])


def test_tensorboard_reads_the_losses_by_step_and_the_frontier(run: Path, records: list[TrialRecord]) -> None:
    pytest.importorskip("tensorboard", reason="needs the extra tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    draw(run)
    Tracking(["tensorboard"], run).finish()
    folder = run / "tracking" / "tensorboard"
    held = EventAccumulator(str(folder / trial_name(0, records[0]))).Reload()
    found = [(event.step, event.value) for event in held.Scalars("validation loss")]
    assert [step for step, _ in found] == [step for step, _ in records[0].curve]
    assert [value for _, value in found] == pytest.approx([loss for _, loss in records[0].curve])
    summary = EventAccumulator(str(folder / "summary")).Reload()
    costs = [event.value for event in summary.Scalars("by trial/attention cost")]
    assert costs == pytest.approx([record.cost for record in records])
    assert len(summary.Images("pareto")) == 1


def test_mlflow_holds_a_nested_run_per_trial_and_the_frontier(
    run: Path, records: list[TrialRecord], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mlflow", reason="needs the extra mlflow")
    from mlflow import MlflowClient

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    draw(run)
    Tracking(["mlflow"], run).finish()
    client = MlflowClient(tracking_uri=(run / "tracking" / "mlflow").resolve().as_uri())
    experiment = client.get_experiment_by_name("layersearch")
    found = client.search_runs([experiment.experiment_id], max_results=1000)
    (parent,) = [one for one in found if "mlflow.parentRunId" not in one.data.tags]
    nested = {one.data.params["trial"]: one for one in found if one is not parent}
    assert len(nested) == len(records)
    assert nested["0"].data.params["schedule"] == str(records[0].schedule)
    assert nested["0"].data.metrics["cost"] == records[0].cost
    history = client.get_metric_history(nested["0"].info.run_id, "validation_loss")
    assert [(point.step, point.value) for point in history] == [*records[0].curve]
    assert [one.path for one in client.list_artifacts(parent.info.run_id)] == ["pareto.png"]
    assert parent.info.status == "FINISHED"


def test_wandb_offline_writes_a_run_with_every_trial(
    run: Path, records: list[TrialRecord], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb", reason="needs the extra wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    draw(run)
    Tracking(["wandb"], run).finish()
    (file,) = (run / "tracking" / "wandb").rglob("*.wandb")
    content = file.read_bytes()
    for number, record in enumerate(records):
        assert trial_name(number, record).encode() in content
    assert list((run / "tracking" / "wandb").rglob("pareto*.png"))


def draw(run: Path) -> None:
    """Draw the frontier as a search does at its end."""
    from layersearch.cli.main import main

    assert main(["plot", str(run)]) == 0
