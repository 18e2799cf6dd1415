"""The Optuna study of a search, in a journal file. Optuna proposes, and the study is the search's state.

It has two objectives, validation loss and attention cost, and one categorical parameter per free layer. A proposal over
the budget is repaired before training. No schedule is trained twice. A stopped trial is told as pruned, without a loss.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import warnings
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

from layersearch.config.search import SearchConfig
from layersearch.files import LOCKS, parse_json
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
"""Marks the proposal after which nothing was left to propose."""
_LABEL = "schedule, role, generation"
"""The user attribute of every trial that is trained."""
LOSS, COST = "validation loss (nats)", "attention cost (share of all-full)"
"""The objectives. They are user attributes too: optuna-dashboard lists a trial's two values without their names."""
_CONSTRAINTS = "constraints"
"""The system attribute of a trial's constraint values: Optuna's list, which optuna-dashboard shows as well.

The dashboard (0.21) does not show what `Trial.set_constraint` writes.
"""
_MAX_VISITED = 20_000
"""Maximum number of schedules to visit for one that is new and within the budget."""


class Study:
    """An Optuna study in a journal file, which optuna-dashboard opens too.

    The budget is a constraint of each trial: its cost minus the budget, at most 0 within it.

    Args:
        path: the journal; created or reopened.
        space: the bound search space.
        budget: maximum attention cost, as a share of all-full's.
        search: names the sampler.
        seed: the sampler is seeded for each proposal, so a resumed search proposes the same schedules.
    """

    def __init__(self, path: Path, space: BoundSpace, budget: float, search: SearchConfig, seed: int) -> None:
        library = _optuna()
        self._space, self._budget, self._search, self._seed = space, budget, search, seed
        self._study: optuna.Study = _reopen(path) or _create(path)
        if self._study.metric_names is None:
            self._study.set_metric_names([LOSS, COST])
        for name, value in self._facts().items():
            if self._study.user_attrs.get(name) != value:
                self._study.set_user_attr(name, value)
        # A journal from before there were constraints stays without: samplers take all trials or none.
        self._constrained = all(_CONSTRAINTS in trial.system_attrs for trial in self._trials())
        self._open_trials: dict[Schedule, optuna.Trial] = {}
        # This process alone writes the journal, so these follow it: Optuna copies the list of all trials at each look.
        trials = self._trials()
        labeled = _labeled(trials)
        self._entered = {schedule: generation for _, schedule, generation in labeled}
        self._untold = {schedule: trial.number for trial, schedule, _ in labeled if not trial.state.is_finished()}
        self._exhausted = any(EXHAUSTED in trial.user_attrs for trial in trials)
        self._seen: dict[Schedule, Observation] = {}
        self._distributions: dict[str, Any] = {
            name: library.distributions.CategoricalDistribution(choices) for name, choices in space.variables.items()
        }

    def propose(self, seen: Collection[Schedule], generation: int, index: int) -> Schedule | None:
        """Return a schedule within the budget that is not in ``seen``; None if none is left.

        The seed, the generation (from 1) and the index of the proposal in its generation decide every draw.
        """
        if self._exhausted:
            return None
        with self._together():
            return self._propose(seen, generation, index)

    def _propose(self, seen: Collection[Schedule], generation: int, index: int) -> Schedule | None:
        key = f"{self._seed}/{generation}/{index}"
        self._study.sampler = self._sampler(Random(key).getrandbits(32))
        trial = self._study.ask(self._distributions)
        proposed = self._space.decode(trial.params)
        for name, values in self._constraints(proposed).items():
            trial.storage.set_trial_system_attr(trial._trial_id, name, values)
        schedule = self._nearest_new(self._space.repair(trial.params, self._budget, Random(key)), seen)
        if schedule == proposed:
            trial.set_user_attr(COST, self._space.cost(schedule))
            trial.set_user_attr(_LABEL, [str(schedule), PROPOSED, generation])
            self._open_trials[schedule] = trial
            self._note(schedule, generation, trial.number)
            return schedule
        over = self._space.cost(proposed) > self._budget
        why = "trained before" if self._space.holds(proposed) else "outside the space"
        trial.set_user_attr("not trained", "over the budget" if over else why)
        if schedule is None:
            trial.set_user_attr(EXHAUSTED, True)
            self._exhausted = True
        self._tell_pruned(trial.number)
        if schedule is not None:
            self.enter(schedule, PROPOSED, generation)
        return schedule

    def enter(self, schedule: Schedule, role: str, generation: int) -> None:
        """Add a schedule that the sampler did not propose, in one write; skip one outside the space.

        All-full is outside the space if no layer may be full.
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
                user_attrs={_LABEL: [str(schedule), role, generation], COST: self._space.cost(schedule)},
                system_attrs=self._constraints(schedule),
            )
        )
        self._note(schedule, generation, len(self._trials()) - 1)

    def _note(self, schedule: Schedule, generation: int, number: int) -> None:
        self._entered[schedule], self._untold[schedule] = generation, number

    def _facts(self) -> dict[str, str | float]:
        """Return what a reader of the study has to know, by names for optuna-dashboard."""
        space = self._space
        facts: dict[str, str | float] = {
            "budget (attention cost, share of all-full)": self._budget,
            "search space": f"{space.space.name}: {', '.join(space.space.choices)}",
        }
        groups = {name: group for name, group in zip(space.names, space.groups, strict=True) if name in space.variables}
        shared = [f"{name}: {', '.join(map(str, group))}" for name, group in groups.items() if len(group) > 1]
        return facts | ({"layers that share a parameter": "; ".join(shared)} if shared else {})

    def _constraints(self, schedule: Schedule) -> dict[str, list[float]]:
        """Return the system attribute that says by how much a schedule is over the budget."""
        return {_CONSTRAINTS: [self._space.cost(schedule) - self._budget]} if self._constrained else {}

    def generations(self) -> dict[Schedule, int]:
        """Return the generation of each schedule in the study."""
        return dict(self._entered)

    def _trials_of(self, schedule: Schedule) -> list[optuna.trial.FrozenTrial]:
        return [trial for trial in self._trials() if trial.user_attrs.get(_LABEL, [None])[0] == str(schedule)]

    def retry(self, schedule: Schedule) -> None:
        """Add a failed schedule again, to be trained and told again; only one such trial is open at a time."""
        entered = self._trials_of(schedule)
        if entered and entered[-1].state == _optuna().trial.TrialState.FAIL:
            _, role, generation = entered[-1].user_attrs[_LABEL]
            self.enter(schedule, role, generation)

    def tell(self, record: TrialRecord) -> None:
        """Tell a record: both objectives if it is complete, else pruned or failed."""
        if record.state != "failed":
            self._seen[record.schedule] = observation(record)
        number = self._untold.pop(record.schedule, None)
        if number is not None:  # else already told, or outside the space
            with self._together():
                self._tell(record, number)

    def _tell(self, record: TrialRecord, number: int) -> None:
        open_trial = self._open_trials.pop(record.schedule, None)
        if open_trial is not None:  # missing after a resume
            for key in ("state", "steps", "seconds", "error"):
                open_trial.set_user_attr(key, getattr(record, key))
        if record.state == "complete":
            assert record.loss is not None
            storage = self._study._storage
            trial_id = storage.get_trial_id_from_study_id_trial_number(self._study._study_id, number)
            storage.set_trial_user_attr(trial_id, LOSS, record.loss)
            self._study.tell(number, [record.loss, record.cost])
        elif record.state == "stopped":
            self._tell_pruned(number)
        else:
            self._study.tell(number, state=_optuna().trial.TrialState.FAIL)

    def _together(self) -> contextlib.AbstractContextManager[None]:
        backend: _Backend = self._study._storage._backend  # type: ignore[attr-defined]
        return backend.together()

    def _trials(self) -> list[optuna.trial.FrozenTrial]:
        return self._study.get_trials(deepcopy=False)

    def _sampler(self, seed: int) -> optuna.samplers.BaseSampler:
        """Return the recipe's sampler."""
        samplers = _optuna().samplers
        name = self._search.sampler
        if name == "gain":
            from layersearch.surrogate.sampler import ScheduleSampler

            return ScheduleSampler(self._space, budget=self._budget, seed=seed, seen=self._seen)
        if name == "gp":
            # With paired seeds, a schedule's loss at the search's seed is a constant.
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
        """Return the schedule within the budget and not in ``seen`` that changes the fewest layers of ``start``."""
        visited, frontier = {start}, deque([start])
        while frontier:
            schedule = frontier.popleft()
            if schedule not in seen and self._space.cost(schedule) <= self._budget:
                return schedule
            for neighbor in self._space.neighbors(schedule):
                if neighbor not in visited and len(visited) < _MAX_VISITED:
                    visited.add(neighbor)
                    frontier.append(neighbor)
        return None


