"""The nominal level of every claim, and the shares that keep it.

Four kinds of levels are told apart, because a share above 98% is a fault of some and a fact of others:

- ``95%``: the interval of one quantity, named beforehand. 93 to 98% keep it.
- ``at least 95%, chosen``: the interval of a schedule that was chosen by the losses that measure it. It holds whatever
  is true; where schedules differ clearly nothing is left to chance in the choice, and it holds more often.
- ``at least 95%, discrete``: sets of whole numbers, bounds from counts, rank correlations of few trials. No such set
  holds the truth in exactly 95%.
- ``at most 5%``: a false sentence, counted over all repetitions, whether or not it is said.
"""

from __future__ import annotations

from dataclasses import dataclass

L_STARS = ("clear", "close")
KNEES = ("exponential", "two steps")
NO_KNEES = ("concave", "straight")


@dataclass(frozen=True)
class Nominal:
    """The level of a claim, and the shares that keep it."""

    text: str
    said: str
    low: float = 0.0
    high: float = 1.0
    ratio: bool = False
    claimed: bool = True
    """False: no sentence says it. It is recorded for comparison."""


def _exact(text: str) -> Nominal:
    return Nominal(text, "95%", 0.93, 0.98)


def _holds(text: str, why: str) -> Nominal:
    return Nominal(text, f"at least 95%, {why}", 0.93, 1.0)


def _false(text: str, level: float = 0.05) -> Nominal:
    return Nominal(text, f"at most {level:.0%}", 0.0, level)


def _compared(text: str, ratio: bool = False) -> Nominal:
    return Nominal(text, "not claimed", ratio=ratio, claimed=False)


_RUN = {
    "interval against all_full": _holds("interval of the winner less all_full", "chosen"),
    "interval against the best baseline": _holds("interval of the winner less the best baseline", "chosen"),
    "mean loss of the winner": _holds("interval of the winner's mean loss, of seeds that learn", "chosen"),
    "mean loss of all_full": _exact("interval of all_full's mean loss, of seeds that learn"),
    "bound of the share of failing seeds": _holds("bound of the share of failing seeds", "discrete"),
    "false better or worse than all_full": _false("false better or worse than all_full"),
    "false better or worse than the best baseline": _false("false better or worse than the best baseline"),
    "false significantly below the others": _false('false "significantly below the others"'),
    "false shown within the tolerance": _false('false "shown to lie within the tolerance"'),
    "mean loss of the winner over all seeds": _compared(
        "interval of the winner's mean loss, held against the mean that includes seeds that fail"
    ),
    "interval against all_full over all seeds": _compared(
        "interval of the winner less all_full, held against the means that include seeds that fail"
    ),
}
_OTHERS = {
    "power: difference said to be found in 80%": Nominal(
        "a difference that the run says its verdict finds in 80%, is found", "80%", 0.75, 0.85
    ),
    "equal: p < 0.01 of placements": _false("equal placements: p < 0.01", 0.01),
    "equal: p < 0.05 of placements": _false("equal placements: p < 0.05"),
    "equal: spread ratio": Nominal("equal placements: spread, of the spread said of noise alone", "1", ratio=True),
    "ranks: interval of a rank correlation": _holds(
        "rank correlation of n trials, at a true correlation: interval", "discrete"
    ),
    "early: rank correlation of an early loss, of the truth": _compared(
        "rank correlation of an early loss where half stop and some are kept: of the truth", ratio=True
    ),
    "early: interval of the rank correlation of an early loss": _holds(
        "rank correlation of an early loss where half stop and some are kept: interval", "discrete"
    ),
    "survivors: rank correlation of an early loss, of the truth": _compared(
        "rank correlation of an early loss of survivors alone (kept_trials 0): of the truth", ratio=True
    ),
    "survivors: interval of the rank correlation of an early loss": _compared(
        "rank correlation of an early loss of survivors alone (kept_trials 0): interval"
    ),
    **{f"l*: set of l*, {name}": _holds(f"set of l*, {name} truth", "discrete") for name in L_STARS},
    **{f"knee: set of the knee, {n}": _holds(f"set of the knee, {n}, where one is named", "discrete") for n in KNEES},
    **{f"knee: false set of the knee, {n}": _false(f"a set of the knee that misses it, {n}, faint") for n in KNEES},
    **{f"knee: knee of a {n} curve": _false(f"a knee named for a {n} curve, which has none") for n in NO_KNEES},
    "page: any placement of a page falsely called worse or better": _false(
        "equal placements of an optimal-l page, all 17 intervals: any called worse or better"
    ),
    "solve: interval of a prediction of solve": _holds(
        "prediction of solve, corpus and schedules trained: interval", "predicted"
    ),
}
NOMINAL: dict[str, Nominal] = {
    f"{group}: {name}": Nominal(f"{words} schedules: {n.text}", n.said, n.low, n.high, n.ratio, n.claimed)
    for group, words in (("equal", "equal"), ("graded", "unequal"))
    for name, n in _RUN.items()
} | _OTHERS
WIDTHS = {
    "half width against all_full": "winner less all_full, ± nats",
    "half width against the best baseline": "winner less the best baseline, ± nats",
    "half width of the winner's mean loss": "winner's mean loss, ± nats",
    "all_full: a true difference is said": "winner less all_full, a true difference is said",
    "the best baseline: a true difference is said": "winner less the best baseline, a true difference is said",
}
"""What unequal schedules are measured to; ``, before`` is the rule that these intervals had before: Bonferroni of both
ends, and Student's t of the winner's own losses without a correction for its choice."""
