"""The plan of an optimal-l study, known before it trains anything: trials, FLOPs and time."""

from dataclasses import dataclass, replace
from pathlib import Path

from layersearch.optimal_l.config import SEARCHED, OptimalLConfig, Setting
from layersearch.optimal_l.placements import count, first_round, named_placements
from layersearch.optimal_l.protocol import MAX_SECOND, MIN_SECOND, trial_recipe
from layersearch.study.estimate import estimate


@dataclass(frozen=True, kw_only=True)
class SettingPlan:
    """The plan of one sequence length and depth."""

    name: str
    seq_len: int
    n_layers: int
    batch_size: int
    """Sequences in a step. Steps of all lengths see about as many tokens."""
    span: str
    """Span of every layer that is not full."""
    ls: tuple[int, ...]
    selection: tuple[int, int]
    """Minimum and maximum number of trials at the two selection seeds."""
    confirm: tuple[int, int]
    """Trials at fresh seeds: if the first look decides, and if no look does."""
    before: tuple[int, int]
    """converted: trainings of all-full before the switch."""
    trial_flops: int
    """Multiply-adds of one all-full trial, forward and backward: an upper bound for every trial."""
    total_flops: float
    """Maximum multiply-adds of all trials."""
    seconds: tuple[float, float] | None
    """Minimum and maximum, estimated from timed steps on this machine; None: not timed."""
    seconds_note: str

    @property
    def trials(self) -> tuple[int, int]:
        """Minimum and maximum number of trials."""
        low, high = (self.selection[end] + self.confirm[end] + self.before[end] for end in (0, 1))
        return low, high


def plan(
    config: OptimalLConfig, out: Path, cache: Path | None = None, *, elsewhere: bool = False
) -> tuple[SettingPlan, ...]:
    """Return the plan of every setting; nothing is written.

    ``elsewhere`` says that the trials will run on a Ray cluster, which is not contacted. The other arguments and the
    errors are those of `layersearch.optimal_l.run.optimal_l`.
    """
    return tuple(_plan(setting, out, cache, elsewhere) for setting in config.settings())


def _plan(setting: Setting, out: Path, cache: Path | None, elsewhere: bool) -> SettingPlan:
    config, ls, looks = setting.config, setting.ls, setting.config.looks
    tried = {l: sum(s.n_full == l for s in first_round(setting)) for l in range(setting.n_layers + 1)}
    if SEARCHED in config.placements:
        for l in ls:
            tried[l] = max(tried[l], min(config.per_l, count(setting, l)))
    first = sum(tried.values())
    selection = [first + sum(min(most, tried[l]) for l in ls) for most in (MIN_SECOND, MAX_SECOND)]
    named = {l: len(set(named_placements(setting, l).values())) for l in ls}
    # The best may be a named placement. Only what could decide l* gets the later seeds, at most one schedule per l.
    low = sum(max(1, named[l]) for l in ls) * looks[0]
    with_runner_up = sum(count(setting, l) > 1 for l in ls)
    high = sum(min(count(setting, l), named[l] + 1) for l in ls) * looks[0]
    high += len(ls) * (config.most_seeds - looks[0]) + with_runner_up * config.most_seeds
    before = (2 + looks[0], 2 + config.most_seeds) if config.regime == "converted" else (0, 0)
    recipe = trial_recipe(setting, out)
    timed = replace(recipe, training=replace(recipe.training, start=None))
    found = estimate(timed, setting.space, 1.0, config.seed, cache, elsewhere=elsewhere)
    ratio = setting.recipe.training.steps / recipe.training.steps
    work = [selection[end] + (low, high)[end] + before[end] * ratio for end in (0, 1)]
    seconds = None if found.seconds is None else [found.seconds / found.full_trials * trials for trials in work]
    return SettingPlan(
        name=setting.name,
        seq_len=setting.seq_len,
        n_layers=setting.n_layers,
        batch_size=recipe.training.batch_size,
        span=setting.span,
        ls=ls,
        selection=(selection[0], selection[1]),
        confirm=(low, high),
        before=before,
        trial_flops=found.trial_flops,
        total_flops=float(found.trial_flops * work[1]),
        seconds=None if seconds is None else (seconds[0], seconds[1]),
        seconds_note=found.seconds_note,
    )
