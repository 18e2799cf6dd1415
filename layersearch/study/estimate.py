"""The cost of a search before it trains anything: trials, FLOPs, memory and time."""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

from layersearch.config.corruption import corruption
from layersearch.config.recipe import Recipe, deepspeed_file
from layersearch.data import open_of
from layersearch.errors import ConfigError
from layersearch.model.flops import num_parameters, recipe_flops
from layersearch.schedule import Schedule
from layersearch.schedule.bound_space import BoundSpace
from layersearch.schedule.presets import all_full
from layersearch.schedule.space import Space
from layersearch.study.plan import Plan, make_plan
from layersearch.training.deepspeed_config import zero_stage
from layersearch.training.memory import activation_bytes, model_bytes
from layersearch.training.record import KeepGoing, Trial, TrialRecord
from layersearch.training.stages import BACKWARD, StageCost, stage_costs
from layersearch.training.workers.pool import LocalPool, Pool

TIMED_FLOPS = 2e12
"""Training steps are timed only if they take at most this many FLOPs."""
_TIMED_STEPS = (2, 8)


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A plan and its cost."""

    budget: float
    baselines: tuple[tuple[str, str, float], ...]
    """(name, schedule, cost as a share of all-full)."""
    schedules_in_space: int
    """Number of distinct schedules in the space, of any cost."""
    proposals: int
    """Maximum number of distinct schedules to propose and train besides the baselines."""
    sampler: str
    pruner: str
    confirm_trials: int
    """Full trials at fresh seeds, at most."""
    full_trials: float
    """Expected training in units of full trials, with early stops."""
    vocab_size: int
    parameters: int
    """Parameters of the proxy model."""
    step_flops: int
    """Multiply-adds of one training step of the all-full schedule, forward and backward; of the last stage."""
    trial_flops: int
    """Multiply-adds of a full trial of the all-full schedule, each stage at its own length."""
    stages: tuple[StageCost, ...]
    """The stages of a trial of the all-full schedule; empty: there is one."""
    total_flops: float
    """Multiply-adds of the whole search with every trial all-full: an upper bound."""
    model_bytes: int
    """Weights, gradients and optimizer moments on one rank, float32, under the recipe's ZeRO stage."""
    activation_bytes: int
    """Activations that one rank saves for the backward pass of the all-full schedule."""
    seconds: float | None
    """Estimated from timed steps on this machine; None if that takes too long or the device is missing."""
    seconds_note: str
    """How the time was estimated, or why it was not."""


def estimate(
    recipe: Recipe, space: Space, budget: float, seed: int, cache: Path | None = None, *, elsewhere: bool = False
) -> Estimate:
    """Return the cost of a search.

    Args:
        recipe: configuration of one trial.
        space: the search space.
        budget: maximum attention cost, as a share of the all-full schedule's.
        seed: random seed of the search.
        cache: folder of prepared data; None: the default one.
        elsewhere: the trials will run on a Ray cluster. It is not contacted, and the note says so.

    Raises:
        LayersearchError: as the search itself would.
    """
    model, training = recipe.model, recipe.training
    bound = BoundSpace.of(space, recipe)
    plan = make_plan(recipe, bound, budget, seed)
    vocab_size = _vocabulary(recipe)
    full = all_full(model.n_layers)
    forward = recipe_flops(recipe, vocab_size, full)
    step_flops = forward * (1 + BACKWARD) * training.batch_size
    stages = stage_costs(recipe, full, vocab_size)
    trial_flops = sum(stage.flops for stage in stages)
    seconds, note = _seconds(recipe, plan, full, step_flops, trial_flops, cache)
    if elsewhere and seconds is not None:
        note += (
            f". This is for this machine; the cluster was not contacted. It holds for similar machines with room for "
            f"{recipe.search.workers} workers"
        )
    return Estimate(
        budget=budget,
        baselines=tuple((name, str(schedule), bound.cost(schedule)) for name, schedule in plan.baselines),
        schedules_in_space=bound.size,
        proposals=plan.proposals,
        sampler=recipe.search.sampler,
        pruner=str(recipe.search.pruner),
        confirm_trials=plan.confirm_trials,
        full_trials=plan.full_trials(),
        vocab_size=vocab_size,
        parameters=num_parameters(model, vocab_size, recipe.data.n_classes),
        step_flops=step_flops,
        trial_flops=trial_flops,
        stages=stages if training.stages else (),
        total_flops=trial_flops * plan.full_trials(),
        model_bytes=model_bytes(recipe, vocab_size),
        activation_bytes=activation_bytes(recipe, vocab_size, full),
        seconds=seconds,
        seconds_note=note,
    )


