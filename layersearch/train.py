"""One trial: a schedule trained from a seed, validated along the way, and what really ran."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.distributed
from torch import Tensor

from layersearch.allocator import give_back_freed_memory
from layersearch.attention import kernel_for
from layersearch.cost import attention_flops, budget_ratio
from layersearch.data import Batch, Source
from layersearch.engine import Engine, RankGroup, can_compile, deepspeed_config, zero_stage
from layersearch.errors import UserError
from layersearch.model import IGNORE, Decoder
from layersearch.recipe import Recipe, deepspeed_file
from layersearch.record import Phase, State, TrialRecord
from layersearch.routing import Routed
from layersearch.schedule import Schedule
from layersearch.weights import load_weights, save_weights

POSITION_BINS = 8

KeepGoing = Callable[[int, float], bool]
"""Asked at each checkpoint with (step, validation loss); False stops the trial."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What one trial is asked to do: enough to run it in another process."""

    schedule: str
    """The schedule's text form."""
    seed: int
    """Seed of the initial weights and of the data order."""
    phase: Phase = "search"
    """See `TrialRecord.phase`."""
    role: str = "proposed"
    """See `TrialRecord.role`."""
    checkpoints: tuple[int, ...] = ()
    """Steps before the last at which the validation loss is taken."""
    save: str | None = None
    """The safetensors file for the weights at the end of the training; None: they are not kept."""


def blank_record(trial: Trial, recipe: Recipe) -> TrialRecord:
    """Return the record of a trial before its first step: exact cost, no loss."""
    schedule = Schedule.parse(trial.schedule)
    model, seq_len = recipe.model, recipe.training.seq_len
    return TrialRecord(
        schedule=trial.schedule,
        seed=trial.seed,
        phase=trial.phase,
        role=trial.role,
        state="failed",
        flops=attention_flops(schedule, seq_len=seq_len, n_heads=model.n_heads, head_dim=model.head_dim),
        cost=budget_ratio(schedule, seq_len=seq_len, n_heads=model.n_heads),
        steps=0,
        full_steps=recipe.training.steps,
        loss=None,
        ranks=recipe.training.ranks,
    )


def run_trial(
    trial: Trial, recipe: Recipe, source: Source, group: RankGroup | None = None, keep_going: KeepGoing | None = None
) -> TrialRecord:
    """Train one schedule and measure it. Every rank of the group calls this with the same arguments.

    Two trials of one seed see the same batches in the same order and start from the same weights, whatever their
    schedules and however many ranks train them.

    Args:
        trial: the schedule, its seed and its checkpoints.
        recipe: the model, the data and the training.
        source: the opened data of the recipe.
        group: this process's place among the ranks; `layersearch.engine.join` must have been called.
        keep_going: decides at each checkpoint whether the trial goes on; must answer alike on every rank.

    Returns:
        The record, state ``complete`` or ``stopped``; ``failed`` with the reason if the loss is no longer finite.
    """
    group = group or RankGroup()
    began = time.perf_counter()
    _reset_peak_memory(group.device)
    training, schedule = recipe.training, Schedule.parse(trial.schedule)
    if len(schedule) != recipe.model.n_layers:
        raise UserError(f"a schedule of {len(schedule)} layers for a model of {recipe.model.n_layers}: {schedule}")
    schedule.check(seq_len=training.seq_len, n_heads=recipe.model.n_heads)

    torch.manual_seed(trial.seed)
    path = deepspeed_file(recipe)
    model = _model(recipe, source, schedule, group)
    compiled = model.compiled
    before = 0
    if training.start is not None:
        before = load_weights(model, Path(training.start.replace("{seed}", str(trial.seed))))
    if trial.save is not None and zero_stage(path) == 3:
        raise UserError(
            f"training.deepspeed {training.deepspeed} cuts up the weights, which are to be kept: use ZeRO 0-2"
        )
    engine = Engine(model, training, deepspeed_config(training, path), group)
    validation = source.validation(training.val_sequences)

    record = blank_record(trial, recipe)
    curve: list[tuple[int, float]] = []
    train_seconds = eval_seconds = 0.0
    state: State = "complete"
    error: str | None = None
    measured: Measured | None = None
    checkpoints = {step for step in trial.checkpoints if 0 < step < training.steps} | {training.steps}
    step = 0
    mark = time.perf_counter()
    try:
        for step, _ in train_steps(engine, source, seed=trial.seed, before=before):
            if step not in checkpoints:
                continue
            now = time.perf_counter()
            train_seconds += now - mark
            measured = validate(engine.token_losses, validation, training.batch_size, group)
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
        state_bytes = _by_rank(engine.optimizer_state_bytes(), group)
        if trial.save is not None and state == "complete" and group.rank == 0:
            save_weights(engine.module, Path(trial.save), before + step)
    finally:
        engine.close()
    assert measured is not None
    failed = state == "failed"
    return replace(
        record,
        state=state,
        steps=step,
        loss=None if failed else measured.loss,
        curve=tuple(curve),
        loss_by_position=() if failed else measured.by_position,
        position_edges=() if failed else measured.edges,
        metrics=() if failed else tuple(sorted(named_metrics(source, validation, measured).items())),
        seconds=time.perf_counter() - began,
        train_seconds=train_seconds,
        eval_seconds=eval_seconds,
        peak_memory_bytes=_peak_memory(group.device),
        kernels=tuple(kernel_for(span, group.device) for span in schedule),
        device=_device_name(group.device),
        precision=training.precision,
        compiled=compiled,
        zero_stage=zero_stage(path),
        optimizer_state_bytes=state_bytes,
        error=error,
    )


