"""A recipe: the model, the data and the training of one trial, and the search. Read from ``trials/*.yaml``."""

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from layersearch.config.corruption import corruption
from layersearch.config.data import ENCODERS_READ, ClassKind, DataConfig, TaskKind
from layersearch.config.loader import Strict, build, find_file, override, read_yaml
from layersearch.config.model import ModelConfig
from layersearch.config.search import SearchConfig
from layersearch.config.selection import SelectionConfig
from layersearch.config.training import TrainingConfig
from layersearch.errors import require


@dataclass(frozen=True, kw_only=True)
class Recipe(Strict):
    """A recipe: the model, the data and the training of one trial, and the search.

    Example:
        >>> from layersearch import Recipe, load_recipe
        >>> recipe = load_recipe("smoke")
        >>> isinstance(recipe, Recipe), recipe.model.n_layers
        (True, 2)
    """

    name: str
    """Name of the recipe, and of the run folder."""
    model: ModelConfig
    data: DataConfig
    training: TrainingConfig
    search: SearchConfig = field(default_factory=SearchConfig)
    space: str | None = None
    """Name of the search space. None: the name of the recipe."""
    pretrained: str | None = None
    """A Hugging Face model folder or hub id: every trial starts from its weights. ``model`` must give its sizes;
    ``layersearch run --model`` fills them in. None: random weights."""
    selection: SelectionConfig | None = None
    """With a pre-trained model: measure schedules without training its weights. None: every trial trains."""

    def __post_init__(self) -> None:
        for key in (
            "model",
            "data",
            "training",
            "search",
            *(["selection"] if self.selection else []),
        ):  # Python code may have built them without a check of ranges
            section = getattr(self, key)
            build(type(section), dataclasses.asdict(section), key)
        kind, masked = self.model.kind, self.data.mask_share is not None
        encoder, classes = kind != "decoder", self.data.n_classes is not None
        tasks, asked = ENCODERS_READ.get(kind, ()), self.data.asked_in
        given = f"data.asked_in {asked} is for model.kind encoder_decoder, not {kind}; drop it"
        require(asked == "source" or kind == "encoder_decoder", given)
        learns = masked or not encoder or (classes and kind == "encoder") or self.data.source in tasks
        require(
            learns,
            f"model.kind {kind} learns from masked text: set data.mask_share, such as 0.15, or take data.source "
            f"{', '.join(tasks)}",
        )
        require(classes or self.model.pooling is None, "model.pooling is for sources with classes; drop it")
        require(
            self.model.pooling != "first" or encoder,
            "model.pooling first reads the first token, which sees nothing in a decoder; give mean",
        )
        require(encoder or not masked, "data.mask_share is for encoders: set model.kind=encoder, or drop it")
        if self.pretrained is not None:
            require(not encoder, f"model.kind {kind} trains from scratch; a pre-trained model is a decoder")
            require(not classes, f"data.source {self.data.source} has classes, and a pre-trained model predicts tokens")
            require(
                self.training.start is None,
                "pretrained and training.start both name weights to start from; give one of them",
            )
            require(
                self.training.optimizer == "adamw",
                "training.optimizer muon trains from scratch; set training.optimizer=adamw with a pre-trained model",
            )
        staged = self.training.stages and (self.training.segments or classes or kind == "encoder_decoder")
        require(
            not staged, "training.stages are of lengths of a text: drop it, or segments, classes and encoder_decoder"
        )
        self._check_segments()
        good = re.fullmatch(r"[\w.-]+", self.name)
        require(good, f"name must be letters, digits, '-', '_' or '.', not {self.name!r}")

    @property
    def source_and_target(self) -> tuple[int, int]:
        """Tokens of an encoder_decoder's source and target."""
        if self.data.mask_share is None:  # the answers of a generated task: each a sentinel and a token
            return self.training.seq_len, 2 * self.data.queries
        found = corruption(self.training.seq_len, self.data.mask_share)
        return found.source, found.target

    @property
    def target_len(self) -> int | None:
        """Tokens of an encoder_decoder's target; None: another kind of model."""
        return self.source_and_target[1] if self.model.kind == "encoder_decoder" else None

    @property
    def n_targets(self) -> int:
        """Targets of a sequence: its tokens, those of an encoder_decoder's target, or one class."""
        return 1 if self.data.n_classes is not None else self.target_len or self.training.seq_len

    @property
    def schedule_tokens(self) -> int:
        """Tokens that the layers read that schedules speak of."""
        if self.model.kind == "encoder_decoder" and self.model.searched == "decoder":
            return self.source_and_target[1]
        return self.training.seq_len

    def _check_segments(self) -> None:
        training = self.training
        if training.segments is None:
            return
        others = (*get_args(TaskKind), *get_args(ClassKind), "mix")
        text = self.data.source not in others and self.data.mask_share is None
        require(text, f"training.segments read on in a text, and data.source is {self.data.source}; name a text")
        require(
            self.model.kind == "decoder", "training.segments are for model.kind decoder: a segment sees what is past"
        )
        require(self.pretrained is None, "training.segments train from scratch; drop it, or the pre-trained model")
        if training.warm_tokens is None:  # settled here, so that the run folder records it
            longest = training.seq_len - training.seq_len // training.segments
            warm = dataclasses.replace(training, warm_tokens=self.model.n_layers * longest)
            object.__setattr__(self, "training", warm)

    @property
    def default_space(self) -> str:
        """Name of the search space of a command that names none."""
        return self.space or self.name

    def to_dict(self) -> dict[str, Any]:
        """Return the recipe as nested plain mappings."""
        return dataclasses.asdict(self)


def load_recipe(name: str, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe from a path, or by the name of one that ships.

    Args:
        name: a path, or a name such as ``laptop``.
        overrides: dotted assignments such as ``training.steps=200``.

    Raises:
        ConfigError: names the file, the wrong key and the remedy.

    Example:
        >>> from layersearch import load_recipe
        >>> load_recipe("smoke", ["training.steps=200"]).training.steps
        200
    """
    path = find_file(name, "trials")
    mapping = read_yaml(path)
    for assignment in overrides:
        override(mapping, assignment)
    return build(Recipe, mapping, path.name)


def deepspeed_file(recipe: Recipe) -> Path:
    """Return the path of the recipe's DeepSpeed JSON."""
    return find_file(recipe.training.deepspeed, "trials/deepspeed", ".json")
