"""What is asked of a study of l, and the single settings (a length and a depth each) it consists of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from layersearch.config.recipe import Recipe
from layersearch.errors import UserError, did_you_mean
from layersearch.schedule import presets
from layersearch.schedule.bound_space import BoundSpace
from layersearch.schedule.space import Space

SEARCHED = "searched"
PLACEMENTS = ("bottom", "top", "interleaved", "middle", SEARCHED)
"""Named placements of the literature, and the search for a better one."""
LEAST_DELTA = 0.01
"""Nats: the margin where the recipe's own tolerance is smaller."""
Regime = Literal["scratch", "converted"]


def default_delta(recipe: Recipe) -> float:
    """Return the margin, in nats, that is used if none is given: the recipe's tolerance, at least `LEAST_DELTA`."""
    return max(LEAST_DELTA, recipe.search.tolerance)


@dataclass(frozen=True, kw_only=True)
class OptimalLConfig:
    """What a study of l is to find out.

    Raises:
        UserError: names the flag that is wrong and the remedy.
    """

    recipe: Recipe
    space: Space
    delta: float
    """Nats that count as good as the reference."""
    placements: tuple[str, ...] = PLACEMENTS
    ls: tuple[int, ...] | None = None
    """Numbers of full layers; None: every one. All layers full is always among them."""
    lengths: tuple[int, ...] = ()
    """Tokens in a sequence; empty: the recipe's."""
    depths: tuple[int, ...] = ()
    """Layers of the model; empty: the recipe's."""
    regime: Regime = "scratch"
    """``converted``: train all-full first, then switch the schedule and train on."""
    continued: float = 0.5
    """converted: steps after the switch, as a share of the recipe's steps."""
    budget: float | None = None
    """Attention cost, as a share of all-full's, within which the best l is named."""
    seeds: int = 3
    """Fresh seeds at the first look."""
    most_seeds: int = 12
    """Fresh seeds at the last look."""
    per_l: int = 8
    """Placements tried at one l, at the most."""
    measure_named: bool = True
    """Measure the named placements on fresh seeds too; else they only compete for the best of their l."""
    seed: int = 0
    """The first of the two selection seeds; the fresh ones follow."""

    def __post_init__(self) -> None:
        if not self.delta > 0:  # also of nan
            raise UserError(f"--delta must be above 0 nats, not {self.delta:g}; 0.01 is a usual margin")
        if self.delta == float("inf"):
            raise UserError("--delta must be a number of nats, not inf")
        if not self.placements:
            raise UserError(f"--placements is empty; known: {', '.join(PLACEMENTS)}")
        for name in self.placements:
            if name not in PLACEMENTS:
                raise UserError(f"--placements: no placement {name!r}{did_you_mean(name, PLACEMENTS)}")
        if self.seeds < 2:
            raise UserError(f"--seeds must be at least 2 for an interval, not {self.seeds}")
        if self.most_seeds < self.seeds:
            raise UserError(f"--max-seeds {self.most_seeds} is less than --seeds {self.seeds}; raise it")
        if self.per_l < 1:
            raise UserError(f"--trials-per-l must be at least 1, not {self.per_l}")
        if not 0 < self.continued <= 10:
            raise UserError(f"--continued must be a share of the steps in (0, 10], not {self.continued:g}")
        if self.budget is not None and not 0 < self.budget <= 1:
            raise UserError(
                f"--budget must lie in (0, 1], a share of the all-full schedule's cost, not {self.budget:g}"
            )
        for flag, values, least in (("--lengths", self.lengths, 2), ("--depths", self.depths, 1)):
            for value in values:
                if value < least:
                    raise UserError(f"{flag}: {value} is too small; give at least {least}")
        for l in self.ls or ():
            for depth in self.depths or (self.recipe.model.n_layers,):
                if not 0 <= l <= depth:
                    raise UserError(f"--l {l} is out of range: a model of {depth} layers has 0 to {depth} full ones")

    @property
    def selection_seeds(self) -> tuple[int, int]:
        """The seeds on which placements are chosen. No claim rests on them."""
        return (self.seed, self.seed + 1)

    @property
    def fresh_seeds(self) -> tuple[int, ...]:
        """The seeds on which claims rest, in the order they are spent."""
        return tuple(self.seed + 2 + at for at in range(self.most_seeds))

    @property
    def looks(self) -> tuple[int, ...]:
        """Fresh seeds at each look, rising: the first, the geometric middle and the last."""
        middle = round((self.seeds * self.most_seeds) ** 0.5)
        return tuple(sorted({self.seeds, max(middle, self.seeds), self.most_seeds}))

    def share(self, seeds: int) -> float:
        """Return the share of the error that the look at so many fresh seeds, or the last before, may spend."""
        return max((look for look in self.looks if look <= seeds), default=self.looks[0]) / sum(self.looks)

    def settings(self) -> tuple[Setting, ...]:
        """Return the lengths at the recipe's depth, then the depths at the recipe's length, each once."""
        model, training = self.recipe.model, self.recipe.training
        sizes = [(length, model.n_layers) for length in self.lengths]
        sizes += [(training.seq_len, depth) for depth in self.depths]
        return tuple(Setting(self, *size) for size in dict.fromkeys(sizes or [(training.seq_len, model.n_layers)]))


