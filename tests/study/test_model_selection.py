"""A selection on a random Llama with its tokenizer, from the command line: its files, its records, its resumption."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from layersearch.cli.main import main
from layersearch.config.data import DataConfig
from layersearch.config.recipe import load_recipe
from layersearch.data.tokenizer import open_tokenizer
from layersearch.export.families import FAMILIES
from layersearch.files import parse_sealed
from layersearch.model.pretrained_recipe import recipe_for
from layersearch.schedule import Schedule
from layersearch.schedule.bound_space import BoundSpace
from layersearch.schedule.cost import attention_flops, budget_ratio
from layersearch.study.saved_run import load_request
from layersearch.study.selection_plan import default_space, stock_space
from layersearch.study.selection_units import PARTS, make_units
from tests.helpers.refusals import check_line, contents
from tests.helpers.runs import lines, wait_until
from tests.helpers.selections import save_model

LAYERS, TOKENS, BUDGET = 5, 640, 0.4
SIZES = {
    "training.seq_len": TOKENS,
    "selection.min_accuracy": 0,
    "selection.candidates": 10,
    "selection.gate_steps": 3,
    "selection.confirm_units": 3,
    "selection.selection_units": 2,
    "selection.calibration_units": 2,
    "selection.precision": "float32",
    "selection.tasks": "[pass_key,several_keys,variable_tracking]",  # their facts fit in half of the length
}
FILES = {"config.json", "flops.json", "frontier.json", "gates.json", "report.html", "retrieval.json", "run.lock",
         "retrieval_lengths.json", "selection.png", "selection.svg", "trials.jsonl", "winner.yaml"}  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    texts = [Path(module.__file__ or "").read_text() for module in (argparse_module(), json.decoder, textwrap)]
    return save_model(tmp_path_factory.mktemp("model") / "tiny", texts, LAYERS)


def argparse_module() -> Any:
    import argparse

    return argparse


@pytest.fixture(autouse=True)
def _cache(cache_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAYERSEARCH_CACHE", str(cache_dir))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def request(model: Path, out: Path, *more: str, **changes: object) -> list[str]:
    sizes = SIZES | {key.replace("__", "."): value for key, value in changes.items()}
    keys = [word for key, value in sizes.items() for word in ("--set", f"{key}={value}")]
    return ["run", "--model", str(model), "--budget", str(BUDGET), "--out", str(out), *keys, *more]


def launch(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", "-m", "layersearch", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def finished(model: Path, cache_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of an undisturbed selection; copy it before changing it."""
    out = tmp_path_factory.mktemp("selected") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LAYERSEARCH_CACHE", str(cache_dir))
        patch.setenv("OMP_NUM_THREADS", "1")
        done = launch(request(model, out))
    assert done.returncode == 0, done.stderr
    for phase in ("loading", "gates", "search", "confirm", "retrieval", "done"):
        assert re.search(rf"^{phase}: ", done.stderr, re.MULTILINE)
    assert "held-out documents" in done.stdout
    return out


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def records(out: Path) -> list[dict[str, Any]]:
    """Return the records without what differs from one process to the next."""
    own = ("seconds", "train_seconds", "eval_seconds", "peak_memory_bytes", "crc32")
    return [{key: value for key, value in json.loads(line).items() if key not in own} for line in lines(out)]


pytestmark = [pytest.mark.integration, pytest.mark.slow]


def test_selection_writes_its_files_and_exact_records(finished: Path) -> None:
    assert {path.name for path in finished.iterdir()} == FILES
    found = records(finished)
    for record in found:
        schedule = Schedule.parse(record["schedule"])
        assert record["cost"] == budget_ratio(schedule, seq_len=TOKENS, n_heads=4)
        assert record["flops"] == attention_flops(schedule, seq_len=TOKENS, n_heads=4, head_dim=8)
        assert record["state"] == ("complete" if record["steps"] == record["full_steps"] else "stopped")
        assert record["loss"] == record["curve"][-1][1]
        metrics = dict(record["metrics"])
        assert {name for name in metrics if name.startswith("accuracy_")} == {
            f"accuracy_{task}" for task in parse_sealed((finished / "retrieval.json").read_text())
        }
        mixed = 0.8 * metrics["text_loss"] + 0.2 * metrics["answer_loss"]
        assert record["loss"] == pytest.approx(mixed, abs=1e-6)
    keys = [(r["schedule"], r["seed"], r["phase"]) for r in found]
    assert len(set(keys)) == len(keys)
    searched = [r for r in found if r["phase"] == "search"]
    assert len(searched) == 10
    assert all(r["cost"] <= BUDGET for r in searched)
    confirmed = [r for r in found if r["phase"] == "confirm"]
    by_schedule = {
        r["schedule"]: sorted(o["seed"] for o in confirmed if o["schedule"] == r["schedule"]) for r in confirmed
    }
    assert all(seeds == [0, 1, 2] for seeds in by_schedule.values())
    assert f"full*{LAYERS}" in by_schedule
    named = {name for r in confirmed for name in r["role"].split(" = ")}
    assert {"all_full", "bottom(1)", "one window", "all window:40+sink:4", "all window:80+sink:4"} <= named


