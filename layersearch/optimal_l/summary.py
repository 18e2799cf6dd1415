"""The result of one optimal-l study over all its settings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from layersearch.optimal_l.answer import SettingAnswer
from layersearch.optimal_l.config import OptimalLConfig
from layersearch.optimal_l.scaling_law import Law, fit_laws
from layersearch.schedule.files import plain


@dataclass(frozen=True, kw_only=True)
class OptimalL:
    """The result of a study."""

    settings: tuple[SettingAnswer, ...]
    laws: dict[str, tuple[Law, ...]]
    """Scaling laws by what varies: ``length``, ``depth``."""
    text: str
    """The one-page report."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain data, as in ``answer.json``."""
        found: dict[str, Any] = plain(self)
        return found


def find_laws(config: OptimalLConfig, answers: Sequence[SettingAnswer]) -> dict[str, tuple[Law, ...]]:
    """Return the scaling laws of l* over each size that varies, ``length`` or ``depth``."""
    depth, length = config.recipe.model.n_layers, config.recipe.training.seq_len
    varied = {
        "length": [a for a in answers if a.n_layers == depth and a.seq_len in config.lengths],
        "depth": [a for a in answers if a.seq_len == length and a.n_layers in config.depths],
    }
    return {
        name: fit_laws(
            [size_of(a, name) for a in varied[name]],
            [a.l_star.value for a in varied[name]],
            [(a.l_star.low, a.l_star.value) for a in varied[name]],
        )
        for name, sizes in (("length", config.lengths), ("depth", config.depths))
        if len(sizes) > 1
    }


def size_of(answer: SettingAnswer, name: str) -> int:
    """Return a setting's length in tokens or depth in layers."""
    return answer.seq_len if name == "length" else answer.n_layers
