"""The study: Optuna proposes, and owns the search's state in a journal.

Two objectives, validation loss and attention cost, over one categorical per free layer. A proposal over the budget is
repaired before it is trained, a schedule that was proposed before is never trained again, and a trial that was stopped
early is told as pruned, without a loss.
"""

from __future__ import annotations

import functools
import json
import logging
import warnings
from collections import deque
from collections.abc import Collection
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

from layersearch.config.recipe import SearchConfig
from layersearch.results.result import PROPOSED
from layersearch.schedule import Schedule
from layersearch.schedule.bound_space import BoundSpace
from layersearch.study.pruning import observation
from layersearch.surrogate.acquisition import Observation
from layersearch.training.record import TrialRecord, drop_torn_line

if TYPE_CHECKING:
    import optuna

_LOG = logging.getLogger(__name__)
NAME = "layersearch"
EXHAUSTED = "no new schedule within the budget"
"""Marks the proposal after which there was nothing left to propose."""
_LABEL = "schedule, role, generation"
"""The user attribute of every trial that is trained."""
_SEARCHED = 20_000
"""Schedules looked at, at the most, for one that is new and within the budget."""


class Study:
    """An Optuna study in a journal file, which optuna-dashboard opens too.

    Args:
        path: the journal; made if it does not exist, taken up if it does.
        space: the bound search space.
        budget: the largest attention cost that is trained, relative to all-full.
        search: which sampler proposes.
        seed: seeds the sampler anew for each proposal, so that a resumed search proposes what an unbroken one would.
    """

    def __init__(self, path: Path, space: BoundSpace, budget: float, search: SearchConfig, seed: int) -> None:
        library = _optuna()
        self._space, self._budget, self._search, self._seed = space, budget, search, seed
        self._study: optuna.Study = _taken_up(path) or _new(path)
        if self._study.metric_names is None:
            self._study.set_metric_names(["validation loss (nats)", "attention cost (share of all-full)"])
        self._asked: dict[Schedule, optuna.Trial] = {}
        self._seen: dict[Schedule, Observation] = {}
        self._distributions: dict[str, Any] = {
            name: library.distributions.CategoricalDistribution(choices) for name, choices in space.variables.items()
        }

    def propose(self, seen: Collection[Schedule], generation: int, index: int) -> Schedule | None:
        """Return a schedule within the budget that is not among ``seen``; None if there is none left.

        Args:
            seen: schedules that were proposed before.
            generation: counted from 1.
            index: of the proposal in its generation; with the seed and the generation it decides every draw.
        """
        if any(EXHAUSTED in trial.user_attrs for trial in self._trials()):
            return None
        key = f"{self._seed}/{generation}/{index}"
        self._study.sampler = self._sampler(Random(key).getrandbits(32))
        trial = self._study.ask(self._distributions)
        proposed = self._space.decode(trial.params)
        schedule = self._nearest_new(self._space.repair(trial.params, self._budget, Random(key)), seen)
        if schedule == proposed:
            trial.set_user_attr(_LABEL, [str(schedule), PROPOSED, generation])
            self._asked[schedule] = trial
            return schedule
        over = self._space.cost(proposed) > self._budget
        why = "outside the space" if self._space.encode(proposed) is None else "trained before"
        trial.set_user_attr("not trained", "over the budget" if over else why)
        if schedule is None:
            trial.set_user_attr(EXHAUSTED, True)
        self._tell_pruned(trial.number)
        if schedule is not None:
            self.enter(schedule, PROPOSED, generation)
        return schedule

    def enter(self, schedule: Schedule, role: str, generation: int) -> None:
        """Enter a schedule that is trained whatever the sampler thinks of it, in one write.

        One outside the space (all-full where no layer may be full) has no place in the study.
        """
        params = self._space.encode(schedule)
        if params is None:
            return
        library = _optuna()
        self._study.add_trial(
            library.trial.create_trial(
                state=library.trial.TrialState.RUNNING,
                params=params,
                distributions=self._distributions,
                user_attrs={_LABEL: [str(schedule), role, generation]},
            )
        )

    def generations(self) -> dict[Schedule, int]:
        """Return the generation in which each schedule was entered."""
        labels = [t.user_attrs[_LABEL] for t in self._trials() if _LABEL in t.user_attrs]
        return {_schedule(text): generation for text, _, generation in labels}

    def retry(self, schedule: Schedule) -> None:
        """Enter a schedule once more whose trial failed, to be trained and told again; no more than one at a time."""
        entered = [trial for trial in self._trials() if trial.user_attrs.get(_LABEL, [None])[0] == str(schedule)]
        if entered and entered[-1].state == _optuna().trial.TrialState.FAIL:
            _, role, generation = entered[-1].user_attrs[_LABEL]
            self.enter(schedule, role, generation)

    def tell(self, record: TrialRecord) -> None:
        """Enter a record: both objectives if it is complete, pruned if it was stopped, failed if it failed."""
        optuna = _optuna()
        if record.state != "failed":
            self._seen[record.schedule] = observation(record)
        for trial in self._trials():
            if trial.user_attrs.get(_LABEL, [None])[0] == str(record.schedule) and not trial.state.is_finished():
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

    def _sampler(self, seed: int) -> optuna.samplers.BaseSampler:
        """Return the sampler that the recipe names."""
        samplers = _optuna().samplers
        name = self._search.sampler
        if name == "gain":
            from layersearch.surrogate.sampler import ScheduleSampler

            return ScheduleSampler(self._space, budget=self._budget, seed=seed, seen=self._seen)
        if name == "gp":
            # Paired seeds make the loss of a schedule at the search's seed a fixed number.
            return samplers.GPSampler(seed=seed, deterministic_objective=True)
        if name == "tpe":
            return samplers.TPESampler(seed=seed, multivariate=True, constant_liar=True)
        if name == "nsga2":
            return samplers.NSGAIISampler(seed=seed)
        assert name == "random"
        return samplers.RandomSampler(seed=seed)

    def _tell_pruned(self, number: int) -> None:
        self._study.tell(number, state=_optuna().trial.TrialState.PRUNED)

    def _nearest_new(self, start: Schedule, seen: Collection[Schedule]) -> Schedule | None:
        """Return the nearest schedule to ``start``, in changed layers, that is new and within the budget."""
        visited, frontier = {start}, deque([start])
        while frontier:
            schedule = frontier.popleft()
            if schedule not in seen and self._space.cost(schedule) <= self._budget:
                return schedule
            for neighbour in self._space.neighbors(schedule):
                if neighbour not in visited and len(visited) < _SEARCHED:
                    visited.add(neighbour)
                    frontier.append(neighbour)
        return None


