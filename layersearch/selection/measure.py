"""Measurements of a schedule on held-out units: a text and a retrieval example each.

A unit is one sequence of text that shares no document with any other unit, and one retrieval example. Schedules are
compared on the same units (paired). The quality of a schedule on a unit is

    (1 - w) * (mean cross-entropy of the text's tokens) + w * (mean cross-entropy of the answers' digits), nats,

with the retrieval weight w; lower is better.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import torch
from torch import Tensor

from layersearch.errors import LayersearchError
from layersearch.schedule import Schedule
from layersearch.selection.layerwise import Layerwise, Trace
from layersearch.selection.retrieval import Example

BINS = 8
"""Bins of token position."""


@dataclass(frozen=True)
class Unit:
    """A text and a retrieval example."""

    text: Tensor
    """(T + 1,) token ids: the last T are the targets."""
    example: Example


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One schedule on one unit."""

    text_loss: float
    """Mean cross-entropy of the text's tokens, nats."""
    answer_loss: float
    """Mean over tasks of the cross-entropy of an answer's digits, nats; NaN without tasks."""
    accuracy: Mapping[str, float]
    """Share of an answer's digits that the model predicts, by task."""
    by_position: tuple[float, ...]
    """Mean cross-entropy of the text's tokens in bins of position, nats."""

    def quality(self, weight: float) -> float:
        """Return the mixture of the two losses, see the module."""
        return self.text_loss if not weight else (1 - weight) * self.text_loss + weight * self.answer_loss


def position_edges(seq_len: int) -> tuple[int, ...]:
    """Return the right edges of the bins of `Measurement.by_position`, in tokens."""
    parts = torch.arange(1, seq_len + 1).tensor_split(BINS)
    return tuple(int(part[-1]) for part in parts if len(part))


def finite(loss: float) -> float:
    """Return the loss, or raise LayersearchError if the model gives none."""
    if not math.isfinite(loss):
        raise LayersearchError(
            f"--model: its loss on a text is {loss}; its weights are damaged, or selection.precision must be float32"
        )
    return loss


class Scorer:
    """Measures schedules on units.

    Args:
        model: the model.
        units: the units.
        tasks: tasks that count; answers of others are ignored.
        weight: of retrieval, w in [0, 1); without tasks it is 0.
    """

    def __init__(self, model: Layerwise, units: Sequence[Unit], tasks: Sequence[str], weight: float) -> None:
        self.model, self.units, self.tasks = model, list(units), tuple(tasks)
        self.weight = weight if self.tasks else 0.0
        self._starts: dict[tuple[int, bool], Trace] = {}

    def start_from(self, schedule: Schedule) -> None:
        """Keep the activations of every unit under a schedule, so that similar ones run only the layers above."""
        for number, unit in enumerate(self.units):
            for is_text, tokens in ((True, unit.text[:-1]), (False, unit.example.tokens[:-1])):
                if is_text or self.tasks:
                    start = self._starts.get((number, is_text))
                    self._starts[number, is_text] = self.model.run(tokens, schedule, start, keep=True)

    @property
    def nbytes(self) -> int:
        """Memory of the kept activations, bytes."""
        return sum(trace.nbytes for trace in self._starts.values())

    def measure(self, schedule: Schedule, number: int) -> Measurement:
        """Measure a schedule on one unit."""
        unit, model = self.units[number], self.model
        text = model.run(unit.text[:-1], schedule, self._starts.get((number, True))).last
        losses, _ = model.losses(text, unit.text[1:])
        answers = self.answers(schedule, unit.example, self._starts.get((number, False))) if self.tasks else {}
        return Measurement(
            text_loss=finite(float(losses.mean())),
            answer_loss=fmean(loss for loss, _ in answers.values()) if answers else float("nan"),
            accuracy={task: share for task, (_, share) in answers.items()},
            by_position=tuple(float(part.mean()) for part in losses.tensor_split(BINS) if len(part)),
        )

    def answers(
        self, schedule: Schedule, example: Example, start: Trace | None = None
    ) -> dict[str, tuple[float, float]]:
        """Return each answer's loss in nats and the share of its digits that the model predicts, by task."""
        hidden, found = self.model.run(example.tokens[:-1], schedule, start).last, {}
        for answer in example.answers:
            if answer.task in self.tasks:
                targets = example.tokens[answer.start : answer.stop]
                losses, right = self.model.losses(hidden[answer.start - 1 : answer.stop - 1], targets)
                found[answer.task] = float(losses.mean()), float(right.float().mean())
        return found

    def measure_all(self, schedule: Schedule) -> list[Measurement]:
        """Measure a schedule on every unit."""
        return [self.measure(schedule, number) for number in range(len(self.units))]

    def quality(self, schedule: Schedule) -> float:
        """Return the mean quality of a schedule over the units, nats."""
        return fmean(found.quality(self.weight) for found in self.measure_all(schedule))

    def loss_with_graph(self, number: int) -> Tensor:
        """Return the quality on one unit under the present schedule or gates, with a graph for gradients."""
        unit, weight = self.units[number], self.weight
        total = torch.zeros((), device=self.model.device)
        if weight < 1:
            hidden = self.model.hidden(unit.text[:-1])
            total = total + (1 - weight) * self.model.mean_loss(hidden, unit.text[1:])
        if weight:
            hidden, answers = self.model.hidden(unit.example.tokens[:-1]), []
            for answer in unit.example.answers:
                if answer.task in self.tasks:
                    states = hidden[answer.start - 1 : answer.stop - 1]
                    answers.append(self.model.mean_loss(states, unit.example.tokens[answer.start : answer.stop]))
            total = total + weight * torch.stack(answers).mean()
        return total


def by_task(found: Iterable[Measurement]) -> dict[str, float]:
    """Return the mean accuracy of every task over units."""
    found = list(found)
    return {task: fmean(one.accuracy[task] for one in found) for task in (found[0].accuracy if found else ())}
