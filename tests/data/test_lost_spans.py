"""Span corruption: source and target together are the text."""

from __future__ import annotations

import numpy as np
import pytest

from layersearch.config.corruption import corruption
from layersearch.config.data import DataConfig
from layersearch.data import open_source
from layersearch.data.lost_spans import LostSpans
from tests.data.test_source_contract import TEXTS


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> LostSpans:
    folder = tmp_path_factory.mktemp("spans")
    (folder / "a.txt").write_text("".join(TEXTS))
    config = DataConfig(source="text", files=(str(folder / "a.txt"),), vocab_size=300, mask_share=0.2)
    found = open_source(config, 40, folder / "cache", kind="encoder_decoder")
    assert isinstance(found, LostSpans)
    return found


def test_target_fills_the_gaps_of_the_source(source: LostSpans) -> None:
    lengths = corruption(40, 0.2)
    whole = source.text.train(seed=1, step=2, batch_size=50).tokens
    batch = source.train(seed=1, step=2, batch_size=50)
    assert batch.tokens.shape == (50, 40)
    assert batch.targets.shape == (50, lengths.target)
    first = source.text.vocab_size
    for text, held, lost in zip(whole.tolist(), batch.tokens.tolist(), batch.targets.tolist(), strict=True):
        parts: dict[int, list[int]] = {}
        for token in lost:
            if token >= first:
                parts[token] = []
                last = token
            else:
                parts[last].append(token)
        assert list(parts) == [first + span for span in range(lengths.spans)]
        assert all(parts.values())
        filled = [token for place in held for token in (parts[place] if place >= first else [place])]
        assert filled == text
    assert source.vocab_size == first + lengths.spans + 1


def test_spans_are_drawn_anew_and_a_smaller_batch_is_a_prefix(source: LostSpans) -> None:
    batch = source.train(seed=0, step=0, batch_size=6)
    np.testing.assert_array_equal(source.train(seed=0, step=0, batch_size=2).targets, batch.targets[:2])
    sentinels = batch.tokens >= source.text.vocab_size
    assert len({tuple(row) for row in sentinels.tolist()}) > 1
    np.testing.assert_array_equal(source.validation(3).tokens, source.validation(3).tokens)
    correct = batch.targets < source.text.vocab_size
    assert source.metrics(correct, batch) == {"accuracy": 1.0}
    assert source.metrics(~correct, batch) == {"accuracy": 0.0}
