"""The ``search`` section of a recipe."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt

from layersearch.config.loader import Strict
from layersearch.config.sizes import AtLeast2, Count, Processes, Share
from layersearch.errors import require

Pruner = Literal["expected_gain", "successive_halving", "none"]


def default_pruner(sampler: str, rungs: Sequence[float]) -> Pruner:
    """Return the pruner of a recipe that names none."""
    if not rungs:
        return "none"
    return "expected_gain" if sampler == "gain" else "successive_halving"


@dataclass(frozen=True, kw_only=True)
class SearchConfig(Strict):
    """The search: how many schedules are trained, and which of them go on."""

    trials: Count = 24
    """Distinct schedules trained, baselines included."""
    sampler: Literal["gain", "gp", "tpe", "nsga2", "random"] = "gain"
    """Sampler: ``gain`` is the project's own (`layersearch.surrogate.sampler`); the others are Optuna's."""
    pruner: Pruner | None = None
    """Rule that stops trials at the rungs. ``expected_gain``: a trial goes on while its expected gain is worth the rest
    of its training. ``successive_halving``: the best 1/reduction of the trials of equal or lower cost go on. ``none``:
    every trial runs to the end. None: ``expected_gain`` with the sampler ``gain``, ``successive_halving`` with any
    other, ``none`` without rungs."""
    rungs: tuple[Share, ...] = (0.25, 0.5)
    """Shares of the steps at which a trial is validated and may be stopped; rising."""
    reduction: AtLeast2 | None = None
    """Reduction factor of ``successive_halving``; no other pruner has one. None: 2."""
    finalists: Count = 3
    """Number of schedules within the budget that are confirmed beside the baselines."""
    kept_trials: NonNegativeInt = 6
    """Proposals that run to the end whatever their early loss, evenly spread over the search, at most a third of all.
    Without them the rank correlation of early losses comes from survivors alone and reads too low."""
    confirm_seeds: Annotated[int, Field(ge=2, le=100_000)] = 3
    """Number of fresh seeds for every finalist and baseline; the search's own seed is not among them."""
    second_round_seeds: NonNegativeInt = 0
    """Further fresh seeds for all_full and the two candidates that decide, after all have ``confirm_seeds``. 0: one
    round."""
    tolerance: NonNegativeFloat = 0.0
    """Tolerance in nats: a cheaper schedule wins only if it is shown to lie within it of the lowest loss."""
    workers: Processes = 2
    """Number of trials that are trained at the same time."""

    def __post_init__(self) -> None:
        # The run folder records the pruner that ran, so the defaults are settled here.
        if self.pruner is None:
            object.__setattr__(self, "pruner", default_pruner(self.sampler, self.rungs))
        require(
            self.pruner == "none" or self.rungs,
            f"pruner {self.pruner} has no effect without rungs; name some, such as rungs=[0.5], or set pruner=none",
        )
        if self.reduction is None and self.pruner == "successive_halving":
            object.__setattr__(self, "reduction", 2)
        require(
            self.reduction is None or self.pruner == "successive_halving",
            f"reduction has no effect with pruner {self.pruner}; drop it, or set pruner=successive_halving",
        )
        rising = sorted(set(self.rungs))
        require(list(self.rungs) == rising, f"rungs must be rising, such as {rising}, not {list(self.rungs)}")

    @property
    def first_round(self) -> int:
        """Number of fresh seeds of the first of two rounds of confirmation; 0: there is one round."""
        return self.confirm_seeds if self.second_round_seeds else 0
