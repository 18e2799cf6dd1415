"""A trial's record: one line of ``trials.jsonl``, written once, read by every report."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from layersearch.config.loader import build
from layersearch.config.recipe import Recipe
from layersearch.errors import RunFolderError
from layersearch.schedule import Schedule
from layersearch.schedule.cost import attention_flops, budget_ratio
from layersearch.schedule.files import plain

Phase = Literal["search", "confirm"]
State = Literal["complete", "stopped", "failed"]


@dataclass(frozen=True, kw_only=True)
class TrialRecord:
    """One schedule trained once: what was asked, what it cost, what came out, what really ran."""

    __pydantic_config__ = {"extra": "forbid", "allow_inf_nan": False}

    schedule: Schedule
    seed: int
    """Seed of the initial weights and of the data order, shared by all schedules (paired)."""
    phase: Phase
    """``search``: the search's own seed; ``confirm``: a fresh seed, used for inference only."""
    role: str
    """``proposed``, or the name of the baseline, for example ``all_full`` or ``bottom(1)``."""
    state: State
    """``complete``: trained to the last step; ``stopped``: early, at a rung; ``failed``: no number."""
    flops: int
    """Attention FLOPs of one forward pass over one sequence, exact."""
    cost: float
    """flops over those of the all-full schedule."""
    steps: int
    """Optimiser steps done."""
    full_steps: int
    """Optimiser steps of a full trial."""
    loss: float | None
    """Validation loss at the last step done, nats: the mean over sequences of each one's mean per predicted token;
    None if failed."""
    curve: tuple[tuple[int, float], ...] = ()
    """(step, validation loss) at every evaluation, the last one included."""
    loss_by_position: tuple[float, ...] = ()
    """Validation loss in equal bins of token position, first tokens first; NaN-free: empty bins are dropped."""
    position_edges: tuple[int, ...] = ()
    """Right edges of those bins, in tokens."""
    metrics: tuple[tuple[str, float], ...] = ()
    """Further named measures, for example the accuracy on recalled tokens."""
    seconds: float = 0.0
    """Wall time of the trial: set-up, training and evaluation."""
    train_seconds: float = 0.0
    """Of which optimiser steps."""
    eval_seconds: float = 0.0
    """Of which validation."""
    peak_memory_bytes: int = 0
    """Largest resident memory (CPU) or allocated memory (GPU) of one rank."""
    kernels: tuple[str, ...] = ()
    """The kernel that really ran, per layer."""
    device: str = ""
    """Device that really ran, for example ``cpu`` or ``cuda: NVIDIA H200``."""
    precision: str = ""
    """Precision of the matrix products that really ran."""
    compiled: bool = False
    """Whether the regions between attention calls ran compiled."""
    ranks: int = 1
    """DeepSpeed ranks."""
    zero_stage: int = 0
    """DeepSpeed ZeRO stage."""
    optimizer_state_bytes: tuple[int, ...] = ()
    """The optimiser's moments that each rank held, rank 0 first: equal shares where ZeRO sharded them."""
    error: str | None = None
    """Why it failed, in one line."""

    @property
    def key(self) -> tuple[Schedule, int, Phase]:
        """What one trial is: two records of the same are an attempt and a later one, which counts."""
        return (self.schedule, self.seed, self.phase)

    def to_json(self) -> str:
        """Return the record as one line of JSON."""
        return json.dumps(plain(self), allow_nan=False)

    @classmethod
    def from_json(cls, line: str) -> TrialRecord:
        """Read one line as `to_json` writes it.

        Raises:
            RunFolderError: if the line is not such a record.
        """
        try:
            return build(cls, json.loads(line), "record")
        except (ValueError, RecursionError) as error:
            raise RunFolderError(f"not a trial record ({error}): {line[:60]!r}") from None


def append(path: Path, record: TrialRecord) -> None:
    """Append one record and force it to the disk, so that a kill loses at most the trial in flight.

    Raises:
        OSError: if the disk is full or the file cannot be written.
    """
    with path.open("a", encoding="utf-8") as file:
        file.write(record.to_json() + "\n")
        file.flush()
        os.fsync(file.fileno())


def drop_torn_line(path: Path) -> bool:
    """Cut a last line that has no newline (a kill in the middle of a write); tell whether there was one."""
    if not path.exists():
        return False
    data = path.read_bytes()
    whole = data.rfind(b"\n") + 1
    if whole == len(data):
        return False
    with path.open("r+b") as file:
        file.truncate(whole)
    return True


def read(path: Path) -> Iterator[TrialRecord]:
    """Yield the records of a file in the order they were written; a torn last line is passed over.

    Raises:
        RunFolderError: if another line is not a record; names the file and the line.
    """
    text = path.read_text(encoding="utf-8", errors="replace")
    lines = text.split("\n")
    for number, line in enumerate(lines[:-1], start=1):
        try:
            yield TrialRecord.from_json(line)
        except RunFolderError as error:
            raise RunFolderError(f"{path} line {number}: {error}; restore the file or start a new run folder") from None


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What one trial is asked to do: enough to run it in another process."""

    schedule: Schedule
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

    @property
    def key(self) -> tuple[Schedule, int, Phase]:
        """See `TrialRecord.key`."""
        return (self.schedule, self.seed, self.phase)


def blank_record(trial: Trial, recipe: Recipe) -> TrialRecord:
    """Return the record of a trial before its first step: exact cost, no loss."""
    schedule, model, seq_len = trial.schedule, recipe.model, recipe.training.seq_len
    return TrialRecord(
        schedule=schedule,
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
