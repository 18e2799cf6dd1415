"""Texts, pictures and lists with a class each: the Long Range Arena (2011.04006) without downloads."""

from __future__ import annotations

from pathlib import Path

from layersearch.config.data import DataConfig
from layersearch.data.classes.arrays import Arrays
from layersearch.data.classes.digits import Digits
from layersearch.data.classes.documents import Retrieval, TextClasses
from layersearch.data.classes.examples import Examples, Maker
from layersearch.data.classes.lists import Lists
from layersearch.data.classes.pathfinder import Pathfinder

MAKERS: dict[str, type[Maker]] = {
    maker.name: maker for maker in (Lists, Pathfinder, TextClasses, Retrieval, Digits, Arrays)
}
"""What makes the examples of each ``data.source`` with classes."""


def open_classes(config: DataConfig, seq_len: int, cache: Path) -> Examples:
    """Open a source with classes; make its examples first if the cache lacks them."""
    return Examples(MAKERS[config.source](config, seq_len), cache)


__all__ = ["MAKERS", "Examples", "Maker", "open_classes"]
