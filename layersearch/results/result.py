"""The types of a run's result; ``frontier.json`` holds them."""

from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from layersearch.results.stats import Interval, RankCorrelation
from layersearch.schedule import Schedule
from layersearch.schedule.files import plain
from layersearch.training.record import State

VERSION = 2
PROPOSED = "proposed"
ALL_FULL = "all_full"

T = TypeVar("T")
Unit = Literal["seed", "document"]


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One distinct schedule and everything that was measured on it."""

    schedule: Schedule
    names: tuple[str, ...]
    """Names of the baselines that this schedule is; empty if the search proposed it."""
    n_full: int
    """Number l of full-attention layers."""
    cost: float
    """Attention FLOPs divided by those of all-full."""
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
    """Loss where the trial ended, nats. Losses at different numbers of steps are not comparable."""
    confirm: tuple[tuple[int, float], ...]
    """(seed, loss) on the fresh seeds, nats."""
    failed_seeds: tuple[int, ...]
    """Fresh seeds on which its training failed."""
    unlearned_seeds: tuple[int, ...]
    """Fresh seeds at which it may have failed to learn: its loss there is far above its lowest."""
    mean: Interval | None
    """Mean confirmed loss: over the seeds that all candidates share if it has them, else over its own seeds. The
    interval of the winner, and of the schedule with the lowest loss, allows for their choice; others hold alone."""
    metrics: tuple[tuple[str, float], ...]
    """Mean of each metric of the data source, over the seeds of ``mean``, else of the complete search trial."""
    loss_by_position: tuple[float, ...]
    """Validation loss in bins of token position, nats, of the same trials as ``metrics``."""
    position_edges: tuple[int, ...]
    """Right edges of those bins, in tokens."""
    within_budget: bool
    on_frontier: bool

    @property
    def label(self) -> str:
        """The baseline's name, or the schedule."""
        return self.names[0] if self.names else str(self.schedule)

    @property
    def loss(self) -> float | None:
        """The best estimate, nats: the confirmed mean, else the loss in the search."""
        return self.search_loss if self.mean is None else self.mean.mean


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The winner against one reference, paired by seed; negative differences favor the winner."""

    reference: str
    """Name of the baseline."""
    schedule: Schedule
    difference: Interval
    """Winner minus reference, nats."""
    corrected: Interval
    """The same, with an interval that allows for the choice of the winner (`layersearch.results.chosen`)."""
    comparisons: int
    """Number of schedules that could have been picked and compared."""
    seeds_needed: int | None
    """Seeds at which the corrected test would detect a true difference of this size with a probability of 80%; None if
    it is shown or zero, or its spread is unknown."""
    verdict: str


@dataclass(frozen=True, kw_only=True)
class Winner:
    """The recommended schedule and the evidence for it."""

    schedule: Schedule
    leader: Schedule
    """Schedule with the lowest confirmed mean within the budget."""
    to_leader: Interval | None
    """Winner minus leader, nats; None if they are the same."""
    candidates: int
    """Number of schedules within the budget that were confirmed on the same seeds, in the first round if two."""
    not_separated: int
    """Number of candidates not significantly more than the tolerance above the leader, the leader included."""
    non_inferior: int
    """Number of candidates shown to lie within the tolerance of the leader, the leader included."""
    set_aside: int
    """Number of candidates that a first round of confirmation left out of the second."""
    failed_seeds: int
    """Number of fresh seeds at which the winner may have failed to learn: its loss there is far above its lowest."""
    failure_bound: float | None
    """Upper 95% bound on the share of seeds at which it fails to learn; None for held-out documents."""
    tolerance: float
    """Loss above the lowest, in nats, within which a cheaper schedule must be shown to lie to win."""
    seeds: tuple[int, ...]
    """Seeds that all candidates share, those that were set aside excepted."""
    to_all_full: Comparison | None
    to_best_baseline: Comparison | None


@dataclass(frozen=True, kw_only=True)
class BestPerL:
    """The best schedules with one number of full layers."""

    n_full: int
    trained: int
    """Number of complete trials in the search. The best of many is partly luck."""
    search_schedule: Schedule | None
    search_loss: float | None
    """Best loss in the search, nats."""
    search_worst: float | None
    """Worst loss of a complete trial, nats."""
    confirmed_schedule: Schedule | None
    """Schedule with the lowest confirmed mean."""
    confirmed: Interval | None


@dataclass(frozen=True, kw_only=True)
class Spread:
    """The highest loss of several schedules minus the lowest."""

    schedules: tuple[Schedule, ...]
    """Lowest loss first."""
    nats: float
    seed_stds: float | None
    """The spread in standard deviations of one schedule's loss over seeds; None if that is unknown or zero."""
    noise_nats: float | None
    """Mean spread from seed noise alone, by these schedules' own noise; None if that is unknown."""
    noise_chance: float | None
    """Smallest p value of the paired t tests of all pairs, times their number (Bonferroni), at most 1. It holds for
    schedules of unequal noise. None if the schedules share fewer than three seeds."""


