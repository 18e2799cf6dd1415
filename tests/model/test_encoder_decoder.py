"""The encoder-decoder: what each token can see, its exact cost by part, and a trial."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from layersearch.config.corruption import corruption
from layersearch.config.model import ModelConfig
from layersearch.config.recipe import load_recipe
from layersearch.data.source import TOLD
from layersearch.errors import LayersearchError
from layersearch.model.build import new_model
from layersearch.model.encoder_decoder import EncoderDecoder
from layersearch.model.flops import attention_parts, model_flops, num_parameters
from layersearch.model.fvcore_flops import traced_flops
from layersearch.schedule import Schedule
from layersearch.schedule.bound_space import BoundSpace
from layersearch.schedule.space import Space
from layersearch.schedule.work import Work
from layersearch.training.record import Trial
from layersearch.training.workers.pool import LocalPool
from tests.data.test_source_contract import TEXTS

SIZE: dict[str, Any] = {"d_model": 32, "n_heads": 4, "n_kv_heads": 2, "d_ff": 48}


def model(encoder: str, decoder: str = "full", **given: Any) -> EncoderDecoder:
    torch.manual_seed(0)
    schedule = Schedule.parse(encoder)
    more = {"other_layers": len(Schedule.parse(decoder)), "other_schedule": decoder}
    config = ModelConfig(kind="encoder_decoder", n_layers=len(schedule), **SIZE | more | given)
    return EncoderDecoder(config, 13, schedule).double()


def texts() -> tuple[Tensor, Tensor]:
    source, target = torch.arange(20)[None] % 11, torch.arange(9)[None] % 7
    return source, target


def moved(one: EncoderDecoder, which: int, token: int) -> list[int]:
    """Return the target's places whose residual stream changes with one token of the source (0) or target (1)."""
    before, after = texts(), texts()
    after[which][0, token] = 12 - 1
    with torch.no_grad():
        changed = (one.target_stream(*before) - one.target_stream(*after)).abs().amax(-1)[0] > 1e-12
    return changed.nonzero()[:, 0].tolist()


def test_target_sees_the_whole_source_and_its_own_past() -> None:
    assert moved(model("window:2"), 0, 3) == list(range(9))
    # A token is given to the place after it.
    assert moved(model("full"), 1, 4) == [5, 6, 7, 8]
    assert moved(model("full", "window:2"), 1, 4) == [5, 6]
    assert moved(model("full", "window:2*2"), 1, 4) == [5, 6, 7]
    assert moved(model("full"), 1, 8) == []


def test_told_token_is_read_and_not_scored() -> None:
    one, (source, target) = model("full"), texts()
    told = torch.where(torch.arange(9) % 2 == 0, TOLD - target, target)
    with torch.no_grad():
        torch.testing.assert_close(one.target_stream(source, told), one.target_stream(source, target))
        losses, right = one(source, told, reduce=False)
        plain, _ = one(source, target, reduce=False)
        assert losses[0, ::2].abs().max() == 0
        assert not right[0, ::2].any()
        torch.testing.assert_close(losses[0, 1::2], plain[0, 1::2])
        torch.testing.assert_close(one(source, told), plain[0, 1::2].mean())


def test_encoder_sees_both_ways_within_its_span() -> None:
    one = model("window:2*2")
    source, _ = texts()
    other = source.clone()
    other[0, 9] = 11
    with torch.no_grad():
        changed = (one.stream(source) - one.stream(other)).abs().amax(-1)[0] > 1e-12
    assert changed.nonzero()[:, 0].tolist() == [5, 6, 7, 8, 9, 10, 11, 12, 13]


def test_cross_attention_equals_softmax_over_the_source() -> None:
    layer = model("full").decoder_layers[0]
    x, source = torch.randn(2, 5, 32).double(), torch.randn(2, 7, 32).double()
    part = layer.cross_attn
    q = F.linear(layer.post_self_attn_layernorm(x), part.q_proj.weight).view(2, 5, 4, 8).transpose(1, 2)
    k, v = (F.linear(source, p.weight).view(2, 7, 2, 8).transpose(1, 2) for p in (part.k_proj, part.v_proj))
    k, v = k.repeat_interleave(2, 1), v.repeat_interleave(2, 1)
    out = ((q @ k.mT / 8**0.5).softmax(-1) @ v).transpose(1, 2).flatten(2)
    assert torch.allclose(layer.cross(x, source), x + part.o_proj(out))


