"""A search space: what may vary per layer. Read from ``search_spaces/*.yaml``.

A space names spans; bound to a model's size it becomes a fixed set of categorical variables, one per group of layers
that share a choice. Nothing here enumerates schedules: 6 choices for 48 layers are 6**48 of them.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from layersearch.boundspace import BoundSpace as BoundSpace
from layersearch.boundspace import check_range
from layersearch.choices import expand, span_texts
from layersearch.config import build, find_file, read_yaml
from layersearch.errors import UserError, did_you_mean
from layersearch.schedule import Span


@dataclass(frozen=True, kw_only=True)
class Space:
    """What each layer may be, before the model's size is known.

    Raises:
        UserError: names the key that is wrong and the remedy.
    """

    __pydantic_config__ = {"extra": "forbid", "allow_inf_nan": False}

    name: str
    """Names the space in reports."""
    choices: tuple[str, ...]
    """Text forms of the spans that a layer may have."""
    layers: dict[int, tuple[str, ...]] = field(default_factory=dict)
    """Fewer choices for single layers, by layer counted from 0."""
    tied: tuple[tuple[int, ...], ...] = ()
    """Groups of layers that share one choice."""
    pattern: int | None = None
    """Layer i takes the choice of layer i mod pattern; None: layers vary freely, but for ``tied``."""
    one_sparse: bool = False
    """All layers of a schedule that are not full have the same span, as in a configuration with one window size."""
    budget: float | None = None
    """Largest cost of a schedule, as a share of the all-full schedule's; None: the command names it."""
    baseline_span: str | None = None
    """The sparse span of the bottom, top, middle and interleaved baselines; None: the cheapest of the choices."""

    def __post_init__(self) -> None:
        if not self.name:
            raise UserError("name is empty; give the space a name")
        object.__setattr__(self, "choices", span_texts(self.choices, "choices"))
        restricted = {}
        for layer, texts in self.layers.items():
            if layer < 0:
                raise UserError(f"layers: there is no layer {layer}; count from 0")
            chosen = span_texts(texts, f"layers.{layer}")
            for text in chosen:
                if text not in self.choices:
                    raise UserError(f"layers.{layer}: {text} is not among choices{did_you_mean(text, self.choices)}")
            restricted[layer] = chosen
        object.__setattr__(self, "layers", restricted)
        self._check_ties()
        if self.budget is not None:
            check_range(self.budget)
        if self.baseline_span is not None:
            span = Span.parse(self.baseline_span)
            if span.is_full or str(span) not in self.choices:
                sparse = [text for text in self.choices if not Span.parse(text).is_full]
                raise UserError(f"baseline_span: {span} is not a sparse choice{did_you_mean(str(span), sparse)}")
            object.__setattr__(self, "baseline_span", str(span))

    def _check_ties(self) -> None:
        if self.pattern is not None:
            if self.tied:
                raise UserError("tied and pattern exclude each other; keep one of them")
            if self.pattern < 1:
                raise UserError(f"pattern must be at least 1 layer, not {self.pattern}")
        seen: set[int] = set()
        for group in self.tied:
            if len(group) < 2:
                raise UserError(f"tied: a group needs at least two layers, not {list(group)}")
            for layer in group:
                if layer < 0:
                    raise UserError(f"tied: there is no layer {layer}; count from 0")
                if layer in seen:
                    raise UserError(f"tied: layer {layer} stands in it twice; name it once")
                seen.add(layer)

    def bind(self, *, n_layers: int, seq_len: int, n_heads: int) -> BoundSpace:
        """Return the space for a model of this size.

        Args:
            n_layers: layers L.
            seq_len: tokens in a sequence; every span must fit.
            n_heads: query heads.

        Raises:
            UserError: if a span is longer than the text or dilates more heads than there are, a named layer does not
                exist, or tied layers have no choice in common.
        """
        return BoundSpace(self, n_layers=n_layers, seq_len=seq_len, n_heads=n_heads)


def load_space(name: str) -> Space:
    """Read a search space by path or by the name of one that ships.

    Raises:
        UserError: names the file, the wrong key and the remedy.
    """
    path = find_file(name, "search_spaces")
    mapping = read_yaml(path)
    if isinstance(mapping, dict):
        mapping = dict(mapping)
        if "choices" in mapping:
            mapping["choices"] = expand(mapping["choices"], f"{path.name}: choices")
        if isinstance(mapping.get("layers"), dict):
            mapping["layers"] = {
                layer: expand(choices, f"{path.name}: layers.{layer}") for layer, choices in mapping["layers"].items()
            }
    return build(Space, mapping, path.name)