def test_selection_counts_its_attention_with_fvcore(finished: Path) -> None:
    counted = json.loads((finished / "flops.json").read_text())
    assert counted["seq_len"] == TOKENS
    assert counted["counted_by"].startswith("fvcore")
    for name, text in (("all_full", f"full*{LAYERS}"), ("sparsest", f"window:40+sink:4*{LAYERS}")):
        flops = attention_flops(Schedule.parse(text), seq_len=TOKENS, n_heads=4, head_dim=8)
        assert counted["forward_pass"][name] == {"schedule": text, "attention_flops": flops}


def test_selection_winner_lies_within_the_budget_and_is_confirmed(finished: Path) -> None:
    result = json.loads((finished / "frontier.json").read_text())
    winner = result["winner"]
    entry = next(e for e in result["entries"] if e["schedule"] == winner["schedule"])
    assert entry["cost"] <= BUDGET
    assert [seed for seed, _ in entry["confirm"]] == [0, 1, 2]
    assert result["unit"] == "document"
    assert winner["schedule"] in (finished / "winner.yaml").read_text()
    gates = json.loads((finished / "gates.json").read_text())
    assert len(gates["losses"]) == 3
    assert [len(layer) for layer in gates["scores"]] == [3] * LAYERS


def test_selection_parts_share_no_document(model: Path, tmp_path: Path, cache_dir: Path) -> None:
    """Every word of a document names it, so a sequence tells its documents."""
    for number in range(60):
        (tmp_path / f"{number:02}.txt").write_text(f"<{number:02}> " * (100 + 10 * (number % 7)))
    recipe = load_recipe("pretrained", [f"{key}={value}" for key, value in SIZES.items()])
    data = DataConfig(source="text", files=(str(tmp_path / "*.txt"),))
    recipe = recipe_for(type(recipe)(**{**vars(recipe), "data": data}), str(model))
    tokenizer, _ = open_tokenizer(str(model))
    found: dict[str, set[str]] = {}
    examples = set()
    for part, units in make_units(recipe, 512, 0, cache_dir)[0].items():
        texts = [set(re.findall(r"<(\d\d)>", tokenizer.decode(unit.text.tolist()))) for unit in units]
        assert all(texts)
        assert len(set.union(*texts)) == sum(map(len, texts))  # none in two units of one part either
        found[part] = set.union(*texts)
        examples |= {tuple(unit.example.tokens.tolist()) for unit in units}
        assert all(unit.text.shape == unit.example.tokens.shape == (TOKENS + 1,) for unit in units)
    assert tuple(found) == PARTS
    assert len(set.union(*found.values())) == sum(map(len, found.values()))
    assert len(examples) == 2 + 2 + 3


def test_selection_killed_in_every_phase_resumes_to_the_same_records(
    model: Path, finished: Path, tmp_path: Path
) -> None:
    out, quiet = tmp_path / "run", subprocess.DEVNULL
    command = [sys.executable, "-P", "-m", "layersearch", *request(model, out)]

    def count(phase: str) -> int:
        return sum(f'"phase": "{phase}"' in line for line in lines(out))

    moments: list[Callable[[], bool]] = [
        lambda: (out / "gates.json").exists(),
        lambda: count("search") >= 4,
        lambda: count("confirm") >= 5,
    ]
    for moment in moments:
        process = subprocess.Popen(command, stdout=quiet, stderr=quiet, text=True)
        wait_until(moment, process)
        process.send_signal(signal.SIGKILL)
        process.wait()
    with (out / "trials.jsonl").open("a") as file:
        file.write('{"schedule": "torn')
    done = launch(request(model, out))
    assert done.returncode == 0, done.stderr
    assert records(out) == records(finished)
    for name in ("gates.json", "retrieval.json", "retrieval_lengths.json", "flops.json", "winner.yaml"):
        assert (out / name).read_text() == (finished / name).read_text()
    before = contents(out)["trials.jsonl"]
    assert main(request(model, out)) == 0
    assert contents(out)["trials.jsonl"] == before  # a finished run measures nothing again


