"""What is refused of the folder that a search is to write: it holds another run, or a damaged one."""

from __future__ import annotations

import fcntl
import os
import resource
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.helpers.refusals import RUN, SPACE, Line, Refuses, check_line, edit, shell, write


def nothing(run: Path) -> None:
    """Leave the run as it is."""


def garble(file: str, number: int, line: bytes = b"\x00\xffgarbage\n") -> Callable[[Path], object]:
    """Return a change of one whole line of a file, counted from 0."""

    def change(run: Path) -> None:
        lines = (run / file).read_bytes().splitlines(keepends=True)
        lines[number] = line
        (run / file).write_bytes(b"".join(lines))

    return change


@pytest.mark.parametrize(
    ("line", "words"),
    [
        pytest.param(
            lambda at, run: [*RUN[:-1], write(at / "f", "x")],
            ("--out", "a file stands there", "name a folder"),
            id="a file",
        ),
        pytest.param(
            lambda at, run: [*RUN[:-1], write(at / "f", "x") + "/a/b"],
            ("--out", "permissions or name"),
            id="below a file",
        ),
        pytest.param(
            [*RUN[:-1], "/proc/layersearch/run"],
            ("--out", "permissions or name another"),
            id="where no folder can be made",
        ),
        pytest.param(
            lambda at, run: [*RUN[:-1], str(Path(write(at / "d" / "notes.txt", "mine")).parent)],
            ("--out", "holds other things", "name a new or empty folder"),
            id="folder with other things",
        ),
    ],
)
def test_run_out_that_cannot_be_a_run_folder_is_refused_in_one_line(
    line: Line, words: tuple[str, ...], refuses: Refuses
) -> None:
    refuses(line, *words)


@pytest.mark.parametrize(
    ("change", "more", "words"),
    [
        pytest.param(nothing, ("--seed", "5"), ("another seed (0, now 5)", "name another folder"), id="another seed"),
        pytest.param(
            nothing, ("--budget", "0.7"), ("another budget (0.6, now 0.7)", "name another folder"), id="another budget"
        ),
        pytest.param(
            nothing,
            ("--set", "training.steps=9"),
            ("another recipe.training.steps (8, now 9)", "name another folder"),
            id="another recipe",
        ),
        pytest.param(
            lambda run: write(run.parent / "s.yaml", SPACE.replace("name: smoke", "name: mine")),
            ("--space", "s.yaml"),
            ("another space.name ('smoke', now 'mine')", "name another folder"),
            id="another space",
        ),
        pytest.param(
            edit("config.json", '"fingerprint": "..', '"fingerprint": "__'),
            (),
            ("data.fingerprint", "name"),
            id="data that changed",
        ),
        pytest.param(
            edit("config.json", '"format": 1', '"format": 2'),
            (),
            ("format 2", "reads format 1", "start anew"),
            id="another format",
        ),
        pytest.param(
            edit("config.json", '"format": 1,', ""), (), ("config.json", "restore it or start anew"), id="no format"
        ),
        pytest.param(
            lambda run: os.truncate(run / "config.json", 700),
            (),
            ("config.json", "restore it or start"),
            id="half a configuration",
        ),
        pytest.param(
            lambda run: os.truncate(run / "config.json", 0),
            (),
            ("config.json", "restore it or start"),
            id="empty configuration",
        ),
        pytest.param(
            garble("config.json", 3), (), ("config.json", "restore it or start anew"), id="binary configuration"
        ),
        pytest.param(
            lambda run: write(run / "config.json", "[1]"),
            (),
            ("config.json", "restore it or"),
            id="configuration that is a list",
        ),
        pytest.param(
            edit("config.json", '(?m)^  "budget"', '  "bugdet"'),
            (),
            ("'budget'", "restore it or start"),
            id="configuration without budget",
        ),
        pytest.param(
            garble("trials.jsonl", 4),
            (),
            ("trials.jsonl line 5", "restore the line, or delete it"),
            id="garbage in the records",
        ),
        pytest.param(
            garble("trials.jsonl", -1),
            (),
            ("trials.jsonl line 16", "restore the line, or delete it"),
            id="garbage at the records' end",
        ),
        pytest.param(
            garble("trials.jsonl", 2, b'{"a": 1}\n'),
            (),
            ("line 3", "'a'", "restore the line"),
            id="record of another program",
        ),
        pytest.param(
            garble("trials.jsonl", 2, b"7\n"),
            (),
            ("trials.jsonl line 3", "restore the line"),
            id="record that is a number",
        ),
        pytest.param(
            edit("trials.jsonl", r'"loss": [\d.]+', '"loss": "low"'),
            (),
            ("line 1", "loss", "restore the line"),
            id="loss in words",
        ),
        pytest.param(
            edit("trials.jsonl", r'"loss": [\d.]+', '"loss": NaN'),
            (),
            ("line 1", "loss", "restore"),
            id="loss that is no number",
        ),
        pytest.param(
            edit("trials.jsonl", r'"full\*2"', '"ful*2"'),
            (),
            ("trials.jsonl line", "did you mean 'full'"),
            id="schedule that is none",
        ),
    ],
)
def test_run_out_of_another_or_a_damaged_run_is_refused_and_left_alone(
    change: Callable[[Path], object], more: tuple[str, ...], words: tuple[str, ...], refuses: Refuses
) -> None:
    def line(at: Path, run: Path) -> list[str]:
        shutil.copytree(run, at / "old")
        change(at / "old")
        return ["run", "--recipe", "smoke", "--out", "old", *more]

    refuses(line, *words)


def test_run_out_that_another_search_holds_is_refused_and_left_alone(
    tmp_path: Path, saved_run: Path, refuses: Refuses
) -> None:
    shutil.copytree(saved_run, tmp_path / "old")
    with (tmp_path / "old" / "run.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        remedy = "wait for it or name another folder"
        refuses(["run", "--recipe", "smoke", "--out", "old"], "--out old", "another search is running there", remedy)


@pytest.mark.integration
@pytest.mark.parametrize("room", [1000, 6000], ids=["configuration", "journal"])
def test_run_on_a_full_disk_ends_in_one_line(room: int, tmp_path: Path) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))

    # Python itself keeps half a bytecode file where the disk is full, and cannot import it afterward.
    environment = os.environ | {"PYTHONDONTWRITEBYTECODE": "1"}
    command = [*RUN, "--workers", "1"]
    done = shell(*command, at=tmp_path, stdout=subprocess.PIPE, preexec_fn=limit, env=environment)
    assert (done.returncode, done.stdout) == (2, "")
    check_line(
        done.stderr.splitlines(keepends=True)[-1], ("--out new", "cannot be written", "free space", "run the same")
    )
    left = {path.name for path in (tmp_path / "new").iterdir()}
    assert "Traceback" not in done.stderr
    assert ("config.json" in left) == (room > 1000)
