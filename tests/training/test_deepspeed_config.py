"""The DeepSpeed configuration and the learning rate: what the recipe owns, what a file may say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from layersearch.config.loader import find_file
from layersearch.config.recipe import load_recipe
from layersearch.config.training import TrainingConfig
from layersearch.errors import UserError
from layersearch.training.deepspeed_config import deepspeed_config, zero_stage
from layersearch.training.engine import learning_rate_factor

TRAINING = TrainingConfig(seq_len=8, batch_size=6, steps=100, learning_rate=0.01, warmup_steps=10, ranks=3)
SHIPPED = sorted(find_file("zero0", "trials/deepspeed", ".json").parent.glob("*.json"))


def file(tmp_path: Path, content: Any) -> Path:
    """Write a DeepSpeed JSON, or text that is none."""
    path = tmp_path / "ds.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def test_learning_rate_factor_warms_up_and_falls_as_a_cosine() -> None:
    """Linear to the peak in the warm-up, half-way down in the middle, at its end ratio last."""
    factors = [learning_rate_factor(step, TRAINING) for step in range(101)]
    assert factors[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert factors[10] == pytest.approx(1.0)
    assert factors[55] == pytest.approx(0.1 + 0.9 / 2)
    assert factors[100] == pytest.approx(0.1)
    assert factors[10:] == sorted(factors[10:], reverse=True)


@pytest.mark.parametrize("warmup", [0, 100])
def test_learning_rate_factor_at_the_edges_is_defined(warmup: int) -> None:
    """No warm-up starts at the peak; nothing but warm-up ends there."""
    training = TrainingConfig(seq_len=8, batch_size=6, steps=100, learning_rate=0.01, warmup_steps=warmup)
    assert learning_rate_factor(0 if warmup == 0 else 99, training) == pytest.approx(1.0)
    # The scheduler asks once more after the last step.
    assert learning_rate_factor(100, training) == pytest.approx(0.1 if warmup == 0 else 1.0)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_deepspeed_config_shipped_files_are_accepted_by_deepspeed(path: Path) -> None:
    """Each is read, completed by the recipe's own keys, and is the stage its name says."""
    config = deepspeed_config(TRAINING, path)
    assert path.stem == f"zero{zero_stage(path)}"
    assert config["train_batch_size"] == 6
    assert config["train_micro_batch_size_per_gpu"] == 2
    assert config["gradient_clipping"] == TRAINING.grad_clip
    assert config["torch_autocast"] == {"enabled": True, "dtype": "bfloat16"}


def test_deepspeed_config_auto_or_the_same_value_is_accepted(tmp_path: Path) -> None:
    """As files written for transformers do; other keys go through untouched."""
    given = {
        "train_batch_size": "auto",
        "train_micro_batch_size_per_gpu": 2,
        "bf16": "auto",
        "optimizer": "auto",
        "zero_optimization": {"stage": 2, "reduce_bucket_size": 1000},
        "wall_clock_breakdown": False,
    }
    config = deepspeed_config(TRAINING, file(tmp_path, given))
    assert config["train_batch_size"] == 6
    assert config["zero_optimization"] == given["zero_optimization"]
    assert config["wall_clock_breakdown"] is False
    assert "bf16" not in config
    assert "optimizer" not in config


def test_deepspeed_config_auto_inside_a_key_is_accepted(tmp_path: Path) -> None:
    """As the file that transformers' own documentation shows."""
    given = {
        "bf16": {"enabled": "auto"},
        "fp16": {"enabled": "auto", "loss_scale": "auto"},
        "optimizer": {"type": "AdamW", "params": {"lr": "auto", "betas": "auto"}},
        "scheduler": {"type": "WarmupLR", "params": {"warmup_num_steps": "auto"}},
        "zero_optimization": {"stage": 2},
    }
    config = deepspeed_config(TRAINING, file(tmp_path, given))
    assert not {"bf16", "fp16", "optimizer", "scheduler"} & config.keys()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (
            {"bf16": {"enabled": "auto"}, "fp16": {"enabled": True}, "scheduler": {"type": "WarmupLR"}},
            "fp16, scheduler belong to the recipe",
        ),
        ({"optimizer": {"type": "AdamW", "params": {"lr": "auto", "eps": 1e-8}}}, "optimizer belongs to the recipe"),
        ("{", "not a DeepSpeed JSON"),
        ("[]", "holds a mapping"),
        ({"train_batch_size": 5}, "train_batch_size belongs to the recipe"),
        ({"gradient_clipping": 0.5}, "gradient_clipping belongs to the recipe"),
        ({"bf16": {"enabled": True}}, "bf16 belongs to the recipe"),
        ({"fp16": {"enabled": True}}, "fp16 belongs to the recipe"),
        ({"optimizer": {"type": "Adam"}}, "optimizer belongs to the recipe"),
        ({"scheduler": {"type": "WarmupLR"}}, "scheduler belongs to the recipe"),
        ({"zero_optimization": {"stage": 4}}, "stage must be 0, 1, 2 or 3, not 4"),
        ({"zero_optimization": {"stage": "3"}}, "stage must be 0, 1, 2 or 3, not '3'"),
        ({"zero_optimization": {"stage": True}}, "stage must be 0, 1, 2 or 3, not True"),
        ({"zero_optimization": [3]}, "zero_optimization must be a mapping"),
        ({"gradient_accumulation_steps": 4}, "gradient_accumulation_steps 4 must divide the 2 sequences"),
        ({"gradient_accumulation_steps": "two"}, "gradient_accumulation_steps 0 must divide"),
        (
            {"activation_checkpointing": {"cpu_checkpointing": True}},
            "activation_checkpointing.cpu_checkpointing is not",
        ),
        ({"activation_checkpointing": True}, "activation_checkpointing must be a mapping"),
    ],
)
def test_deepspeed_config_conflicting_file_is_refused_by_name(content: Any, said: str, tmp_path: Path) -> None:
    """The file, the key and the remedy, in one line."""
    path = file(tmp_path, content)
    with pytest.raises(UserError, match=r"ds\.json") as caught:
        deepspeed_config(TRAINING, path)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_deepspeed_offload_keeps_the_recipes_optimizer(tmp_path: Path, stage: int) -> None:
    """DeepSpeed would ask for its own, which a recipe cannot name."""
    path = tmp_path / "offload.json"
    path.write_text(f'{{"zero_optimization": {{"stage": {stage}, "offload_optimizer": {{"device": "cpu"}}}}}}')
    training = load_recipe("smoke").training
    assert deepspeed_config(training, path)["zero_force_ds_cpu_optimizer"] is False


def test_deepspeed_config_accumulation_cuts_the_sequences_of_a_rank(tmp_path: Path) -> None:
    config = deepspeed_config(TRAINING, file(tmp_path, {"gradient_accumulation_steps": 2}))
    assert config["gradient_accumulation_steps"] == 2
    assert (config["train_batch_size"], config["train_micro_batch_size_per_gpu"]) == (6, 1)
