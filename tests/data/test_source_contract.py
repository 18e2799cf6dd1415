"""What every source of data must hold; `tasks/test_task_contract.py` adds what holds for generated tasks."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from layersearch.config.data import DataConfig
from layersearch.data import open_source
from layersearch.data.source import IGNORE, Source
from layersearch.data.tasks import TASKS
from tests.helpers.tasks import SMALL, open_task

SEQ_LEN = 48
TEXTS = [" ".join(str(number * k * 7919 % 10007) for k in range(1, 90)) + "\n" for number in range(1, 61)]

Opener = Callable[[Path, Path], Source]
"""Opens a source, from an empty folder and a cache of prepared text."""


def text(folder: Path, cache: Path) -> Source:
    (folder / "a.txt").write_text("".join(TEXTS))
    return open_source(DataConfig(source="text", files=(str(folder / "a.txt"),), vocab_size=300), SEQ_LEN, cache)


def jsonl(folder: Path, cache: Path) -> Source:
    (folder / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    return open_source(DataConfig(source="json", files=(str(folder / "a.jsonl"),), vocab_size=300), SEQ_LEN, cache)


def parquet(folder: Path, cache: Path) -> Source:
    pq.write_table(pa.table({"text": TEXTS}), folder / "a.parquet")
    config = DataConfig(source="parquet", files=(str(folder / "a.parquet"),), vocab_size=300)
    return open_source(config, SEQ_LEN, cache)


def stdlib(folder: Path, cache: Path) -> Source:
    return open_source(DataConfig(source="stdlib", vocab_size=512, max_tokens=300_000), SEQ_LEN, cache)


def mix(folder: Path, cache: Path) -> Source:
    settings = {"vocab_size": 512, "recall_vocab": 200, "pairs": 4, "queries": 4, "distance": 16, "max_tokens": 300_000}
    return open_source(DataConfig(source="mix", recall_share=0.4, **settings), SEQ_LEN, cache)


def masked(folder: Path, cache: Path) -> Source:
    (folder / "a.txt").write_text("".join(TEXTS))
    config = DataConfig(source="text", files=(str(folder / "a.txt"),), vocab_size=300, mask_share=0.15)
    return open_source(config, SEQ_LEN, cache)


def hidden(folder: Path, cache: Path) -> Source:
    settings = {key: value for key, value in SMALL["recall"].items() if key != "seq_len"}
    return open_source(DataConfig(source="recall", **settings), SEQ_LEN, cache, kind="encoder")


SOURCES: dict[str, Opener] = {
    **{opener.__name__: opener for opener in (text, jsonl, parquet, stdlib, mix, masked, hidden)},
    **{name: lambda folder, cache, name=name: open_task(name, **SMALL[name]) for name in TASKS},
}


@pytest.fixture(params=SOURCES)
def opened(request: pytest.FixtureRequest, tmp_path: Path, cache_dir: Path) -> Callable[[], Source]:
    """Return what opens one source, as often as it is called."""
    return lambda: SOURCES[request.param](tmp_path, cache_dir)


def rows(tokens: np.ndarray) -> set[bytes]:
    return {row.tobytes() for row in tokens}


def test_source_batches_depend_on_seed_and_step_only(opened: Callable[[], Source]) -> None:
    source, other = opened(), opened()
    first = source.train(seed=3, step=7, batch_size=8)
    other.train(seed=1, step=0, batch_size=5)
    other.validation(4)
    again = other.train(seed=3, step=7, batch_size=8)
    np.testing.assert_array_equal(first.tokens, again.tokens)
    np.testing.assert_array_equal(first.targets, again.targets)
    for seed, step in ((3, 8), (4, 7), (7, 3)):
        assert (source.train(seed=seed, step=step, batch_size=8).tokens != first.tokens).any(axis=1).all()
    np.testing.assert_array_equal(source.validation(8).tokens, other.validation(8).tokens)
    assert source.fingerprint == other.fingerprint


def test_source_smaller_batch_is_a_prefix_of_a_larger_one(opened: Callable[[], Source]) -> None:
    source = opened()
    large, small = (source.train(seed=3, step=7, batch_size=size) for size in (8, 3))
    np.testing.assert_array_equal(large.tokens[:3], small.tokens)
    np.testing.assert_array_equal(large.targets[:3], small.targets)


def test_source_validation_shares_no_sequence_with_training(opened: Callable[[], Source]) -> None:
    source = opened()
    trained = set().union(*(rows(source.train(seed=0, step=step, batch_size=64).tokens) for step in range(8)))
    assert trained.isdisjoint(rows(source.validation(16).tokens))


def test_source_batches_have_its_shape_type_and_vocabulary(opened: Callable[[], Source]) -> None:
    source = opened()
    for batch in (source.train(seed=0, step=0, batch_size=8), source.validation(8)):
        assert batch.tokens.shape == batch.targets.shape == (8, source.seq_len)
        assert batch.tokens.dtype == batch.targets.dtype == np.int64
        assert 0 <= batch.tokens.min() <= batch.tokens.max() < source.vocab_size
        scored = batch.targets[batch.targets != IGNORE]
        assert 0 <= scored.min() <= scored.max() < source.vocab_size
        assert all(part.shape == batch.tokens.shape for part in source.groups(batch).values())
