"""Searches of other packages for categories, and steepest local search, each under a budget at a time.

These minimize one number. The cost of a schedule is known before training, so they minimize the loss among schedules
within a budget, and take the budgets of `LEVELS` in turn. Every search of a level learns every loss that was paid for
and lies within its level. A frontier is what they find together.

Needs:  pip install smac==2.4.1
        for Casmopolitan and BOCS a checkout of github.com/huawei-noah/HEBO at commit ee6112d, its folder MCBO named by
        the environment variable MCBO, and: pip install "pandas<3" pymoo==0.6.0 gpytorch==1.6.0 disjoint_set==0.9.0
"""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from itertools import islice
from random import Random
from typing import Any, Protocol

from methods import BUDGETS, Training

from layersearch.schedule import Schedule

LEVELS = (*BUDGETS, 1.0)
"""Budgets, shares of all-full's cost."""
FIRST = 5
"""Random schedules to begin with where no anchors are given."""
MANY = 10_000
"""Random schedules to look for one within a level."""
TRIES = 2
"""Schedules within a level that were trained before, after which the level's turn passes."""


FEW = 0.02
"""Share of all schedules below which a level is searched at random for MCBO, whose draws take minutes to hit it."""


class Level(Protocol):
    """The search of one level."""

    def propose(self) -> Schedule | None:
        """Return a schedule within the level; None if it has none."""

    def learn(self, schedule: Schedule, loss: float) -> None:
        """Learn the loss of a schedule within the level, nats."""


def levels(make: Callable[[Training, float, int], Level]) -> Callable[[Training, int, list[Schedule]], None]:
    """Return the search that takes the levels in turn."""

    def search(training: Training, seed: int, first: list[Schedule]) -> None:
        bench, rng = training.bench, Random(seed)
        open_ = [level for level in LEVELS if level > bench.cost(bench.space.cheapest())]
        searches = [make(training, level, seed) for level in open_]

        def train(schedule: Schedule) -> None:
            known = schedule in training.complete
            loss = training.full(schedule)
            for level, each in zip(open_, searches, strict=True):
                if not known and bench.cost(schedule) <= level:
                    each.learn(schedule, loss)

        for schedule in first or islice(bench.drawn(rng), FIRST):
            train(schedule)
        while len(training.complete) < bench.space.size:
            for level, each in zip(open_, searches, strict=True):
                proposed = (each.propose() for _ in range(TRIES))
                fresh = next((s for s in proposed if s is not None and s not in training.complete), None)
                if fresh is None:  # the search says nothing new: go on at random
                    left = islice(bench.drawn(rng), MANY)
                    fresh = next((s for s in left if s not in training.complete and bench.cost(s) <= level), None)
                if fresh is not None:
                    train(fresh)

    return search


def log_scaled(losses: Any) -> Any:
    """Return the logarithms that SMAC's `RunHistoryLogScaledEncoder` makes of losses, (n,) -> (n,)."""
    import numpy as np

    low = 2 * losses.min() - np.percentile(losses, 5) - 1e-10
    return np.log((losses - low) / max(losses.max() - low, 1e-10))


class Smac:
    """SMAC3: a random forest on log losses, expected improvement, SMAC's own local and random search of candidates.

    The parts and their defaults are those of its `HyperparameterOptimizationFacade`, one schedule in five at random
    included. Of its challengers, the first within the level is taken.
    """

    def __init__(self, training: Training, level: float, seed: int) -> None:
        logging.getLogger("smac").setLevel(logging.ERROR)
        from ConfigSpace import CategoricalHyperparameter, ConfigurationSpace
        from smac import HyperparameterOptimizationFacade as Facade
        from smac import Scenario

        self.training, self.level, self.space = training, level, training.bench.space
        self.configurations = ConfigurationSpace(seed=seed)
        self.configurations.add(
            *(CategoricalHyperparameter(name, list(choices)) for name, choices in self.space.variables.items())
        )
        scenario = Scenario(self.configurations, seed=seed, output_directory=None)  # type: ignore[arg-type]
        self.model, self.acquisition = Facade.get_model(scenario), Facade.get_acquisition_function(scenario)
        self.maximizer = Facade.get_acquisition_maximizer(scenario)
        self.maximizer.acquisition_function = self.acquisition
        self.at_random = Facade.get_random_design(scenario)
        self.seen: dict[Any, float] = {}
        self.queue: Iterator[Any] = iter(())
        self.stale = True

    def learn(self, schedule: Schedule, loss: float) -> None:
        """See `Level`."""
        from ConfigSpace import Configuration

        self.seen[Configuration(self.configurations, values=self.space.encode(schedule))] = loss
        self.stale = True

    def propose(self) -> Schedule | None:
        """See `Level`."""
        import joblib
        import numpy as np

        if not self.seen:
            return None
        if self.stale:
            x = np.array([configuration.get_array() for configuration in self.seen])
            losses = log_scaled(np.array(list(self.seen.values())))
            with joblib.parallel_config(backend="sequential"):  # its threads wait for each other
                self.model.train(x, losses[:, None])
                best = int(losses.argmin())
                self.acquisition.update(
                    model=self.model, eta=losses[best], incumbent_array=x[best], num_data=len(x), X=x
                )
                self.queue = iter(self.maximizer.maximize(list(self.seen), random_design=self.at_random))
            self.stale = False
        for configuration in self.queue:
            schedule = self.space.decode(dict(configuration))
            if self.training.bench.cost(schedule) <= self.level and schedule not in self.training.complete:
                return schedule
        return None


