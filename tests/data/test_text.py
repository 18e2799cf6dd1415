"""Text: the standard library as a packed stream, and sequences cut from it."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tokenize
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

import layersearch
from layersearch.config.data import DataConfig
from layersearch.data import describe, open_source
from layersearch.data.documents import stdlib_files
from layersearch.data.source import IGNORE
from layersearch.data.text import Text
from layersearch.errors import DataError

CONFIG = DataConfig(source="stdlib", vocab_size=1024)
ROOT = Path(layersearch.__file__).parent.parent


@pytest.fixture(scope="module")
def stdlib(cache_dir):
    return open_source(CONFIG, 64, cache_dir)


@pytest.fixture(scope="module")
def pieces(stdlib) -> dict[str, list[str]]:
    """Return the texts of each side, decoded from its stream."""
    tokenizer = Tokenizer.from_file(str(stdlib.tokenizer_file))
    texts = {}
    for side in ("train", "validation"):
        stream = np.load(stdlib.tokenizer_file.with_name(f"{side}.npy"))
        ends = np.flatnonzero(stream == tokenizer.token_to_id("<|endoftext|>"))
        assert ends[-1] == len(stream) - 1
        parts = np.split(stream, ends + 1)[:-1]
        texts[side] = tokenizer.decode_batch([part[:-1].tolist() for part in parts], skip_special_tokens=False)
    return texts


@pytest.fixture(scope="module")
def library() -> dict[str, str]:
    """Return the text of every source file of the standard library, by relative path."""
    root = Path(sysconfig.get_path("stdlib"))
    texts = {}
    for path in root.rglob("*.py"):
        parts = path.relative_to(root).parts
        if not {"site-packages", "test", "tests"} & set(parts):
            with tokenize.open(path) as file:
                texts["/".join(parts)] = file.read()
    return texts


@pytest.mark.slow
def test_stdlib_whole_files_are_kept_together(pieces, library):
    known = set(library.values())
    for side in ("train", "validation"):
        assert all(piece in known for piece in pieces[side])
    for name in ("argparse.py", "json/decoder.py", "asyncio/base_events.py", "collections/__init__.py"):
        assert (library[name] in pieces["train"]) != (library[name] in pieces["validation"])


@pytest.mark.slow
def test_stdlib_training_and_validation_share_no_file(pieces):
    assert set(pieces["train"]).isdisjoint(pieces["validation"])
    assert len(pieces["train"]) > 5 * len(pieces["validation"]) > 50


def test_stdlib_files_leave_out_what_is_no_library_code(tmp_path):
    kept = ["abc.py", "json/decoder.py", "json/tool.py", "zipfile.py"]
    dropped = [
        "site-packages/x/abc.py", "dist-packages/y.py", "test/test_abc.py", "unittest/test/a.py", "ctypes/tests/a.py",
        "idlelib/idle_test/a.py", "__pycache__/abc.py", "config-3.11-x86_64/a.py", "tkinter/a.py", "turtle.py",
        "_sysconfigdata__linux.py", "sitecustomize.py", "ensurepip/__init__.py", "json/decoder.pyc",
    ]  # fmt: skip
    for name in [*reversed(kept), *dropped]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("pass\n")
    assert [path.relative_to(tmp_path).as_posix() for path in stdlib_files(tmp_path)] == kept


@pytest.mark.slow
def test_text_describe_holds_what_a_run_folder_records(stdlib):
    facts = describe(stdlib)
    train, validation = (np.load(stdlib.tokenizer_file.with_name(f"{side}.npy")) for side in ("train", "validation"))
    assert facts["train_tokens"] == len(train) > 1_000_000
    assert facts["validation_tokens"] == len(validation) > 50_000
    assert facts["vocab_size"] == stdlib.vocab_size == 1024 == max(train.max(), validation.max()) + 1
    assert train.dtype == np.uint16
    assert facts["python"].endswith(".".join(map(str, sys.version_info[:3])))
    assert facts["fingerprint"] == stdlib.fingerprint
    assert len(stdlib.fingerprint) == 64
    assert facts["known_optimal_l"] is None


PREPARE = """
import sys
from pathlib import Path
from layersearch.data import open_source
from layersearch.config.data import DataConfig
source = open_source(DataConfig(source="stdlib", vocab_size=512, max_tokens=200_000), 64, Path(sys.argv[1]))
batch = source.train(seed=5, step=9, batch_size=4)
print(source.fingerprint, batch.tokens.tobytes().hex(), source.tokenizer_file)
"""


def python(script: str, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", script, *arguments],
        cwd=ROOT,
        env=os.environ | environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


@pytest.mark.slow
def test_prepare_two_processes_give_the_same_bytes(tmp_path):
    started = [
        python(PREPARE, str(tmp_path / "a"), PYTHONHASHSEED="1", RAYON_NUM_THREADS="1"),
        python(PREPARE, str(tmp_path / "b"), PYTHONHASHSEED="2", RAYON_NUM_THREADS="2"),
    ]
    (one, *first), (two, *second) = [tuple(process.communicate()[0].split()) for process in started]
    assert one == two
    assert first[0] == second[0]
    for name in ("train.npy", "validation.npy", "tokenizer.json"):
        assert Path(first[1]).with_name(name).read_bytes() == Path(second[1]).with_name(name).read_bytes()


@pytest.mark.slow
def test_open_source_prepared_text_imports_no_heavy_library(stdlib, cache_dir):
    script = """