@functools.cache
def _schedule(text: str) -> Schedule:
    return Schedule.parse(text)


def _taken_up(path: Path) -> optuna.Study | None:
    """Return the study of a journal without what a kill left half done; None: there is no whole journal.

    A proposal takes several writes, the last of which labels it. Where a kill came in between, its trial is left out,
    so that it is made anew from what was known before it, with the same outcome. A damaged journal is put aside: the
    search proposes anew what it held, and trains nothing again that has a record.
    """
    part = path.with_name(path.name + ".part")
    for name in (path.name, part.name):  # of a search that was killed; the run folder's own lock is ours by now
        for stale in (f"{name}.lock", f"{name}.lock.rename"):
            path.with_name(stale).unlink(missing_ok=True)
    part.unlink(missing_ok=True)
    drop_torn_line(path)
    if not path.exists() or not path.stat().st_size:
        return None
    try:
        for line in path.read_bytes().splitlines():  # Optuna passes over a bad last one, and fails at the next write
            json.loads(line)
        study: optuna.Study = _optuna().load_study(study_name=NAME, storage=_storage(path))
        trials = study.get_trials(deepcopy=False)
        labels = {trial.number: trial.user_attrs[_LABEL] for trial in trials if _LABEL in trial.user_attrs}
        for text, _, generation in labels.values():
            _schedule(text)
            generation + 1
    except (ValueError, LookupError, TypeError, AttributeError, AssertionError) as error:
        aside = path.with_name(path.name + ".damaged")
        path.replace(aside)
        _LOG.warning(
            "%s is damaged (%s) and is made anew from trials.jsonl; it is kept as %s",
            path,
            type(error).__name__,
            aside.name,
        )
        return None
    closed = max((t.number + 1 for t in trials if t.number in labels or EXHAUSTED in t.user_attrs), default=0)
    if closed == len(trials):
        return study
    rebuilt = _new(part)
    rebuilt.add_trials(trials[:closed])
    part.replace(path)
    kept: optuna.Study = _optuna().load_study(study_name=NAME, storage=_storage(path))
    return kept


def _new(path: Path) -> optuna.Study:
    study: optuna.Study = _optuna().create_study(
        study_name=NAME, storage=_storage(path), directions=["minimize", "minimize"]
    )
    return study


def _storage(path: Path) -> optuna.storages.JournalStorage:
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    return JournalStorage(JournalFileBackend(str(path)))


def _optuna() -> Any:
    """Import Optuna without its notices about experimental features that we chose knowingly."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    return optuna
