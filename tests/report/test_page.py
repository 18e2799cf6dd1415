"""The page is one file that asks for nothing, escapes everything, and replaces an old one whole."""

from __future__ import annotations

import fcntl
import html.parser
import importlib.util
import json
import re
import resource
import shutil
from pathlib import Path

import pytest

from layersearch.cli.main import main
from layersearch.errors import LayersearchError
from layersearch.report.page import page_text, report_beside, script_json, write_report
from tests.helpers.hostile import TEXTS, hostile_run

pytest.importorskip("plotly", reason="needs the extra report: pip install 'layersearch[report]'")

ROOT = Path(__file__).resolve().parents[2]
SELECTION = ROOT / "analysis" / "smollm2" / "run"
KILLED = ROOT / "tests" / "data_runs" / "killed"


class _Elements(html.parser.HTMLParser):
    """Collects the elements of a page, as a browser would."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the page of a real selection."""
    return write_report([SELECTION], tmp_path_factory.mktemp("page") / "report.html").read_text(encoding="utf-8")


def test_page_is_below_three_megabytes(page: str) -> None:
    assert len(page.encode()) < 3_000_000


def test_page_asks_for_nothing_outside_itself(page: str) -> None:
    for tag, attributes in _Elements(page).found:
        assert tag not in ("link", "iframe", "object", "embed", "img", "base")
        assert "src" not in attributes
        assert (attributes.get("href") or "#").startswith("#")
        assert not [name for name in attributes if name.startswith("on")]
    (policy,) = (a["content"] for _, a in _Elements(page).found if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe-eval" not in policy


def test_page_is_the_same_when_written_again(page: str) -> None:
    text, _, mark = page.rpartition("<!-- ")
    assert page_text([SELECTION]) == text
    assert re.fullmatch(r"[0-9a-f]{64} [0-9a-f]{64} -->\n", mark)


def test_page_beside_a_run_is_written_again_only_where_it_would_differ(tmp_path: Path) -> None:
    run, page = tmp_path / "run", tmp_path / "run" / "report.html"
    shutil.copytree(SELECTION, run)

    def renewed() -> bool:
        """Whether another page stands there now: it is written beside and renamed, so a new one is a new file."""
        before = page.stat().st_ino if page.exists() else None
        kept = None if before is None else page.open()  # so that its number is not given again
        assert report_beside(run) == f"Report: {page}"
        if kept is not None:
            kept.close()
        return page.stat().st_ino != before

    assert renewed()
    assert not renewed()
    whole = page.read_bytes()
    page.write_bytes(whole.replace(b"full", b"fool", 1))
    assert renewed()
    assert page.read_bytes() == whole
    page.write_bytes(whole[:-1])
    assert renewed()
    lines = (run / "trials.jsonl").read_bytes().splitlines(keepends=True)
    (run / "trials.jsonl").write_bytes(b"".join(lines[:-1]))
    assert renewed()
    write_report([run], page, watched=True)  # one that loads itself again
    assert renewed()
    assert not renewed()


@pytest.mark.slow
def test_hostile_run_adds_no_element_and_no_handler(page: str, saved_run: Path, tmp_path: Path) -> None:
    text = page_text([hostile_run(saved_run, tmp_path)])
    scripts = [attributes.get("type") for tag, attributes in _Elements(text).found if tag == "script"]
    assert scripts == ["application/json", "text/plain", None]
    kinds = {tag for tag, _ in _Elements(page).found}
    assert {tag for tag, _ in _Elements(text).found} <= kinds
    assert not [a for _, a in _Elements(text).found if any(name.startswith("on") for name in a)]
    assert not [a for _, a in _Elements(text).found if "javascript:" in (a.get("href") or "")]
    assert re.search("[\x00-\x08\x0b-\x1f\x7f\u202e\u2028]", text) is None


@pytest.mark.parametrize("text", TEXTS)
def test_script_json_holds_any_text_and_no_mark_up(text: str) -> None:
    made = script_json({text: [text]})
    assert json.loads(made) == {text: [text]}
    assert re.search("[<>&\u2028\u2029]", made) is None


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory, saved_run: Path) -> Path:
    """Return a run before its first trial: its page takes no time."""
    folder = tmp_path_factory.mktemp("begun")
    shutil.copy(saved_run / "config.json", folder)
    return folder


def test_old_page_is_kept_when_the_disk_is_full(begun: Path, tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    out.write_text("old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        with pytest.raises(LayersearchError, match=r"cannot be written .* old page is kept"):
            write_report([begun], out)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("report.html", "old")]


def test_report_command_writes_into_the_run_and_prints_the_path(
    begun: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "a" / "page.html"
    assert main(["report", str(begun), "--out", str(out)]) == 0
    assert capsys.readouterr() == (f"{out}\n", "")
    assert out.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")


@pytest.mark.slow
def test_watch_of_a_run_that_does_not_go_on_writes_once_and_ends(
    begun: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "page.html"
    assert main(["report", str(begun), "--out", str(out), "--watch"]) == 0
    assert capsys.readouterr() == (f"{out}\n", f"report: {out}\n")
    assert 'http-equiv="refresh"' not in out.read_text(encoding="utf-8")


@pytest.mark.slow
def test_watch_renews_the_page_after_each_trial_until_the_run_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run, out = tmp_path / "run", tmp_path / "page.html"
    run.mkdir()
    shutil.copy(KILLED / "config.json", run)
    lock = (run / "run.lock").open("w")
    fcntl.flock(lock, fcntl.LOCK_EX)
    pages, waits = list[str](), list[float]()

    def sleep(seconds: float) -> None:
        pages.append(out.read_text(encoding="utf-8"))
        waits.append(seconds)
        if len(waits) == 1:
            shutil.copy(KILLED / "trials.jsonl", run)
        if len(waits) == 3:
            lock.close()

    monkeypatch.setattr("layersearch.cli.report.time.sleep", sleep)
    assert main(["report", str(run), "--out", str(out), "--watch", "--every", "7"]) == 0
    assert waits == [7, 7, 7, 1]
    assert capsys.readouterr() == (f"{out}\n", f"report: {out}\n" * 2)
    assert ["No trial has finished yet." in page for page in pages] == [True, False, False, False]
    assert all('http-equiv="refresh"' in page for page in pages)
    assert 'http-equiv="refresh"' not in out.read_text(encoding="utf-8")


def test_watched_page_loads_itself_again(begun: Path) -> None:
    assert '<meta http-equiv="refresh" content="15">' in page_text([begun], watched=True)


def test_missing_extra_is_one_line_with_the_remedy(
    begun: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "plotly" else found(name))
    assert main(["report", str(begun)]) == 2
    assert capsys.readouterr() == ("", "layersearch: a report needs plotly: pip install 'layersearch[report]'\n")


def test_page_of_two_runs_shows_what_differs(begun: Path) -> None:
    text = page_text([begun, SELECTION])
    assert "2 runs side by side" in text
    assert "<code>recipe.training.seq_len</code></th><td>48</td><td>1024</td>" in text


def test_run_without_the_extra_says_so_in_one_line(begun: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    said = report_beside(begun)
    assert said == "No report.html: a report needs jinja2 and plotly: pip install 'layersearch[report]'"
    assert not (begun / "report.html").exists()


def test_page_of_a_healed_run_has_the_healing(page: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(SELECTION, run)
    (run / "healed").mkdir()
    shutil.copy(SELECTION.parent / "records/heal-40-steps.jsonl", run / "healed/evaluations.jsonl")
    assert "After healing" in page_text([run])
    assert "After healing" not in page
