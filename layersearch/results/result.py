"""The types of a run's result; ``frontier.json`` holds them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from layersearch.results.stats import Interval, RankAgreement
from layersearch.training.record import State


class Strict:
    """What is read back from a file has these keys and no others."""

    __pydantic_config__ = {"extra": "forbid", "allow_inf_nan": False}


VERSION = 2
PROPOSED = "proposed"
ALL_FULL = "all_full"
_STATES: tuple[State, ...] = ("complete", "stopped", "failed")


@dataclass(frozen=True, kw_only=True)
class Entry(Strict):
    """One distinct schedule and everything that was measured on it."""

    schedule: str
    """Text form."""
    names: tuple[str, ...]
    """Names of the baselines that this schedule is; empty for one that the search proposed."""
    n_full: int
    """The number l of full-attention layers."""
    cost: float
    """Attention FLOPs over those of all-full."""
    flops: int
    state: State | None
    """How its trial in the search ended; None if there was none."""
    steps: int
    """Steps of that trial."""
    full_steps: int
    """Steps of a full trial."""
    search_loss: float | None
    """Loss of the complete trial at the search's seed, nats; None if it did not complete."""
    last_loss: float | None
    """Loss where the trial ended, complete or not, nats: not comparable between different numbers of steps."""
    confirm: tuple[tuple[int, float], ...]
    """(seed, loss) on the fresh seeds, nats."""
    failed_seeds: tuple[int, ...]
    """Fresh seeds on which it failed."""
    mean: Interval | None
    """Mean of the confirmed losses: over the seeds that all candidates share where it has them, else over its own."""
    metrics: tuple[tuple[str, float], ...]
    """The data source's own measures by name: their means over the seeds of ``mean``, else of the complete search."""
    loss_by_position: tuple[float, ...]
    """Validation loss in bins of token position, nats, of the same trials as ``metrics``."""
    position_edges: tuple[int, ...]
    """Right edges of those bins, in tokens."""
    within_budget: bool
    on_frontier: bool

    @property
    def label(self) -> str:
        """Return the baseline's name, or the schedule."""
        return self.names[0] if self.names else self.schedule

    @property
    def loss(self) -> float | None:
        """Return the best estimate there is: the confirmed mean, else the loss in the search, nats."""
        return self.search_loss if self.mean is None else self.mean.mean


@dataclass(frozen=True, kw_only=True)
class Comparison(Strict):
    """The winner against one reference, seed by seed; negative differences favour the winner."""

    reference: str
    """Name of the baseline."""
    schedule: str
    """Its text form."""
    difference: Interval
    """Winner minus reference, in nats."""
    corrected: Interval
    """The same with the interval corrected for the choice of the winner (Bonferroni)."""
    comparisons: int
    """Number of schedules that could have been picked and compared."""
    seeds_needed: int | None
    """Seeds that would show a difference of this size; None where it is shown, zero, or its spread is unknown."""
    verdict: str


@dataclass(frozen=True, kw_only=True)
class Winner(Strict):
    """The schedule to take, and why."""

    schedule: str
    leader: str
    """The schedule of the lowest confirmed mean within the budget."""
    to_leader: Interval | None
    """Winner minus leader, in nats; None if they are the same."""
    candidates: int
    """Schedules within the budget that were confirmed on the same seeds."""
    not_separated: int
    """How many of them, the leader included, are not significantly more than the tolerance above the leader."""
    tolerance: float
    """Nats above the lowest loss that are worth a cheaper schedule."""
    seeds: tuple[int, ...]
    """The seeds that all candidates share."""
    to_all_full: Comparison | None
    to_best_baseline: Comparison | None


@dataclass(frozen=True, kw_only=True)
class PerL(Strict):
    """What the schedules of one number of full layers reached."""

    n_full: int
    trained: int
    """Complete trials in the search; the best of many is low by luck too."""
    search_schedule: str | None
    search_loss: float | None
    """Best loss in the search, nats."""
    search_worst: float | None
    """Worst loss of a complete trial, nats."""
    confirmed_schedule: str | None
    """The schedule of the lowest confirmed mean."""
    confirmed: Interval | None


