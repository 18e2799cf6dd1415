"""One trial: a schedule trained from a seed and validated at checkpoints."""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from layersearch.config.recipe import Recipe, deepspeed_file
from layersearch.data.source import Source, check_marks
from layersearch.errors import require
from layersearch.model.attention.dispatch import kernel_for
from layersearch.model.build import new_model
from layersearch.model.decoder import Decoder
from layersearch.model.hf_decoder import HFDecoder
from layersearch.model.recurrent import KERNEL
from layersearch.schedule import Schedule
from layersearch.schedule.work import Work
from layersearch.training.checkpoint import load_weights, save_weights
from layersearch.training.deepspeed_config import deepspeed_config, zero_stage
from layersearch.training.engine import Engine, RankGroup, can_compile
from layersearch.training.evaluate import ValidationResult, named_metrics, sum_over_ranks, to_device, validate
from layersearch.training.memory import device_name, peak_memory, reset_peak_memory
from layersearch.training.record import KeepGoing, State, Trial, TrialRecord, blank_record
from layersearch.training.stages import attention_so_far, check_stages, stage_at, trial_stages
from layersearch.training.unfinished import Begun, Unfinished


def run_trial(
    trial: Trial,
    recipe: Recipe,
    source: Source,
    group: RankGroup | None = None,
    keep_going: KeepGoing | None = None,
    *,
    beat: Callable[[], None] = lambda: None,
    unfinished: Path | None = None,
) -> TrialRecord:
    """Train and validate one schedule. Every rank calls this with the same arguments.

    Two trials of one seed see the same batches in the same order and start from the same weights, for any schedule and
    any number of ranks.

    ``source`` is the opened data of the recipe. ``group`` has joined, see `layersearch.training.engine.join`.
    ``keep_going`` decides at each checkpoint whether the trial continues; it returns the same on every rank. ``beat``
    is called after each step and each piece of a validation. ``unfinished`` is a folder for the states of trials in
    flight; one that was broken off goes on from its last state.

    Returns:
        The record: ``complete``, ``stopped``, or ``failed`` if the loss is not finite.
    """
    group = group or RankGroup()
    began = time.perf_counter()
    reset_peak_memory(group.device)
    training, schedule, device = recipe.training, trial.schedule, group.device
    alike = len(schedule) == recipe.model.n_layers
    require(alike, f"a schedule of {len(schedule)} layers for a model of {recipe.model.n_layers}: {schedule}")
    work = Work.of(recipe)
    check_stages(schedule, recipe)
    check_marks(schedule, source)
    check_stages(schedule, recipe)
    stages = trial_stages(training)

    torch.manual_seed(trial.seed)
    path = deepspeed_file(recipe)
    sharded = f"training.deepspeed {training.deepspeed} shards the weights; training.segments need ZeRO 0"
    require(work.segment is None or zero_stage(path) == 0, sharded)
    config = deepspeed_config(training, path)
    whole = f"training.deepspeed {training.deepspeed} accumulates gradients; training.segments need whole batches"
    require(work.segment is None or config["gradient_accumulation_steps"] == 1, whole)
    model = _model(recipe, source, schedule, group)
    before = 0
    if training.start is not None:
        before = load_weights(model, Path(training.start.replace("{seed}", str(trial.seed))))
    shards = f"training.deepspeed {training.deepspeed} shards the weights, which are to be saved: use ZeRO 0-2"
    require(trial.save is None or zero_stage(path) < 3, shards)
    engine = Engine(model, training, config, group)
    validation = source.validation(training.val_sequences)
    saved = None if unfinished is None else Unfinished(unfinished, trial, recipe, source.fingerprint, engine)
    begun = Begun() if saved is None else saved.load()

    curve = list(begun.curve)
    train_seconds, eval_seconds, first = begun.train_seconds, begun.eval_seconds, begun.step
    state: State = "complete"
    error: str | None = None
    measured: ValidationResult | None = None
    checkpoints = {step for step in trial.checkpoints if 0 < step < training.steps} | {training.steps}
    step = first
    for passed in curve:  # the caller may not have seen them: its process may be another
        if keep_going is not None:
            keep_going(*passed)
    mark = time.perf_counter()
    try:
        model.set_schedule(stage_at(stages, first).schedule(schedule))
        for step, _ in train_steps(engine, source, seed=trial.seed, first=first, before=before):
            beat()
            if step in checkpoints:
                now = time.perf_counter()
                train_seconds += now - mark
                model.set_schedule(schedule)
                measured = validate(engine.token_losses, validation, training.batch_size, group, beat)
                mark = time.perf_counter()
                eval_seconds += mark - now
                if not math.isfinite(measured.loss):
                    state, error = "failed", f"the loss is not finite at step {step}: lower training.learning_rate"
                    break
                curve.append((step, measured.loss))
                if step < training.steps and keep_going is not None and not keep_going(step, measured.loss):
                    state = "stopped"
                    break
                mark = time.perf_counter()
            if saved is not None and step < training.steps and saved.is_due(step):
                now = time.perf_counter()
                train_seconds += now - mark
                so_far = begun.seconds + now - began
                saved.save(
                    Begun(
                        step=step,
                        curve=tuple(curve),
                        seconds=so_far,
                        train_seconds=train_seconds,
                        eval_seconds=eval_seconds,
                    )
                )
                mark = time.perf_counter()
            if len(stages) > 1:  # the next step's
                model.set_schedule(stage_at(stages, step).schedule(schedule))
        state_bytes = _by_rank(engine.optimizer_state_bytes(), group)
        if trial.save is not None and state == "complete" and group.rank == 0:
            save_weights(engine.module, Path(trial.save), before + step)
        if saved is not None:
            saved.discard()
    finally:
        engine.close()
    assert measured is not None
    failed = state == "failed"
    dtype = torch.bfloat16 if training.precision == "bf16" else torch.float32
    heads: Any = {"head_dim": recipe.model.head_dim, "softcap": model.softcap, "sinks": model.sinks}
    return replace(
        blank_record(trial, recipe),
        state=state,
        steps=step,
        train_flops=attention_so_far(recipe, schedule, step),
        loss=None if failed else measured.loss,
        curve=tuple(curve),
        loss_by_position=() if failed else measured.by_position,
        position_edges=() if failed else measured.edges,
        metrics=() if failed else tuple(sorted(named_metrics(source, validation, measured).items())),
        seconds=begun.seconds + time.perf_counter() - began,
        train_seconds=train_seconds,
        eval_seconds=eval_seconds,
        peak_memory_bytes=peak_memory(group.device),
        kernels=tuple(
            KERNEL if work.segment is not None else kernel_for(span, device, dtype=dtype, **heads) for span in schedule
        ),
        device=device_name(device),
        precision=training.precision,
        compiled=model.compiled,
        zero_stage=zero_stage(path),
        optimizer_state_bytes=state_bytes,
        error=error,
    )


