"""The mix: text rows and recall rows in one batch, each what it would be alone."""

from __future__ import annotations

import numpy as np
import pytest

from layersearch.config.data import DataConfig
from layersearch.data import describe, open_source
from layersearch.data.source import IGNORE

SEQ_LEN = 48


def mix(cache, share: float = 0.25, **settings):
    config = {
        "vocab_size": 512,
        "recall_vocab": 40,
        "pairs": 4,
        "queries": 4,
        "distance": 16,
        "max_tokens": 300_000,
    } | settings
    return open_source(DataConfig(source="mix", recall_share=share, **config), SEQ_LEN, cache)


@pytest.fixture(scope="module")
def alone(cache_dir):
    text = open_source(DataConfig(source="stdlib", vocab_size=512, max_tokens=300_000), SEQ_LEN, cache_dir)
    recall = open_source(DataConfig(source="recall", vocab_size=40, pairs=4, queries=4, distance=16), SEQ_LEN)
    return text, recall


@pytest.mark.parametrize(("share", "rows"), [(0.25, [3, 7]), (0.5, [1, 3, 5, 7]), (0.3, [3, 6]), (0.9, range(1, 8))])
def test_mix_rows_are_those_of_their_own_source(cache_dir, alone, share, rows):
    source, (text, recall) = mix(cache_dir, share), alone
    kinds = (
        (source.train(seed=3, step=7, batch_size=8), lambda part, n: part.train(seed=3, step=7, batch_size=n)),
        (source.validation(8), lambda part, n: part.validation(n)),
    )
    others = [row for row in range(8) if row not in rows]
    for batch, draw in kinds:
        words, keys = draw(text, len(others)), draw(recall, len(rows))
        np.testing.assert_array_equal(batch.tokens[others], words.tokens)
        np.testing.assert_array_equal(batch.targets[others], words.targets)
        np.testing.assert_array_equal(batch.tokens[rows], keys.tokens + 512)
        scored = keys.targets != IGNORE
        np.testing.assert_array_equal(batch.targets[rows] != IGNORE, scored)
        np.testing.assert_array_equal(batch.targets[rows][scored], keys.targets[scored] + 512)


def test_mix_groups_tell_losses_and_accuracy_apart(cache_dir):
    source = mix(cache_dir)
    batch = source.validation(8)
    groups = source.groups(batch)
    assert set(groups) == {"text", "recall"}
    assert (groups["text"] ^ groups["recall"]).all()
    assert (batch.tokens[groups["recall"]] >= 512).all()
    assert (batch.tokens[groups["text"]] < 512).all()
    right = np.zeros(batch.tokens.shape, dtype=bool)
    right[3] = batch.targets[3] != IGNORE
    assert source.metrics(right, batch) == {"recall_accuracy": 0.5}


def test_mix_describe_holds_what_a_run_folder_records(cache_dir, alone):
    source = mix(cache_dir)
    facts = describe(source)
    assert facts["vocab_size"] == 552
    assert facts["recall_share"] == 0.25
    assert facts["parameters"]["pairs"] == 4
    assert facts["train_tokens"] > 200_000
    assert facts["known_optimal_l"] == 1
    assert source.tokenizer_file == alone[0].tokenizer_file
    assert len({source.fingerprint, mix(cache_dir, 0.5).fingerprint, mix(cache_dir, distance=17).fingerprint}) == 3
