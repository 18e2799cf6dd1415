"""A trial and its record, one line of ``trials.jsonl``."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeInt, PositiveInt

from layersearch.config.loader import Strict, build
from layersearch.config.recipe import Recipe
from layersearch.errors import LayersearchError, RunFolderError, visible
from layersearch.files import seal, unseal
from layersearch.schedule import Schedule
from layersearch.schedule.files import plain
from layersearch.schedule.work import Work
from layersearch.training.stages import attention_so_far

Phase = Literal["search", "confirm"]
State = Literal["complete", "stopped", "failed"]
DIED, HUNG = "a worker process died", "a worker made no progress"
"""How the error of a trial begins whose worker was lost."""
_LARGEST = 3.4028235e38
"""Largest float32: losses are computed in it."""
Nats = Annotated[float, Field(ge=-_LARGEST, le=_LARGEST)]
Seed = Annotated[int, Field(ge=-(2**63), lt=2**63)]


@dataclass(frozen=True, kw_only=True)
class TrialRecord(Strict):
    """The record of one trial: its request, its cost, its results, and the kernels and device it used."""

    schedule: Schedule
    seed: Seed
    """Seed of the initial weights and of the data order, the same for all schedules (paired)."""
    phase: Phase
    """``search``: the search's seed; ``confirm``: a fresh seed, used for inference only."""
    role: str
    """``proposed``, or the baseline's name, for example ``all_full`` or ``bottom(1)``."""
    state: State
    """``complete``: trained to the last step; ``stopped``: pruned at a rung; ``failed``: no loss."""
    flops: NonNegativeInt
    """Attention FLOPs of one forward pass over one sequence, exact."""
    cost: Annotated[float, Field(ge=0, le=1)]
    """``flops`` as a share of the all-full schedule's."""
    steps: NonNegativeInt
    """Optimizer steps done."""
    full_steps: PositiveInt
    """Optimizer steps of a full trial."""
    train_flops: NonNegativeInt = 0
    """Attention FLOPs of the forward passes of all steps done, each stage at its own length and spans; 0 in records of
    earlier releases."""
    loss: Nats | None
    """Validation loss at the last step done: mean over sequences of the mean per predicted token, nats; None if
    failed."""
    curve: tuple[tuple[PositiveInt, Nats], ...] = ()
    """(step, validation loss) at every evaluation, including the last."""
    loss_by_position: tuple[Nats, ...] = ()
    """Validation loss in equal bins of token position, ascending; empty bins are dropped."""
    position_edges: tuple[PositiveInt, ...] = ()
    """Right edges of these bins, in tokens."""
    metrics: tuple[tuple[str, Nats], ...] = ()
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

    @property
    def lost(self) -> bool:
        """Whether it failed because its worker was lost, so that another attempt may succeed."""
        return self.state == "failed" and (self.error or "").startswith((DIED, HUNG))

    def to_json(self) -> str:
        """Return the record as one line of JSON."""
        content = plain(self)
        if not self.train_flops:  # as releases wrote it that did not count them
            del content["train_flops"]
        return json.dumps(content, allow_nan=False)

    @classmethod
    def from_json(cls, line: str) -> TrialRecord:
        """Read one line of `to_json`, or of a run folder; raise RunFolderError if it is no possible record."""
        try:
            content = unseal(line)
            # Most lines hold printable letters only, and no escape that stands for another.
            plainly = line.isascii() and line.isprintable() and "\\" not in line
            record = build(cls, content if plainly else _visible(content), "record")
        except LayersearchError as error:
            raise RunFolderError(f"not a trial record ({error}): {line[:60]!r}") from None
        if problem := record._contradiction():
            raise RunFolderError(f"not a possible trial record ({problem}): {line[:60]!r}")
        return record

    def _contradiction(self) -> str | None:
        """Return which of its fields contradict each other; None: none do."""
        if (self.loss is None) != (self.state == "failed"):
            return f"a trial that is {self.state} with the loss {self.loss}"
        if self.steps > self.full_steps or (self.state == "complete" and self.steps < self.full_steps):
            return f"a trial that is {self.state} after {self.steps} of {self.full_steps} steps"
        steps = [step for step, _ in self.curve]
        if steps != sorted(set(steps)) or (
            steps and self.loss is not None and self.curve[-1] != (self.steps, self.loss)
        ):
            return "a curve that does not rise in steps to the last loss"
        if len(self.loss_by_position) != len(self.position_edges):
            return f"{len(self.loss_by_position)} losses by position for {len(self.position_edges)} edges"
        return None


