"""What a user can get wrong in the flags of ``run``, and where its trials run."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.refusals import RUN, SMOKE, Line, Refuses, check_line, shell, write

RAY = [*RUN, "--pool", "ray", "--ray-address"]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        pytest.param([*RUN, "--budget"], ("--budget", "expected one argument"), id="flag without its value"),
        pytest.param([*RUN, "--budget", "abc"], ("--budget", "float", "'abc'"), id="budget of letters"),
        *[
            pytest.param([*RUN, f"--budget={number}"], ("budget", "(0, 1]"), id=f"budget {number}")
            for number in ("0", "-1", "2", "nan", "inf", "-inf")
        ],
        pytest.param(
            [*RUN, "--budget", "0.01"], ("budget 0.01", "raise the budget to 0.1582"), id="budget below the space"
        ),
        pytest.param(
            lambda at, run: [*RUN, "--space", write(at / "s.yaml", "name: mine\nchoices: [full, 'window:4']\n")],
            ("--budget", "give one, such as"),
            id="budget named nowhere",
        ),
        pytest.param([*RUN, "--seed", "-1"], ("--seed", "[0, "), id="seed -1"),
        pytest.param([*RUN, "--seed", "x"], ("--seed", "whole number"), id="seed of letters"),
        pytest.param([*RUN, "--seed", str(2**63)], ("--seed", "[0, 2147483648)"), id="seed too large"),
        pytest.param([*RUN, "--trials", "0"], ("search.trials", "greater than or equal to 1, found 0"), id="trials 0"),
        pytest.param([*RUN, "--trials", "1.5"], ("search.trials", "integer"), id="trials 1.5"),
        pytest.param(
            [*RUN, "--workers", "0"], ("search.workers", "greater than or equal to 1, found 0"), id="workers 0"
        ),
        pytest.param([*RUN, "--pool", "rya"], ("--pool", "unknown: 'rya'", "local", "ray"), id="pool that is none"),
        pytest.param(
            [*RUN, "--ray-address", "auto"],
            ("--ray-address auto needs --pool ray", "drop the"),
            id="Ray's address without Ray",
        ),
        pytest.param(
            ["optimal-l", "--ray-address", "auto"],
            ("needs --pool ray", "drop the"),
            id="Ray's address without Ray, for l*",
        ),
        pytest.param(
            [*RAY, "head"], ("--ray-address head", "HOST:PORT", "10.0.0.1:6379"), id="Ray's address without port"
        ),
        pytest.param([*RAY, ""], ("--ray-address : give HOST:PORT", "or auto"), id="Ray's address that is empty"),
        pytest.param(
            [*RAY, "head:" + "9" * 5000],
            ("--ray-address head:999", "HOST:PORT"),
            id="Ray's address with a port of 5000 digits",
        ),
        pytest.param(
            [*RAY, "ray://head:10001"],
            ("--ray-address ray://head:10001", "HOST:PORT"),
            id="Ray's address of the client",
        ),
        pytest.param(
            [*RAY, "head:65536"], ("--ray-address head:65536", "HOST:PORT"), id="Ray's address with a port too large"
        ),
        pytest.param(
            [*RAY, "127.0.0.1:1"],
            ("127.0.0.1:1: no answer", "start the cluster"),
            id="Ray's address where nobody listens",
        ),
        pytest.param([*RUN, "--set", "training.steps"], ("--set 'training.steps'", "KEY=VALUE"), id="--set without ="),
        pytest.param([*RUN, "--set", "=3"], ("--set '=3'", "KEY=VALUE"), id="--set without key"),
        pytest.param(
            [*RUN, "--set", "training.steps.x=1"], ("training.steps holds no keys", "drop"), id="--set through a number"
        ),
        pytest.param([*RUN, "--set", "search.rungs=[0.5"], ("--set", "quote it"), id="--set of half a list"),
        pytest.param(
            [*RUN, "--set", "training.steps=2001-99-99"], ("--set", "quote it"), id="--set of an impossible date"
        ),
        pytest.param([*RUN, "--set", "training=3"], ("training", "found 3"), id="--set of a whole section"),
        pytest.param(["run", "--recipe", "smok"], ("'smok'", "did you mean 'smoke'"), id="recipe that does not ship"),
        pytest.param(
            ["run", "--recipe", "a/b.yaml"], ("'a/b.yaml'", "give an existing path"), id="recipe that is nowhere"
        ),
        pytest.param(
            ["run", "--recipe", "b" * 999 + ".yaml"], ("no file 'bbb", "known: "), id="recipe with a name too long"
        ),
        pytest.param([*RUN, "--space", "smoek"], ("'smoek'", "did you mean 'smoke'"), id="space that does not ship"),
        pytest.param(
            lambda at, run: [*RUN, "--space", str(at)],
            ("search_spaces", "give an existing path"),
            id="space that is a folder",
        ),
        pytest.param(
            lambda at, run: ["run", "--recipe", write(at / "mine.yaml", SMOKE.replace("name: smoke", "name: mine"))],
            ("--space is missing", "did you mean 'wide'"),
            id="recipe's name names no space",
        ),
    ],
)
def test_run_wrong_flag_is_refused_in_one_line(line: Line, words: tuple[str, ...], refuses: Refuses) -> None:
    refuses(line, *words)


@pytest.mark.integration
def test_run_hub_that_is_down_is_refused_at_once(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]  # closed again: whoever calls there is refused
    environment = {"HF_ENDPOINT": f"http://127.0.0.1:{port}", "HF_HOME": "home", "LAYERSEARCH_CACHE": "cache"}
    done = shell(
        *(*RUN, "--set", "data.source=hub", "--set", "data.dataset=me/tiny"),
        at=tmp_path,
        stdout=subprocess.PIPE,
        env=os.environ | environment | {"NO_PROXY": "127.0.0.1"},
    )
    assert (done.returncode, done.stdout) == (2, "")
    check_line(done.stderr, ("data.dataset me/tiny", "does not answer and there is no local copy", "connect, or give"))
    assert not (tmp_path / "new").exists()


@pytest.mark.slow  # Ray's own command is given twenty seconds
def test_run_port_that_is_no_ray_cluster_is_refused(refuses: Refuses) -> None:
    """A server that listens and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        refuses(
            [*RAY, address], f"--ray-address {address}", "no Ray cluster answers there", "give the port of its head"
        )


def test_run_without_ray_installed_names_what_to_install(refuses: Refuses, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)  # what Python itself makes of a module that cannot be imported
    refuses([*RUN, "--pool", "ray"], "--pool ray needs Ray", 'pip install "layersearch[ray]"')
