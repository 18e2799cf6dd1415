"""A trial and its record, one line of ``trials.jsonl``."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from layersearch.config.loader import Strict, build
from layersearch.config.recipe import Recipe
from layersearch.errors import RunFolderError
from layersearch.schedule import Schedule
from layersearch.schedule.cost import attention_flops, budget_ratio
from layersearch.schedule.files import plain

Phase = Literal["search", "confirm"]
State = Literal["complete", "stopped", "failed"]


@dataclass(frozen=True, kw_only=True)
class TrialRecord(Strict):
    """The record of one trial: its request, its cost, its results, and the kernels and device it used."""

    schedule: Schedule
    seed: int
    """Seed of the initial weights and of the data order, the same for all schedules (paired)."""
    phase: Phase
    """``search``: the search's seed; ``confirm``: a fresh seed, used for inference only."""
    role: str
    """``proposed``, or the baseline's name, for example ``all_full`` or ``bottom(1)``."""
    state: State
    """``complete``: trained to the last step; ``stopped``: pruned at a rung; ``failed``: no loss."""
    flops: int
    """Attention FLOPs of one forward pass over one sequence, exact."""
    cost: float
    """``flops`` as a share of the all-full schedule's."""
    steps: int
    """Optimizer steps done."""
    full_steps: int
    """Optimizer steps of a full trial."""
    loss: float | None
    """Validation loss at the last step done: mean over sequences of the mean per predicted token, nats; None if
    failed."""
    curve: tuple[tuple[int, float], ...] = ()
    """(step, validation loss) at every evaluation, including the last."""
    loss_by_position: tuple[float, ...] = ()
    """Validation loss in equal bins of token position, ascending; empty bins are dropped."""
    position_edges: tuple[int, ...] = ()
    """Right edges of these bins, in tokens."""
    metrics: tuple[tuple[str, float], ...] = ()
    """Further named metrics, for example the accuracy on recalled tokens."""
    seconds: float = 0.0
    """Wall time of the trial: set-up, training and evaluation."""
    train_seconds: float = 0.0
    """Time in optimizer steps."""
    eval_seconds: float = 0.0
    """Time in validation."""
    peak_memory_bytes: int = 0
    """Peak resident (CPU) or allocated (GPU) memory of one rank."""
    kernels: tuple[str, ...] = ()
    """Kernel used in each layer."""
    device: str = ""
    """Device used, for example ``cpu`` or ``cuda: NVIDIA H200``."""
    precision: str = ""
    """Precision of the matrix products."""
    compiled: bool = False
    """Whether the regions between attention calls were compiled."""
    ranks: int = 1
    zero_stage: int = 0
    optimizer_state_bytes: tuple[int, ...] = ()
    """Bytes of the optimizer's moments on each rank, rank 0 first: equal shares if ZeRO sharded them."""
    error: str | None = None
    """Why it failed, in one line."""

    @property
    def key(self) -> tuple[Schedule, int, Phase]:
        """Identifies a trial. Of two records with one key, the later counts."""
        return (self.schedule, self.seed, self.phase)

    def to_json(self) -> str:
        """Return the record as one line of JSON."""
        return json.dumps(plain(self), allow_nan=False)

    @classmethod
    def from_json(cls, line: str) -> TrialRecord:
        """Read one line that `to_json` wrote; raise RunFolderError if it is not a record."""
        try:
            return build(cls, json.loads(line), "record")
        except (ValueError, RecursionError) as error:
            raise RunFolderError(f"not a trial record ({error}): {line[:60]!r}") from None


def append(path: Path, record: TrialRecord) -> None:
    """Append one record and sync it to disk, so a kill loses at most the running trial; raise OSError if it fails."""
    with path.open("a", encoding="utf-8") as file:
        file.write(record.to_json() + "\n")
        file.flush()
        os.fsync(file.fileno())


def drop_torn_line(path: Path) -> bool:
    """Remove a last line without a newline, which a kill during a write leaves; return whether there was one."""
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
    """Yield the records of a file in order, without a torn last line.

    Raises:
        RunFolderError: names the file and the line that is not a record.
    """
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    for number, line in enumerate(lines[:-1], start=1):
        try:
            yield TrialRecord.from_json(line)
        except RunFolderError as error:
            raise RunFolderError(f"{path} line {number}: {error}; restore the file or start a new run folder") from None


@dataclass(frozen=True, kw_only=True)
class Trial:
    """The request of one trial, which another process can run."""

    schedule: Schedule
    seed: int
    phase: Phase = "search"
    role: str = "proposed"
    checkpoints: tuple[int, ...] = ()  # Steps before the last at which the validation loss is measured
    save: str | None = None  # The safetensors file for the final weights; None: they are not kept

    @property
    def key(self) -> tuple[Schedule, int, Phase]:
        """See `TrialRecord.key`."""
        return (self.schedule, self.seed, self.phase)


def blank_record(trial: Trial, recipe: Recipe) -> TrialRecord:
    """Return the record of a trial before its first step, with its exact cost and no loss."""
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
