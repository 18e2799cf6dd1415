"""Export to FlexAttention: each layer's output equals the dense reference's."""

from __future__ import annotations

import ast
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch.nn.attention.flex_attention import create_mask

from layersearch.config.model import ModelConfig
from layersearch.export import export
from layersearch.model.attention.reference import reference_attention
from layersearch.schedule import Schedule

torch.set_num_threads(1)
EVERY = Schedule.parse(
    "full window:5 window:4/3 window:3/4@1 block:6 window:5+sink:3 block:5+sink:2 window:2/3@3+sink:2 full+las:0.1 "
    "full+las:0.0/3 window:7+las:0.05/4 block:7~3+sink:2+las:0.0/5 window:3/2@2+las:0.2/3 window:1 window:300 "
    "strided:4 fixed:5/2 bigbird:3/2/1 memory:7/5 strided:4@1 fixed:5/2@3 bigbird:4/0"
)
HEADS = 4


@pytest.fixture(scope="module")
def module(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModuleType]:
    out = tmp_path_factory.mktemp("flex") / "new"
    model = ModelConfig(n_layers=len(EVERY), d_model=64, n_heads=HEADS, n_kv_heads=2, d_ff=64)
    path, schedule = export(EVERY, "flex", model=model, vocab_size=61, seq_len=333, out=out)
    assert (path.name, schedule.name) == ("flex_layersearch.py", "schedule.yaml")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(out)
        yield importlib.import_module("flex_layersearch")
        del sys.modules["flex_layersearch"]


def test_flex_module_holds_the_schedule_and_imports_torch_only(module: ModuleType) -> None:
    assert Schedule.from_dicts(module.SPANS) == EVERY
    assert module.N_HEADS == HEADS
    assert len(module.MASK_MODS) == len(module.SCORE_MODS) == len(EVERY)
    assert [mod is None for mod in module.SCORE_MODS] == [span.decay == 0 for span in EVERY]
    imported = {
        name.split(".")[0]
        for node in ast.walk(ast.parse(Path(str(module.__file__)).read_text()))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names])
    }
    assert imported - sys.stdlib_module_names == {"torch"}


@pytest.mark.parametrize("layer", range(len(EVERY)), ids=[str(span) for span in EVERY])
def test_flex_masks_equal_span_masks_pair_by_pair(layer: int, module: ModuleType) -> None:
    found = create_mask(module.MASK_MODS[layer], 1, HEADS, 41, 41, device="cpu")[0]
    at, head = torch.arange(41), torch.arange(HEADS)[:, None, None]
    assert torch.equal(found, EVERY[layer].visible(at[:, None], at[None, :], head).expand(HEADS, 41, 41))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("layer", range(len(EVERY)), ids=[str(span) for span in EVERY])
def test_flex_attention_equals_dense_reference(layer: int, module: ModuleType) -> None:
    tokens = 301 - layer
    generator = torch.Generator().manual_seed(layer)
    q, k, v = (torch.randn(2, heads, tokens, 16, generator=generator) for heads in (HEADS, 2, 2))
    with torch.no_grad():
        found, wanted = module.attention(q, k, v, layer), reference_attention(q, k, v, EVERY[layer])
    assert torch.allclose(found, wanted, atol=1e-5)
