"""The search's own sampler, an ordinary Optuna sampler: it proposes the schedule of the largest expected gain.

    space = load_space("laptop").bind(n_layers=6, seq_len=64, n_heads=2)
    study = optuna.create_study(directions=["minimize", "minimize"], sampler=ScheduleSampler(space, seed=0))

The study's first objective is the validation loss, its second the attention cost; its variables are
``space.variables``. A trial that was stopped early is told as pruned; its losses are learnt from all the same where its
user attribute `CURVE` holds them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from random import Random
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.trial import FrozenTrial, TrialState

from layersearch.schedule import Schedule
from layersearch.schedule.bound_space import BoundSpace
from layersearch.surrogate.acquisition import Observation, Outlook

CURVE = "losses by share of the training"
"""The user attribute that holds a trial's [share of the training, validation loss] so far."""


class ScheduleSampler(optuna.samplers.BaseSampler):
    """Proposes by expected hypervolume improvement under a Gaussian process over schedules. See `Outlook`.

    Args:
        space: the bound space whose ``variables`` the study has.
        budget: the largest cost that is proposed, as a share of the all-full schedule's.
        seed: decides between equals, and draws candidates in spaces too large to be looked at whole.
        seen: losses along the training, where they are kept elsewhere than in the trials' `CURVE`.
    """

    def __init__(
        self,
        space: BoundSpace,
        *,
        budget: float = 1.0,
        seed: int = 0,
        seen: Mapping[Schedule, Observation] | None = None,
    ) -> None:
        self._space, self._budget, self._rng, self._seen = space, budget, Random(seed), seen or {}
        self._fallback = optuna.samplers.RandomSampler(seed=seed)

    def reseed_rng(self) -> None:
        """Draw anew; Optuna calls this where several processes share a study."""
        self._rng.seed()
        self._fallback.reseed_rng()

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Return the space's variables."""
        return {name: CategoricalDistribution(choices) for name, choices in self._space.variables.items()}

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Return the variables of the schedule to be trained next; nothing, where all within the budget were."""
        trials = [t for t in study.get_trials(deepcopy=False) if t.number != trial.number and t.params]
        taken = {self._space.decode(t.params) for t in trials if t.state != TrialState.FAIL}
        schedule = self._outlook(trials).propose(taken, self._rng)
        found = None if schedule is None else self._space.encode(schedule)
        return found or {}

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Draw at random what is no variable of the space."""
        return self._fallback.sample_independent(study, trial, param_name, param_distribution)

    def _outlook(self, trials: Sequence[FrozenTrial]) -> Outlook:
        seen, pending = [], []
        for trial in trials:
            schedule = self._space.decode(trial.params)
            if trial.state == TrialState.COMPLETE or (trial.state == TrialState.PRUNED and CURVE in trial.user_attrs):
                seen.append(self._seen.get(schedule) or _observation(schedule, trial))
            elif trial.state == TrialState.PRUNED and schedule in self._seen:
                seen.append(self._seen[schedule])
            elif not trial.state.is_finished():
                pending.append(schedule)
        return Outlook(self._space, self._budget, seen, pending)


def _observation(schedule: Schedule, trial: FrozenTrial) -> Observation:
    curve = [(share, loss) for share, loss in trial.user_attrs.get(CURVE, []) if share < 1.0]
    if trial.state == TrialState.COMPLETE:
        curve.append((1.0, trial.values[0]))
    return Observation(schedule=schedule, seed=0, curve=tuple(curve))
