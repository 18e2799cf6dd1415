"""Contiguous streams of a text, and validation sequences after a warm-up."""

from __future__ import annotations

import numpy as np
import pytest

from layersearch.config.data import DataConfig
from layersearch.config.recipe import load_recipe
from layersearch.data import open_source
from layersearch.data.source import IGNORE
from layersearch.data.streams import Streams
from layersearch.data.text import Text
from layersearch.errors import DataError
from tests.data.test_source_contract import TEXTS


@pytest.fixture(scope="module")
def streams(tmp_path_factory: pytest.TempPathFactory) -> Streams:
    folder = tmp_path_factory.mktemp("streams")
    (folder / "a.txt").write_text("".join(TEXTS))
    training = load_recipe("smoke-segments", ["training.warm_tokens=24"]).training
    config = DataConfig(source="text", files=(str(folder / "a.txt"),), vocab_size=300)
    found = open_source(config, 24, folder / "cache", training)
    assert isinstance(found, Streams)
    return found


def test_rows_go_on_from_step_to_step(streams: Streams) -> None:
    steps = [streams.train(seed=3, step=step, batch_size=4) for step in range(40)]
    text = np.concatenate([batch.tokens for batch in steps], axis=1)
    follow = np.concatenate([batch.targets for batch in steps], axis=1)
    assert isinstance(streams.text, Text)
    length = len(streams.text._train)
    joins = (follow[:, :-1] == text[:, 1:]).all(axis=0)
    # At the end of the text a row begins again, which is seen at most once in a text's length.
    assert (~joins).sum() <= 4 * (1 + 40 * 24 // length)
    assert len({tuple(row) for row in steps[0].tokens.tolist()}) == 4
    smaller = streams.train(seed=3, step=7, batch_size=2)
    np.testing.assert_array_equal(smaller.tokens, steps[7].tokens[:2])
    assert (streams.train(seed=4, step=0, batch_size=4).tokens != steps[0].tokens).any()


def test_validation_scores_no_token_of_the_warm_up(streams: Streams) -> None:
    batch = streams.validation(3)
    assert batch.tokens.shape == (3, 48)
    assert (batch.targets[:, :24] == IGNORE).all()
    np.testing.assert_array_equal(batch.targets[:, 24:-1], batch.tokens[:, 25:])
    plain = streams.text.validation(3)
    assert plain.tokens.shape == (3, 24)
    assert streams.fingerprint != streams.text.fingerprint


def test_text_too_short_for_the_warm_up_names_it(streams: Streams) -> None:
    with pytest.raises(DataError, match=r"training\.warm_tokens 4800 and"):
        Streams(streams.text, 4800).validation(4)