def _labeled(trials: Iterable[optuna.trial.FrozenTrial]) -> list[tuple[optuna.trial.FrozenTrial, Schedule, int]]:
    """Return the labeled trials with schedule and generation; a damaged label raises an error of Python's own."""
    labels = [(trial, *trial.user_attrs[_LABEL]) for trial in trials if _LABEL in trial.user_attrs]
    return [(trial, Schedule.parse(text), generation + 0) for trial, text, _, generation in labels]


def _reopen(path: Path) -> optuna.Study | None:
    """Return the study of a journal without unfinished proposals; None: there is no intact journal.

    A proposal takes several writes, and the last one labels it. A kill in between leaves an unlabeled trial, which is
    dropped and proposed again with the same outcome. A damaged journal is put aside: the search then proposes its
    schedules again, and trains none that has a record.
    """
    part = path.with_name(path.name + ".part")
    for stale in path.parent.glob(LOCKS):  # of a search of an older version; this process holds the run folder
        stale.unlink(missing_ok=True)
    part.unlink(missing_ok=True)
    drop_torn_line(path)
    if not path.exists() or not path.stat().st_size:
        return None
    try:
        for line in path.read_bytes().splitlines():  # Optuna skips a bad last line, then fails to write
            parse_json(line)
        study: optuna.Study = _optuna().load_study(study_name=NAME, storage=_storage(path))
        trials = study.get_trials(deepcopy=False)
        labeled = {trial.number for trial, _, _ in _labeled(trials)}
    except (ValueError, LookupError, TypeError, AttributeError, AssertionError) as error:
        aside = path.with_name(path.name + ".damaged")
        path.replace(aside)
        kind = type(error).__name__
        _LOG.warning("%s is damaged (%s): rebuilt from trials.jsonl; the old file is %s", path, kind, aside.name)
        return None
    closed = max((t.number + 1 for t in trials if t.number in labeled or EXHAUSTED in t.user_attrs), default=0)
    if closed == len(trials):
        return study
    rebuilt = _create(part)
    rebuilt.add_trials(trials[:closed])
    part.replace(path)
    kept: optuna.Study = _optuna().load_study(study_name=NAME, storage=_storage(path))
    return kept


