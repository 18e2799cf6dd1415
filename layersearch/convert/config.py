"""A conversion's recipe: how a model is trained on under its new schedule. Read from ``trials/convert/``."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from layersearch.config.loader import build, find_file, override, read_yaml
from layersearch.config.recipe import DataConfig, TrainingConfig
from layersearch.errors import UserError
from layersearch.schedule import Schedule

FOLDER = "trials/convert"


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise UserError(message)


@dataclass(frozen=True, kw_only=True)
class StageConfig:
    """One stage of a staged conversion: a length of text, and what it is trained at."""

    __pydantic_config__ = {"extra": "forbid", "allow_inf_nan": False}

    seq_len: int
    """Tokens in a sequence."""
    learning_rate: float
    """Peak learning rate of the stage."""
    share: float
    """Of all optimiser steps, relative to the other stages'."""
    window: float = 1.0
    """Size of the schedule's windows and blocks, as a share of the final ones."""

    def __post_init__(self) -> None:
        _require(self.seq_len >= 2, f"seq_len must be at least 2 tokens, not {self.seq_len}")
        _require(self.learning_rate > 0, f"learning_rate must be positive, not {self.learning_rate}")
        _require(self.share > 0, f"share must be positive, not {self.share}")
        _require(0 < self.window <= 1, f"window must lie in (0, 1], not {self.window}")


@dataclass(frozen=True, kw_only=True)
class RopeConfig:
    """RoPE scaling, by the names of transformers' ``rope_parameters``."""

    __pydantic_config__ = {"extra": "forbid", "allow_inf_nan": False}

    rope_type: Literal["default", "linear", "dynamic", "yarn"]
    """``default``: no scaling, more positions only."""
    factor: float | None = None
    """How many times longer the text becomes; None: as training.seq_len asks."""
    rope_theta: float | None = None
    """Another base of the rotary frequencies."""

    def __post_init__(self) -> None:
        _require(self.factor is None or self.factor >= 1, f"factor must be at least 1, not {self.factor}")
        _require(self.rope_theta is None or self.rope_theta > 0, f"rope_theta must be positive, not {self.rope_theta}")


@dataclass(frozen=True, kw_only=True)
class ConvertRecipe:
    """How a model is trained on after its schedule was switched."""

    __pydantic_config__ = {"extra": "forbid", "allow_inf_nan": False}

    name: str
    """Of the recipe."""
    data: DataConfig
    training: TrainingConfig
    """Of the last stage; ``steps`` are those of all stages. ``warmup_steps`` must be 0: see ``warmup``."""
    warmup: float = 0.05
    """Linear warm-up of each stage, as a share of its steps."""
    stages: tuple[StageConfig, ...] = ()
    """Empty: one stage, as ``training`` says."""
    rope: RopeConfig | None = None
    """RoPE scaling for texts longer than the model's positions."""
    distil: float = 0.0
    """Weight w of the divergence from the original: the loss is (1-w) cross-entropy + w KL(original || model)."""
    only_attention: bool = False
    """Train the attention layers' parameters only."""
    lora: int | None = None
    """Rank of low-rank updates (LoRA, 2106.09685), trained in place of the weights and merged in the end."""
    evaluations: int = 4
    """Evaluations while training, evenly spread; the first two and the last come besides."""
    checkpoint_steps: int = 50
    """Optimiser steps between checkpoints."""

    def __post_init__(self) -> None:
        training = self.training
        _require(0 <= self.warmup < 1, f"warmup must lie in [0, 1), not {self.warmup}")
        _require(0 <= self.distil <= 1, f"distil must lie in [0, 1], not {self.distil}")
        _require(self.lora is None or self.lora >= 1, f"lora must be a rank of at least 1, not {self.lora}")
        _require(self.evaluations >= 0, f"evaluations must not be negative, not {self.evaluations}")
        _require(self.checkpoint_steps >= 1, f"checkpoint_steps must be at least 1, not {self.checkpoint_steps}")
        _require(
            training.warmup_steps == 0, "training.warmup_steps is not used here; give warmup, a share of the steps"
        )
        _require(training.optimizer == "adamw", "training.optimizer must be adamw: muon trains from scratch")
        _require(
            training.ranks == 1,
            f"training.ranks {training.ranks}: a conversion runs in one process; give training.ranks 1",
        )
        if self.stages:
            last = self.stages[-1]
            _require(
                last.seq_len == training.seq_len and last.window == 1.0,
                f"the last stage must have training.seq_len ({training.seq_len}) and window 1, not {last.seq_len} and "
                f"{last.window}",
            )
            _require(
                training.steps >= len(self.stages),
                f"training.steps {training.steps} are fewer than the {len(self.stages)} stages",
            )

    def to_dict(self) -> dict[str, Any]:
        """Return nested plain mappings, as YAML and JSON hold them."""
        return dataclasses.asdict(self)


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A stage, resolved: what is trained, and how."""

    schedule: Schedule
    training: TrainingConfig
    first: int
    """Optimiser steps of the stages before."""


def scale_schedule(schedule: Schedule, share: float) -> Schedule:
    """Return the schedule with windows and blocks of another size, at least 1 token, rounded."""
    spans = []
    for span in schedule:
        size = span.size if span.size is None else max(1, round(span.size * share))
        spans.append(dataclasses.replace(span, size=size))
    return Schedule(tuple(spans))


def resolve_stages(recipe: ConvertRecipe, schedule: Schedule) -> list[Stage]:
    """Return what each stage trains; their steps add up to ``training.steps``, each has at least one."""
    training = recipe.training
    given = recipe.stages or (StageConfig(seq_len=training.seq_len, learning_rate=training.learning_rate, share=1.0),)
    total = sum(stage.share for stage in given)
    edges, done = [0], 0.0
    for number, stage in enumerate(given, start=1):
        done += stage.share
        least, most = edges[-1] + 1, training.steps - (len(given) - number)
        edges.append(min(max(round(training.steps * done / total), least), most))
    found = []
    for stage, first, last in zip(given, edges, edges[1:], strict=False):
        steps = last - first
        part = dataclasses.replace(
            training,
            seq_len=stage.seq_len,
            learning_rate=stage.learning_rate,
            steps=steps,
            warmup_steps=round(recipe.warmup * steps),
        )
        found.append(Stage(schedule=scale_schedule(schedule, stage.window), training=part, first=first))
    for resolved in found:
        resolved.schedule.check(seq_len=resolved.training.seq_len)
    return found


def load_convert_recipe(name: str, overrides: Sequence[str] = ()) -> ConvertRecipe:
    """Read a conversion's recipe by path or by the name of one that ships.

    Args:
        name: a path, or a name such as ``plain``.
        overrides: dotted assignments such as ``training.learning_rate=1e-4``.

    Raises:
        UserError: names the file, the wrong key and the remedy.
    """
    path = find_file(name, FOLDER)
    mapping = read_yaml(path)
    for assignment in overrides:
        override(mapping, assignment)
    return build(ConvertRecipe, mapping, path.name if path.is_file() else str(path))
