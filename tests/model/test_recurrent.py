"""Transformer-XL's recurrence: segments with memories equal one masked pass forward, and gradients stop at memories."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from layersearch.config.model import ModelConfig
from layersearch.config.recipe import load_recipe
from layersearch.errors import LayersearchError
from layersearch.model.decoder import Decoder
from layersearch.model.recurrent import Recurrent
from layersearch.schedule import Schedule
from layersearch.schedule.bound_space import BoundSpace
from layersearch.schedule.space import load_space
from layersearch.schedule.work import Work
from layersearch.training.record import Trial
from layersearch.training.workers.pool import LocalPool
from layersearch.training.workers.run_trials import run_trials

SCHEDULE = Schedule.parse("memory:3/6 memory:10/6 block:6 full")
WORK = Work(seq_len=24, n_heads=4, segment=6)
NEAR = 1e-6
"""Rotary tables are in float32: positions that begin elsewhere differ by as much."""


@pytest.fixture
def pair() -> tuple[Decoder, Recurrent, Tensor, Tensor]:
    """Return a decoder with masks, the recurrent model of equal weights, tokens and targets."""
    config = ModelConfig(n_layers=4, d_model=32, n_heads=4, n_kv_heads=2, d_ff=48, qk_norm=True)
    models: list[Any] = []
    for kind, more in ((Decoder, {}), (Recurrent, {"segment": 6, "memories": tuple(map(WORK.memory, SCHEDULE))})):
        torch.manual_seed(0)
        models.append(kind(config, 11, SCHEDULE, **more).double())
        for parameter in models[-1].parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.2)
    models[1].load_state_dict(models[0].state_dict())
    tokens, targets = torch.randint(11, (2, 2, 24), generator=torch.Generator().manual_seed(1))
    return models[0], models[1], tokens, targets


def gradients(model: Decoder, tokens: Tensor, targets: Tensor) -> list[Tensor]:
    loss = model(tokens, targets)
    assert isinstance(loss, Tensor)
    return list(torch.autograd.grad(loss, list(model.parameters())))


def test_loop_over_segments_equals_one_masked_pass(pair: Any) -> None:
    masked, recurrent, tokens, _ = pair
    with torch.no_grad():
        found, wanted = recurrent.stream(tokens), masked.stream(tokens)
    assert (found - wanted).abs().max() < NEAR < wanted.std()


def test_gradients_equal_the_masked_ones_only_if_they_pass_through_memories(pair: Any) -> None:
    masked, recurrent, tokens, targets = pair
    wanted, stopped = gradients(masked, tokens, targets), gradients(recurrent, tokens, targets)
    recurrent.states, recurrent.stop_gradients = [], False
    passed = gradients(recurrent, tokens, targets)
    assert max(float((x - y).abs().max()) for x, y in zip(passed, wanted, strict=True)) < NEAR
    off = [float((x - y).norm() / y.norm()) for x, y in zip(stopped, wanted, strict=True)]
    assert max(off) > 0.05
    # The output layer and the last gains see no memory: their gradients are the same.
    names = [name for name, _ in recurrent.named_parameters()]
    assert off[names.index("norm.weight")] < NEAR


def test_memories_hold_the_newest_inputs_of_their_layer_and_no_more(pair: Any) -> None:
    _, recurrent, tokens, targets = pair
    recurrent(tokens[:, :6], targets[:, :6])
    assert [state.shape[1] for state in recurrent.states] == [3, 6, 0, 6]
    recurrent(tokens[:, 6:], targets[:, 6:])
    assert [state.shape[1] for state in recurrent.states] == [3, 10, 0, 18]
    assert not any(state.requires_grad for state in recurrent.states)
    assert torch.equal(recurrent.states[0], recurrent.embed_tokens(tokens[:, -3:]))


def test_training_reads_on_in_its_streams_and_evaluation_begins_anew(pair: Any) -> None:
    _, recurrent, tokens, _ = pair
    whole = recurrent.stream(tokens)
    recurrent.states = []
    parts = torch.cat([recurrent.stream(tokens[:, :12]), recurrent.stream(tokens[:, 12:])], dim=1)
    assert torch.allclose(parts, whole)
    recurrent.eval()
    held = [state.clone() for state in recurrent.states]
    assert torch.allclose(recurrent.stream(tokens), whole)
    assert all(torch.equal(x, y) for x, y in zip(held, recurrent.states, strict=True))


def test_first_segment_equals_blocks(pair: Any) -> None:
    masked, recurrent, tokens, _ = pair
    for layer in masked.layers:
        layer.self_attn.span = Schedule.parse("block:6")[0]
    with torch.no_grad():
        found, wanted = recurrent.stream(tokens), masked.stream(tokens)
    assert torch.allclose(found[:, :6], wanted[:, :6], atol=NEAR)
    assert not torch.allclose(found[:, 6:], wanted[:, 6:], atol=0.01)


def test_work_of_segments_counts_whole_memories_before_each() -> None:
    schedule = Schedule.parse("full memory:12/12 block:12")
    work = Work(seq_len=48, n_heads=2, segment=12)
    own = 12 * 13 // 2
    assert [work.pairs(span) for span in schedule] == [2 * 4 * (12 * memory + own) for memory in (36, 12, 0)]
    assert work.ratio(schedule) == work.total(schedule) / (3 * work.pairs(schedule[0]))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("window:12", "layers have full, block:12 or memory:M/12"),
        ("block:24", "layers have full, block:12 or memory:M/12"),
        ("memory:5/6", "layers have full, block:12 or memory:M/12"),
        ("memory:40/12", "a memory has at most 36 tokens"),
        ("block:12~6", "layers have full, block:12 or memory:M/12"),
    ],
)
def test_span_of_no_segment_is_refused(text: str, said: str) -> None:
    with pytest.raises(LayersearchError, match=said):
        Work(seq_len=48, n_heads=2, segment=12).check(Schedule.parse(text)[0])
    with pytest.raises(LayersearchError, match="layers have full, block:12"):
        BoundSpace.of(load_space("smoke"), load_recipe("smoke-segments"))


@pytest.mark.parametrize(
    ("assignment", "said"),
    [
        ("training.segments=5", "segments 5 must divide seq_len 48 evenly"),
        ("training.segments=1", "greater than or equal to 2"),
        ("training.warm_tokens=7", "must be whole segments, of 12 tokens"),
        ("training.ranks=2", "need ranks 1"),
        ("data.source=recall", "name a text"),
    ],
)
def test_recipe_of_segments_that_cannot_be_is_refused(assignment: str, said: str) -> None:
    with pytest.raises(LayersearchError, match=said):
        load_recipe("smoke-segments", [assignment])
    with pytest.raises(LayersearchError, match="set segments"):
        load_recipe("smoke", ["training.warm_tokens=12"])


def test_recipe_of_segments_warms_up_as_far_as_a_token_can_know() -> None:
    assert load_recipe("smoke-segments").training.warm_tokens == 2 * 36
    assert load_recipe("smoke-segments", ["training.warm_tokens=12"]).training.warm_tokens == 12


@pytest.mark.integration
def test_trial_of_segments_goes_on_with_its_memories(tmp_path: Path, cache_dir: Path) -> None:
    recipe = load_recipe("smoke-segments", ["training.checkpoint_seconds=0"])
    trial = Trial(schedule=Schedule.parse("full memory:12/12"), seed=0, checkpoints=(4,))
    pool = LocalPool(recipe, 1, tmp_path, cache_dir)
    killed: list[int] = []

    def kill_worker(step: int, loss: float) -> bool:
        if not killed:
            killed.append(pool.process_ids[0])
            os.kill(killed[0], signal.SIGKILL)
        return True

    try:
        failed, again = run_trials(pool, [trial], lambda trial: kill_worker)
        unbroken = pool.submit(trial).result()
    finally:
        pool.close()
    assert failed.state == "failed"
    assert again.state == "complete", again.error
    assert "goes on from step " in (tmp_path / "worker-0-rank-0.log").read_text()
    assert again.curve == unbroken.curve
    assert again.cost == BoundSpace.of(load_space("smoke-segments"), recipe).cost(trial.schedule)
    assert set(again.kernels) == {"segment-sdpa"}