class Mcbo:
    """An algorithm of MCBO under the level's budget as its input constraint.

    Args:
        algorithm: its name in MCBO's ``BO_ALGOS``.
        training: what pays.
        level: the budget.
        seed: of torch's and NumPy's global generators, which MCBO uses.
    """

    def __init__(self, algorithm: str, training: Training, level: float, seed: int) -> None:
        folder = os.environ.get("MCBO")
        assert folder, "set MCBO to the folder MCBO of a checkout of github.com/huawei-noah/HEBO"
        if folder not in sys.path:
            sys.path.append(folder)
        warnings.simplefilter("ignore")
        import numpy as np
        import torch
        from mcbo.optimizers.bo_builder import BO_ALGOS
        from mcbo.search_space import SearchSpace

        torch.manual_seed(seed)
        np.random.seed(seed)
        self.training, self.level, self.space = training, level, training.bench.space
        names = self.space.variables
        variables = [{"name": n, "type": "nominal", "categories": list(c)} for n, c in names.items()]
        self.names = list(names)
        self.built = False
        self.search = BO_ALGOS[algorithm].build_bo(
            search_space=SearchSpace(variables, dtype=torch.float64),
            n_init=FIRST,
            input_constraints=[self._within],
            dtype=torch.float64,
            device=torch.device("cpu"),
        )
        self.built = True
        draws = [training.bench.cost(self.space.sample(Random(at))) <= level for at in range(1000)]
        self.few = sum(draws) < FEW * len(draws)
        self.search.x_init = self.search.x_init[:0]  # all levels have begun with the same schedules
        self.own: Schedule | None = None

    def _within(self, values: dict[str, Any]) -> bool:
        if not self.built:  # the random schedules of its own beginning, which are not used
            return True
        chosen = {name: str(values[name]) for name in self.names}
        return self.training.bench.cost(self.space.decode(chosen)) <= self.level

    def learn(self, schedule: Schedule, loss: float) -> None:
        """See `Level`. Only its own proposals change the trust region's size."""
        import numpy as np
        import pandas as pd

        encoded = self.space.encode(schedule)
        assert encoded is not None
        table, losses = pd.DataFrame([encoded])[self.names], np.array([[loss]])
        if schedule == self.own:
            self.search.observe(table, losses)
        else:
            self.search.initialize(table, losses)
            if self.search.tr_manager is not None:
                self.search.tr_manager.adjust_tr_center()

    def propose(self) -> Schedule | None:
        """See `Level`. None too where nothing within the level is known, or its own draws find nothing there."""
        if self.few or not len(self.search.data_buffer):
            return None
        try:
            found = self.search.suggest(1).iloc[0]
        except RuntimeError as error:
            if "Could not find valid points" not in str(error):
                raise
            return None
        self.own = self.space.decode({name: str(found[name]) for name in self.names})
        return self.own


class Steepest:
    """Steepest local search: all schedules that differ in one variable are trained, then the best of them is next.

    At a local optimum it starts again from the best schedule that it has not started from, else at random.
    """

    def __init__(self, training: Training, level: float, seed: int) -> None:
        self.training, self.level, self.rng = training, level, Random(f"{seed}/{level}")
        self.proposals = self._walk()

    def learn(self, schedule: Schedule, loss: float) -> None:
        """See `Level`; the losses are kept by `Training`."""

    def propose(self) -> Schedule | None:
        """See `Level`."""
        return next(self.proposals, None)

    def _inside(self, schedule: Schedule) -> bool:
        return self.training.bench.cost(schedule) <= self.level

    def _walk(self) -> Iterator[Schedule]:
        bench, known = self.training.bench, self.training.complete
        begun: set[Schedule] = set()
        while len(begun) < bench.space.size:
            trained = [s for s in known if self._inside(s) and s not in begun and bench.space.encode(s) is not None]
            if trained:
                now = min(trained, key=known.__getitem__)
            else:
                left = islice(bench.drawn(self.rng), MANY)
                now = next((s for s in left if s not in begun and self._inside(s)), None)
                if now is None:
                    return
                yield now
            while now not in begun:
                begun.add(now)
                near = [s for s in bench.space.neighbors(now) if self._inside(s)]
                self.rng.shuffle(near)
                for schedule in near:
                    if schedule not in known:
                        yield schedule
                now = min([now, *near], key=known.__getitem__)


def casmopolitan(training: Training, level: float, seed: int) -> Level:
    """Return Casmopolitan: a trust region, a GP with the transformed overlap kernel (2102.07188)."""
    return Mcbo("Casmopolitan", training, level, seed)


def bocs(training: Training, level: float, seed: int) -> Level:
    """Return BOCS: pairwise Bayesian linear regression, horseshoe prior, Thompson sampling (1806.08838)."""
    return Mcbo("BOCS", training, level, seed)


RIVALS: dict[str, Callable[[Training, int, list[Schedule]], None]] = {
    "steepest local search": levels(Steepest),
    "SMAC3": levels(Smac),
    "Casmopolitan (MCBO)": levels(casmopolitan),
    "BOCS (MCBO)": levels(bocs),
}
