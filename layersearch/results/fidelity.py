"""Rank correlations of early losses, the surrogate and the search's seed with the measures they stand for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from layersearch.results.result import Fidelity, not_none
from layersearch.results.stats import rank_correlation
from layersearch.training.record import TrialRecord

SURROGATE = "surrogate, unseen"
"""Leave-one-out predictions of the surrogate, the model behind the sampler `gain` and ``solve``."""


def rank_fidelities(
    records: Sequence[TrialRecord],
    confirmed: Sequence[tuple[float, float]],
    confidence: float,
    predicted: Sequence[tuple[float, float]] = (),
) -> tuple[Fidelity, ...]:
    """Return the rank correlation of each rung, the surrogate and the search's seed.

    Args:
        records: all records of a run.
        confirmed: (loss at the search's seed, mean at fresh seeds) of every schedule that has both.
        confidence: of the intervals.
        predicted: (leave-one-out prediction of the surrogate, last loss) of every complete schedule.
    """
    complete = {r.schedule: r for r in records if r.phase == "search" and r.state == "complete"}
    curves = [(dict(record.curve), not_none(record.loss)) for record in complete.values()]
    rungs = Counter({r.schedule: r.steps for r in records if r.phase == "search" and r.state == "stopped"}.values())
    full_steps = max((record.full_steps for record in complete.values()), default=0)
    suffix = f" of {full_steps}" if full_steps else ""

    def fidelity(name: str, against: str, pairs: Sequence[tuple[float, float]], stopped: int = 0) -> Fidelity:
        agreement = rank_correlation([a for a, _ in pairs], [b for _, b in pairs], confidence)
        return Fidelity(name=name, against=against, stopped=stopped, agreement=agreement)

    found = [
        fidelity(f"step {at}{suffix}", "last step", [(c[at], loss) for c, loss in curves if at in c], rungs[at])
        for at in sorted(rungs.keys() or {step for curve, _ in curves for step in curve if step < full_steps})
    ]
    if predicted:
        found.append(fidelity(SURROGATE, "last step", predicted))
    if confirmed:
        found.append(fidelity("search seed", "fresh seeds", confirmed))
    return tuple(found)
