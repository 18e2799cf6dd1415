"""How far a run's figures may be trusted: the noise of the seed, and how well what is cheap ranks schedules."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from layersearch.results import stats
from layersearch.results.result import Fidelity, known
from layersearch.training.record import TrialRecord

SURROGATE = "surrogate, unseen"
"""What the model of the loss (`gain` proposes by it, ``solve`` answers by it) says of what is left out of its fit."""


def rank_fidelities(
    records: Sequence[TrialRecord],
    confirmed: Sequence[tuple[float, float]],
    confidence: float,
    predicted: Sequence[tuple[float, float]] = (),
) -> tuple[Fidelity, ...]:
    """Return how well each early rung and the surrogate rank the full trials, and the search's seed the fresh ones.

    Args:
        records: all of a run's.
        confirmed: (loss at the search's seed, mean at fresh seeds) of every schedule that has both.
        confidence: of the intervals.
        predicted: (loss that the surrogate expects without having seen it, last loss) of every complete schedule.
    """
    complete = {r.schedule: r for r in records if r.phase == "search" and r.state == "complete"}
    finals = {text: known(record.loss) for text, record in complete.items()}
    curves = {text: dict(record.curve) for text, record in complete.items()}
    rungs = Counter({r.schedule: r.steps for r in records if r.phase == "search" and r.state == "stopped"}.values())
    full_steps = max((record.full_steps for record in complete.values()), default=0)
    steps = rungs.keys() or {step for curve in curves.values() for step in curve if step < full_steps}
    found = []
    for step in sorted(steps):
        both = [text for text, curve in curves.items() if step in curve]
        found.append(
            Fidelity(
                name=f"step {step} of {full_steps}" if full_steps else f"step {step}",
                against="last step",
                stopped=rungs[step],
                agreement=stats.rank_agreement(
                    [curves[text][step] for text in both], [finals[text] for text in both], confidence
                ),
            )
        )
    if predicted:
        agreement = stats.rank_agreement([a for a, _ in predicted], [b for _, b in predicted], confidence)
        found.append(Fidelity(name=SURROGATE, against="last step", stopped=0, agreement=agreement))
    if confirmed:
        agreement = stats.rank_agreement([a for a, _ in confirmed], [b for _, b in confirmed], confidence)
        found.append(Fidelity(name="search seed", against="fresh seeds", stopped=0, agreement=agreement))
    return tuple(found)
