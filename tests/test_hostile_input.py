"""Files and values that were made, or damaged, to break a command: each is refused at once, in one line."""

from __future__ import annotations

import gzip
import json
import lzma
import os
import shutil
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from layersearch.cli.main import main
from layersearch.config.loader import read_yaml
from layersearch.config.recipe import load_recipe
from layersearch.data import local_files
from layersearch.errors import ConfigError, LayersearchError, visible
from layersearch.export.edit_config import parse_user_config
from layersearch.export.model_file import read_model_file
from layersearch.files import seal
from layersearch.schedule import Schedule
from layersearch.schedule.files import read_schedule
from layersearch.schedule.space import load_space
from layersearch.training.record import read
from layersearch.training.workers.meeting import meeting_folder

LAUGHS = "a0: &a0 [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"a{n}: &a{n} [{','.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 9)
)


def one_line(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    return said


@pytest.mark.parametrize(
    "key", ["sink: null", "dilation: null", "pool: null", f"decay: {'9' * 400}", "size: 1" + "0" * 30]
)
def test_span_value_of_no_use_is_refused(tmp_path: Path, key: str) -> None:
    size = "" if key.startswith("size") else "size: 8, "
    (tmp_path / "s.yaml").write_text(f"- {{kind: window, {size}{key}}}\n")
    with pytest.raises(ConfigError, match=f"layer 0: .*{key.partition(':')[0]}"):
        read_schedule(tmp_path / "s.yaml")


def test_schedule_of_more_layers_than_a_model_has_is_refused() -> None:
    with pytest.raises(ConfigError, match="more than 100000 layers"):
        Schedule.parse("full*100000 full*100000")


@pytest.mark.parametrize("text", ["!!timestamp 'q'", "!!bool 'x'", "!!int 'x'", "!!set q", LAUGHS])
def test_yaml_of_a_wrong_tag_or_of_endless_aliases_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "f.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"f\.yaml.*not valid YAML"):
        read_yaml(tmp_path / "f.yaml")


@pytest.mark.parametrize(
    ("assignment", "words"),
    [
        ("training.seq_len=1000000000000000", "training.seq_len"),
        ("model.n_layers=1000000000", "model.n_layers"),
        ("model.d_model=2000000000000", "model.d_model"),
        ("training.steps=1000000000000000000", "training.steps"),
        ("training.val_sequences=1000000000", "val_sequences 1000000000 of seq_len 48"),
        ("search.workers=1000000", "search.workers"),
    ],
)
def test_recipe_of_an_impossible_size_is_refused(assignment: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        load_recipe("smoke", [assignment])


def test_space_whose_name_leaves_the_folder_of_runs_is_refused(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text("name: x/../../../escaped\nchoices: [full, 'window:8']\n")
    with pytest.raises(ConfigError, match=r"s\.yaml: name must be letters"):
        load_space(str(tmp_path / "s.yaml"))


@pytest.mark.parametrize("model_type", [["llama"], {"a": 1}, 5])
def test_model_type_that_is_no_word_is_refused(tmp_path: Path, model_type: object) -> None:
    values = {"model_type": model_type, "num_hidden_layers": 2}
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(LayersearchError, match="model_type"):
        parse_user_config(values, tmp_path / "config.json", None)
    with pytest.raises(LayersearchError, match="model_type"):
        read_model_file(str(tmp_path / "config.json"))


def test_model_of_more_layers_than_fit_in_memory_is_refused(tmp_path: Path) -> None:
    values = {"model_type": "gemma3_text", "num_hidden_layers": 10**9}
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(LayersearchError, match="num_hidden_layers is 1000000000, more than 100000 layers"):
        read_model_file(str(tmp_path / "config.json"))


@pytest.mark.parametrize("name", ["config.json", "trials.jsonl"])
def test_json_nested_too_deeply_is_refused(
    name: str, saved_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Path(shutil.copytree(saved_run, tmp_path / "run"))
    (run / name).write_text("[" * 100_000 + "\n")
    assert name in one_line(capsys, "show", str(run))


def test_control_characters_are_written_out_in_errors_and_records(
    capsys: pytest.CaptureFixture[str], saved_run: Path, tmp_path: Path
) -> None:
    said = one_line(capsys, "cost", "window:4+sin\x1b[31mk:4", "--seq-len", "48")
    assert "\x1b" not in said
    assert "\\x1b[31m" in said
    line = json.loads((saved_run / "trials.jsonl").read_text().splitlines()[0])
    (tmp_path / "t.jsonl").write_text(seal(line | {"role": "\x1b[31mEVIL\u202e"}) + "\n")
    assert next(read(tmp_path / "t.jsonl")).role == "\\x1b[31mEVIL\\x202e"
    assert visible("a\nb\tü") == "a\nb\tü"


HOLDS = """
from layersearch.training.workers.meeting import meeting_folder
held = meeting_folder()
print(held.name, flush=True)
input()
"""


def test_meeting_folder_of_a_killed_process_is_removed_and_none_of_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever their process IDs: a container that shares the temporary folder counts its own."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    words, pipe = [sys.executable, "-c", HOLDS], subprocess.PIPE
    holders = [
        subprocess.Popen(words, stdin=pipe, stdout=pipe, text=True, env=os.environ | {"TMPDIR": str(tmp_path)})
        for _ in range(2)
    ]
    folders = [Path(holder.stdout.readline().strip()) for holder in holders if holder.stdout]
    unlocked, old = tmp_path / "layersearch-1-new", tmp_path / "layersearch-1-old"
    for folder in (unlocked, old, tmp_path / "layersearch-other", tmp_path / "else-1-x"):
        folder.mkdir()
    os.utime(old, (0, 0))
    moved = folders[1].rename(tmp_path / f"layersearch-{holders[0].pid}-x")  # the ID of another process that lives
    holders[1].kill()
    holders[1].communicate()
    with meeting_folder() as made:
        assert Path(made).stat().st_mode & 0o077 == 0
        assert not moved.exists()
        assert not old.exists()
        assert folders[0].exists()
        assert unlocked.exists()
    assert not Path(made).exists()
    assert {"layersearch-other", "else-1-x"} < {path.name for path in tmp_path.iterdir()}
    holders[0].communicate("\n")
    assert not folders[0].exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_command_ended_by_a_signal_says_so_and_gives_its_code(
    number: signal.Signals, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("layersearch.cli.presets.run", lambda options: os.kill(os.getpid(), number))
    before = signal.signal(number, signal.SIG_DFL)  # Ray leaves its own handler in a process that has used it
    try:
        assert main(["presets"]) == 128 + number
        assert capsys.readouterr().err == "layersearch: terminated; run the same command again to go on\n"
        assert signal.getsignal(number) == signal.SIG_DFL
    finally:
        signal.signal(number, before)


def test_run_folder_with_a_link_out_of_it_is_refused(
    saved_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither read nor written, however deep it lies; a link within the folder, or the folder's own, is none."""
    out, secret = tmp_path / "run", tmp_path / "secret"
    secret.write_text("mine\n")
    shutil.copytree(saved_run, out)
    (out / "logs").mkdir(exist_ok=True)
    (out / "logs" / "latest").symlink_to("../trials.jsonl")
    (tmp_path / "named").symlink_to(out)
    assert main(["show", str(tmp_path / "named")]) == 0
    capsys.readouterr()
    for name in ("frontier.json.part", "logs/worker-0-rank-0.log", "healed"):
        link = out / name
        link.symlink_to(secret if name != "healed" else tmp_path)
        for command in (["show", str(out)], ["run", "--recipe", "smoke", "--budget", "0.6", "--out", str(out)]):
            assert f"{link}: a symbolic link out of the folder" in one_line(capsys, *command)
        link.unlink()
    assert secret.read_text() == "mine\n"


@pytest.mark.parametrize("suffix", [".txt.gz", ".zip", ".jsonl.xz"])
def test_packed_file_that_unpacks_to_far_more_is_refused(
    suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_files, "AT_LEAST", 1_000_000)
    file, row = tmp_path / f"bomb{suffix}", b'{"text": "' + b"a" * 9_999_900 + b'"}\n'
    if suffix == ".zip":
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("a.txt", row)
    else:
        file.write_bytes(gzip.compress(row) if suffix == ".txt.gz" else lzma.compress(row))
    with pytest.raises(LayersearchError, match="unpacks to over 200 times its size"):
        list(local_files.read_texts("files", local_files.local_files([str(file)]), "text"))
    monkeypatch.setattr(local_files, "AT_LEAST", 20_000_000)
    (text,) = local_files.read_texts("files", local_files.local_files([str(file)]), "text")
    assert len(text) >= 9_999_900


def test_checkpoint_whose_parts_are_packed_is_refused(tmp_path: Path) -> None:
    """It could hold more than fits in memory; torch writes none."""
    import torch

    from layersearch.training.checkpoint import load_state

    torch.save({"x": torch.zeros(1000)}, tmp_path / "plain.pt")
    with (
        zipfile.ZipFile(tmp_path / "plain.pt") as plain,
        zipfile.ZipFile(tmp_path / "state.pt", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for part in plain.infolist():
            packed.writestr(part.filename, plain.read(part))
    with pytest.raises(LayersearchError, match=r"state\.pt: damaged, no checkpoint \(its parts are packed\)"):
        load_state(tmp_path / "state.pt", "cpu")
