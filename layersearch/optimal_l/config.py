"""The configuration of an optimal-l study, and its settings: one sequence length and one depth each."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

from layersearch.config.recipe import Recipe
from layersearch.errors import ConfigError, did_you_mean
from layersearch.schedule import presets
from layersearch.schedule.bound_space import BoundSpace
from layersearch.schedule.space import Space

SEARCHED = "searched"
PLACEMENTS = ("bottom", "top", "interleaved", "middle", SEARCHED)
"""Named placements of the literature, and the search for a better one."""
MIN_DELTA = 0.01  # smallest default margin, nats
Regime = Literal["scratch", "converted"]


def default_delta(recipe: Recipe) -> float:
    """Return the default margin in nats: the recipe's tolerance, at least `MIN_DELTA`."""
    return max(MIN_DELTA, recipe.search.tolerance)


@dataclass(frozen=True, kw_only=True)
class OptimalLConfig:
    """Configuration of an optimal-l study.

    Raises:
        ConfigError: names the wrong flag and the remedy.
    """

    recipe: Recipe
    space: Space
    delta: float
    """Non-inferiority margin in nats: a loss this much higher still counts as equally good."""
    placements: tuple[str, ...] = PLACEMENTS
    ls: tuple[int, ...] | None = None
    """Numbers of full layers to try; None: all. All layers full is always included."""
    lengths: tuple[int, ...] = ()
    """Sequence lengths in tokens; empty: the recipe's."""
    depths: tuple[int, ...] = ()
    """Numbers of layers of the model; empty: the recipe's."""
    regime: Regime = "scratch"
    """``converted``: train all-full first, then switch the schedule and train on."""
    continued: float = 0.5
    """converted: steps after the switch, as a share of the recipe's steps."""
    budget: float | None = None
    """Report the best l whose attention cost, as a share of all-full's, is at most this."""
    seeds: int = 3
    """Fresh seeds at the first look."""
    most_seeds: int = 12
    """Fresh seeds at the last look."""
    per_l: int = 8
    """Maximum number of placements tried at one l."""
    measure_named: bool = True
    """Measure the named placements on fresh seeds too. Otherwise they only compete for the best of their l."""
    seed: int = 0
    """The first of the two selection seeds. The fresh seeds follow them."""

    def __post_init__(self) -> None:
        unknown = next((name for name in self.placements if name not in PLACEMENTS), "")
        sizes = [("--lengths", value, 2) for value in self.lengths] + [("--depths", value, 1) for value in self.depths]
        ls = [(l, depth) for l in self.ls or () for depth in self.depths or (self.recipe.model.n_layers,)]
        budget, share, first, most = self.budget, self.continued, self.seeds, self.most_seeds
        checks = (
            (self.delta > 0, f"--delta must be above 0 nats, not {self.delta:g}; 0.01 is a usual margin"),
            (self.delta < math.inf, "--delta must be a number of nats, not inf"),
            (self.placements, f"--placements is empty; known: {', '.join(PLACEMENTS)}"),
            (not unknown, f"--placements: no placement {unknown!r}{did_you_mean(unknown, PLACEMENTS)}"),
            (first >= 2, f"--seeds must be at least 2 for an interval, not {first}"),
            (most >= first, f"--max-seeds {most} is less than --seeds {first}; raise it"),
            (self.per_l >= 1, f"--trials-per-l must be at least 1, not {self.per_l}"),
            (0 < share <= 10, f"--continued must be a share of the steps in (0, 10], not {share:g}"),
            (
                budget is None or 0 < budget <= 1,
                f"--budget must lie in (0, 1], a share of the all-full schedule's cost, not {budget or 0:g}",
            ),
            *((value >= least, f"{flag}: {value} is too small; give at least {least}") for flag, value, least in sizes),
            *((0 <= l <= n, f"--l {l} is out of range: a model of {n} layers has 0 to {n} full ones") for l, n in ls),
        )
        for holds, message in checks:
            if not holds:
                raise ConfigError(message)

    @property
    def selection_seeds(self) -> tuple[int, int]:
        """The seeds on which placements are selected. No result uses them."""
        return (self.seed, self.seed + 1)

    @property
    def fresh_seeds(self) -> tuple[int, ...]:
        """The seeds on which every result rests, in order of use."""
        return tuple(self.seed + 2 + at for at in range(self.most_seeds))

    @property
    def looks(self) -> tuple[int, ...]:
        """Number of fresh seeds at each look, ascending: the first, the geometric mean and the last."""
        middle = round((self.seeds * self.most_seeds) ** 0.5)
        return tuple(sorted({self.seeds, max(middle, self.seeds), self.most_seeds}))

    def share(self, seeds: int) -> float:
        """Return the share of alpha that the look at this many fresh seeds, or the last look before, may spend."""
        return max((look for look in self.looks if look <= seeds), default=self.looks[0]) / sum(self.looks)

    def settings(self) -> tuple[Setting, ...]:
        """Return the lengths at the recipe's depth, then the depths at the recipe's length, without duplicates."""
        model, training = self.recipe.model, self.recipe.training
        sizes = [(length, model.n_layers) for length in self.lengths]
        sizes += [(training.seq_len, depth) for depth in self.depths]
        return tuple(Setting(self, *size) for size in dict.fromkeys(sizes or [(training.seq_len, model.n_layers)]))


