"""The state of a trial in flight, from which another worker goes on if its own is lost."""

import contextlib
import hashlib
import json
import logging
import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from layersearch.config.recipe import Recipe, deepspeed_file
from layersearch.errors import RunFolderError
from layersearch.files import UNTRAINED
from layersearch.training.checkpoint import check_archive, load_state, previous, save_state
from layersearch.training.deepspeed_config import zero_stage
from layersearch.training.engine import Engine
from layersearch.training.evaluate import sum_over_ranks
from layersearch.training.record import Trial

PARTS = 8
"""A trial may save its state after each eighth of its steps, and at its rungs."""
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Begun:
    """A trial up to one of its steps."""

    step: int = 0
    curve: tuple[tuple[int, float], ...] = ()
    """(step, validation loss) of its rungs so far."""
    seconds: float = 0.0
    train_seconds: float = 0.0
    eval_seconds: float = 0.0


class Unfinished:
    """The files of one trial's state. Every rank makes one and calls its methods alike.

    Args:
        folder: holds the states of all trials in flight.
        trial: its request.
        recipe: its recipe.
        fingerprint: of the data.
        engine: trains it.
    """

    def __init__(self, folder: Path, trial: Trial, recipe: Recipe, fingerprint: str, engine: Engine) -> None:
        whole = recipe.to_dict()
        training = {key: value for key, value in whole["training"].items() if key not in UNTRAINED}
        facts = [training, whole["model"], whole["data"], recipe.pretrained, fingerprint]
        asked = [str(trial.schedule), trial.seed, trial.checkpoints]
        # The name says all that decides the training: another one cannot take up its state.
        name = hashlib.sha256(json.dumps([facts, asked], sort_keys=True).encode()).hexdigest()[:20]
        self._file, self._shards = folder / f"{name}.pt", folder / name
        self._trial, self._engine, self._group, steps = trial, engine, engine.group, recipe.training.steps
        self._sharded = zero_stage(deepspeed_file(recipe)) > 0
        self._least = recipe.training.checkpoint_seconds
        self._steps = {round(steps * part / PARTS) for part in range(1, PARTS)} | set(trial.checkpoints)
        self._last = time.monotonic()

    def load(self) -> Begun:
        """Load the newest state that is not damaged into the engine; return how far the trial is."""
        found: dict[str, Any] | None = None
        try:
            found, problem = load_state(self._file, self._group.device, self._check_shards)
        except RunFolderError as error:
            problem = str(error)
        if problem is not None:
            _LOG.warning("%s; the trial goes on from the checkpoint before, or begins again", problem)
        # A machine of a cluster may not see the folder: then all ranks begin again.
        own = torch.tensor([0 if found is None else found["step"]])
        if found is None or int(sum_over_ranks(own.clone(), self._group)) != self._group.size * int(own):
            return Begun()
        if self._sharded:
            self._engine.load_shards(self._shards, found["shards"])
        else:
            self._engine.load_state(found["engine"])
        torch.set_rng_state(found["rng"].cpu())
        begun = found["begun"]
        if self._group.rank == 0:
            _LOG.warning("%s of seed %s goes on from step %s", self._trial.schedule, self._trial.seed, found["step"])
        return Begun(**begun | {"curve": tuple((step, loss) for step, loss in begun["curve"])})

    def is_due(self, step: int) -> bool:
        """Return whether the state should be saved after a step; rank 0's clock decides."""
        if step not in self._steps:
            return False
        due = self._group.rank == 0 and time.monotonic() - self._last >= self._least
        return bool(sum_over_ranks(torch.tensor([int(due)]), self._group))

    def save(self, begun: Begun) -> None:
        """Save the state; without room for it the trial goes on."""
        self._last = time.monotonic()
        state: dict[str, Any] = {"step": begun.step, "begun": asdict(begun), "rng": torch.get_rng_state()}
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            if self._sharded:
                state["shards"] = f"step-{begun.step}"
                self._engine.save_shards(self._shards, state["shards"])
                sum_over_ranks(torch.zeros(1), self._group)  # all have written theirs
            else:
                state["engine"] = self._engine.state()
            if self._group.rank == 0:
                save_state(self._file, state)
        except OSError as error:
            _LOG.warning("%s: the trial's state cannot be saved (%s)", self._file, error.strerror or error)

    def discard(self) -> None:
        """Remove the files: the trial has ended."""
        if self._group.rank == 0:
            for file in (self._file, previous(self._file), self._file.with_suffix(".part")):
                file.unlink(missing_ok=True)
            shutil.rmtree(self._shards, ignore_errors=True)
            with contextlib.suppress(OSError):  # other trials' states, or no folder
                self._file.parent.rmdir()

    def _check_shards(self, state: dict[str, Any]) -> None:
        for file in sorted((self._shards / state["shards"]).glob("*.pt")) if "shards" in state else ():
            check_archive(file)
