"""Consoles and tables of the commands."""

from typing import IO, Any

from rich.console import Console
from rich.table import Table

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
