"""Masked text: what is hidden, what is predicted, and what the settings must say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from layersearch.config.data import DataConfig
from layersearch.config.recipe import load_recipe
from layersearch.data.masked import Masked
from layersearch.data.source import IGNORE
from layersearch.errors import LayersearchError
from tests.data.test_source_contract import SEQ_LEN, masked


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Masked:
    folder = tmp_path_factory.mktemp("masked")
    found = masked(folder, folder / "cache")
    assert isinstance(found, Masked)
    return found


def test_masked_text_predicts_its_share_in_place_and_leaves_the_rest(source: Masked) -> None:
    whole = source.text.train(seed=0, step=0, batch_size=400).tokens
    batch = source.train(seed=0, step=0, batch_size=400)
    chosen = batch.targets != IGNORE
    assert set(chosen.sum(axis=1)) == {round(0.15 * SEQ_LEN)}
    np.testing.assert_array_equal(batch.targets[chosen], whole[chosen])
    np.testing.assert_array_equal(batch.tokens[~chosen], whole[~chosen])
    hidden = batch.tokens[chosen] == source.mask_token
    kept = batch.tokens[chosen] == whole[chosen]
    # Of 2,800 predicted tokens 80% are hidden, 10% stay and 10% are random: 4 standard errors are below 3%.
    assert hidden.mean() == pytest.approx(0.8, abs=0.03)
    assert kept.mean() == pytest.approx(0.1, abs=0.03)
    assert source.vocab_size == source.mask_token + 1 == source.text.vocab_size + 1


def test_masked_text_is_masked_anew_at_every_step_and_has_its_own_fingerprint(source: Masked) -> None:
    first, second = (source.train(seed=0, step=step, batch_size=4).targets != IGNORE for step in (0, 1))
    assert (first != second).any()
    assert source.fingerprint != source.text.fingerprint


def test_masked_accuracy_counts_predicted_tokens_only(source: Masked) -> None:
    batch = source.validation(4)
    assert source.metrics(batch.targets != IGNORE, batch) == {"accuracy": 1.0}
    assert source.metrics(batch.targets == IGNORE, batch) == {"accuracy": 0.0}


@pytest.mark.parametrize(
    ("name", "assignment", "said"),
    [
        ("smoke-encoder", "data.mask_share=null", "set data.mask_share, such as 0.15"),
        ("smoke-encoder", "model.kind=decoder", "set model.kind=encoder, or drop it"),
        ("smoke-encoder", "data.source=recall", "mask_share masks text"),
        ("smoke-encoder", "data.mask_share=1.5", "mask_share"),
        ("smoke", "model.kind=encodr", "encoder"),
        ("smoke-encoder", "pretrained=some/model", "trains from scratch"),
    ],
)
def test_recipe_of_an_encoder_that_cannot_be_is_refused(name: str, assignment: str, said: str) -> None:
    with pytest.raises(LayersearchError, match=said):
        load_recipe(name, [assignment])


def test_mask_share_of_a_generated_task_is_refused() -> None:
    with pytest.raises(LayersearchError, match="name a text"):
        DataConfig(source="mix", mask_share=0.15)


def test_recipe_smoke_encoder_reads_the_file_that_ships() -> None:
    recipe = load_recipe("smoke-encoder")
    assert recipe.model.bidirectional
    assert Path(recipe.default_space).name == "smoke-encoder"
