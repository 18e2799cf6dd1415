"""How far a run's figures may be trusted: the noise of the seed, and how well what is cheap ranks schedules."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from layersearch import stats
from layersearch.record import TrialRecord
from layersearch.stats import RankAgreement

ROUND_SIZES = tuple(float(f"{digit}e{power}") for power in range(2, -9, -1) for digit in (5, 2, 1))
"""Differences in nats for which the number of seeds is stated, largest first."""
SURROGATE = "surrogate, unseen"
"""What the model of the loss (`gain` proposes by it, ``solve`` answers by it) says of what is left out of its fit."""
SMALLER = 2
"""How many of them below what a run's own seeds resolve."""


class Strict:
    """What is read back from a file has these keys and no others."""

    __pydantic_config__ = {"extra": "forbid", "allow_inf_nan": False}


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


def measure_noise(confirmed: Iterable[Mapping[int, float]], seeds: int, confidence: float) -> Noise:
    """Return the noise that the confirmed losses show.

    Args:
        confirmed: losses by fresh seed, one mapping a schedule.
        seeds: fresh seeds that the candidates share.
        confidence: of the floor.
    """
    repeated = [losses for losses in confirmed if len(losses) > 1]
    own = [known(stats.mean_interval(losses.values()).std) for losses in repeated]
    paired = stats.paired_std(repeated)
    usable = paired is not None and seeds > 1
    resolvable = stats.resolvable(known(paired), seeds, confidence) if usable else None
    seeds_for = []
    if resolvable:
        smaller = [size for size in ROUND_SIZES if size < resolvable][:SMALLER]
        seeds_for = [(size, stats.seeds_needed(known(paired), size, confidence)) for size in smaller]
        seeds_for.insert(0, (resolvable, seeds))
    return Noise(
        schedules=len(repeated),
        seeds=seeds,
        seed_std=stats.pooled_std([list(losses.values()) for losses in repeated]),
        seed_std_range=(min(own), max(own)) if own else None,
        paired_std=paired,
        floor=stats.half_width(known(paired), seeds, confidence) if usable else None,
        resolvable=resolvable,
        seeds_for=tuple(seeds_for),
    )


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
