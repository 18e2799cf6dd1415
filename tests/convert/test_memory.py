"""The memory estimate of a conversion against what a real forward pass, backward pass and optimizer hold."""

from __future__ import annotations

from typing import Any

import psutil
import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig

from layersearch.convert.config import ConvertRecipe, load_convert_recipe
from layersearch.convert.memory import check_free_memory, estimate_memory, step_bytes
from layersearch.convert.trainable import adapt
from layersearch.errors import ConfigError
from layersearch.model.hf_decoder import HFDecoder
from layersearch.model.kinds import skeleton
from layersearch.schedule import Schedule
from layersearch.selection.memory import LIBRARIES
from layersearch.training.memory import LiveBytes
from layersearch.training.optimizer import make_optimizer

SCHEDULE = "full window:32+sink:4"
SIZES: dict[str, dict[str, Any]] = {
    "small": {"hidden_size": 64, "intermediate_size": 160, "num_attention_heads": 4, "num_key_value_heads": 2},
    "wide": {"hidden_size": 192, "intermediate_size": 512, "num_attention_heads": 6, "num_key_value_heads": 6},
    "untied": {"hidden_size": 96, "intermediate_size": 96, "num_attention_heads": 3, "num_key_value_heads": 1,
               "tie_word_embeddings": False, "vocab_size": 1500},
}  # fmt: skip
KEYS = {
    "float32": ["training.precision=float32"],
    "bf16": [],
    "distil": ["distil=0.5"],
    "only_attention": ["only_attention=true"],
    "lora": ["lora=4"],
}


def config_of(size: str) -> LlamaConfig:
    values = {"vocab_size": 700, "tie_word_embeddings": True, "num_hidden_layers": 2, **SIZES[size]}
    return LlamaConfig(**values, pad_token_id=None, bos_token_id=None, eos_token_id=None)


def recipe_of(*keys: str) -> ConvertRecipe:
    return load_convert_recipe("plain", ["training.seq_len=256", "training.batch_size=2", *keys])


def bare(size: str) -> HFDecoder:
    made = skeleton("model", config_of(size))
    assert made is not None
    return made


def real(size: str, recipe: ConvertRecipe) -> HFDecoder:
    """Return the model with weights, as a conversion trains it."""
    from transformers import LlamaForCausalLM

    student, teacher = (HFDecoder(LlamaForCausalLM(config_of(size)), check=False) for _ in range(2))
    student.set_schedule(Schedule.parse(SCHEDULE))
    adapt(student, only_attention=recipe.only_attention, lora=recipe.lora)
    if recipe.distil:
        student.distil_from(teacher, recipe.distil)
    return student


def saved_bytes(model: HFDecoder, tokens: Tensor, precision: str) -> int:
    """Return the bytes that autograd keeps of the decoder below the head, weights apart."""
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"),
    ):
        hidden = model.model.get_decoder()(input_ids=tokens, use_cache=False).last_hidden_state
    assert hidden.requires_grad
    own = {value.untyped_storage()._cdata for value in (*model.parameters(), *model.buffers())}
    return sum(tensor.untyped_storage().nbytes() for key, tensor in kept.items() if key not in own)


@pytest.mark.slow
@pytest.mark.parametrize("keys", KEYS)
@pytest.mark.parametrize("size", SIZES)
def test_step_bytes_activations_are_those_that_autograd_saves(size: str, keys: str) -> None:
    recipe = recipe_of(*KEYS[keys])
    counted = step_bytes(bare(size), recipe, Schedule.parse(SCHEDULE))
    model = real(size, recipe)
    tokens = torch.zeros(2, 256, dtype=torch.int64)
    saved = saved_bytes(model, tokens, recipe.training.precision)
    assert counted.activations + counted.copies == pytest.approx(saved, rel=0.2)
    assert counted.trainable == sum(value.numel() for value in model.parameters() if value.requires_grad)


@pytest.mark.slow
@pytest.mark.parametrize("keys", KEYS)
def test_estimate_peak_is_that_of_a_real_step(keys: str) -> None:
    """Everything that lives at the peak of a second step of AdamW, with the weights; libraries apart."""
    size, recipe = "wide", recipe_of(*KEYS[keys])
    schedule = Schedule.parse(SCHEDULE)
    found = estimate_memory(step_bytes(bare(size), recipe, schedule), recipe, {})
    model = real(size, recipe)
    optimizer, tokens = make_optimizer(model, recipe.training), torch.zeros(2, 256, dtype=torch.int64)
    weights: list[nn.Parameter] = [*model.parameters(), *(model.teacher[0].parameters() if model.teacher else ())]
    with LiveBytes(weights) as live:
        for _ in range(2):
            with torch.autocast("cpu", torch.bfloat16, enabled=recipe.training.precision == "bf16"):
                loss = model(tokens, tokens)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    peak = live.peak + sum(value.nbytes for value in weights)
    expected = (
        found.weights
        + found.original
        + found.optimizer
        + max(found.activations + found.copies + found.logits, found.gradients)
    )
    assert expected == pytest.approx(peak, rel=0.2)


@pytest.mark.slow
def test_step_bytes_leave_the_skeleton_as_it_was() -> None:
    made = bare("small")
    step_bytes(made, recipe_of("lora=4", "distil=0.5"), Schedule.parse(SCHEDULE))
    assert all(value.is_meta and value.requires_grad for value in made.parameters())
    assert (str(made.schedule), made.teacher) == ("full*2", None)


@pytest.mark.slow
def test_estimate_zero_stages_shard_one_part_after_another() -> None:
    recipe = recipe_of("training.ranks=2", "distil=0.5", "training.precision=float32")
    counted = step_bytes(bare("wide"), recipe, Schedule.parse(SCHEDULE))
    whole = 4 * counted.parameters
    parts = {stage: estimate_memory(counted, recipe, {"zero_optimization": {"stage": stage}}) for stage in (0, 1, 2, 3)}
    found = {stage: (one.weights, one.original, one.gradients, one.optimizer) for stage, one in parts.items()}
    assert found == {
        0: (whole, whole, whole, 2 * whole),
        1: (whole, whole, whole, 1.5 * whole),
        2: (whole, whole, whole / 2, 1.5 * whole),
        3: (whole / 2, whole / 2, whole / 2, 1.5 * whole),
    }
    # The weights of both models are gathered whole, for this one is small.
    assert parts[3].copies == 2 * whole
    names = ("weights", "original", "gradients", "optimizer", "activations", "copies", "logits", "buffers")
    assert parts[3].training == LIBRARIES + sum(getattr(parts[3], name) for name in names)


def test_check_free_memory_names_what_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = recipe_of()
    found = estimate_memory(step_bytes(bare("small"), recipe, Schedule.parse(SCHEDULE)), recipe, {})
    check_free_memory(found, "tiny")
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"available": found.total - 1}))
    with pytest.raises(ConfigError, match=r"^--model tiny: the conversion needs 1\.\d GiB.*1\.\d GiB are free"):
        check_free_memory(found, "tiny")
