"""The searches that compete, each given the same table of real trainings to pay for."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Collection, Iterator, Sequence
from random import Random
from types import SimpleNamespace
from typing import Any, Protocol

import optuna
from optuna.trial import TrialState

from layersearch.results.pareto import nondominated
from layersearch.schedule import Schedule, presets
from layersearch.schedule.bound_space import BoundSpace
from layersearch.study.benchmark import load_bench
from layersearch.surrogate.acquisition import ExpectedImprovement, Observation
from layersearch.surrogate.sampler import CURVE, ScheduleSampler

BUDGETS = (0.2, 0.27, 0.5)


class Exhausted(Exception):
    """The training that a search may spend is spent."""


class Problem(Protocol):
    """Where a search may be tried: a table of real trainings, or a simulated landscape."""

    name: str
    seeds: tuple[int, ...]
    steps: tuple[int, ...]
    space: BoundSpace
    worst: float
    """The largest loss, nats."""

    def query(self, schedule: Schedule, seed: int, step: int) -> float:
        """Return a trial's loss at a step, nats."""

    def truth(self, schedule: Schedule) -> float:
        """Return the mean loss over seeds at the end, nats."""

    def cost(self, schedule: Schedule) -> float:
        """Return the cost as a share of all-full's."""

    def best(self, budget: float) -> float:
        """Return the lowest true loss within a budget, nats."""

    def hypervolume(self, found: list[Schedule]) -> float:
        """Return the true hypervolume of schedules as a share of the best."""

    @property
    def frontier(self) -> Sequence[Schedule]:
        """The true frontier, or the best known."""

    def drawn(self, rng: Random) -> Iterator[Schedule]:
        """Yield schedules drawn uniformly, none twice."""


class Table:
    """The benchmark of a name as a `Problem`."""

    def __init__(self, name: str) -> None:
        bench = load_bench(name)
        self.name, self.seeds, self.steps, self.space = name, bench.seeds, bench.steps, bench.space
        self.schedules, self.frontier = bench.schedules, bench.frontier
        self.query, self.cost, self.hypervolume = bench.query, bench.cost, bench.hypervolume
        self._truth = dict(zip(bench.schedules, bench.means.tolist(), strict=True))
        self.truth, self.worst = self._truth.__getitem__, max(self._truth.values())

    def best(self, budget: float) -> float:
        """See `Problem`."""
        return min(loss for schedule, loss in self._truth.items() if self.cost(schedule) <= budget)

    def drawn(self, rng: Random) -> Iterator[Schedule]:
        """See `Problem`."""
        order = list(self.schedules)
        rng.shuffle(order)
        return iter(order)


class Training:
    """Pays for trainings at one seed, and keeps what they have brought so far.

    A trial is paid for by the steps it was trained, as a share of a full trial's; one that was trained to the end
    before costs nothing. What a search has found at any time is the frontier of the losses it has seen of complete
    trials.
    """

    def __init__(self, bench: Problem, seed: int, limit: float) -> None:
        self.bench, self.seed, self.limit = bench, seed, limit
        self.spent = 0.0
        self.complete: dict[Schedule, float] = {}
        self.trace: list[tuple[float, ...]] = []
        self.shares = tuple(step / bench.steps[-1] for step in bench.steps)
        self.best = [bench.best(budget) for budget in BUDGETS]

    def curve(self, schedule: Schedule) -> Iterator[tuple[float, float]]:
        """Yield (share of the training, loss) at each checkpoint; who stops asking stops the trial."""
        before = 0.0
        known = schedule in self.complete
        for share, step in zip(self.shares, self.bench.steps, strict=True):
            if not known and self.spent >= self.limit:
                raise Exhausted
            self.spent += 0.0 if known else share - before
            before = share
            loss = self.bench.query(schedule, self.seed, step)
            if share == 1.0 and not known:
                self.complete[schedule] = loss
                self.note()
            yield share, loss

    def full(self, schedule: Schedule) -> float:
        """Train a schedule to its end."""
        return [loss for _, loss in self.curve(schedule)][-1]

    def note(self) -> None:
        """Keep the share of the true hypervolume that is found, and the true regret at each budget."""
        bench, found = self.bench, list(self.complete)
        points = [(self.complete[s], bench.cost(s)) for s in found]
        front = [found[at] for at in nondominated(points)]
        regrets = []
        for budget, best in zip(BUDGETS, self.best, strict=True):
            within = [s for s in found if bench.cost(s) <= budget]
            chosen = min(within, key=self.complete.__getitem__, default=None)
            regrets.append((bench.worst if chosen is None else bench.truth(chosen)) - best)
        row = (round(self.spent, 3), round(bench.hypervolume(front), 5), *(round(regret, 5) for regret in regrets))
        if not self.trace or self.trace[-1][1:] != row[1:]:
            self.trace.append(row)