def test_selection_without_retrieval_weight_measures_text_alone(model: Path, tmp_path: Path) -> None:
    """The texts are too short for the tasks, which have no weight."""
    out = tmp_path / "run"
    changes: dict[str, object] = {
        "selection__retrieval_weight": 0,
        "selection__gate_steps": 0,
        "selection__candidates": 3,
        "training__seq_len": 64,
    }
    assert main(request(model, out, "--budget", "0.6", **changes)) == 0
    for record in records(out):
        assert record["loss"] == pytest.approx(dict(record["metrics"])["text_loss"], abs=1e-6)
        assert set(dict(record["metrics"])) == {"text_loss"}
    assert not (out / "retrieval.json").exists()
    assert main(["show", str(out)]) == 0


def test_selection_run_is_shown_drawn_exported_and_solved(
    copied: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    winner = json.loads((copied / "frontier.json").read_text())["winner"]["schedule"]
    assert main(["show", str(copied)]) == 0
    shown = capsys.readouterr().out
    assert "3 held-out documents" in shown
    assert "Digits right with full attention" in shown
    assert max(map(len, shown.splitlines())) <= 100
    assert main(["show", str(copied), "--json"]) == 0
    held = json.loads(capsys.readouterr().out)
    assert held["winner"]["schedule"] == winner
    full = [cell for cell in held["retrieval_cells"] if cell["schedule"] == f"full*{LAYERS}"]
    assert {cell["length"] for cell in full} == {TOKENS // 2, TOKENS}
    for length in (TOKENS // 2, TOKENS):
        assert sum(cell["accuracy"]["n"] for cell in full if cell["length"] == length) == 3 * 3
    assert len(held["held_out"]) == len({r["schedule"] for r in records(copied) if r["phase"] == "confirm"})
    (copied / "selection.png").unlink()
    assert main(["plot", str(copied)]) == 0
    assert (copied / "selection.png").stat().st_size > 10_000
    assert main(["export", str(copied), "--to", "hf-remote", "--out", str(tmp_path / "remote")]) == 0
    assert json.loads((tmp_path / "remote/config.json").read_text())["num_hidden_layers"] == LAYERS
    assert (tmp_path / "remote/schedule.yaml").exists()
    capsys.readouterr()
    assert main(["solve", str(copied), "--budget", "0.3", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["attention_flops"] > 0


def test_selection_confirm_measures_another_schedule_on_the_held_out_documents(
    copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = records(copied)
    new = "window:80+sink:4 full window:40+sink:4*3"
    assert new not in {record["schedule"] for record in before}
    assert main(["confirm", str(copied), new]) == 0
    assert new in capsys.readouterr().out
    after = records(copied)
    assert after[: len(before)] == before
    assert [(r["schedule"], r["seed"], r["phase"]) for r in after[len(before) :]] == [
        (new, seed, "confirm") for seed in range(3)
    ]


def damage(name: str, text: str) -> Callable[[Path], None]:
    def change(run: Path) -> None:
        (run / name).write_text(text)

    return change


DAMAGES = {
    f"{name}: {text}": (name, text)
    for name, texts in {
        "gates.json": ("{", "[]", '{"scores": []}', '{"scores": [[0.0]], "losses": [1.0]}', '{"losses": [1.0]}',
                       '{"scores": 3, "losses": "x"}'),
        "retrieval.json": ("{", "[]", '{"pass_key": 3}', '{"pass_key": {"full": "x", "chance": 0}}'),
        "retrieval_lengths.json": ("{", '{"full*5": 3}'),
    }.items()
    for text in texts
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGES)
def test_selection_damaged_file_is_refused_in_one_line(
    name: str, model: Path, copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, text = DAMAGES[name]
    (copied / file).write_text(text)
    before = contents(copied)
    assert main(request(model, copied)) == 2
    check_line(capsys.readouterr().err.splitlines(keepends=True)[-1], (file, "damaged; remove it"))
    assert contents(copied) == before
    if file.startswith("retrieval"):
        assert main(["show", str(copied), "--json"]) == 2
        check_line(capsys.readouterr().err, (file, "damaged; remove it"))


SPACES = {
    "tied": "name: s\nchoices: [full, 'window:40']\ntied: [[0, 1]]\n",
    "pattern": "name: s\nchoices: [full, 'window:40']\npattern: 2\n",
    "one_sparse": "name: s\nchoices: [full, 'window:40', 'window:80']\none_sparse: true\n",
}


def refused(arguments: list[str], out: Path, capsys: pytest.CaptureFixture[str], *words: str) -> None:
    capsys.readouterr()
    assert main(arguments) == 2
    found = capsys.readouterr()
    assert found.out == ""
    check_line(found.err.splitlines(keepends=True)[-1], words)
    assert "Traceback" not in found.err
    assert not out.exists()


@pytest.mark.parametrize("kind", SPACES)
def test_selection_of_a_space_with_tied_layers_is_refused(
    kind: str, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "space.yaml").write_text(SPACES[kind])
    line = request(model, tmp_path / "new", "--space", str(tmp_path / "space.yaml"))
    refused(line, tmp_path / "new", capsys, "search space 's' ties layers", "--space", "pretrained-training")


def test_selection_refusals_leave_no_run_folder(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new"
    refused(request(model, out, "--budget", "0.01"), out, capsys, "budget 0.01", "raise the budget to")
    refused(request(model, out, "--budget", "2"), out, capsys, "budget", "2")
    short = request(model, out, "--budget", "0.9", training__seq_len=64)
    refused(short, out, capsys, "training.seq_len", "too short for the retrieval tasks", "selection.tasks")
    refused(request(model, out, training__seq_len=2048), out, capsys, "1024 positions", "2048")
    (tmp_path / "few.txt").write_text("a few words " * 300)
    few = request(model, out, "--set", "data.source=text", "--set", f"data.files=[{tmp_path / 'few.txt'}]")
    refused(few, out, capsys, "too few", "sequences")
    other = save_model(tmp_path / "other", ["too small a text"], 2)
    large = json.loads((other / "tokenizer.json").read_text())
    large["model"]["vocab"]["<extra>"] = 700
    (other / "tokenizer.json").write_text(json.dumps(large))
    refused(request(other, out), out, capsys, "tokens", "embeddings for 512")
    refused(["run", "--recipe", "pretrained", "--out", str(out)], out, capsys, "selects layers", "--model")


@pytest.mark.parametrize("weight", [0.2, 0.0])
def test_selection_of_a_model_whose_loss_is_no_number_is_refused_in_one_line(
    weight: float, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from safetensors.torch import load_file, save_file

    broken = Path(shutil.copytree(model, tmp_path / "broken"))
    state = load_file(broken / "model.safetensors")
    state["model.layers.2.self_attn.o_proj.weight"][0, 0] = float("nan")
    save_file(state, broken / "model.safetensors", metadata={"format": "pt"})
    assert main(request(broken, tmp_path / "run", selection__retrieval_weight=weight)) == 2
    check_line(capsys.readouterr().err.splitlines(keepends=True)[-1], ("its logits are nan", "damaged"))
    assert lines(tmp_path / "run") == []


def test_selection_resumed_on_changed_text_is_refused(
    model: Path, copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = json.loads((copied / "config.json").read_text())
    assert config["data"]["vocab_size"] == 512
    config["data"]["fingerprint"] = "0" * 20  # as of another text
    del config["crc32"]
    (copied / "config.json").write_text(json.dumps(config))
    before = lines(copied)
    assert main(request(model, copied)) == 2
    check_line(capsys.readouterr().err.splitlines(keepends=True)[-1], ("data.fingerprint",))
    assert lines(copied) == before


def test_make_units_facts_change_with_the_text(model: Path, cache_dir: Path) -> None:
    keys = ["training.seq_len=640", "selection.confirm_units=2"]
    recipe = recipe_for(load_recipe("pretrained", keys), str(model))
    marks = [make_units(recipe, 512, seed, cache_dir)[1]["fingerprint"] for seed in (0, 0, 1)]
    assert marks[0] == marks[1] != marks[2]


def test_selection_dry_run_states_the_plan_and_writes_nothing(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new"
    assert main(request(model, out, "--dry-run")) == 0
    said = capsys.readouterr().out
    assert "memory" in said
    assert "bottom(1)" in said
    assert main(request(model, out, "--dry-run", "--json")) == 0
    assert json.loads(capsys.readouterr().out)["memory"]
    assert not out.exists()


def test_selection_default_space_fits_the_length(finished: Path) -> None:
    recipe, space, budget = load_request(finished)
    assert (space, budget) == (default_space(TOKENS), BUDGET)
    assert [str(span) for span in BoundSpace.of(space, recipe).options[0]] == [
        "full", "window:40+sink:4", "window:80+sink:4",
    ]  # fmt: skip
    assert default_space(100).choices == ("full", "window:16+sink:4")
    assert stock_space(TOKENS).choices == ("full", "window:40")
    assert FAMILIES["ministral"].capabilities.problem(Schedule.parse("full window:40*4")) is None
