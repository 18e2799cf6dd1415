"""Each figure of an estimate against what it estimates."""

from __future__ import annotations

import json
import math
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from layersearch.config.loader import find_file
from layersearch.config.recipe import Recipe, load_recipe
from layersearch.model.decoder import Decoder
from layersearch.model.flops import model_flops, num_parameters
from layersearch.model.fvcore_flops import traced_flops
from layersearch.schedule import Schedule
from layersearch.schedule.bound_space import BoundSpace
from layersearch.schedule.space import load_space
from layersearch.study.estimate import estimate
from layersearch.training.memory import activation_bytes, model_bytes
from layersearch.training.optimizer import make_optimizer
from tests.helpers import observe_state

OBSERVER = Path(observe_state.__file__)
SHIPPED = sorted(path.stem for path in find_file("smoke", "trials").parent.glob("*.yaml"))
SIZES = {
    "plain": [],
    "grouped, untied, normed": ["model.n_layers=3", "model.d_model=48", "model.n_heads=6", "model.n_kv_heads=2",
                                "model.d_ff=80", "model.qk_norm=true", "model.tie_embeddings=false"],
}  # fmt: skip


def sized(size: str, *more: str) -> Recipe:
    """Return the smoke recipe in another size."""
    return load_recipe("smoke", [*SIZES[size], *more])


class Storages(TorchDispatchMode):
    """Remembers every storage that an operator returns."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                self.seen[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        return out

    def alive(self, but: set[int]) -> int:
        """Return the bytes of storages that something still holds, without those given."""
        return sum(size for key, (ref, size) in self.seen.items() if key not in but and not ref.expired())


@pytest.mark.parametrize("size", SIZES)
def test_parameters_equal_those_of_the_model(size: str) -> None:
    """The closed form and the sum over real tensors, a tied matrix once."""
    recipe = sized(size)
    model = Decoder(recipe.model, 64, Schedule.parse(f"full*{recipe.model.n_layers}"))
    assert num_parameters(recipe.model, 64) == sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("spans", ["full*{}", "window:7*{}", "block:16*{}"])
def test_estimate_step_flops_equal_the_traced_ones(size: str, spans: str) -> None:
    """The closed form of a forward pass and fvcore's count of its products, to the integer."""
    recipe = sized(size)
    schedule = Schedule.parse(spans.format(recipe.model.n_layers))
    seq_len = recipe.training.seq_len
    counted = traced_flops(Decoder(recipe.model, 64, schedule), seq_len)
    products = sum(count for name, count in counted.items() if name in ("linear", "matmul", "attend"))
    assert model_flops(recipe.model, 64, schedule, seq_len=seq_len) == products


@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize("size", SIZES)
def test_activation_bytes_equal_those_a_forward_pass_keeps(size: str, precision: str) -> None:
    """Counted on tensors without storage, within 2% of the storages that a real pass leaves alive."""
    recipe = sized(size, f"training.precision={precision}")
    training = recipe.training
    schedule = Schedule.parse(f"full*{recipe.model.n_layers}")
    model = Decoder(recipe.model, 64, schedule)
    tokens = torch.zeros(training.batch_size, training.seq_len, dtype=torch.int64)
    with Storages() as storages, torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        loss = model(tokens, tokens)
    given = {tensor.untyped_storage()._cdata for tensor in (*model.parameters(), tokens)}
    kept = storages.alive(given)
    assert loss.requires_grad
    assert activation_bytes(recipe, 64, schedule) == pytest.approx(kept, rel=0.02)