class Setting:
    """One length and one depth of a study.

    Args:
        asked: the study.
        seq_len: tokens in a sequence. The batch is changed so that a step sees about as many tokens as the recipe's.
        n_layers: layers of the model.

    Raises:
        UserError: if the space has no sparse span, ties layers together, or does not fit the size.
    """

    def __init__(self, asked: OptimalLConfig, seq_len: int, n_layers: int) -> None:
        self.asked = asked
        recipe, space = asked.recipe, asked.space
        tokens = recipe.training.batch_size * recipe.training.seq_len
        ranks = recipe.training.ranks
        batch = recipe.training.batch_size
        if seq_len != recipe.training.seq_len:
            batch = max(1, round(tokens / seq_len / ranks)) * ranks
        training = replace(recipe.training, seq_len=seq_len, batch_size=batch)
        self.recipe = replace(recipe, model=replace(recipe.model, n_layers=n_layers), training=training)
        """Of the trials; in the converted regime, of those before the switch."""
        if space.tied or space.pattern is not None or space.layers:
            raise UserError(
                f"search space {space.name!r} ties or restricts layers, and l counts layers that are chosen freely: "
                "name a space without tied, pattern and layers"
            )
        span = BoundSpace(space, n_layers=n_layers, seq_len=seq_len, n_heads=recipe.model.n_heads).baseline_span
        if span is None:
            raise UserError(f"search space {space.name!r} has no sparse choice: add one such as window:32 to choices")
        self.span = str(span)
        """Of every layer that is not full."""
        self.space = Space(
            name=f"{space.name}-l", choices=(str(presets.FULL), self.span), budget=1.0, baseline_span=self.span
        )
        self.bound = BoundSpace(self.space, n_layers=n_layers, seq_len=seq_len, n_heads=recipe.model.n_heads)

    @property
    def n_layers(self) -> int:
        """Layers of the model."""
        return self.bound.n_layers

    @property
    def seq_len(self) -> int:
        """Tokens in a sequence."""
        return self.bound.seq_len

    @property
    def name(self) -> str:
        """The folder of the setting in a study of several."""
        return f"length-{self.seq_len}-depth-{self.n_layers}"

    @property
    def ls(self) -> tuple[int, ...]:
        """The numbers of full layers that are tried, ascending; all layers full is among them."""
        every = range(self.n_layers + 1) if self.asked.ls is None else self.asked.ls
        return tuple(sorted({*every, self.n_layers}))


def whole_numbers(text: str, flag: str) -> tuple[int, ...]:
    """Read a list such as ``512,1024``.

    Raises:
        UserError: if a part is no whole number.
    """
    found = []
    for part in text.split(","):
        try:
            found.append(int(part))
        except ValueError:
            raise UserError(f"{flag} {text!r}: {part!r} is no whole number; write them as in 4,8,12") from None
    return tuple(dict.fromkeys(found))


def words(text: str) -> tuple[str, ...]:
    """Read a list such as ``bottom,top``."""
    return tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))


def describe(settings: Sequence[Setting]) -> str:
    """Return the sizes of a study in a few words."""
    return ", ".join(f"{setting.seq_len} tokens x {setting.n_layers} layers" for setting in settings)
