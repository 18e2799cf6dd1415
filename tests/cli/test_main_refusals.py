"""What a user can get wrong in the command line as such."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from layersearch.cli.main import main
from tests.helpers.refusals import Line, Refuses, check_line, shell


@pytest.mark.parametrize(
    ("line", "words"),
    [
        pytest.param([], ("COMMAND", "--help"), id="no command"),
        pytest.param(["rnu"], ("unknown: 'rnu'", "presets"), id="unknown command"),
        pytest.param(["run", "--bugdet", "0.3"], ("'--bugdet'", "did you mean '--budget'"), id="unknown flag"),
        pytest.param(["run", "--budg", "0.3"], ("'--budg'", "did you mean '--budget'"), id="shortened flag"),
        pytest.param(["run", "laptop"], ("'laptop'", "run --help"), id="stray word"),
        pytest.param(["show", "--budget", "0.3", "runs"], ("'--budget'", "show --help"), id="flag of another command"),
    ],
)
def test_main_wrong_command_or_flag_is_refused_in_one_line(
    line: Line, words: tuple[str, ...], refuses: Refuses
) -> None:
    refuses(line, *words)


@pytest.mark.parametrize("words", [["--bugdet"], ["run", "--bugdet", "0.3"], ["cost", "full", "--seq-len", "x"]])
def test_main_wrong_flag_names_the_program_once_before_the_fault(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("layersearch: ")
    assert not printed.removeprefix("layersearch: ").startswith("layersearch")


def test_main_in_a_process_of_its_own_ends_with_the_same_line_and_code_2(tmp_path: Path) -> None:
    done = shell("cost", "full*2 windwo:4", "--seq-len", "8", at=tmp_path, stdout=subprocess.PIPE)
    assert (done.returncode, done.stdout) == (2, "")
    check_line(done.stderr, ("term 2", "did you mean 'window'"))


def test_main_output_that_cannot_be_written_is_refused_in_one_line(tmp_path: Path) -> None:
    with Path("/dev/full").open("w") as full:
        done = shell("cost", "full*2", "--seq-len", "8", at=tmp_path, stdout=full)
    assert done.returncode == 2
    check_line(done.stderr, ("No space left", "choose another"))
