"""Recipes: the retired key of older run folders."""

from __future__ import annotations

from dataclasses import replace

import pytest

from layersearch.config.data import DataConfig
from layersearch.config.loader import build
from layersearch.config.recipe import Recipe, load_recipe
from layersearch.errors import ConfigError
from layersearch.files import first_difference


def test_recipe_with_the_retired_key_depth_loads_without_it() -> None:
    recipe = load_recipe("smoke")
    held = recipe.to_dict()
    assert "depth" not in held["data"]
    held["data"] |= {"depth": 0.5}
    assert build(Recipe, held, "config.json") == recipe
    assert first_difference(held, recipe.to_dict(), "recipe") is None


def test_data_config_key_near_the_retired_one_is_refused() -> None:
    with pytest.raises(ConfigError, match="unknown key 'detph'"):
        build(DataConfig, {"source": "hops", "detph": 0.5}, "f")


@pytest.mark.parametrize(
    ("key", "value"), [("val_sequences", 0), ("learning_rate", float("nan")), ("betas", (0.9, 1.0))]
)
def test_recipe_of_python_code_with_a_value_out_of_range_is_refused(key: str, value: object) -> None:
    recipe = load_recipe("smoke")
    training = replace(recipe.training, **{key: value})
    with pytest.raises(ConfigError, match=f"training: {key}.*: input should be"):
        replace(recipe, training=training)
