"""The recipe of a conversion: how a model is trained after its schedule was switched. Read from ``trials/convert/``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Literal

from pydantic import Field

from layersearch.config.data import DataConfig
from layersearch.config.loader import build, find_file, override, read_yaml
from layersearch.config.selection import TaskName
from layersearch.config.stages import StageConfig, divide
from layersearch.config.training import TrainingConfig
from layersearch.errors import ConfigError
from layersearch.schedule import Schedule

FOLDER = "trials/convert"


@dataclass(frozen=True, kw_only=True)
class RopeConfig:
    """RoPE scaling, by the names of transformers' ``rope_parameters``."""

    __pydantic_config__ = {"extra": "forbid", "allow_inf_nan": False}

    rope_type: Literal["default", "linear", "dynamic", "yarn"]
    """``default``: more positions, no scaling."""
    factor: Annotated[float, Field(ge=1)] | None = None
    """Ratio of the new length to the model's positions; None: from training.seq_len."""
    rope_theta: Annotated[float, Field(gt=0)] | None = None
    """Base of the rotary frequencies; None: the model's."""


@dataclass(frozen=True, kw_only=True)
class ConvertRecipe:
    """How a model is trained after its schedule was switched."""

    __pydantic_config__ = {"extra": "forbid", "allow_inf_nan": False}

    name: str
    """Name of the recipe."""
    data: DataConfig
    training: TrainingConfig
    """Training of the last stage; ``steps`` counts all stages. ``warmup_steps`` must be 0: see ``warmup``."""
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.05
    """Linear warm-up of each stage, as a share of its steps."""
    stages: tuple[StageConfig, ...] = ()
    """Empty: one stage, as ``training`` says."""
    rope: RopeConfig | None = None
    """RoPE scaling for texts longer than the model's positions."""
    distil: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Weight w of distillation: the loss is (1-w) cross-entropy + w KL(original || model)."""
    only_attention: bool = False
    """Train the parameters of the attention layers only."""
    lora: Annotated[int, Field(ge=1)] | None = None
    """Rank of low-rank updates (LoRA, 2106.09685). They are trained instead of the weights and merged at the end."""
    evaluations: Annotated[int, Field(ge=0)] = 4
    """Evaluations during training, evenly spaced; the two before it and the last one are not counted."""
    retrieval_tasks: tuple[TaskName, ...] = ()
    """Retrieval tasks of the evaluations; ``layersearch convert --run`` takes those that the run used. Empty: none."""
    retrieval_examples: Annotated[int, Field(ge=1)] = 4
    """Sequences that ask for one answer of every retrieval task. A selection measures others."""
    checkpoint_steps: Annotated[int, Field(ge=1)] = 50
    """Optimizer steps between checkpoints."""

    def __post_init__(self) -> None:
        training = self.training
        if self.data.mask_share is not None:
            raise ConfigError("data.mask_share is for encoders, and a conversion trains a decoder; drop it")
        if training.stages:
            raise ConfigError("training.stages is for trials from scratch; a conversion has the key stages of its own")
        if training.warmup_steps != 0:
            raise ConfigError("training.warmup_steps is not used here; give warmup, a share of the steps")
        if training.segments is not None:
            raise ConfigError("training.segments trains from scratch, and a conversion trains on; drop it")
        if training.optimizer != "adamw":
            raise ConfigError("training.optimizer must be adamw: muon trains from scratch")
        last = self.stages[-1] if self.stages else None
        if last is not None and (last.seq_len, last.window) != (training.seq_len, 1.0):
            raise ConfigError(
                f"the last stage must have training.seq_len ({training.seq_len}) and window 1, not {last.seq_len} and "
                f"{last.window}"
            )
        if training.steps < len(self.stages):
            raise ConfigError(f"training.steps {training.steps} are fewer than the {len(self.stages)} stages")


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A resolved stage."""

    schedule: Schedule
    training: TrainingConfig
    first: int
    """Optimizer steps of the stages before it."""


def scale_schedule(schedule: Schedule, share: float) -> Schedule:
    """Return the schedule with windows and blocks of ``share`` times their size: rounded, at least 1 token."""
    return Schedule(tuple(span.scaled(share) for span in schedule))


def resolve_stages(recipe: ConvertRecipe, schedule: Schedule) -> list[Stage]:
    """Return the stages in order; their steps add up to ``training.steps``, and each has at least one."""
    training = recipe.training
    given = recipe.stages or (StageConfig(seq_len=training.seq_len, learning_rate=training.learning_rate, share=1.0),)
    resolved: list[Stage] = []
    for stage, steps in zip(given, divide([stage.share for stage in given], training.steps), strict=True):
        changed = replace(
            training,
            seq_len=stage.seq_len,
            learning_rate=stage.learning_rate,
            steps=steps.number,
            warmup_steps=round(recipe.warmup * steps.number),
        )
        resolved.append(Stage(schedule=scale_schedule(schedule, stage.window), training=changed, first=steps.first))
    for one in resolved:
        one.schedule.check(seq_len=one.training.seq_len)
    return resolved


def load_convert_recipe(name: str, overrides: Sequence[str] = ()) -> ConvertRecipe:
    """Read a conversion's recipe by path, or by the name of one that ships.

    Args:
        name: a path, or a name such as ``plain``.
        overrides: dotted assignments such as ``training.learning_rate=1e-4``.

    Raises:
        ConfigError: names the file, the wrong key and the remedy.
    """
    path = find_file(name, FOLDER)
    mapping = read_yaml(path)
    for assignment in overrides:
        override(mapping, assignment)
    return build(ConvertRecipe, mapping, path.name)
