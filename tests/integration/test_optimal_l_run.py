"""`layersearch optimal-l` for real: all-full first, then the switch; killed and taken up again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from layersearch.config.recipe import load_recipe
from layersearch.data import open_source
from layersearch.schedule import Schedule
from layersearch.training.record import Trial, read
from layersearch.training.workers.pool import LocalPool

pytestmark = pytest.mark.integration

COMMAND = [sys.executable, "-P", "-m", "layersearch", "optimal-l", "--recipe", "smoke", "--regime", "converted"]
SIZE = ["--placements", "bottom,searched", "--l", "0,2", "--seeds", "2", "--max-seeds", "2", "--workers", "1"]
PATIENCE = 120.0


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a study that was killed in the middle and taken up again."""
    at = tmp_path_factory.mktemp("study")
    line = [*COMMAND, *SIZE, "--out", "run"]
    quiet = subprocess.DEVNULL
    begun = subprocess.Popen(line, cwd=at, stdout=quiet, stderr=quiet)
    trials, end = at / "run" / "trials.jsonl", time.monotonic() + PATIENCE
    while not (trials.exists() and trials.read_text().count("\n") >= 2):
        assert begun.poll() is None
        assert time.monotonic() < end
        time.sleep(0.01)
    begun.send_signal(signal.SIGKILL)
    begun.wait()
    assert not (at / "run" / "answer.md").exists()
    done = subprocess.run(line, cwd=at, capture_output=True, text=True, check=False, env=os.environ)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("# How many layers need full attention? smoke, converted")
    return at / "run"


def test_optimal_l_real_run_trains_every_trial_once_and_writes_the_answer(converted: Path) -> None:
    records = list(read(converted / "trials.jsonl"))
    assert len({record.key for record in records}) == len(records)
    assert {record.state for record in records} == {"complete"}
    assert {record.steps for record in records} == {4}  # half of the recipe's
    before = list(read(converted / "start" / "trials.jsonl"))
    assert {str(record.schedule) for record in before} == {"full*2"}
    assert {record.seed for record in before} == {record.seed for record in records} == {0, 1, 2, 3}
    answer = json.loads((converted / "answer.json").read_text())["settings"][0]
    assert answer["regime"] == "converted"
    assert [row["l"] for row in answer["curve"]] == [0, 2]
    assert answer["l_star"]["low"] <= answer["l_star"]["value"]
    for name in ("answer.md", "loss_by_l.png", "loss_by_l.svg", "layers.png"):
        assert (converted / name).stat().st_size > 500


def test_trial_from_saved_weights_continues_with_later_data(converted: Path, tmp_path: Path) -> None:
    """With no learning, the loss after the switch is that before it; with learning, other batches are seen."""
    weights = converted / "start" / "seed-0.safetensors"
    before = next(r for r in read(converted / "start" / "trials.jsonl") if r.seed == 0)
    changes = [f"training.start={converted / 'start'}/seed-{{seed}}.safetensors", "training.steps=1"]
    frozen = load_recipe("smoke", [*changes, "training.warmup_steps=0", "training.learning_rate=1e-12"])
    pool = LocalPool(frozen, 1, tmp_path / "logs")
    try:
        kept = pool.submit(
            Trial(schedule=Schedule.parse("full*2"), seed=0, save=str(tmp_path / "kept.safetensors"))
        ).result()
    finally:
        pool.close()
    assert before.loss is not None
    assert kept.loss == pytest.approx(before.loss, abs=1e-6)

    from safetensors import safe_open

    steps = []
    for path in (weights, tmp_path / "kept.safetensors"):
        with safe_open(str(path), framework="pt") as file:
            steps.append(file.metadata()["steps"])
            assert file.get_tensor("layers.1.self_attn.q_proj.weight").shape == (32, 32)
    assert steps == ["8", "9"]
    source = open_source(frozen.data, frozen.training.seq_len)
    batches = [source.train(seed=0, step=step, batch_size=2).tokens.tolist() for step in (0, 8)]
    assert batches[0] != batches[1]
