"""``--data`` of `run` and `convert`: what it stands for, what it refuses, and the line on what was read."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from layersearch.cli.flags import data_overrides
from layersearch.cli.main import build_parser, main
from layersearch.config.recipe import load_recipe
from layersearch.errors import DataError

CONVERT = ["convert", "--model", "m", "--schedule", "full", "--out", "o"]


@pytest.mark.parametrize("command", [["run"], CONVERT])
def test_data_flag_several_values_and_repeated_all_count(command: list[str], tmp_path: Path) -> None:
    names = [str(tmp_path / name) for name in ("a.txt", "b", "c.html")]
    for name in names:
        Path(name).touch()
    options = build_parser().parse_args([*command, "--data", *names[:2], "--data", names[2]])
    data = load_recipe("smoke", data_overrides(options.data)).data
    assert (data.source, data.files) == ("files", tuple(names))


def test_data_flag_absent_changes_nothing() -> None:
    assert data_overrides(build_parser().parse_args(["run"]).data) == []


@pytest.mark.parametrize(
    ("word", "overrides"),
    [
        ("hub:allenai/c4", ["data.source=hub", "data.dataset=allenai/c4"]),
        ("stdlib", ["data.source=stdlib"]),
        ("recall", ["data.source=recall"]),
    ],
)
def test_data_overrides_hub_id_or_source(word: str, overrides: list[str]) -> None:
    assert data_overrides([word]) == overrides


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["no.txt"], r"^--data no\.txt: no such file, and no source; give files, hub:ID, or one of .*stdlib"),
        (["files"], r"^--data files: no such file, and no source"),
        (["hub:a/b", "hub:c/d"], r"^--data hub:a/b stands alone; leave out the other values"),
        ([__file__, "stdlib"], r"^--data stdlib stands alone"),
    ],
)
def test_data_overrides_wrong_words_are_refused(words: list[str], said: str) -> None:
    with pytest.raises(DataError, match=said):
        data_overrides(words)


@pytest.mark.integration
def test_run_data_flag_says_and_records_what_was_read_and_resumes(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "notes"
    folder.mkdir()
    for number in range(30):
        (folder / f"{number}.md").write_text(f"note {number}: the quick brown fox jumps over the lazy dog. " * 20)
    (folder / "page.html").write_text("<p>once upon a time" * 50)
    (folder / "picture.png").write_bytes(b"\x89PNG\0")
    small = ("search.trials=3", "search.finalists=1", "search.workers=1", "training.steps=2", "training.warmup_steps=0")
    sets = [
        part for setting in (*small, "training.val_sequences=2", "data.vocab_size=300") for part in ("--set", setting)
    ]
    command = ["run", "--recipe", "smoke", *sets, "--out", str(tmp_path / "run"), "--json", "--data", str(folder)]
    assert main(command) == 0
    out, err = capfd.readouterr()
    line = r"data: read 31 documents of 31 files \(text 30, html 1\), [\d,]+ characters; left out 1 file \(binary 1\)"
    assert re.fullmatch(line, err.splitlines()[0])
    data = json.loads((tmp_path / "run" / "config.json").read_text())["data"]
    assert data["read"]["files"] == {"text": 30, "html": 1}
    assert data["read"]["left_out"] == {"binary": 1}
    (folder / "picture.png").unlink()  # no text has changed
    assert main(command) == 0
    again, err = capfd.readouterr()
    assert (again, re.fullmatch(line, err.splitlines()[0])) == (out, None)