import sys
from pathlib import Path
from layersearch.data import open_source
from layersearch.config.data import DataConfig
source = open_source(DataConfig(source="stdlib", vocab_size=1024), 64, Path(sys.argv[1]))
source.train(seed=0, step=0, batch_size=2)
print(source.fingerprint)
print(sorted({"datasets", "tokenizers", "torch", "pyarrow", "pandas", "huggingface_hub"} & set(sys.modules)))
"""
    out, err = python(script, str(cache_dir)).communicate()
    assert err == ""
    assert out.split("\n")[:2] == [stdlib.fingerprint, "[]"]


def counting(folder: Path, train: int, validation: int, seq_len: int, dtype: type = np.uint16) -> Text:
    """Return a source whose tokens are their own positions."""
    folder.mkdir(exist_ok=True)
    np.save(folder / "train.npy", np.arange(train, dtype=dtype))
    np.save(folder / "validation.npy", np.arange(validation, dtype=dtype))
    return Text(folder, {"content": {}, "vocab_size": max(train, validation), "read": {}}, "text", seq_len)


def test_text_training_sequences_start_anywhere_and_run_on(tmp_path):
    source = counting(tmp_path, 70_000, 100, 50, np.uint32)
    batch = source.train(seed=0, step=0, batch_size=4000)
    starts = batch.tokens[:, 0]
    np.testing.assert_array_equal(batch.tokens, starts[:, None] + np.arange(50))
    np.testing.assert_array_equal(batch.targets, batch.tokens + 1)
    assert batch.tokens.dtype == batch.targets.dtype == np.int64
    assert IGNORE not in batch.targets
    # 4000 uniform starts: each tenth of the stream gets 400, standard deviation 19.
    assert (abs(np.histogram(starts, bins=10, range=(0, 69_950))[0] - 400) < 95).all()


def test_text_training_every_start_is_possible_and_none_runs_over(tmp_path):
    source = counting(tmp_path, 53, 51, 50)
    starts = source.train(seed=0, step=0, batch_size=200).tokens[:, 0]
    assert set(starts) == {0, 1, 2}


@pytest.mark.parametrize(("sequences", "validation"), [(1, 51), (4, 201), (4, 250), (7, 1000)])
def test_text_validation_windows_are_spread_and_never_overlap(tmp_path, sequences, validation):
    source = counting(tmp_path, 100, validation, 50)
    batch = source.validation(sequences)
    starts = batch.tokens[:, 0]
    np.testing.assert_array_equal(batch.tokens, starts[:, None] + np.arange(50))
    np.testing.assert_array_equal(batch.targets, batch.tokens + 1)
    assert len(np.unique(batch.tokens)) == sequences * 50
    assert batch.targets.max() < validation
    gaps = np.diff([*starts, validation - 1])
    assert gaps.max() - gaps.min() <= 1


def test_text_validation_longer_than_the_text_names_the_most(tmp_path):
    source = counting(tmp_path, 100, 200, 50)
    with pytest.raises(
        DataError, match=r"lower training\.seq_len to 49, .* lower training\.val_sequences to 3, or name"
    ):
        source.validation(4)
    assert source.validation(3).tokens.shape == (3, 50)


@pytest.mark.parametrize(("train", "validation"), [(50, 51), (51, 50)])
def test_text_shorter_than_a_sequence_names_the_longest(tmp_path, train, validation):
    with pytest.raises(
        DataError,
        match=rf"^data\.files gives {train} tokens of training text and {validation} of .*seq_len to 49, the",
    ):
        counting(tmp_path, train, validation, 50).validation(1)
    assert counting(tmp_path, 51, 51, 50).validation(1).tokens.shape == (1, 50)


def test_text_training_shorter_than_a_sequence_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"lower training\.seq_len to 49"):
        counting(tmp_path, 50, 51, 50).train(seed=0, step=0, batch_size=1)


@pytest.mark.slow
def test_text_fingerprint_follows_the_length(stdlib, cache_dir):
    assert open_source(CONFIG, 65, cache_dir).fingerprint != stdlib.fingerprint