class Setting:
    """One sequence length and one depth of a study.

    Args:
        config: the study.
        seq_len: tokens in a sequence. The batch size keeps the recipe's number of tokens per step, approximately.
        n_layers: layers of the model.

    Raises:
        ConfigError: if the space has no sparse span, ties layers together, or does not fit the size.
    """

    def __init__(self, config: OptimalLConfig, seq_len: int, n_layers: int) -> None:
        self.config, self.seq_len, self.n_layers = config, seq_len, n_layers
        recipe, space, training = config.recipe, config.space, config.recipe.training
        batch = training.batch_size
        if seq_len != training.seq_len:
            batch = max(1, round(batch * training.seq_len / seq_len / training.ranks)) * training.ranks
        training = replace(training, seq_len=seq_len, batch_size=batch)
        self.recipe = replace(recipe, model=replace(recipe.model, n_layers=n_layers), training=training)
        """Recipe of the trials; in the converted regime, of the training before the switch."""
        if space.tied or space.pattern is not None or space.layers:
            raise ConfigError(
                f"search space {space.name!r} ties or restricts layers, but optimal-l chooses each layer freely: "
                "name a space without tied, pattern and layers"
            )
        span = BoundSpace.of(space, self.recipe).baseline_span
        if span is None:
            raise ConfigError(f"search space {space.name!r} has no sparse choice: add one such as window:32 to choices")
        self.span = str(span)
        """Span of every layer that is not full."""
        choices = (str(presets.FULL), self.span)
        self.space = Space(name=f"{space.name}-l", choices=choices, budget=1.0, baseline_span=self.span)
        self.bound = BoundSpace.of(self.space, self.recipe)

    @property
    def name(self) -> str:
        """The setting's folder in a study of several settings."""
        return f"length-{self.seq_len}-depth-{self.n_layers}"

    @property
    def ls(self) -> tuple[int, ...]:
        """The numbers of full layers to try, ascending. All layers full is included."""
        every = range(self.n_layers + 1) if self.config.ls is None else self.config.ls
        return tuple(sorted({*every, self.n_layers}))


def parse_ints(text: str, flag: str) -> tuple[int, ...]:
    """Parse a list such as ``512,1024``. Raises ConfigError if a part is not an integer."""
    found = []
    for part in text.split(","):
        try:
            found.append(int(part))
        except ValueError:
            raise ConfigError(f"{flag} {text!r}: {part!r} is no whole number; write them as in 4,8,12") from None
    return tuple(dict.fromkeys(found))


def parse_names(text: str) -> tuple[str, ...]:
    """Parse a list such as ``bottom,top``."""
    return tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