def _model(recipe: Recipe, source: Source, schedule: Schedule, group: RankGroup) -> Decoder | Routed:
    """Return the model that a trial starts from: new, or pre-trained and routed over the schedule."""
    if recipe.pretrained is None:
        training = recipe.training
        compiled = training.compile and zero_stage(deepspeed_file(recipe)) < 3 and can_compile(group.device)
        return Decoder(recipe.model, source.vocab_size, schedule, compiled)
    from layersearch.pretrained import check_vocabulary, load_pretrained

    routed = load_pretrained(recipe.pretrained, check=False, tokens=recipe.training.seq_len)
    check_vocabulary(routed.rows, source.vocab_size, recipe.data.tokenizer)
    routed.set_schedule(schedule)
    return routed


def train_steps(
    engine: Engine, source: Source, *, seed: int, first: int = 0, before: int = 0
) -> Iterator[tuple[int, Tensor]]:
    """Train to the last step of the engine's recipe; yield the steps done so far and this rank's loss after each.

    Args:
        engine: with the model; every rank of its group calls this alike.
        source: the data.
        seed: of the data order.
        first: steps that an earlier process did.
        before: steps behind the weights it went on from, whose batches are not seen again.
    """
    training, group = engine.training, engine.group
    for step in range(first, training.steps):
        batch = source.train(seed=seed, step=before + step, batch_size=training.batch_size)
        yield step + 1, engine.step(*_rank_rows(batch, group))


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What one pass over the validation set found."""

    loss: float
    """Nats: the mean over sequences of each one's mean per predicted token."""
    by_position: tuple[float, ...]
    """In equal bins of token position, first tokens first; bins without a target are dropped."""
    edges: tuple[int, ...]
    """Right edges of those bins, in tokens."""
    losses: np.ndarray
    """Of each target, 0 where not scored, [sequences, tokens]."""
    correct: np.ndarray
    """Whether each target was predicted, [sequences, tokens]."""


def named_metrics(source: Source, batch: Batch, measured: Measured) -> dict[str, float]:
    """Return the source's measures and the loss of each part that it names."""
    scored = batch.targets != IGNORE
    by_group = {
        f"{name}_loss": float(measured.losses[part & scored].mean()) for name, part in source.groups(batch).items()
    }
    return source.metrics(measured.correct, batch) | by_group


