"""A search space: the spans that each layer may have. Read from ``search_spaces/*.yaml``.

For one model's size a space becomes a fixed set of categorical variables, one per group of layers that share a choice.
Nothing here enumerates schedules: 6 choices for 48 layers are 6**48 of them.
"""

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from layersearch.config.loader import Strict, build, find_file, read_yaml
from layersearch.errors import ConfigError, located, require, visible
from layersearch.schedule.span import Span


@dataclass(frozen=True, kw_only=True)
class Space(Strict):
    """The spans that each layer may have, before the model's size is known.

    Raises:
        ConfigError: names the wrong key and the remedy.

    Example:
        >>> from layersearch import Space
        >>> Space(name="tiny", choices=("full", "window:32/1")).choices
        ('full', 'window:32')
    """

    name: str
    """The name of the space in reports."""
    choices: tuple[str, ...]
    """Text forms of the spans that a layer may have."""
    layers: dict[int, tuple[str, ...]] = field(default_factory=dict)
    """Fewer choices for single layers, by layer counted from 0."""
    tied: tuple[tuple[int, ...], ...] = ()
    """Groups of layers that share one choice."""
    pattern: int | None = None
    """Layer i takes the choice of layer i mod pattern; None: layers vary freely, except for ``tied``."""
    one_sparse: bool = False
    """All sparse layers of a schedule have the same span, as in a configuration with one window size."""
    budget: float | None = None
    """Largest cost of a schedule, relative to the all-full schedule; None: the command names it."""
    baseline_span: str | None = None
    """The sparse span of the bottom, top, middle and interleaved baselines; None: the cheapest of the choices."""

    def __post_init__(self) -> None:
        require(self.name, "name is empty; give the space a name")
        object.__setattr__(self, "name", visible(self.name))
        object.__setattr__(self, "choices", _span_texts(self.choices, "choices"))
        restricted = {layer: _span_texts(texts, f"layers.{layer}") for layer, texts in self.layers.items()}
        for layer, texts in restricted.items():
            for text in texts:
                require(text in self.choices, f"layers.{layer}: {text} is not among choices", text, self.choices)
        object.__setattr__(self, "layers", restricted)
        self._check_layers()
        if self.budget is not None:
            check_budget_range(self.budget)
        if self.baseline_span is not None:
            given, *choices = map(Span.parse, (self.baseline_span, *self.choices))
            span, sparse = str(given), [str(choice) for choice in choices if not choice.is_full]
            require(span in sparse, f"baseline_span: {span} is not a sparse choice", span, sparse)
            object.__setattr__(self, "baseline_span", span)

    def _check_layers(self) -> None:
        tied = [layer for group in self.tied for layer in group]
        for key, layers in (("layers", list(self.layers)), ("tied", tied)):
            lowest = min(layers, default=0)
            require(lowest >= 0, f"{key}: there is no layer {lowest}; count from 0")
        for at, layer in enumerate(tied):
            require(layer not in tied[:at], f"tied: layer {layer} stands in it twice; name it once")
        for group in self.tied:
            require(len(group) >= 2, f"tied: a group needs at least two layers, not {list(group)}")
        if self.pattern is not None:
            require(not self.tied, "tied and pattern exclude each other; keep one of them")
            require(self.pattern >= 1, f"pattern must be at least 1 layer, not {self.pattern}")


def load_space(name: str) -> Space:
    """Read a search space by path or by the name of one that ships.

    Raises:
        ConfigError: names the file, the wrong key and the remedy.

    Example:
        >>> from layersearch import load_space
        >>> load_space("laptop").name
        'laptop'
    """
    path = find_file(name, "search_spaces")
    mapping = read_yaml(path)
    if isinstance(mapping, dict) and "choices" in mapping:
        mapping["choices"] = _expand(mapping["choices"], f"{path.name}: choices")
    if isinstance(mapping, dict) and isinstance(mapping.get("layers"), dict):
        layers = mapping["layers"].items()
        mapping["layers"] = {layer: _expand(choices, f"{path.name}: layers.{layer}") for layer, choices in layers}
    space = build(Space, mapping, path.name)
    # A run folder is named after it.
    good = re.fullmatch(r"[\w.-]+", space.name)
    require(good, f"{path.name}: name must be letters, digits, '-', '_' or '.', not {space.name!r}")
    return space


def check_budget_range(budget: float) -> None:
    """Raise ConfigError unless the budget lies in (0, 1]; nan does not."""
    require(0 < budget <= 1, f"budget must lie in (0, 1], a share of the all-full schedule's cost, not {budget:g}")


def _expand(choices: Any, where: str) -> list[str]:
    """Return the text forms of a list of choices; a mapping stands for all combinations of its lists."""
    listed = isinstance(choices, list)
    require(listed, f"{where}: expected a list such as [full, 'window:32'], found {choices!r}")
    texts: list[str] = []
    for position, choice in enumerate(choices):
        with located(f"{where}.{position}"):
            texts += [choice] if isinstance(choice, str) else _multiply_out(choice)
    return texts


def _multiply_out(choice: Any) -> list[str]:
    if not isinstance(choice, dict):
        raise ConfigError(f"expected a span such as 'window:32' or {{kind: window, size: [32, 64]}}, found {choice!r}")
    lists = {key: value if isinstance(value, list) else [value] for key, value in choice.items()}
    for key, values in lists.items():
        require(values, f"{key} is an empty list; give at least one value or drop the key")
        twice = any(value in values[:index] for index, value in enumerate(values))
        require(not twice, f"{key} holds a value twice: {values}; write it once")
    spans = [Span.from_dict(dict(zip(lists, values, strict=True))) for values in itertools.product(*lists.values())]
    # Combinations may coincide: without dilation, every number of dilated heads means the same span.
    return list(dict.fromkeys(str(span) for span in spans))


def _span_texts(texts: Sequence[str], where: str) -> tuple[str, ...]:
    """Return the canonical text of each span, in any of its text forms; ``where`` is the key that holds them.

    Raises:
        ConfigError: there is no span, a text is no span, or one stands there twice.
    """
    require(texts, f"{where} is empty; name at least one span, for example full")
    seen: list[str] = []
    for position, text in enumerate(texts):
        with located(f"{where}.{position}"):
            span = str(Span.parse(text))
        require(span not in seen, f"{where}: {span} is named twice; name it once")
        seen.append(span)
    return tuple(seen)
