"""A Hugging Face decoder is the stock one with the schedule's keys masked out, forward and backward."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import transformers

from layersearch.data.source import IGNORE
from layersearch.errors import UserError
from layersearch.model.hf_decoder import HFDecoder, token_kl
from layersearch.schedule import Schedule
from tests.helpers.hf_models import FAMILIES, FURTHER, LAYERS, VOCAB, make

torch.set_num_threads(1)
TOKENS = 20
SLIDING, FULL = "sliding_attention", "full_attention"
SPARSE = [Schedule.parse("window:3 full block:6"), Schedule.parse("full window:3/2+sink:1 window:4+sink:2")]
ROUNDED = {"gemma2": 1e-5}
"""Families whose own attention rounds its weights to float32; all others are compared in float64."""


def dense(model: Any, tokens: torch.Tensor, schedule: Schedule) -> torch.Tensor:
    """Return the logits of the stock model's own SDPA, each layer under a full (T, T) mask."""
    at = torch.arange(TOKENS)
    handles = []
    for module in model.modules():
        if type(module).__name__.endswith("Attention") and isinstance(getattr(module, "layer_idx", None), int):
            visible = schedule[module.layer_idx].visible(at[:, None], at[None, :])
            mask = torch.zeros(TOKENS, TOKENS, dtype=torch.float64).masked_fill(~visible, -1e300)[None, None]

            def put(module: Any, args: Any, kwargs: Any, mask: torch.Tensor = mask) -> Any:
                return args, {**kwargs, "attention_mask": mask}

            handles.append(module.register_forward_pre_hook(put, with_kwargs=True))
    assert len(handles) == LAYERS
    logits = model(input_ids=tokens, use_cache=False).logits
    for handle in handles:
        handle.remove()
    return logits


@pytest.mark.parametrize("family", [*FAMILIES, *FURTHER])
def test_hf_decoder_all_full_equals_the_stock_model(family: str) -> None:
    model = make(family).double()
    tokens = torch.randint(VOCAB, (2, TOKENS))
    with torch.no_grad():
        stock = model(input_ids=tokens, use_cache=False).logits
        decoder = HFDecoder(model)
        originals = {"gemma2": "window:64 full window:64", "gpt_oss": "window:64 full window:64"}
        originals["gemma3_text"] = "window:64*3"
        assert decoder.original == Schedule.parse(originals.get(family, f"full*{LAYERS}"))
        assert (decoder.logits(tokens) - stock).abs().max() < ROUNDED.get(family, 1e-9) * stock.abs().max()


@pytest.mark.slow
@pytest.mark.parametrize("schedule", SPARSE, ids=str)
@pytest.mark.parametrize("family", [*FAMILIES, *FURTHER])
def test_hf_decoder_sparse_schedule_equals_a_dense_mask(family: str, schedule: Schedule) -> None:
    model = make(family).double()
    other = copy.deepcopy(model)
    tokens, targets = torch.randint(VOCAB, (2, 2, TOKENS))
    targets[:, 5] = IGNORE
    wanted = dense(model, tokens, schedule)
    loss = torch.nn.functional.cross_entropy(wanted.flatten(0, 1), targets.flatten(), ignore_index=IGNORE)
    loss.backward()
    decoder = HFDecoder(other)
    decoder.set_schedule(schedule)
    with torch.no_grad():
        assert (decoder.logits(tokens) - wanted).abs().max() < ROUNDED.get(family, 1e-9) * wanted.abs().max()
        assert (decoder.logits(tokens) - model(input_ids=tokens).logits).abs().max() > 1e-3 * wanted.abs().max()
    # The package takes the loss in float32, as in training.
    decoder(tokens, targets).backward()
    ours = dict(other.named_parameters())
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        scale = parameter.grad.abs().max()
        assert (ours[name].grad - parameter.grad).abs().max() <= 1e-5 * scale + 1e-9, name


@pytest.mark.parametrize(
    ("family", "changes", "original"),
    [
        ("mistral", {"sliding_window": 5}, "window:5*3"),
        ("ministral", {"sliding_window": 5, "layer_types": [SLIDING, FULL, SLIDING]},
         "window:5 full window:5"),
        ("qwen2", {"sliding_window": 5, "use_sliding_window": True, "max_window_layers": 2}, "full*2 window:5"),
        ("qwen3", {"sliding_window": 5, "use_sliding_window": True, "max_window_layers": 1}, "full window:5*2"),
    ],
)  # fmt: skip
def test_hf_decoder_windows_of_the_stock_model_equal_the_original(
    family: str, changes: dict[str, Any], original: str
) -> None:
    model = make(family, **changes).double()
    tokens = torch.randint(VOCAB, (2, TOKENS))
    with torch.no_grad():
        stock = model(input_ids=tokens, use_cache=False).logits
        decoder = HFDecoder(model)
        assert str(decoder.original) == original
        assert (decoder.logits(tokens) - stock).abs().max() < 1e-9 * stock.abs().max()


def test_hf_decoder_distillation_weighs_cross_entropy_and_kl() -> None:
    """The loss is linear in the weight, from the cross-entropy to the mean KL of the teacher to the student."""
    student, teacher = HFDecoder(make("llama")), HFDecoder(make("llama", seed=1))
    tokens, targets = torch.randint(VOCAB, (2, 3, TOKENS))
    plain = student(tokens, targets)
    with torch.no_grad():
        aim, own = teacher.logits(tokens).softmax(-1), student.logits(tokens).softmax(-1)
    divergence = (aim * (aim.log() - own.log())).sum(-1).mean()
    assert token_kl(own.log(), own.log()).abs().max() < 1e-6
    for weight in (0.25, 1.0):
        student.distil_from(teacher, weight)
        loss = student(tokens, targets)
        assert loss.item() == pytest.approx(((1 - weight) * plain + weight * divergence).item(), rel=1e-4)
    assert not any(name.startswith("teacher") for name, _ in student.named_parameters())
    loss.backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())


def small(name: str, **values: Any) -> Any:
    config = getattr(transformers, name)(
        vocab_size=VOCAB, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, pad_token_id=None, bos_token_id=None, eos_token_id=None, **values,
    )  # fmt: skip
    return transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")


@pytest.mark.parametrize(
    ("name", "values", "said"),
    [
        (
            "LlamaConfig",
            {"layer_types": [SLIDING, FULL]},
            "layer_types says 'sliding_attention'",
        ),
        ("BertConfig", {"is_decoder": False}, "not causal"),
        ("MambaConfig", {"state_size": 4}, "attention interface"),
    ],
)
def test_hf_decoder_unsupported_model_is_refused_by_name(name: str, values: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match="|".join([said])):
        HFDecoder(small(name, **values))


def test_hf_decoder_schedule_of_another_length_is_refused() -> None:
    decoder = HFDecoder(make("llama"))
    with pytest.raises(UserError, match="a schedule of 2 layers for a model of 3"):
        decoder.set_schedule(Schedule.parse("full*2"))
