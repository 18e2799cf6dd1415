"""Layers that are computed again in the backward pass: the same gradients from fewer kept activations."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from layersearch.config.recipe import load_recipe
from layersearch.model.build import new_model
from layersearch.model.pretrained import load_pretrained
from layersearch.schedule import Schedule
from layersearch.training.engine import _recompute
from tests.helpers.hf_models import save


@pytest.mark.parametrize(
    ("recipe", "text", "layers"),
    [("smoke", "full window:8", "layers"), ("smoke-t5", "full window:8", "decoder_layers")],
)
def test_recomputed_layers_run_twice_and_give_the_same_gradients(recipe: str, text: str, layers: str) -> None:
    found: list[list[Tensor]] = []
    calls: list[int] = []
    for recomputes in (False, True):
        torch.manual_seed(0)
        model = new_model(load_recipe(recipe), 300, Schedule.parse(text))
        model.recomputes = recomputes
        mlp: nn.Module = getattr(model, layers)[0].mlp
        calls.append(0)
        mlp.register_forward_pre_hook(lambda *_: calls.append(calls.pop() + 1))
        tokens = torch.arange(96).view(2, 48) * 7 % 300
        loss = model(tokens, tokens.roll(-1, 1))
        assert isinstance(loss, Tensor)
        loss.backward()
        with torch.no_grad():
            model(tokens, tokens)  # nothing is kept for it
        found.append([value.grad for value in model.parameters() if value.grad is not None])
    assert calls == [2, 3]
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*found, strict=True))


def test_stock_model_loaded_for_evaluation_recomputes_too(tmp_path: Path) -> None:
    model, calls = load_pretrained(str(save("llama", tmp_path / "model"))), []
    model.model.model.layers[0].mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    assert not model.model.training
    _recompute(model, load_recipe("smoke").training)
    tokens = torch.randint(20, (1, 8))
    model(tokens, tokens).backward()
    assert len(calls) == 2
