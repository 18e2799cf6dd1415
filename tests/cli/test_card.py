"""Model cards: what was measured, metadata that huggingface_hub reads, and an upload to a stub of the hub."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from layersearch.cli.main import main
from layersearch.export.card import CardFacts, Measure, card_text
from layersearch.report.card_facts import conversion_facts, run_facts
from layersearch.schedule import Schedule
from layersearch.study.saved_run import load_result
from tests.helpers.refusals import Refuses, check_line, write

ROOT = Path(__file__).parents[2]
SCHEDULE = Schedule.parse("full window:8*2")


def test_card_metadata_round_trips_through_huggingface_hub() -> None:
    measures = (
        Measure(name="text loss, nats", kind="loss", value=2.5, low=2.4, high=2.6, n=12, to_full="0.10 ± 0.02"),
        Measure(name="pass_key, digits right", kind="accuracy", value=0.75, n=12),
    )
    facts = CardFacts(data="stdlib", base="owner/base", dataset="owner/text", measures=measures, seq_len=64, cost=0.4)
    card = ModelCard(card_text(SCHEDULE, "hf", "mine", facts))
    assert [(one.metric_type, one.metric_value) for one in card.data.eval_results] == [
        ("loss", 2.5),
        ("accuracy", 0.75),
    ]
    assert (card.data.base_model, card.data.datasets, card.data.library_name) == (
        "owner/base",
        ["owner/text"],
        "transformers",
    )
    assert card.data.to_dict()["model-index"][0]["name"] == "mine"
    assert "| text loss, nats | 2.5000 | 2.4000 to 2.6000 | 12 | 0.10 ± 0.02 |" in card.text
    assert "| pass_key, digits right | 0.7500 | none | 12 |  |" in card.text
    assert "| 1-2 | `window:8` |" in card.text


def test_card_names_no_path_of_a_base_model_and_says_that_nothing_was_measured(tmp_path: Path) -> None:
    text = card_text(SCHEDULE, "mlx", "a b", CardFacts(base=str(tmp_path)))
    assert str(tmp_path) not in text
    card = ModelCard(text)
    assert (card.data.base_model, card.data.eval_results) == (None, None)
    assert "Nothing was measured" in card.text


def test_card_of_a_selection_holds_the_winners_text_loss_and_retrieval() -> None:
    run = ROOT / "analysis" / "smollm2" / "run"
    facts = run_facts(run)
    names = [measure.name for measure in facts.measures]
    assert names[:2] == ["text loss, nats", "retrieval, digits right"]
    text = facts.measures[0]
    assert text.low is not None
    assert text.high is not None
    assert text.low < text.value < text.high
    assert text.n == 12
    assert facts.unit == "held-out documents"


def test_export_with_card_writes_the_runs_loss_and_interval(
    saved_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "exported"
    words = ["export", str(saved_run), "--to", "hf", "--family", "ministral", "--out", str(out), "--card"]
    assert main(words) == 0
    assert str(out / "README.md") in capsys.readouterr().out
    card = ModelCard.load(out / "README.md")
    (result,) = card.data.eval_results
    found = load_result(saved_run).to_dict()
    wins = found["winner"]["schedule"]
    (entry,) = [one for one in found["entries"] if one["schedule"] == wins]
    assert result.metric_value == pytest.approx(entry["mean"]["mean"], abs=1e-5)
    assert f"{entry['mean']['low']:.4f} to {entry['mean']['high']:.4f}" in card.text
    assert str(saved_run) not in card.content
    assert main(words) == 0  # the same export again


def test_card_of_a_conversion_compares_with_the_original(tmp_path: Path) -> None:
    recipe = {"training": {"steps": 4}, "data": {"source": "files", "dataset": None}}
    write(tmp_path / "convert.json", json.dumps({"recipe": recipe, "model": str(tmp_path)}))
    write(tmp_path / "model" / "config.json", json.dumps({"num_attention_heads": 4}))
    shared = {"step": 4, "schedule": str(SCHEDULE), "seq_len": 64, "position_edges": [32, 64]}
    rows = [
        {
            **shared,
            "moment": "original",
            "loss": 2.0,
            "loss_by_position": [2.1, 1.9],
            "metrics": [["answer_accuracy", 0.9]],
        },
        {
            **shared,
            "moment": "converted",
            "loss": 2.2,
            "loss_by_position": [2.2, 2.2],
            "metrics": [["answer_accuracy", 0.8]],
        },
    ]
    write(tmp_path / "evaluations.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    facts = conversion_facts(tmp_path)
    assert [(one.value, one.to_full) for one in facts.measures] == [
        (2.2, "+0.2000 (original)"),
        (0.8, "-0.1000 (original)"),
    ]
    assert facts.positions == ((32, 2.2), (64, 2.2))
    text = card_text(SCHEDULE, "hf", "mine", facts)
    assert "local files of the author" in text
    assert str(tmp_path) not in text


class Hub(BaseHTTPRequestHandler):
    """The part of the hub's HTTP interface that an upload of small files calls."""

    asked: list[tuple[str, str | None, bytes]] = []

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.asked.append((self.path, self.headers.get("Authorization"), body))
        page = f"http://{self.headers['Host']}/me/mine"
        if self.path.endswith("/repos/create"):
            self.answer({"url": page, "id": "me/mine"})
        elif "/preupload/" in self.path:
            files = [
                {"path": one["path"], "uploadMode": "regular", "shouldIgnore": False}
                for one in json.loads(body)["files"]
            ]
            self.answer({"files": files})
        elif "/commit/" in self.path:
            self.answer({"success": True, "commitOid": "0" * 40, "commitUrl": f"{page}/commit/0", "hookOutput": ""})
        else:
            self.answer({"errors": [], "warnings": []})

    def do_GET(self) -> None:
        self.answer(
            {"id": "me/mine", "modelId": "me/mine", "sha": "0" * 40, "siblings": [], "private": True, "tags": []}
        )

    def answer(self, content: dict[str, Any]) -> None:
        text = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *words: Any) -> None:
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hub]]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("HF_TOKEN", "hf_own")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    Hub.asked.clear()
    yield Hub
    server.shutdown()
    server.server_close()