def anchors(bench: Problem) -> list[Schedule]:
    """Return what `layersearch run` always trains: all-full, all-sparse, and the placements at each budget."""
    named = [bench.space.named_baselines(budget) for budget in BUDGETS]
    return list(dict.fromkeys(itertools.chain.from_iterable(part.values() for part in named)))


def random(training: Training, seed: int, first: list[Schedule]) -> None:
    """Schedules drawn uniformly, none twice."""
    for schedule in _shuffled(training, seed, first):
        training.full(schedule)


def grid(training: Training, seed: int, first: list[Schedule]) -> None:
    """Every placement of every number of full layers, with either sparse span, in random order."""
    layers = training.bench.space.n_layers
    places: list[Callable[[int, int, str], Schedule]] = [
        presets.bottom,
        presets.top,
        presets.middle,
        presets.interleaved,
    ]
    spans = [text for text in training.bench.space.space.choices if text != "full"]
    cells = [place(layers, l, span) for l in range(1, layers) for place in places for span in spans]  # noqa: E741
    cells += [presets.all_sparse(layers, span) for span in spans] + [presets.all_full(layers)]
    cells = [cell for cell in dict.fromkeys(cells) if training.bench.space.encode(cell) is not None]
    Random(seed).shuffle(cells)
    for schedule in [*first, *cells]:
        training.full(schedule)


def greedy(training: Training, seed: int, first: list[Schedule]) -> None:
    """From all-sparse, the layers whose restoration to full lowers the loss most are restored, one after the other.

    Layers that share a choice are restored together.
    """
    space, full = training.bench.space, presets.FULL
    span = space.baseline_span
    assert span is not None
    for schedule in first:
        training.full(schedule)
    now = [span] * len(space.groups)
    training.full(space.schedule(now))
    while any(layer != full for layer in now):
        steps = [[*now[:at], full, *now[at + 1 :]] for at, layer in enumerate(now) if layer != full]
        Random(seed).shuffle(steps)
        now = min(steps, key=lambda step: training.full(space.schedule(step)))


def _optuna(sampler: Callable[[int], optuna.samplers.BaseSampler]) -> Callable[[Training, int, list[Schedule]], None]:
    def search(training: Training, seed: int, first: list[Schedule]) -> None:
        space = training.bench.space
        study = optuna.create_study(directions=["minimize", "minimize"], sampler=sampler(seed))
        for schedule in first:
            study.enqueue_trial(space.encode(schedule))
        for _ in range(20 * space.size):  # proposals that were trained before cost nothing
            trial = study.ask()
            schedule = space.decode({n: trial.suggest_categorical(n, c) for n, c in space.variables.items()})
            study.tell(trial, [training.full(schedule), training.bench.cost(schedule)])
            if len(training.complete) == space.size:
                return

    return search


def ray_asha(training: Training, seed: int, first: list[Schedule]) -> None:
    """Ray Tune's asynchronous halving on the loss, over random schedules; its own scheduler, fed by the table."""
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"
    from ray.tune.schedulers import AsyncHyperBandScheduler, TrialScheduler

    scheduler = AsyncHyperBandScheduler(max_t=len(training.shares), grace_period=1, reduction_factor=2)
    scheduler.set_search_properties("loss", "min")
    for number, schedule in enumerate(_shuffled(training, seed, first)):
        trial = SimpleNamespace(trial_id=str(number))
        scheduler.on_trial_add(None, trial)
        for at, (_, loss) in enumerate(training.curve(schedule), start=1):
            result = {"training_iteration": at, "loss": loss}
            if scheduler.on_trial_result(None, trial, result) == TrialScheduler.STOP:
                break


