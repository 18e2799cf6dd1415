"""The result of one optimal-l study over all its settings."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from layersearch.optimal_l.answer import SettingAnswer
from layersearch.optimal_l.config import OptimalLConfig
from layersearch.optimal_l.scaling_law import Law, fit_laws
from layersearch.schedule.files import plain


@dataclass(frozen=True, kw_only=True)
class OptimalL:
    """The answer of a study."""

    settings: tuple[SettingAnswer, ...]
    laws: dict[str, tuple[Law, ...]]
    """By what varies: ``length``, ``depth``."""
    text: str
    """One page in words."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain data, as ``answer.json`` holds it."""
        found: dict[str, Any] = _finite(plain(self))
        return found


def find_laws(asked: OptimalLConfig, answers: Sequence[SettingAnswer]) -> dict[str, tuple[Law, ...]]:
    """Return the fitted laws of l* against length and depth, of those that were varied."""
    laws = {}
    for name, asked_for in (("length", asked.lengths), ("depth", asked.depths)):
        points = [(size_of(found, name), found.l_star) for found in varied(asked, answers, name)]
        if len(asked_for) > 1:
            laws[name] = fit_laws(
                [size for size, _ in points],
                [star.value for _, star in points],
                [(star.low, star.value) for _, star in points],
            )
    return laws


def varied(asked: OptimalLConfig, answers: Sequence[SettingAnswer], name: str) -> list[SettingAnswer]:
    """Return the settings among which only the length, or only the depth, varies."""
    if name == "length":
        return [a for a in answers if a.n_layers == asked.recipe.model.n_layers and a.seq_len in asked.lengths]
    return [a for a in answers if a.seq_len == asked.recipe.training.seq_len and a.n_layers in asked.depths]


def size_of(found: SettingAnswer, name: str) -> int:
    """Return a setting's length in tokens or depth in layers."""
    return found.seq_len if name == "length" else found.n_layers


def _finite(value: Any) -> Any:
    """Return JSON's own kinds; a number that is not finite becomes null."""
    if isinstance(value, dict):
        return {str(key): _finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