@dataclass(frozen=True, kw_only=True)
class Signal:
    """Spreads of the mean losses over the fresh seeds that schedules share."""

    seeds: tuple[int, ...]
    """Those seeds; empty before two schedules are confirmed. Losses are then those of the search's one seed."""
    seed_std: float | None
    """Standard deviation over seeds of one schedule's loss, pooled over schedules, nats."""
    placements: Spread | None
    """The largest set of schedules of equal cost and equal ``n_full``; among equals, the most expensive."""
    n_full: int | None
    """Number of full layers in each of those."""
    cost: float | None
    """Attention FLOPs of each of those, divided by those of all-full."""
    sparse_and_full: Spread | None
    """all_sparse and all_full."""
    within_budget: Spread | None
    """Every schedule within the budget."""


@dataclass(frozen=True, kw_only=True)
class Noise:
    """The effect of the seed alone on a loss, from the confirmed schedules; all in nats."""

    schedules: int
    """Number of schedules trained on two fresh seeds or more."""
    seeds: int
    """Number of fresh seeds that the candidates share."""
    seed_std: float | None
    """Standard deviation over seeds within a schedule, pooled."""
    seed_std_range: tuple[float, float] | None
    """Smallest and largest standard deviation of one schedule. If they are far apart, the pooled one fits neither."""
    paired_std: float | None
    """Standard deviation over seeds of the difference of two schedules, pooled over pairs."""
    floor: float | None
    """Smaller differences of two schedules of average noise are not significant on that many seeds (one comparison)."""
    floor_range: tuple[float, float] | None
    """The same for the quietest and for the noisiest pair of schedules."""
    resolvable: float | None
    """Smallest true difference that the verdict's test detects on this number of seeds with a probability of 80%, for a
    pair of average noise."""
    seeds_for: tuple[tuple[float, int], ...]
    """(true difference in nats, seeds at which that test detects it with a probability of 80%): ``resolvable``, then
    smaller ones."""
    comparisons: int
    """Number of choices that the verdict's test is corrected for (`layersearch.results.chosen`)."""


@dataclass(frozen=True, kw_only=True)
class Fidelity:
    """Rank correlation of a cheap measure with the full one."""

    name: str
    against: str
    stopped: int
    """Number of trials that the search stopped because of this measure."""
    agreement: RankCorrelation | None
    """Correlation over the trials that have both measures, None for fewer than four. An early step is compared over
    proposals. Those that were stopped are missing, which lowers it unless some were kept (``search.kept_trials``)."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """All conclusions of a run; ``frontier.json`` holds it.

    Example:
        >>> from layersearch import analyze
        >>> result = analyze([], budget=0.5)
        >>> result.winner is None, result.verdict
        (True, 'Nothing to conclude: no trial has completed.')
    """

    budget: float
    """Largest cost allowed, as a ratio to all-full."""
    confidence: float
    entries: tuple[Entry, ...]
    """Cheapest first."""
    frontier: tuple[Schedule, ...]
    """Schedules that no other beats in loss and cost, cheapest first."""
    frontier_of: str
    """``confirm``: confirmed means, if two schedules have them; ``search``: losses of the search."""
    search_frontier: tuple[Schedule, ...]
    """The frontier of the search's losses, on its one seed."""
    hypervolume: float | None
    """Hypervolume of the search's complete trials, nats times cost; None without a baseline as reference."""
    hypervolume_reference: tuple[float, float] | None
    """(loss, cost): the worst complete baseline's loss in the search, and the cost of all-full."""
    winner: Winner | None
    """None before a schedule within the budget is confirmed."""
    best_searched: Schedule | None
    """Schedule with the lowest loss in the search within the budget: a proposal, not a finding."""
    noise: Noise
    signal: Signal
    best_per_l: tuple[BestPerL, ...]
    trust: tuple[Fidelity, ...]
    failed: int
    """Number of failed trials that no later attempt replaced."""
    verdict: str
    unit: Unit = "seed"
    """What schedules are paired by: fresh seeds of a training, or held-out documents."""

    def entry(self, schedule: Schedule) -> Entry:
        """Return the entry of one schedule."""
        return next(entry for entry in self.entries if entry.schedule == schedule)

    def to_dict(self) -> dict[str, Any]:
        """Return the content of ``frontier.json``."""
        return {"version": VERSION, **plain(self)}


def not_none(value: T | None) -> T:
    assert value is not None
    return value
