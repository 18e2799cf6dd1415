"""What a study of l will cost, before it trains anything: trials, FLOPs and time."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from layersearch.optimal_l.config import SEARCHED, OptimalLConfig, Setting
from layersearch.optimal_l.placements import count, first_round, named
from layersearch.optimal_l.protocol import LEAST_RUNNERS, MOST_RUNNERS, trial_recipe
from layersearch.study.estimate import estimate


@dataclass(frozen=True, kw_only=True)
class SettingPlan:
    """What one length and depth will take."""

    name: str
    seq_len: int
    n_layers: int
    batch_size: int
    """Sequences in a step: steps of all lengths see about as many tokens."""
    span: str
    """Of every layer that is not full."""
    ls: tuple[int, ...]
    selection: tuple[int, int]
    """Trials at the two selection seeds, at least and at most."""
    confirm: tuple[int, int]
    """Trials at fresh seeds: if the first look decides, and if none does."""
    before: tuple[int, int]
    """converted: trainings of all-full before the switch."""
    trial_flops: int
    """Multiply-adds of one all-full trial, forward and backward: an upper bound for every other."""
    total_flops: float
    """Of all trials, at the most."""
    seconds: tuple[float, float] | None
    """Estimated from timed steps on this machine, at least and at most; None: not timed."""
    seconds_note: str

    @property
    def trials(self) -> tuple[int, int]:
        """All trials, at least and at most."""
        low, high = (self.selection[end] + self.confirm[end] + self.before[end] for end in (0, 1))
        return low, high


def plan(
    asked: OptimalLConfig, out: Path, cache: Path | None = None, *, elsewhere: bool = False
) -> tuple[SettingPlan, ...]:
    """Return what every setting will take.

    Args:
        asked: the study.
        out: its folder; nothing is written.
        cache: folder of prepared data; None: the default one.
        elsewhere: the trials will run on a Ray cluster, which is not asked.

    Raises:
        UserError: as the study itself would.
    """
    return tuple(_plan(setting, out, cache, elsewhere) for setting in asked.settings())


def _plan(setting: Setting, out: Path, cache: Path | None, elsewhere: bool) -> SettingPlan:
    asked = setting.asked
    tried = {l: sum(s.n_full == l for s in first_round(setting)) for l in range(setting.n_layers + 1)}
    if SEARCHED in asked.placements:
        for l in setting.ls:
            tried[l] = max(tried[l], min(asked.per_l, count(setting, l)))
    chosen = [tried[l] for l in setting.ls if tried[l]]
    first = sum(tried.values())
    selection = tuple(first + sum(min(most, number) for number in chosen) for most in (LEAST_RUNNERS, MOST_RUNNERS))
    alone = {l: len(set(named(setting, l).values())) for l in setting.ls}
    each = [len(setting.ls), sum(min(count(setting, l), alone[l] + 1) for l in setting.ls)]
    # The best may be one of the named; only what could decide l* gets the later seeds, at the most one of each l.
    low = sum(max(1, alone[l]) for l in setting.ls) * asked.looks[0]
    inner = sum(count(setting, l) > 1 for l in setting.ls)  # those may have a runner-up
    high = each[1] * asked.looks[0] + len(setting.ls) * (asked.most_seeds - asked.looks[0]) + inner * asked.most_seeds
    converted = asked.regime == "converted"
    before = (2 + asked.looks[0], 2 + asked.most_seeds) if converted else (0, 0)
    recipe = trial_recipe(setting, out)
    timed = replace(recipe, training=replace(recipe.training, start=None))
    found = estimate(timed, setting.space, 1.0, asked.seed, cache, elsewhere=elsewhere)
    ratio = setting.recipe.training.steps / recipe.training.steps
    work = [selection[end] + (low, high)[end] + before[end] * ratio for end in (0, 1)]
    return SettingPlan(
        name=setting.name,
        seq_len=setting.seq_len,
        n_layers=setting.n_layers,
        batch_size=recipe.training.batch_size,
        span=setting.span,
        ls=setting.ls,
        selection=(selection[0], selection[1]),
        confirm=(low, high),
        before=before,
        trial_flops=found.step_flops * recipe.training.steps,
        total_flops=float(found.step_flops * recipe.training.steps * work[1]),
        seconds=None
        if found.seconds is None
        else (found.seconds / found.full_trials * work[0], found.seconds / found.full_trials * work[1]),
        seconds_note=found.seconds_note,
    )
