"""Generated tasks in encoders: no answer is read, and each can be found."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from layersearch.config.data import DataConfig
from layersearch.config.recipe import load_recipe
from layersearch.data import open_of, open_source
from layersearch.data.answers import GivenQueries, HiddenAnswers, WrittenAnswers
from layersearch.data.source import IGNORE, TOLD
from layersearch.errors import LayersearchError
from layersearch.study.estimate import _vocabulary
from tests.helpers.tasks import SMALL

RECALL = {key: value for key, value in SMALL["recall"].items() if key != "seq_len"}


@pytest.mark.parametrize("name", ["recall", "hops", "coreference"])
def test_encoder_reads_no_answer_and_all_else(name: str) -> None:
    settings = dict(SMALL[name])
    length = settings.pop("seq_len")
    config = DataConfig(source=name, **settings)
    source, task = open_source(config, length, kind="encoder"), open_source(config, length)
    assert isinstance(source, HiddenAnswers)
    batch, whole = (one.validation(200) for one in (source, task))
    np.testing.assert_array_equal(batch.targets, whole.targets)
    hidden = batch.tokens == source.mask_token
    np.testing.assert_array_equal(batch.tokens[~hidden], whole.tokens[~hidden])
    # Recall alone writes its answers into the stream, all but one behind the last token.
    row, place = np.nonzero(whole.targets[:, :-1] != IGNORE)
    assert hidden[row, place + 1].all() == (name == "recall")
    assert hidden.sum() == (len(row) if name == "recall" else 0)
    assert source.fingerprint != task.fingerprint
    assert source.metrics(batch.targets != IGNORE, batch) == {f"{name}_accuracy": 1.0}


def test_encoder_decoder_writes_the_value_of_each_queried_key() -> None:
    config = DataConfig(source="recall", **RECALL)
    source = open_source(config, 64, kind="encoder_decoder")
    assert isinstance(source, WrittenAnswers)
    batch = source.train(seed=0, step=0, batch_size=300)
    first, queries = config.vocab_size, config.queries
    assert batch.targets.shape == (300, 2 * queries)
    assert (batch.targets[:, ::2] == first + np.arange(queries)).all()
    for tokens, answers in zip(batch.tokens.tolist(), batch.targets[:, 1::2].tolist(), strict=True):
        for number, answer in enumerate(answers):
            key = tokens[tokens.index(first + number) - 1]
            assert tokens[tokens.index(key) + 1] == answer  # the first time that the key stands there is its pair
    assert source.vocab_size == first + queries + 1
    correct = np.zeros_like(batch.targets, dtype=bool)
    correct[:, 1] = True
    assert source.metrics(correct, batch) == {"recall_accuracy": 1 / queries}


@pytest.mark.parametrize("name", ["recall", "hops", "coreference"])
def test_decoder_is_given_queries_that_the_source_lacks(name: str) -> None:
    settings = dict(SMALL[name])
    length = settings.pop("seq_len")
    config = DataConfig(source=name, asked_in="target", **settings)
    source, task = open_source(config, length, kind="encoder_decoder"), open_source(config, length)
    assert isinstance(source, GivenQueries)
    for batch, whole in (
        (source.validation(200), task.validation(200)),
        (source.train(seed=1, step=2, batch_size=200), task.train(seed=1, step=2, batch_size=200)),
    ):
        for row, target in enumerate(batch.targets.reshape(200, config.queries, -1)):
            places = np.nonzero(whole.targets[row] != IGNORE)[0][-config.queries :]
            for place, (*query, answer) in zip(places, target, strict=True):
                asked = range(place - len(query) + 1, place + 1)
                assert [TOLD - token for token in query] == whole.tokens[row, asked].tolist()
                assert answer == whole.targets[row, place] >= 0
                assert (batch.tokens[row, asked] == 0).all()
        begin = np.nonzero(whole.targets[0] != IGNORE)[0][-config.queries] - len(query) + 1
        np.testing.assert_array_equal(batch.tokens[0, :begin], whole.tokens[0, :begin])
        # Nothing but filler is left behind the first query.
        assert (batch.tokens[0, begin:] < config.vocab_size // 8).all()
    assert source.metrics(batch.targets >= 0, batch) == {f"{name}_accuracy": 1.0}


def test_message_of_a_short_source_speaks_of_the_whole_source() -> None:
    config = DataConfig(source="recall", **RECALL)
    with pytest.raises(LayersearchError, match=r"training.seq_len 9 is too short for .*: raise it to") as caught:
        open_source(config, 9, kind="encoder_decoder")
    least = int(str(caught.value).split("raise it to ")[1].split()[0])
    assert open_source(config, least, kind="encoder_decoder").seq_len == least
    with pytest.raises(LayersearchError, match="too short"):
        open_source(config, least - 1, kind="encoder_decoder")


@pytest.mark.parametrize(
    ("name", "task", "asked"),
    [
        ("smoke-encoder", "hops", "source"),
        ("smoke-encoder", "recall", "source"),
        ("smoke-t5", "recall", "source"),
        ("smoke-t5", "hops", "target"),
        ("smoke-t5", "coreference", "target"),
    ],
)
def test_plan_knows_the_sizes_before_the_data_are_made(name: str, task: str, asked: str, tmp_path: Path) -> None:
    small: dict[str, Any] = {"pairs": 3, "queries": 2, "distance": 6, "vocab_size": 40, "asked_in": asked}
    given = [f"data.{key}={value}" for key, value in small.items()]
    recipe = load_recipe(name, ["data.mask_share=null", f"data.source={task}", *given])
    source = open_of(recipe, tmp_path)
    assert source.vocab_size == _vocabulary(recipe)
    assert source.validation(2).targets.shape == (2, recipe.target_len or recipe.training.seq_len)


@pytest.mark.parametrize(
    ("name", "task", "said"),
    [("smoke-encoder", "local", "recall, hops, coreference"), ("smoke-t5", "hops", "or take data.source recall")],
)
def test_tasks_that_cannot_be_are_refused(name: str, task: str, said: str) -> None:
    with pytest.raises(LayersearchError, match=said):
        load_recipe(name, ["data.mask_share=null", f"data.source={task}"])


@pytest.mark.parametrize(
    ("name", "given", "said"),
    [
        ("smoke-t5", "data.asked_in=target", "data.asked_in target is for data.source recall, hops, coreference, not"),
        ("smoke-encoder", "data.source=hops", "data.asked_in target is for model.kind encoder_decoder, not encoder"),
        ("smoke-t5", "data.asked_in=both", "data.asked_in"),
    ],
)
def test_given_queries_that_cannot_be_are_refused(name: str, given: str, said: str) -> None:
    more = ["data.mask_share=null"] if name == "smoke-encoder" else []
    with pytest.raises(LayersearchError, match=said):
        load_recipe(name, [*more, "data.asked_in=target", given])
