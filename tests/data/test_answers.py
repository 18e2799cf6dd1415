"""Generated tasks in encoders: no answer is read, and each can be found."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from layersearch.config.data import DataConfig
from layersearch.config.recipe import load_recipe
from layersearch.data import open_of, open_source
from layersearch.data.answers import HiddenAnswers, WrittenAnswers
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


@pytest.mark.parametrize("asked_in", ["target", "names"])
def test_decoder_is_given_a_key_or_the_name_of_one(asked_in: str) -> None:
    config = DataConfig(source="recall", asked_in=asked_in, **RECALL)
    source = open_source(config, 64, kind="encoder_decoder")
    training, validation = source.train(seed=1, step=2, batch_size=300), source.validation(200)
    shares = []
    for batch in (training, validation):
        given, answers = TOLD - batch.targets[:, ::2], batch.targets[:, 1::2]
        named = 0
        for tokens, asked, values in zip(batch.tokens.tolist(), given.tolist(), answers.tolist(), strict=True):
            for token, value in zip(asked, values, strict=True):
                behind, key = tokens[tokens.index(token) + 1], token
                assert tokens.count(token) == 1
                if behind != value:  # the token is a name: behind it stands the key, whose first place is its pair
                    key, named = behind, named + 1
                    assert tokens.index(key) < tokens.index(token) - config.distance
                    assert tokens.count(key) == 2
                assert tokens[tokens.index(key) + 1] == value
        shares.append(named / given.size)
    assert shares == [0, 0] if asked_in == "target" else (0.4 < shares[0] < 0.6 and shares[1] == 1)
    assert source.metrics(training.targets >= 0, training) == {"recall_accuracy": 1.0}
    for part, whole in zip(source.train(seed=1, step=2, batch_size=9)[:2], training[:2], strict=True):
        np.testing.assert_array_equal(part, whole[:9])
    plain = open_source(DataConfig(source="recall", **RECALL), 64, kind="encoder_decoder")
    assert source.fingerprint != plain.fingerprint


def test_names_need_keys_of_their_own() -> None:
    few = RECALL | {"pairs": 4, "queries": 4, "vocab_size": 12}
    with pytest.raises(LayersearchError, match=r"vocab_size 12 has 5 keys, and data.asked_in names takes 8"):
        open_source(DataConfig(source="recall", asked_in="names", **few), 64, kind="encoder_decoder")


def test_message_of_a_short_source_speaks_of_the_whole_source() -> None:
    config = DataConfig(source="recall", **RECALL)
    with pytest.raises(LayersearchError, match=r"training.seq_len 9 is too short for .*: raise it to") as caught:
        open_source(config, 9, kind="encoder_decoder")
    least = int(str(caught.value).split("raise it to ")[1].split()[0])
    assert open_source(config, least, kind="encoder_decoder").seq_len == least
    with pytest.raises(LayersearchError, match="too short"):
        open_source(config, least - 1, kind="encoder_decoder")


@pytest.mark.parametrize(
    ("name", "task"), [("smoke-encoder", "hops"), ("smoke-encoder", "recall"), ("smoke-t5", "recall")]
)
def test_plan_knows_the_vocabulary_before_the_data_are_made(name: str, task: str, tmp_path: Path) -> None:
    small: dict[str, Any] = {"pairs": 3, "queries": 2, "distance": 6, "vocab_size": 40}
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
        ("smoke-t5", ["data.asked_in=names"], "data.asked_in names is for data.source recall, not stdlib; take recall"),
        (
            "smoke-encoder",
            ["data.mask_share=null", "data.source=recall", "data.asked_in=target"],
            "data.asked_in target is for model.kind encoder_decoder, not encoder; drop it",
        ),
        ("smoke-t5", ["data.asked_in=both"], "data.asked_in"),
    ],
)
def test_wrong_place_of_the_queries_is_refused(name: str, given: list[str], said: str) -> None:
    with pytest.raises(LayersearchError, match=said):
        load_recipe(name, given)