def _vocabulary(recipe: Recipe) -> int:
    """Return the vocabulary size of a local tokenizer, else the recipe's; a plan downloads and trains nothing."""
    from layersearch.data import tokenizer

    if recipe.pretrained is not None:
        from layersearch.model.pretrained import load_config

        return int(load_config(recipe.pretrained).vocab_size)
    if recipe.data.n_classes is not None:  # the source itself says it, and makes its examples first
        return open_of(recipe).vocab_size
    local = tokenizer.tokenizer_path(recipe.data.tokenizer) if recipe.data.tokenizer else None
    size = tokenizer.vocab_size(tokenizer.load_tokenizer(local)) if local else recipe.data.vocab_size
    if recipe.model.kind == "decoder":
        return size
    if recipe.data.mask_share is None:  # the answers of a generated task are hidden
        return size + 1 + (recipe.data.queries if recipe.target_len is not None else 0)
    more = corruption(recipe.training.seq_len, recipe.data.mask_share).spans if recipe.target_len is not None else 0
    return size + 1 + more


def _seconds(
    recipe: Recipe, plan: Plan, full: Schedule, step_flops: int, trial_flops: int, cache: Path | None
) -> tuple[float | None, str]:
    """Time a few real training steps of the all-full schedule in a worker process."""
    if step_flops * sum(_TIMED_STEPS) > TIMED_FLOPS:
        return None, "not timed: a few training steps would take too long here"
    if recipe.training.gpus:
        import torch

        if not torch.cuda.is_available():
            return None, "not timed: the recipe needs a GPU, and this machine has none"
    open_of(recipe, cache).validation(recipe.training.val_sequences)
    workers = recipe.search.workers
    timed = replace(recipe, training=replace(recipe.training, steps=_TIMED_STEPS[1], warmup_steps=0, stages=()))
    trial = Trial(schedule=full, seed=plan.seed, checkpoints=_TIMED_STEPS[:1])
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as logs:
        pool = LocalPool(timed, workers, Path(logs), cache)
        try:
            # One trial per worker in parallel, so they slow each other down as in the search. The first starts and
            # compiles; it can be short.
            _run_on_each(pool, trial, workers, lambda step, loss: False)
            start_up = time.perf_counter() - began
            records = _run_on_each(pool, trial, workers, None)
        finally:
            pool.close()
    # Steps of other stages take as long as their FLOPs say.
    train = max(record.train_seconds for record in records) / _TIMED_STEPS[1] * trial_flops / step_flops
    checks = len(plan.checkpoints) + 1
    evaluate = max(record.eval_seconds for record in records) / 2 * checks
    setup = max(record.seconds - record.train_seconds - record.eval_seconds for record in records)
    started_anew = plan.trials / workers if zero_stage(deepspeed_file(recipe)) == 3 else 1
    seconds = start_up * started_anew + (train + evaluate + setup) * plan.full_trials() / workers
    return seconds, f"if all were all-full, from {_TIMED_STEPS[1]} timed steps in each of {workers} workers here"


def _run_on_each(pool: Pool, trial: Trial, workers: int, keep_going: KeepGoing | None) -> list[TrialRecord]:
    """Run one trial on each worker in parallel."""
    futures = [pool.submit(replace(trial, seed=trial.seed + index), keep_going) for index in range(workers)]
    records = [future.result() for future in futures]
    for record in records:
        if record.state == "failed":
            raise ConfigError(f"the timed steps failed ({record.error}); correct the recipe, or try layersearch run")
    return records