@pytest.mark.parametrize("searched", ["encoder", "decoder"])
def test_cost_by_part_equals_fvcores_and_hand_counts(searched: str) -> None:
    own, other = Schedule.parse("full window:3 block:5"), "full window:4"
    one: Any = model(str(own), other, searched=searched)
    source, target = 20, 9
    parts = attention_parts(one_config(searched), own, seq_len=source, target_len=target)
    # A full decoder layer has 9 * 10 / 2 pairs, and one of 4 keys 9 * 4 - 3 * 4 / 2.
    width = 2 * 4 * 8
    assert parts["cross"] == width * (2 if searched == "encoder" else 3) * source * target
    if searched == "encoder":
        assert parts["decoder"] == width * (45 + 30)
        assert parts["encoder"] == width * (400 + (20 * 7 - 3 * 4) + 4 * 25)
    traced = traced_flops(one.float(), source, target)
    assert traced["attend"] == parts["encoder"] + parts["decoder"]
    assert traced["cross"] == parts["cross"]
    whole = model_flops(one_config(searched), 13, own, seq_len=source, target_len=target)
    assert sum(traced.values()) == whole
    assert num_parameters(one_config(searched), 13) == sum(p.numel() for p in one.parameters())


def one_config(searched: str) -> ModelConfig:
    more = {"other_layers": 2, "other_schedule": "full window:4", "searched": searched}
    return ModelConfig(kind="encoder_decoder", n_layers=3, **SIZE | more)


@pytest.mark.parametrize("searched", ["encoder", "decoder"])
def test_work_counts_the_stacks_together_and_apart(searched: str) -> None:
    recipe = load_recipe("smoke-t5", [f"model.searched={searched}"])
    work, (source, target) = Work.of(recipe), recipe.source_and_target
    assert (source, target) == (48, corruption(48, 0.15).target)
    layers = recipe.model.stack_layers
    schedule = Schedule.parse(f"full*{recipe.model.n_layers}")
    found = work.parts(schedule)
    assert found["encoder"] == 2 * layers[0] * source**2
    assert found["decoder"] == 2 * layers[1] * target * (target + 1) // 2
    assert found["cross"] == 2 * layers[1] * source * target
    assert work.total(schedule) == sum(found.values())
    assert work.ratio(schedule) == 1.0
    space = BoundSpace.of(Space(name="own", choices=("full", "window:4")), recipe)
    cheapest = space.cheapest()
    assert space.cost(cheapest) == work.ratio(cheapest) == work.total(cheapest) / work.total(schedule) < 1
    assert space.cost_range == (space.cost(cheapest), 1.0)
    assert new_model(recipe, 60, cheapest).decoder_layers is not None  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("assignment", "said"),
    [
        ("model.other_schedule=full*3", "model.other_schedule: 3 layers for a stack of 1"),
        ("model.other_schedule=window:4+global:first:2", "in a causal model"),
        ("data.mask_share=null", "model.kind encoder_decoder learns from masked text"),
        ("data.mask_share=0.9", "leaves too little of a text for training.seq_len 48"),
        ("model.kind=encoder", "other_layers is for kind encoder_decoder, not encoder"),
    ],
)
def test_recipe_of_an_encoder_decoder_that_cannot_be_is_refused(assignment: str, said: str) -> None:
    with pytest.raises(LayersearchError, match=said.replace("+", r"\+")):
        Work.of(load_recipe("smoke-t5", [assignment]))


@pytest.mark.integration
def test_trial_of_an_encoder_decoder_trains_at_its_exact_cost(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("".join(TEXTS))
    changes = ["data.source=text", f"data.files=[{tmp_path / 'a.txt'}]", "training.steps=20"]
    recipe = load_recipe("smoke-t5", changes)
    schedule = Schedule.parse("full window:4")
    pool = LocalPool(recipe, 1, tmp_path / "logs", tmp_path / "cache")
    try:
        record = pool.submit(Trial(schedule=schedule, seed=0, checkpoints=(1,))).result()
    finally:
        pool.close()
    assert record.state == "complete", record.error
    assert record.cost == Work.of(recipe).ratio(schedule)
    assert record.curve[-1][1] < record.curve[0][1]
    assert 0.0 <= dict(record.metrics)["accuracy"] <= 1.0
