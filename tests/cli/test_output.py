"""What commands print: for people, aligned and within a screen; for programs, JSON with exact numbers."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from layersearch.cli.main import main
from layersearch.schedule import Schedule
from layersearch.schedule.cost import attention_flops, kv_cache_bytes
from layersearch.schedule.presets import PRESETS

MASFORMER = "full*4 block:1024*20"
MILLION = 1_048_576


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Run a command that succeeds; return what it printed."""
    assert main(arguments) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "\x1b" not in out
    return out


def test_cost_masformer_prints_its_share_in_an_aligned_table(capsys: pytest.CaptureFixture[str]) -> None:
    out = printed(capsys, "cost", MASFORMER, "--seq-len", "8192")
    assert "attention cost   0.271 of all-full at 8,192 tokens (l = 4)" in out
    flops = attention_flops(Schedule.parse(MASFORMER), seq_len=8192, n_heads=32, head_dim=128)
    assert f"{flops:,}" in out
    header, *rows = out[out.index("layers ") :].splitlines()
    assert [row.split()[:2] for row in rows] == [["0-3", "full"], ["4-23", "block:1024"]]
    assert {len(row.rstrip()) for row in rows} == {len(header.rstrip())}
    shares = [float(share) for share in re.findall(r"([\d.]+)%", out)]
    assert sum(shares) == pytest.approx(100.0, abs=0.11)


@pytest.mark.parametrize("tokens", [8192, MILLION])
def test_cost_json_holds_the_closed_form_to_the_integer(tokens: int, capsys: pytest.CaptureFixture[str]) -> None:
    size = ("--heads", "8", "--kv-heads", "2", "--head-dim", "64", "--bytes", "4")
    found = json.loads(printed(capsys, "cost", MASFORMER, "--seq-len", str(tokens), *size, "--json"))
    pairs = 4 * tokens * (tokens + 1) // 2 + 20 * (tokens // 1024) * (1024 * 1025 // 2)
    assert found["attention_flops"] == 2 * 64 * 8 * pairs
    schedule = Schedule.parse(MASFORMER)
    cache = kv_cache_bytes(schedule, seq_len=tokens, n_heads=8, n_kv_heads=2, head_dim=64, bytes_per_value=4)
    assert found["kv_cache_bytes"] == cache == sum(layer["cache_bytes"] for layer in found["layers"])
    assert found["attention_flops"] == sum(layer["flops"] for layer in found["layers"])
    assert found["ratio"] == pytest.approx(pairs / (24 * tokens * (tokens + 1) // 2), rel=1e-12)
    assert [layer["span"] for layer in found["layers"]] == [str(span) for span in schedule]


def test_cost_winner_file_is_read(saved_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = json.loads(printed(capsys, "cost", str(saved_run / "winner.yaml"), "--seq-len", "48", "--json"))
    assert found["schedule"] == json.loads((saved_run / "frontier.json").read_text())["winner"]["schedule"]


def test_presets_without_name_are_listed_with_their_sources(capsys: pytest.CaptureFixture[str]) -> None:
    out = printed(capsys, "presets")
    listed = json.loads(printed(capsys, "presets", "--json"))
    assert list(listed) == list(PRESETS)
    assert listed["masformer"]["source"] == "arXiv:2310.12442"
    assert listed["masformer"]["parameters"] == {"l": None, "n_layers": 24, "block": 1024}
    for name in PRESETS:
        assert re.search(rf"(?m)^{name} ", out)
    assert "arXiv:2310.12442" in out


@pytest.mark.slow
def test_presets_with_name_prints_its_schedule(capsys: pytest.CaptureFixture[str]) -> None:
    assert printed(capsys, "presets", "masformer", "l=4") == MASFORMER + "\n"
    spans = json.loads(printed(capsys, "presets", "masformer", "l=4", "--json"))
    assert Schedule.from_dicts(spans) == Schedule.parse(MASFORMER)


def test_show_run_fits_one_screen(saved_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = printed(capsys, "show", str(saved_run)).splitlines()
    assert len(lines) <= 50
    assert max(map(len, lines)) <= 100
    text = "\n".join(lines)
    for words in ("Winner: ", "Frontier", "Baselines", "Loss against l", "all_full", "recipe smoke"):
        assert words in text


@pytest.mark.integration
def test_show_json_equals_the_frontier_file(smoke_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = json.loads(printed(capsys, "show", str(smoke_run), "--json"))
    assert found == json.loads((smoke_run / "frontier.json").read_text())


@pytest.mark.integration
def test_run_leaves_its_page_beside_its_figures(smoke_run: Path) -> None:
    pytest.importorskip("plotly", reason="needs the extra report")
    assert (smoke_run / "report.html").read_text(encoding="utf-8").startswith("<!DOCTYPE html>")


@pytest.mark.integration
def test_plot_prints_the_files_it_wrote(smoke_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = printed(capsys, "plot", str(smoke_run), "--out", str(tmp_path / "a" / "b")).splitlines()
    assert sorted(map(str, (tmp_path / "a" / "b").iterdir())) == sorted(paths)
    figures = [f"{name}.{kind}" for name in ("pareto", "signal") for kind in ("png", "svg")]
    assert sorted(Path(path).name for path in paths) == figures
    assert {path.read_bytes() for path in (tmp_path / "a" / "b").iterdir()} == {
        (smoke_run / name).read_bytes() for name in figures
    }


@pytest.mark.integration
def test_run_prints_plain_progress_and_json(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    small = ("search.trials=3", "search.finalists=1", "search.workers=1", "training.steps=2", "training.warmup_steps=0")
    sets = [part for setting in small for part in ("--set", setting)]
    assert main(["run", "--recipe", "smoke", *sets, "--out", str(tmp_path / "run"), "--json"]) == 0
    out, err = capfd.readouterr()
    assert json.loads(out) == json.loads((tmp_path / "run" / "frontier.json").read_text())
    assert "\x1b" not in err
    lines = err.splitlines()
    assert [line.partition(":")[0] for line in (lines[0], lines[-1])] == ["baselines", "done"]
    for line in lines:
        assert re.fullmatch(r"(baselines|search|confirm|done): \d+/\d+ trials; .*", line)
