"""Consoles and tables of the commands."""

from __future__ import annotations

from typing import IO, TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from layersearch.convert.memory import MemoryEstimate

WIDTH = 100  # columns where there is no terminal to ask


def console(file: IO[str] | None = None, width: int = WIDTH) -> Console:
    """Return a console that prints text as it is; ``width`` counts columns where there is no terminal."""
    plain: dict[str, Any] = {"file": file, "highlight": False, "markup": False, "emoji": False}
    found = Console(**plain)
    return found if found.is_terminal else Console(**plain, width=width)


def table(*columns: str, left: int = 1, cut: bool = False, **options: Any) -> Table:
    """Return a borderless table of rich with these headings; the first ``left`` columns are aligned left.

    With ``cut``, a left cell that is too long is cut instead of wrapped.
    """
    made = Table(box=None, pad_edge=False, header_style="bold", **options)
    for index, column in enumerate(columns):
        if index < left:
            made.add_column(column, no_wrap=cut, overflow="ellipsis" if cut else "fold")
        else:
            made.add_column(column, justify="right", no_wrap=True)
    return made


def size(count: float) -> str:
    """Return a number of bytes with a binary unit."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if count < 1024 or unit == "TiB":
            break
        count /= 1024
    return f"{count:,.0f} {unit}" if count >= 100 or unit == "B" else f"{count:.1f} {unit}"


def memory_text(found: MemoryEstimate | None) -> str:
    """Return the memory of a conversion's rank in words, by part."""
    if found is None:
        return "not estimated: the model's code branches on values"
    names = ("weights", "original", "gradients", "optimizer", "activations", "copies", "logits", "buffers")
    labels = {"optimizer": "optimizer state", "copies": "bf16 copies of weights"}
    parts = ((labels.get(name, name), getattr(found, name)) for name in names)
    said = f"about {size(found.total)}: " + ", ".join(f"{label} {size(part)}" for label, part in parts if part)
    return said + ", rest libraries" + (f"; {found.ranks} ranks take as much each" if found.ranks > 1 else "")
