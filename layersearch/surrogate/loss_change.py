"""What a schedule costs in loss that stands in for another, as far as a run tells."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from layersearch.config.recipe import Recipe
from layersearch.errors import UserError
from layersearch.results import stats
from layersearch.schedule import Schedule
from layersearch.schedule.space import Space
from layersearch.surrogate.fit import fit_surrogate, learnt_from
from layersearch.training.record import TrialRecord


@dataclass(frozen=True, kw_only=True)
class LossChange:
    """The loss of one schedule less that of another, the mean over seeds, nats."""

    mean: float
    low: float
    high: float
    """Ends of the interval."""
    seeds: int | None
    """Fresh seeds on which both were trained, compared in pairs; None: predicted by the run's surrogate."""

    def __str__(self) -> str:
        places = stats.decimals((self.high - self.low) / 2)
        source = "predicted from the run's trials" if self.seeds is None else f"measured on {self.seeds} fresh seeds"
        ends = f"{self.low:+.{places}f} to {self.high:+.{places}f}"
        return f"{self.mean:+.{places}f} nats of loss, interval {ends}, {source}"


def loss_change(
    records: Iterable[TrialRecord],
    recipe: Recipe,
    old: Schedule,
    new: Schedule,
    *,
    confidence: float = stats.CONFIDENCE,
) -> LossChange:
    """Return what a run says about replacing one schedule by another.

    Measured, if both were trained on two fresh seeds or more; else predicted by the surrogate in which layers act
    together in any number, whose intervals take the errors of the two for independent. It may be asked for spans that
    the run never tried: it then goes by those of like cost, and its interval is the wider.

    Args:
        records: of the run.
        recipe: of the run.
        old: what is replaced.
        new: what stands in its place.
        confidence: of the interval.

    Raises:
        UserError: if a schedule does not fit the run's model, or too few trials were made to learn from.
    """
    records = list(records)
    fresh = [_fresh(records, schedule) for schedule in (new, old)]
    if len(fresh[0].keys() & fresh[1].keys()) > 1:
        found = stats.paired_difference(fresh[0], fresh[1], confidence)
        assert found.low is not None
        assert found.high is not None
        return LossChange(mean=found.mean, low=found.low, high=found.high, seeds=found.n)
    parsed = {record.schedule: record.parsed() for record in records}
    layers = recipe.model.n_layers
    if {len(old), len(new)} != {layers}:
        raise UserError(f"the run's model has {layers} layers; give schedules of that many")
    spans = dict.fromkeys(str(span) for schedule in (*parsed.values(), old, new) for span in schedule)
    space = Space(name="trained", choices=tuple(spans)).bind(
        n_layers=layers, seq_len=recipe.training.seq_len, n_heads=recipe.model.n_heads
    )
    surrogate = fit_surrogate(learnt_from(records, space), parsed, space, pairwise=False)
    means, stds = surrogate.predict([new, old])
    mean = float(means[0] - means[1])
    half = stats.normal_quantile(confidence) * math.hypot(*stds)
    return LossChange(mean=mean, low=mean - half, high=mean + half, seeds=None)


def _fresh(records: Iterable[TrialRecord], schedule: Schedule) -> dict[int, float]:
    """Return a schedule's confirmed losses by seed."""
    return {
        record.seed: record.loss
        for record in records
        if record.phase == "confirm"
        and record.loss is not None
        and record.schedule == str(schedule)
        and record.state == "complete"
    }