def _create(path: Path) -> optuna.Study:
    directions, storage = ["minimize", "minimize"], _storage(path)
    study: optuna.Study = _optuna().create_study(study_name=NAME, storage=storage, directions=directions)
    return study


class _Backend:
    """Optuna's journal file, without its lock, and with fewer waits for the disk.

    The run folder's own lock lets one process write the journal. Optuna's is a symbolic link that is renamed: where
    network storage loses the answer to a rename it raises an error, and a killed process leaves it behind.
    """

    def __init__(self, path: Path) -> None:
        from optuna.storages.journal import JournalFileBackend

        self._path, self._together, self._reader = path, False, JournalFileBackend(str(path))

    def read_logs(self, log_number_from: int) -> Iterator[dict[str, Any]]:
        return self._reader.read_logs(log_number_from)

    def append_logs(self, logs: Sequence[Mapping[str, Any]]) -> None:
        """Append lines and, unless `together`, wait until they are on the disk."""
        lines = "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs)
        with self._path.open("ab") as file:
            file.write(lines.encode())
            file.flush()
            if not self._together:
                os.fsync(file.fileno())

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Wait for the disk once, at the end: a proposal writes a line for each layer, and the last one labels it."""
        self._together = True
        try:
            yield
        finally:
            self._together = False
            self.append_logs([])


def _storage(path: Path) -> optuna.storages.JournalStorage:
    from optuna.storages import JournalStorage

    backend: Any = _Backend(path)
    return JournalStorage(backend)


def _optuna() -> Any:
    """Import Optuna without its warnings about experimental features, which we chose on purpose."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    return optuna
