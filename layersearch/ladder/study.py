"""The study: Optuna proposes, and owns the search's state in a journal.

Two objectives, validation loss and attention cost, over one categorical per free layer. A proposal over the budget is
repaired before it is trained, a schedule that was proposed before is never trained again, and a trial that was stopped
early is told as pruned, without a loss.
"""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Collection
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

from layersearch.errors import UserError
from layersearch.recipe import SearchConfig
from layersearch.record import TrialRecord, drop_torn_line
from layersearch.schedule import Schedule
from layersearch.space import BoundSpace

if TYPE_CHECKING:
    import optuna

NAME = "layersearch"
_SEARCHED = 20_000
"""Schedules looked at, at the most, for one that is new and within the budget."""


class Study:
    """An Optuna study in a journal file, which optuna-dashboard opens too.

    Args:
        path: the journal; made if it does not exist, taken up if it does.
        space: the bound search space.
        budget: the largest attention cost that is trained, relative to all-full.
        search: which sampler proposes.
        seed: seeds the sampler anew for each generation, so that a resumed search proposes what an unbroken one would.

    Raises:
        UserError: if the journal is damaged beyond a torn last line.
    """

    def __init__(self, path: Path, space: BoundSpace, budget: float, search: SearchConfig, seed: int) -> None:
        library = _optuna()
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend

        self._space, self._budget, self._search, self._seed = space, budget, search, seed
        drop_torn_line(path)
        for stale in (path.with_name(path.name + ".lock"), path.with_name(path.name + ".lock.rename")):
            stale.unlink(missing_ok=True)  # of a search that was killed; the run folder's own lock is ours by now
        try:
            self._study: optuna.Study = library.create_study(
                study_name=NAME,
                storage=JournalStorage(JournalFileBackend(str(path))),
                directions=["minimize", "minimize"],
                load_if_exists=True,
            )
            self._trials()
        except (ValueError, KeyError, TypeError, AttributeError, UnicodeDecodeError, AssertionError) as error:
            raise UserError(
                f"{path}: the journal is damaged ({type(error).__name__}): restore it, or start anew with another --out"
            ) from None
        self._study.set_metric_names(["validation loss (nats)", "attention cost (share of all-full)"])
        self._asked: dict[str, optuna.Trial] = {}
        self._distributions: dict[str, Any] = {
            name: library.distributions.CategoricalDistribution(choices) for name, choices in space.variables.items()
        }

    def begin_generation(self, generation: int) -> None:
        """Seed the sampler for a generation."""
        self._study.sampler = _sampler(self._search.sampler, (self._seed * 100_003 + generation) % 2**32)

    def propose(self, seen: Collection[str], generation: int) -> Schedule | None:
        """Return a schedule within the budget that is not among ``seen``; None if there is none left."""
        trial = self._study.ask(self._distributions)
        proposed = self._space.decode(trial.params)
        rng = Random(f"{self._seed}/{trial.number}")
        schedule = self._nearest_new(self._space.repair(trial.params, self._budget, rng), seen)
        if schedule != proposed:
            over = self._space.cost(proposed) > self._budget
            trial.set_user_attr("not trained", "over the budget" if over else "trained before")
            self._tell_pruned(trial.number)
            if schedule is None:
                return None
            trial = self._ask_for(schedule)
        self._label(trial, schedule, "proposed", generation)
        return schedule

    def enqueue(self, schedule: Schedule, role: str, generation: int) -> None:
        """Enter a schedule that is trained whatever the sampler thinks of it (a baseline)."""
        if self._space.encode(schedule) is None:
            return  # a baseline outside the space (all-full where no layer may be full) has no place in the study
        self._label(self._ask_for(schedule), schedule, role, generation)

    def pending(self) -> list[tuple[str, str, int]]:
        """Return (schedule, role, generation) of the trials that were begun and never told, oldest first."""
        optuna = _optuna()
        running = (t for t in self._trials() if t.state == optuna.trial.TrialState.RUNNING)
        return [
            (t.user_attrs["schedule"], t.user_attrs["role"], t.user_attrs["generation"])
            for t in running
            if "generation" in t.user_attrs
        ]

    def generations(self) -> dict[str, int]:
        """Return the generation in which each schedule was entered."""
        return {
            t.user_attrs["schedule"]: t.user_attrs["generation"] for t in self._trials() if "generation" in t.user_attrs
        }

    def tell(self, record: TrialRecord) -> None:
        """Enter a record: both objectives if it is complete, pruned if it was stopped, failed if it failed."""
        optuna = _optuna()
        for trial in self._trials():
            if trial.user_attrs.get("schedule") == record.schedule and not trial.state.is_finished():
                break
        else:
            return  # told before, or outside the space
        asked = self._asked.pop(record.schedule, None)
        if asked is not None:  # not after a resume, where the record alone says more
            for key in ("state", "steps", "seconds", "error"):
                asked.set_user_attr(key, getattr(record, key))
        if record.state == "complete":
            assert record.loss is not None
            self._study.tell(trial.number, [record.loss, record.cost])
        elif record.state == "stopped":
            self._tell_pruned(trial.number)
        else:
            self._study.tell(trial.number, state=optuna.trial.TrialState.FAIL)

    def _trials(self) -> list[optuna.trial.FrozenTrial]:
        return self._study.get_trials(deepcopy=False)

    def _tell_pruned(self, number: int) -> None:
        self._study.tell(number, state=_optuna().trial.TrialState.PRUNED)

    def _ask_for(self, schedule: Schedule) -> optuna.Trial:
        params = self._space.encode(schedule)
        assert params is not None
        self._study.enqueue_trial(params)
        return self._study.ask(self._distributions)

    def _label(self, trial: optuna.Trial, schedule: Schedule, role: str, generation: int) -> None:
        self._asked[str(schedule)] = trial
        trial.set_user_attr("schedule", str(schedule))
        trial.set_user_attr("role", role)
        trial.set_user_attr("generation", generation)

    def _nearest_new(self, start: Schedule, seen: Collection[str]) -> Schedule | None:
        """Return the nearest schedule to ``start``, in changed layers, that is new and within the budget."""
        visited, frontier = {start}, deque([start])
        while frontier:
            schedule = frontier.popleft()
            if str(schedule) not in seen and self._space.cost(schedule) <= self._budget:
                return schedule
            for neighbour in self._space.neighbours(schedule):
                if neighbour not in visited and len(visited) < _SEARCHED:
                    visited.add(neighbour)
                    frontier.append(neighbour)
        return None


def _sampler(name: str, seed: int) -> optuna.samplers.BaseSampler:
    """Return a sampler by name."""
    optuna = _optuna()
    samplers = optuna.samplers
    if name == "gp":
        # Paired seeds make the loss of a schedule at the search's seed a fixed number.
        return samplers.GPSampler(seed=seed, deterministic_objective=True)
    if name == "tpe":
        return samplers.TPESampler(seed=seed, multivariate=True, constant_liar=True)
    if name == "nsga2":
        return samplers.NSGAIISampler(seed=seed)
    assert name == "random"
    return samplers.RandomSampler(seed=seed)


def _optuna() -> Any:
    """Import Optuna without its notices about experimental features that we chose knowingly."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    return optuna