def validate(
    token_losses: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]], batch: Batch, rows_at_once: int, group: RankGroup
) -> Measured:
    """Return the validation loss, whole and by position; each rank scores its share of the rows.

    Args:
        token_losses: as `Engine.token_losses`.
        batch: the validation set.
        rows_at_once: sequences, over all ranks.
        group: this process's place among the ranks.
    """
    n_rows, tokens = batch.tokens.shape
    losses = torch.zeros(n_rows, tokens, dtype=torch.float64)
    correct = torch.zeros(n_rows, tokens, dtype=torch.float64)
    # Every rank walks through all chunks, its rows of each, so that ZeRO-3's gathers meet.
    for start in range(0, n_rows, rows_at_once):
        stop = min(start + rows_at_once, n_rows)
        own = slice(
            start + (stop - start) * group.rank // group.size, start + (stop - start) * (group.rank + 1) // group.size
        )
        rows = own if own.stop > own.start else slice(start, start + 1)  # a rank without a row still takes part
        chunk = Batch(batch.tokens[rows], batch.targets[rows])
        found, predicted = token_losses(*_to_device(chunk, group))
        if rows == own:
            losses[rows], correct[rows] = found.double().cpu(), predicted.double().cpu()
    losses, correct = _sum_over_ranks(losses, group), _sum_over_ranks(correct, group)
    scored = torch.from_numpy(batch.targets != IGNORE)
    edges = [tokens * (index + 1) // POSITION_BINS for index in range(POSITION_BINS)]
    by_position, kept = [], []
    for low, high in zip([0, *edges[:-1]], edges, strict=True):
        count = int(scored[:, low:high].sum())
        if count:
            by_position.append(float(losses[:, low:high].sum()) / count)
            kept.append(high)
    return Measured(
        loss=float((losses.sum(dim=1) / scored.sum(dim=1)).mean()),
        by_position=tuple(by_position),
        edges=tuple(kept),
        losses=losses.numpy(),
        correct=(correct > 0.5).numpy(),
    )


def _sum_over_ranks(values: Tensor, group: RankGroup) -> Tensor:
    """Return the ranks' sum, on the CPU; every rank calls this."""
    if group.size == 1:
        return values
    values = values.to(group.device)  # NCCL reduces on GPUs only
    torch.distributed.all_reduce(values)
    return values.cpu()


def _by_rank(value: int, group: RankGroup) -> tuple[int, ...]:
    """Return every rank's value, rank 0 first."""
    values = torch.zeros(group.size, dtype=torch.int64)
    values[group.rank] = value
    return tuple(_sum_over_ranks(values, group).tolist())


def _rank_rows(batch: Batch, group: RankGroup) -> tuple[Tensor, Tensor]:
    rows = len(batch.tokens) // group.size
    own = slice(group.rank * rows, (group.rank + 1) * rows)
    return _to_device(Batch(batch.tokens[own], batch.targets[own]), group)


def _to_device(batch: Batch, group: RankGroup) -> tuple[Tensor, Tensor]:
    return torch.from_numpy(batch.tokens).to(group.device), torch.from_numpy(batch.targets).to(group.device)


def _device_name(device: str) -> str:
    return device if device == "cpu" else f"{device}: {torch.cuda.get_device_name(device)}"


def _reset_peak_memory(device: str) -> None:
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats(device)
        return
    give_back_freed_memory()  # else an earlier trial's freed pages would count as this one's
    with contextlib.suppress(OSError):  # elsewhere the mark is that of the process's life, see _peak_memory
        Path("/proc/self/clear_refs").write_text("5")  # Linux: restart the high-water mark of resident memory


def _peak_memory(device: str) -> int:
    """Return the largest resident bytes since the trial began (Linux), or since the process began (elsewhere)."""
    if device != "cpu":
        return int(torch.cuda.max_memory_allocated(device))
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    import resource
    import sys

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