def _visible(value: Any) -> Any:
    """Return plain data with control characters of its texts written out: a record is shown on terminals and pages."""
    if isinstance(value, list):
        return [_visible(held) for held in value]
    if isinstance(value, dict):
        return {key: _visible(held) for key, held in value.items()}
    return visible(value) if isinstance(value, str) else value


def append(path: Path, record: TrialRecord) -> None:
    """Append one record and sync it to disk, so a kill loses at most the running trial; raise OSError if it fails."""
    with path.open("a", encoding="utf-8") as file:
        file.write(seal(plain(record)) + "\n")
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


def read(path: Path, recipe: Recipe | None = None) -> Iterator[TrialRecord]:
    """Yield the records of a file in order, without a torn last line. ``recipe`` is the one of their run, if known.

    Raises:
        RunFolderError: names the file and the line that is not a record, or not one of this run.
    """
    content = path.read_bytes()
    if _LAST_READ and _LAST_READ[0][:2] == (content, recipe):
        yield from _LAST_READ[0][2]
        return
    lines = content.decode(errors="replace").replace("\r\n", "\n").replace("\r", "\n").split("\n")
    found: list[TrialRecord] = []
    measured: TrialRecord | None = None
    for number, line in enumerate(lines[:-1], start=1):
        try:
            record = TrialRecord.from_json(line)
            if recipe is not None:
                check_record(record, recipe)
            if record.loss is not None:
                measured = measured or record
                _check_alike(record, measured)
        except RunFolderError as error:
            raise RunFolderError(
                f"{path} line {number}: {error}; restore the line, or delete it: the same command then trains its "
                "trial again"
            ) from None
        found.append(record)
        yield record
    _LAST_READ[:] = [(content, recipe, tuple(found))]


_LAST_READ: list[tuple[bytes, Recipe | None, tuple[TrialRecord, ...]]] = []
"""Content, recipe and records of the file that was read last: one command asks several times."""


def check_record(record: TrialRecord, recipe: Recipe) -> None:
    """Raise RunFolderError if no trial of the recipe can have this record. Its cost is counted again."""
    schedule, layers = record.schedule, recipe.model.n_layers
    if len(schedule) != layers:
        raise RunFolderError(f"a schedule of {len(schedule)} layers in a run of {layers} layers")
    made = blank_record(Trial(schedule=schedule, seed=record.seed), recipe)
    if record.flops != made.flops or not math.isclose(record.cost, made.cost, rel_tol=1e-9):
        raise RunFolderError(
            f"flops {record.flops} and cost {record.cost} for {schedule}, which has {made.flops} and {made.cost}"
        )
    if record.seed < 0:
        raise RunFolderError(f"the seed {record.seed} is negative")
    if record.train_flops not in (0, attention_so_far(recipe, schedule, record.steps)):
        raise RunFolderError(f"train_flops {record.train_flops} are not those of {record.steps} steps of {schedule}")
    if recipe.selection is None and record.full_steps != made.full_steps:
        raise RunFolderError(f"full_steps {record.full_steps} in a run of {made.full_steps} steps a trial")


def _check_alike(record: TrialRecord, other: TrialRecord) -> None:
    """Raise RunFolderError unless both trials were measured alike: the analysis takes means over them."""
    if record.position_edges != other.position_edges:
        raise RunFolderError("other position_edges than the records before")
    names, before = ([name for name, _ in one.metrics] for one in (record, other))
    if names != before:
        raise RunFolderError(f"metrics {names} and not {before}, as in the records before")


KeepGoing = Callable[[int, float], bool]
"""A stopping rule, called at each checkpoint with (step, loss); False stops the trial."""


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
    schedule, work = trial.schedule, Work.of(recipe)
    return TrialRecord(
        schedule=schedule,
        seed=trial.seed,
        phase=trial.phase,
        role=trial.role,
        state="failed",
        flops=2 * recipe.model.head_dim * work.total(schedule),
        cost=work.ratio(schedule),
        steps=0,
        full_steps=recipe.training.steps,
        loss=None,
        ranks=recipe.training.ranks,
    )