def _model(recipe: Recipe, source: Source, schedule: Schedule, group: RankGroup) -> Decoder | HFDecoder:
    """Return a new model, or the pre-trained one with the schedule."""
    if recipe.pretrained is None:
        training = recipe.training
        compiled = training.compile and zero_stage(deepspeed_file(recipe)) < 3 and can_compile(group.device)
        return new_model(recipe, source.vocab_size, schedule, compiled)
    from layersearch.model.pretrained import load_pretrained
    from layersearch.model.pretrained_recipe import check_vocabulary

    decoder = load_pretrained(recipe.pretrained, check=False, tokens=recipe.training.seq_len)
    check_vocabulary(decoder.num_embeddings, source.vocab_size, recipe.data.tokenizer)
    decoder.set_schedule(schedule)
    return decoder


def train_steps(
    engine: Engine, source: Source, *, seed: int, first: int = 0, before: int = 0
) -> Iterator[tuple[int, Tensor]]:
    """Train to the last step of the engine's recipe; yield the number of steps done and this rank's loss after each.

    Every rank calls this alike. An earlier process did the ``first`` steps. ``before`` are the steps behind the initial
    weights, whose batches are skipped.
    """
    training, group = engine.training, engine.group
    rows = training.batch_size // group.size
    own = slice(group.rank * rows, (group.rank + 1) * rows)
    for step in range(first, training.steps):
        batch = source.train(seed=seed, step=before + step, batch_size=training.batch_size)
        yield step + 1, engine.step(*to_device(batch.rows(own), group))


def _by_rank(value: int, group: RankGroup) -> tuple[int, ...]:
    """Return every rank's value, rank 0 first."""
    values = torch.zeros(group.size, dtype=torch.int64)
    values[group.rank] = value
    return tuple(sum_over_ranks(values, group).tolist())