@dataclass(frozen=True, kw_only=True)
class Result(Strict):
    """Everything that a run lets its user believe; ``frontier.json`` holds it."""

    budget: float
    """Largest cost allowed, as a ratio to all-full."""
    confidence: float
    entries: tuple[Entry, ...]
    """Cheapest first."""
    frontier: tuple[str, ...]
    """Schedules that no other beats in loss and cost, cheapest first."""
    frontier_of: str
    """``confirm``: of the confirmed means (as soon as two schedules have them); ``search``: of the search's losses."""
    search_frontier: tuple[str, ...]
    """The same of the search's losses alone, on its one seed."""
    hypervolume: float | None
    """Of the search's complete trials, in nats times cost; None without a baseline to refer to."""
    hypervolume_reference: tuple[float, float] | None
    """(loss, cost): the worst complete baseline's loss in the search, and all-full's cost."""
    winner: Winner | None
    """None before a schedule within the budget is confirmed."""
    best_searched: str | None
    """The lowest loss in the search within the budget: a proposal, not a finding."""
    noise: Noise
    signal: Signal
    best_per_l: tuple[PerL, ...]
    trust: tuple[Fidelity, ...]
    failed: int
    """Trials that failed and were not made good by a later one."""
    verdict: str

    def entry(self, schedule: str) -> Entry:
        """Return the entry of one schedule by its text form."""
        return next(entry for entry in self.entries if entry.schedule == schedule)

    def to_dict(self) -> dict[str, Any]:
        """Return what ``frontier.json`` holds."""
        return {"version": VERSION, **dataclasses.asdict(self)}


@dataclass(frozen=True, kw_only=True)
class Spread(Strict):
    """The highest loss of some schedules less the lowest."""

    schedules: tuple[str, ...]
    """Text forms, lowest loss first."""
    nats: float
    seed_stds: float | None
    """The same in standard deviations of one schedule's loss over seeds; None if that is unknown or zero."""
    noise_nats: float | None
    """What it would be on average if the seed alone set them apart; None where no noise could be measured."""
    noise_chance: float | None
    """How often the seed alone would spread them at least as far, in [0, 1]: the studentized range's tail, if the noise
    of all schedules is as wide."""


@dataclass(frozen=True, kw_only=True)
class Signal(Strict):
    """How far schedules lie apart, from the means over the fresh seeds that they share."""

    seeds: tuple[int, ...]
    """Those seeds; empty before two schedules are confirmed: the losses are then the search's, on its one seed."""
    seed_std: float | None
    """Of one schedule's loss over seeds, pooled over the schedules that are compared, nats."""
    placements: Spread | None
    """The largest set of schedules of equal cost with equally many full layers (of equals, the most expensive)."""
    n_full: int | None
    """Full layers of each of those."""
    cost: float | None
    """Attention FLOPs of each of those, over all-full's."""
    sparse_and_full: Spread | None
    """all_sparse and all_full."""
    within_budget: Spread | None
    """Every schedule that costs at most the budget."""


@dataclass(frozen=True, kw_only=True)
class Noise(Strict):
    """What the seed alone does to a loss, from the confirmed schedules; all in nats."""

    schedules: int
    """Schedules trained on two fresh seeds or more."""
    seeds: int
    """Fresh seeds that the candidates share."""
    seed_std: float | None
    """Standard deviation over seeds within a schedule, pooled."""
    seed_std_range: tuple[float, float] | None
    """Smallest and largest of the schedules' own: far apart, the pooled one describes neither."""
    paired_std: float | None
    """Standard deviation over seeds of the difference of two schedules, pooled over pairs."""
    floor: float | None
    """Differences of two schedules under this are not significant on that many seeds (one comparison)."""
    resolvable: float | None
    """The smallest true difference that this number of seeds finds four times in five."""
    seeds_for: tuple[tuple[float, int], ...]
    """(true difference in nats, seeds that find it four times in five): `resolvable`, and smaller round ones."""


@dataclass(frozen=True, kw_only=True)
class Fidelity(Strict):
    """How well a cheap measure ranks schedules as the full one does."""

    name: str
    against: str
    stopped: int
    """Trials that the search ended on this measure's word."""
    agreement: RankAgreement | None
    """Over trials that have both; only survivors do, which lowers a correlation. None with fewer than four."""


def known(value: float | None) -> float:
    assert value is not None
    return value