@pytest.fixture(scope="module")
def observed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, int]]:
    """Return what rank 0 of two really holds under each stage, and check that rank 1 holds the same."""
    rendezvous = str(tmp_path_factory.mktemp("ranks") / "store")
    ranks = [
        subprocess.Popen(
            [sys.executable, str(OBSERVER), rendezvous, str(rank), "2"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        for rank in range(2)
    ]
    answers = []
    for process in ranks:
        output, _ = process.communicate()
        assert process.returncode == 0, output
        (line,) = [line for line in output.splitlines() if line.startswith("OBSERVED ")]
        answers.append(json.loads(line.removeprefix("OBSERVED ")))
    assert answers[0] == answers[1]
    return answers[0]


@pytest.mark.integration
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_model_bytes_equal_those_of_deepspeed(stage: int, observed: dict[str, dict[str, int]]) -> None:
    """Part by part of the formula, at two ranks."""
    recipe = load_recipe("smoke", ["training.ranks=2", f"training.deepspeed=zero{stage}"])
    bytes_of_weights = 4 * num_parameters(recipe.model, 64)
    found = observed[str(stage)]
    assert found["weights"] == (bytes_of_weights / 2 if stage == 3 else bytes_of_weights)
    assert found["master"] == (bytes_of_weights / 2 if stage else 0)
    assert found["moments"] == (bytes_of_weights if stage else 2 * bytes_of_weights)
    largest = 4 * max(64 * recipe.model.d_model, recipe.model.d_model * recipe.model.d_ff)
    if stage in (0, 3):
        assert sum(found.values()) == model_bytes(recipe, 64)
    else:
        # A matrix that lies across the ranks' border is kept whole by both.
        assert bytes_of_weights / 2 <= found["gradients"] <= bytes_of_weights / 2 + largest
        assert sum(found.values()) <= model_bytes(recipe, 64) + largest


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_model_bytes_follow_the_optimizer(optimizer: str) -> None:
    """Weights, gradients and what the optimizer keeps after one step of one rank, to the byte."""
    recipe = load_recipe("smoke", [f"training.optimizer={optimizer}"])
    model = Decoder(recipe.model, 64, Schedule.parse(f"full*{recipe.model.n_layers}"))
    made = make_optimizer(model, recipe.training)
    tokens = torch.zeros(2, recipe.training.seq_len, dtype=torch.int64)
    model(tokens, tokens).backward()
    made.step()
    moments = [x for state in made.state.values() for x in state.values() if isinstance(x, torch.Tensor) and x.dim()]
    weights = list(model.parameters())
    assert all(weight.grad is not None for weight in weights)
    assert model_bytes(recipe, 64) == sum(2 * x.nbytes for x in weights) + sum(x.nbytes for x in moments)


@pytest.mark.parametrize("name", SHIPPED)
def test_estimate_shipped_recipes_give_known_counts(name: str) -> None:
    """Every recipe is read with its space and fits its schedules' lengths and heads."""
    recipe = load_recipe(name)
    space = load_space(recipe.default_space)
    assert space.budget is not None
    bound = BoundSpace.of(space, recipe)
    assert bound.named_baselines(space.budget)
    # Weights, gradients and at least one moment.
    least = 12 * num_parameters(recipe.model, recipe.data.vocab_size) / recipe.training.ranks
    assert model_bytes(recipe, recipe.data.vocab_size) >= round(least)


@pytest.mark.slow
def test_estimate_time_on_a_cluster_is_labeled_as_of_this_machine(tmp_path: Path) -> None:
    recipe, space = load_recipe("smoke", ["search.workers=1"]), load_space("smoke")
    found = estimate(recipe, space, 0.6, 0, tmp_path, elsewhere=True)
    assert found.seconds is not None
    assert "timed steps in each of 1 workers here" in found.seconds_note
    assert "the cluster was not contacted" in found.seconds_note
    assert "room for 1 workers" in found.seconds_note


@pytest.mark.slow
def test_estimate_large_recipe_needs_no_network_or_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Its plan is counted: nothing is opened, and nothing is timed."""

    def refuse(*_: object) -> None:
        raise AssertionError("a plan asked for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    recipe, space = load_recipe("masformer-1.3b"), load_space("masformer-1.3b")
    assert space.budget is not None
    found = estimate(recipe, space, space.budget, 0, tmp_path)
    assert 1.25e9 < found.parameters < 1.35e9
    assert found.seconds is None
    assert dict((name, text) for name, text, _ in found.baselines)["bottom(4)"] == "full*4 block:1024*20"
    # ZeRO-3 over 8 ranks: weights, master weights, gradients and two moments, all float32 and all shared out.
    assert found.model_bytes == round(20 * found.parameters / 8)
    assert found.model_bytes + found.activation_bytes < 80e9
    assert math.isclose(found.total_flops, found.step_flops * recipe.training.steps * found.full_trials)
    assert not list(tmp_path.iterdir())