def mo_asha(training: Training, seed: int, first: list[Schedule]) -> None:
    """Syne Tune's multi-objective asynchronous halving over random schedules; its own scheduler, fed by the table."""
    from syne_tune.backend.trial_status import Trial
    from syne_tune.optimizer.scheduler import SchedulerDecision
    from syne_tune.optimizer.schedulers.multiobjective.moasha import MOASHA

    scheduler = MOASHA(
        config_space={},
        metrics=["loss", "cost"],
        time_attr="step",
        max_t=len(training.shares),
        grace_period=1,
        reduction_factor=2,
        random_seed=seed,
    )
    for number, schedule in enumerate(_shuffled(training, seed, first)):
        trial: Any = Trial(trial_id=number, config={}, creation_time=None)
        scheduler.on_trial_add(trial)
        for at, (_, loss) in enumerate(training.curve(schedule), start=1):
            result = {"step": at, "loss": loss, "cost": training.bench.cost(schedule)}
            if scheduler.on_trial_result(trial, result) == SchedulerDecision.STOP:
                break


def _shuffled(training: Training, seed: int, first: list[Schedule]) -> Iterator[Schedule]:
    yield from first
    yield from (schedule for schedule in training.bench.drawn(Random(seed)) if schedule not in first)


def ours(
    training: Training,
    seed: int,
    first: list[Schedule],
    rungs: tuple[float, ...] = (0.625,),
    kept: Collection[Schedule] = (),
) -> None:
    """The project's sampler, and its rule for stopping a trial but those ``kept``, on an ordinary Optuna study."""
    space = training.bench.space
    study = optuna.create_study(directions=["minimize", "minimize"], sampler=ScheduleSampler(space, seed=seed))
    for schedule in first:
        study.enqueue_trial(space.encode(schedule))
    seen: list[Observation] = []
    while True:
        trial = study.ask()
        schedule = space.decode({n: trial.suggest_categorical(n, c) for n, c in space.variables.items()})
        acquisition = ExpectedImprovement(space, 1.0, seen) if rungs and schedule not in kept else None
        taken = {o.schedule for o in seen} | {schedule}
        fresh = acquisition.best_improvement(taken, Random(seed)) if acquisition else 0.0
        curve: list[tuple[float, float]] = []
        for share, loss in training.curve(schedule):
            if share in rungs or share == 1.0:
                curve.append((share, loss))
            if acquisition and share in rungs and not acquisition.keep_going(schedule, 0, curve, fresh):
                break
        seen.append(Observation(schedule=schedule, seed=0, curve=tuple(curve)))
        trial.set_user_attr(CURVE, curve)
        if curve[-1][0] == 1.0:
            study.tell(trial, [curve[-1][1], training.bench.cost(schedule)])
        else:
            study.tell(trial, state=TrialState.PRUNED)


def as_run(training: Training, seed: int, first: list[Schedule]) -> None:
    """As `ours`, but the anchors are trained to their end, as `layersearch run` does with its baselines."""
    ours(training, seed, first, kept=set(first))


METHODS: dict[str, Callable[[Training, int, list[Schedule]], None]] = {
    "random": random,
    "grid of presets": grid,
    "greedy restore-one-layer": greedy,
    "NSGA-II": _optuna(lambda seed: optuna.samplers.NSGAIISampler(seed=seed, population_size=16)),
    "NSGA-III": _optuna(lambda seed: optuna.samplers.NSGAIIISampler(seed=seed, population_size=16)),
    "TPE": _optuna(lambda seed: optuna.samplers.TPESampler(seed=seed, multivariate=True)),
    "GP": _optuna(lambda seed: optuna.samplers.GPSampler(seed=seed, deterministic_objective=True)),
    "ASHA (Ray Tune)": ray_asha,
    "MO-ASHA (Syne Tune)": mo_asha,
    "layersearch": ours,
}
WITHOUT_ANCHORS = {"grid of presets"}
"""Methods that are not run with the anchor schedules trained first: they hold most of them."""
