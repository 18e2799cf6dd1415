"""The selection of a schedule for a pre-trained model, without training its weights. A section of a recipe."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from layersearch.config.loader import Strict
from layersearch.errors import ConfigError

AtLeast2 = Annotated[int, Field(ge=2)]
TaskName = Literal["pass_key", "needle_among_distractors", "several_keys", "variable_tracking"]
TASK_NAMES: tuple[TaskName, ...] = ("pass_key", "needle_among_distractors", "several_keys", "variable_tracking")
DEPTHS = (0.1, 0.3, 0.5, 0.7)
"""Depth of a task's first fact: 0 is the beginning of the text, 1 stands just before the questions."""

SHORTER = (4, 2)
"""The compared schedules are asked for facts at the text's length divided by these, too."""


def depth_of(task: str, tasks: Sequence[str], number: int) -> float:
    """Return the depth of a task's first fact in the example of a number: the tasks take turns at `DEPTHS`.

    Run folders hold numbers and no depths, so this must stay as it is.
    """
    return DEPTHS[(tasks.index(task) + number) % len(DEPTHS)]


@dataclass(frozen=True, kw_only=True)
class SelectionConfig(Strict):
    """The selection. A unit is one sequence of text and one retrieval example. See `layersearch.selection`."""

    calibration_units: PositiveInt = 4
    """Units that the gates descend on, in turn."""
    selection_units: AtLeast2 = 6
    """Units on which schedules are compared in the search."""
    confirm_units: AtLeast2 = 12
    """Units that decide. No document of theirs is used before."""
    retrieval_weight: Annotated[float, Field(ge=0, le=0.99)] = 0.2
    """Weight w of retrieval in a schedule's loss, (1 - w) * text + w * answers."""
    tasks: tuple[TaskName, ...] = TASK_NAMES
    """Retrieval tasks. A task that the model itself fails with full attention is dropped, and named."""
    min_accuracy: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Share of the answers' digits that the model must predict with full attention for a task to count."""
    gate_steps: NonNegativeInt = 12
    """Gradient steps of the gates over all choices of all layers; 0: no gates."""
    gate_rate: PositiveFloat = 0.5
    """Change of a gate's log weight by a gradient of root-mean-square size."""
    candidates: NonNegativeInt = 32
    """Schedules that the local search measures."""
    finalists: PositiveInt = 2
    """Schedules within the budget that are confirmed beside the baselines."""
    frontier: NonNegativeInt = 4
    """Schedules at other costs that are confirmed, so that the frontier covers them."""
    precision: Literal["auto", "bf16", "float32"] = "auto"
    """Type of the frozen weights. ``auto``: bf16 on a device that multiplies it in hardware, else float32."""

    @property
    def used_tasks(self) -> tuple[TaskName, ...]:
        """The tasks, none if retrieval has no weight."""
        return self.tasks if self.retrieval_weight else ()

    def __post_init__(self) -> None:
        if self.retrieval_weight and not self.tasks:
            raise ConfigError("selection.tasks is empty; name tasks, or set selection.retrieval_weight=0")
