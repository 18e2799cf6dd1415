"""The search's own sampler, an Optuna sampler: it proposes the schedule of the largest expected improvement.

The study's first objective is the validation loss, its second the attention cost; its variables are
``space.variables``. A stopped trial is told as pruned. Its losses are used if its user attribute `CURVE` holds them.
"""

from collections.abc import Mapping, Sequence
from random import Random
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.trial import FrozenTrial, TrialState

from layersearch.schedule import Schedule
from layersearch.schedule.bound_space import BoundSpace
from layersearch.surrogate.acquisition import ExpectedImprovement, Observation

CURVE = "losses by share of the training"  # user attribute: a trial's [share of the training, loss] pairs


class ScheduleSampler(optuna.samplers.BaseSampler):
    """Proposes by expected hypervolume improvement under a Gaussian process over schedules. See `ExpectedImprovement`.

    Args:
        space: the bound space whose ``variables`` the study has.
        budget: largest cost to propose, as a ratio to all-full.
        seed: of random candidates and ties.
        seen: losses along the training, if they are kept outside the trials' `CURVE`.

    Example:
        >>> import optuna
        >>> from optuna.distributions import CategoricalDistribution
        >>> from layersearch import BoundSpace, ScheduleSampler, load_space
        >>> space = BoundSpace(load_space("laptop"), n_layers=6, seq_len=64, n_heads=2)
        >>> study = optuna.create_study(directions=["minimize", "minimize"], sampler=ScheduleSampler(space, seed=0))
        >>> trial = study.ask({name: CategoricalDistribution(choices) for name, choices in space.variables.items()})
        >>> len(space.decode(trial.params))
        6
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
        """Reseed; Optuna calls this if several processes share a study."""
        self._rng.seed()
        self._fallback.reseed_rng()

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Return the space's variables."""
        return {name: CategoricalDistribution(choices) for name, choices in self._space.variables.items()}

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Return the variables of the next schedule; empty if all schedules within the budget were trained."""
        trials = [t for t in study.get_trials(deepcopy=False) if t.number != trial.number and t.params]
        known = [(t, self._space.decode(t.params)) for t in trials]
        taken = {schedule for t, schedule in known if t.state != TrialState.FAIL}
        schedule = self._acquisition(known).propose(taken, self._rng)
        return (schedule and self._space.encode(schedule)) or {}

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Sample a parameter that is no variable of the space at random."""
        return self._fallback.sample_independent(study, trial, param_name, param_distribution)

    def _acquisition(self, trials: Sequence[tuple[FrozenTrial, Schedule]]) -> ExpectedImprovement:
        seen, pending = [], []
        for trial, schedule in trials:
            if trial.state == TrialState.COMPLETE or (trial.state == TrialState.PRUNED and CURVE in trial.user_attrs):
                seen.append(self._seen.get(schedule) or _observation(schedule, trial))
            elif trial.state == TrialState.PRUNED and schedule in self._seen:
                seen.append(self._seen[schedule])
            elif not trial.state.is_finished():
                pending.append(schedule)
        return ExpectedImprovement(self._space, self._budget, seen, pending)


def _observation(schedule: Schedule, trial: FrozenTrial) -> Observation:
    curve = [(share, loss) for share, loss in trial.user_attrs.get(CURVE, []) if share < 1.0]
    if trial.state == TrialState.COMPLETE:
        curve.append((1.0, trial.values[0]))
    return Observation(schedule=schedule, seed=0, curve=tuple(curve))
