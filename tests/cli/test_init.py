"""init writes files that load, never over others, from flags and from answers on a terminal."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from layersearch.cli.main import main
from layersearch.config.recipe import load_recipe
from layersearch.schedule.space import load_space
from tests.helpers.refusals import Line, Refuses, write
from tests.helpers.selections import save_model

TEXTS = ["A small text of a few words, written again and again. " * 40]


def test_init_from_flags_writes_files_that_load(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = write(tmp_path / "a b.txt", TEXTS[0])
    assert main(["init", str(tmp_path / "my search"), "--data", text, "--budget", "0.3", "--seq-len", "128"]) == 0
    out = capsys.readouterr().out
    recipe, space = (load(str(tmp_path / "my search" / f"{name}.yaml")) for load, name in LOADS)
    assert (recipe.name, recipe.data.files, recipe.training.seq_len) == ("my-search", (text,), 128)
    assert (space.name, space.budget, space.baseline_span) == ("my-search", 0.3, "window:1")
    (command,) = [line for line in out.splitlines() if line.startswith("note: ")]
    assert command.endswith("--dry-run")


LOADS = ((load_recipe, "recipe"), (load_space, "space"))


def test_init_for_a_model_takes_its_sizes_and_at_most_its_positions(tmp_path: Path) -> None:
    model = save_model(tmp_path / "model", TEXTS)
    out = tmp_path / "mine"
    assert main(["init", str(out), "--model", str(model), "--data", "stdlib", "--budget", "0.4"]) == 0
    recipe, space = (load(str(out / f"{name}.yaml")) for load, name in LOADS)
    assert (recipe.model.n_layers, recipe.model.d_model, recipe.training.seq_len) == (5, 32, 1024)
    assert recipe.selection is not None
    assert space.choices == ("full", "window:64+sink:4", "window:128+sink:4")
    assert (out / "schemas" / "recipe.json").is_file()


@pytest.mark.slow
def test_init_on_a_terminal_asks_three_questions(tmp_path: Path) -> None:
    ours, theirs = os.openpty()
    os.write(ours, b"\n\n0.5\n")
    line = [sys.executable, "-P", "-m", "layersearch", "init", "mine"]
    done = subprocess.run(line, stdin=theirs, capture_output=True, text=True, cwd=tmp_path, check=False)
    os.close(theirs)
    os.close(ours)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count(": ") >= 3
    assert load_space(str(tmp_path / "mine" / "space.yaml")).budget == 0.5
    assert load_recipe(str(tmp_path / "mine" / "recipe.yaml")).data.source == "stdlib"


def already_there(at: Path, run: Path) -> list[str]:
    write(at / "mine" / "space.yaml", "mine")
    return ["init", "mine", "--data", "stdlib"]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        pytest.param(already_there, ("space.yaml", "not overwritten"), id="file that is there"),
        pytest.param(["init", "mine"], ("--data is missing", "no terminal"), id="nobody to ask"),
        pytest.param(["init", "mine", "--data", "nothing"], ("--data nothing", "no such file"), id="no such data"),
        pytest.param(["init", "mine", "--data", "stdlib", "--budget", "2"], ("budget", "(0, 1]"), id="budget"),
        pytest.param(["init", "mi\nne", "--data", "stdlib"], ("control character",), id="name of two lines"),
        pytest.param(["init", "mine", "--data", "stdlib", "--model", "none"], ("--model none",), id="no such model"),
    ],
)
def test_init_wrong_input_is_refused_in_one_line_and_writes_nothing(
    line: Line, words: tuple[str, ...], refuses: Refuses
) -> None:
    refuses(line, *words)


def test_init_budget_out_of_reach_leaves_no_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init", str(tmp_path / "mine"), "--data", "stdlib", "--budget", "0.0001"]) == 2
    assert "0.0001" in capsys.readouterr().err
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
