"""``run --model`` says before the search which schedules no conversion of the model can save."""

from __future__ import annotations

from pathlib import Path

import pytest
import transformers

from layersearch.cli.run import _say_limits
from layersearch.errors import ConfigError

SIZE = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}


def config_of(model_type: str, folder: Path) -> str:
    transformers.CONFIG_MAPPING[model_type](**SIZE, pad_token_id=0).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize(
    ("model_type", "said"),
    [
        ("llama", None),
        ("gpt2", None),
        ("olmo2", None),
        ("gemma2", "only with full layers and one window size\n"),
        ("cohere2", "and only where no layer's positions change (full layers have no RoPE)"),
        ("phi3", "only with one window in all layers or none"),
        ("stablelm", "cannot save another schedule for a model of type stablelm"),
    ],
)
def test_run_says_which_schedules_a_conversion_cannot_save(
    model_type: str, said: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _say_limits(config_of(model_type, tmp_path), heal=False)
    error = capsys.readouterr().err
    assert (said in error and "note: layersearch convert" in error) if said else "note:" not in error


def test_run_heal_of_a_model_that_no_conversion_saves_is_refused_before_the_search(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--heal: layersearch convert cannot save another schedule .*; leave it out"):
        _say_limits(config_of("stablelm", tmp_path), heal=True)