def test_export_with_push_uploads_the_files_and_the_card_with_the_users_token(
    hub: type[Hub], saved_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "exported"
    write(out / "private.txt", "not part of the export")
    words = ["export", str(saved_run), "--to", "hf", "--family", "ministral", "--out", str(out), "--push", "me/mine"]
    assert main(words) == 0
    assert "uploaded: http://127.0.0.1" in capsys.readouterr().out
    assert {token for _, token, _ in hub.asked} == {"Bearer hf_own"}
    (made,) = [json.loads(body) for path, _, body in hub.asked if path.endswith("/repos/create")]
    assert made["name"] == "mine"
    assert made.get("private") is True or made.get("visibility") == "private"  # by the release of huggingface_hub
    (commit,) = [body for path, _, body in hub.asked if "/commit/" in path]
    lines = [json.loads(line) for line in commit.splitlines()]
    files = {
        line["value"]["path"]: base64.b64decode(line["value"]["content"]) for line in lines if line["key"] == "file"
    }
    assert set(files) == {"README.md", "config.json", "schedule.yaml"}
    assert files["README.md"] == (out / "README.md").read_bytes()


def test_export_with_push_to_a_hub_that_is_not_there_keeps_the_files_and_says_so_in_one_line(
    saved_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    out = tmp_path / "new"
    words = ["export", str(saved_run), "--to", "hf", "--family", "ministral", "--out", str(out), "--push", "me/mine"]
    assert main(words) == 2
    check_line(capsys.readouterr().err, ("--push me/mine", "not uploaded", "HF_TOKEN"))
    assert {path.name for path in out.iterdir()} == {"README.md", "config.json", "schedule.yaml"}


def test_export_without_push_asks_the_hub_nothing(hub: type[Hub], saved_run: Path, tmp_path: Path) -> None:
    words = ["export", str(saved_run), "--to", "hf", "--family", "ministral", "--out", str(tmp_path / "new"), "--card"]
    assert main(words) == 0
    assert hub.asked == []


def own_readme(at: Path, run: Path) -> list[str]:
    write(at / "new" / "README.md", "# my own words")
    return ["export", str(run), "--to", "hf", "--out", "new", "--card"]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        pytest.param(own_readme, ("README.md", "no export wrote it"), id="README of the user"),
        pytest.param(
            lambda at, run: ["export", str(run), "--to", "yaml", "--out", "new", "--card"],
            ("--card", "not for --to yaml"),
            id="card of a schedule alone",
        ),
        pytest.param(
            lambda at, run: ["export", str(run), "--to", "hf", "--out", "new", "--push", "mine"],
            ("--push 'mine'", "such as me/my-model"),
            id="repository without an owner",
        ),
    ],
)
def test_export_card_that_cannot_be_written_is_refused_first(
    line: Any, words: tuple[str, ...], refuses: Refuses
) -> None:
    refuses(line, *words)
