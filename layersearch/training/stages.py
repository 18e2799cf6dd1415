"""A training in stages: what each optimizer step trains, at which rate, and what all of them cost, exactly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from layersearch.config.recipe import Recipe
from layersearch.config.stages import divide
from layersearch.config.training import TrainingConfig
from layersearch.errors import located
from layersearch.model.flops import recipe_flops
from layersearch.schedule import Schedule, Span
from layersearch.schedule.work import Work
from layersearch.training.learning_rate import learning_rate_factor

BACKWARD = 2
"""FLOPs of a backward pass, as a multiple of the forward pass's."""


@dataclass(frozen=True, kw_only=True)
class TrialStage:
    """One stage of a trial; a training without stages has one."""

    first: int
    """Optimizer steps of the stages before it."""
    training: TrainingConfig
    """Its own length, rate, steps and warm-up."""
    window: float
    """Size of windows and blocks, as a share of the final ones."""

    @property
    def end(self) -> int:
        """Optimizer steps at its end."""
        return self.first + self.training.steps

    def schedule(self, final: Schedule) -> Schedule:
        """Return the schedule of the stage: windows and blocks are rounded, at least 1 token."""
        return final if self.window == 1.0 else Schedule(tuple(span.scaled(self.window) for span in final))


def trial_stages(training: TrainingConfig) -> tuple[TrialStage, ...]:
    """Return the stages of a training in order; their steps add up to ``training.steps``."""
    if not training.stages:
        return (TrialStage(first=0, training=training, window=1.0),)
    steps = divide([stage.share for stage in training.stages], training.steps)
    return tuple(
        TrialStage(
            first=own.first,
            window=stage.window,
            training=replace(
                training,
                stages=(),
                seq_len=stage.seq_len,
                learning_rate=stage.learning_rate,
                steps=own.number,
                warmup_steps=round(training.warmup_steps * own.number / training.steps),
            ),
        )
        for stage, own in zip(training.stages, steps, strict=True)
    )


def stage_at(stages: tuple[TrialStage, ...], step: int) -> TrialStage:
    """Return the stage of an optimizer step, counted from 0; after the last step it is the last stage."""
    return next((stage for stage in stages if step < stage.end), stages[-1])


def staged_factor(step: int, training: TrainingConfig) -> float:
    """Return the share of ``training.learning_rate`` at a step, from 0: each stage warms up and decays on its own."""
    if not training.stages:
        return learning_rate_factor(step, training)
    stage = stage_at(trial_stages(training), step)
    share = stage.training.learning_rate / training.learning_rate
    return share * learning_rate_factor(step - stage.first, stage.training)


def check_stages(schedule: Schedule, recipe: Recipe) -> None:
    """Refuse a schedule whose spans do not fit the texts of a stage.

    Raises:
        LayersearchError: names the stage, if there are several, and the layer.
    """
    works = [("", Work.of(recipe), schedule)]
    if recipe.training.stages:
        stages = enumerate(trial_stages(recipe.training))
        works = [(f"training.stages[{at}]", _work(recipe, stage), stage.schedule(schedule)) for at, stage in stages]
    for where, work, own in works:
        for layer, span in enumerate(own):
            place = f"layer {layer}"
            with located(f"{where}: {place}" if where else place):
                work.check(span)


def _work(recipe: Recipe, stage: TrialStage) -> Work:
    """Return the attention work of a sequence of a stage."""
    if not recipe.training.stages:
        return Work.of(recipe)
    model = recipe.model
    return Work(seq_len=stage.training.seq_len, n_heads=model.n_heads, bidirectional=model.bidirectional)


def check_choices(spans: Sequence[Span], recipe: Recipe) -> None:
    """Refuse spans of a search space that do not fit the texts of a stage.

    Raises:
        LayersearchError: names the stage and the span.
    """
    if recipe.training.stages:
        for span in spans:
            with located(f"the choice {span}"):
                check_stages(Schedule((span,)), recipe)


@dataclass(frozen=True, kw_only=True)
class StageCost:
    """The exact cost of one stage; one multiply-add = one FLOP."""

    seq_len: int
    """Tokens in a sequence."""
    steps: int
    """Optimizer steps."""
    schedule: str
    """Text form of the schedule at this stage."""
    learning_rate: float
    """Peak learning rate."""
    attention_flops: int
    """FLOPs of QK^T and AV in all its forward passes."""
    flops: int
    """FLOPs of all matrix products in all its steps, forward and backward."""


def stage_costs(recipe: Recipe, schedule: Schedule, vocab_size: int) -> tuple[StageCost, ...]:
    """Return the cost of every stage of a trial of a recipe; their sum is the trial's."""
    found = []
    for stage in trial_stages(recipe.training):
        own, training = stage.schedule(schedule), stage.training
        rows, one = training.steps * training.batch_size, replace(recipe, training=training)
        found.append(
            StageCost(
                seq_len=training.seq_len,
                steps=training.steps,
                schedule=str(own),
                learning_rate=training.learning_rate,
                attention_flops=rows * _attention(one, own),
                flops=rows * (1 + BACKWARD) * recipe_flops(one, vocab_size, own),
            )
        )
    return tuple(found)


def attention_so_far(recipe: Recipe, schedule: Schedule, steps: int) -> int:
    """Return the FLOPs of QK^T and AV in the forward passes of the first ``steps``, each stage at its own size."""
    total = 0
    for stage in trial_stages(recipe.training):
        rows = max(0, min(steps, stage.end) - stage.first) * stage.training.batch_size
        total += rows * _attention(replace(recipe, training=stage.training), stage.schedule(schedule))
    return total


def _attention(recipe: Recipe, schedule: Schedule) -> int:
    """Return the FLOPs of QK^T and AV of one sequence's forward pass."""
    return 2 * recipe.model.head_dim * Work.of(recipe).total(schedule)
