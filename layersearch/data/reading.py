"""The report of a reading: how much text was read, and which files were left out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field


@dataclass(kw_only=True)
class Reading:
    """How much was read and what was left out. `str` gives one line.

    Example:
        >>> from layersearch.data.reading import Reading
        >>> print(Reading(documents=3, characters=4200, files={"text": 2}, left_out={"binary": 1}))
        read 3 documents of 2 files (text 2), 4,200 characters; left out 1 file (binary 1)
    """

    documents: int = 0
    """Documents with text in them."""
    characters: int = 0
    files: dict[str, int] = field(default_factory=dict)
    """Files that gave a document, by format."""
    left_out: dict[str, int] = field(default_factory=dict)
    """Files of folders and patterns that gave none, by reason."""
    stopped: bool = False
    """``data.max_tokens`` needed no more text."""

    def count(self, counts: dict[str, int], name: str) -> None:
        """Add one to a count of `files` or `left_out`."""
        counts[name] = counts.get(name, 0) + 1

    def __str__(self) -> str:
        return "; ".join(self._parts())

    def _parts(self) -> Iterator[str]:
        size = f"{self.characters / 1e6:,.1f} M" if self.characters >= 1e6 else f"{self.characters:,}"
        files = f" of {_counted('file', self.files)}" if self.files else ""
        yield f"read {self.documents:,} document{'s' * (self.documents != 1)}{files}, {size} characters"
        if self.left_out:
            yield f"left out {_counted('file', self.left_out)}"
        if self.stopped:
            yield "data.max_tokens needs no more"


def _counted(noun: str, counts: dict[str, int]) -> str:
    total = sum(counts.values())
    parts = ", ".join(
        f"{name} {count:,}" for name, count in sorted(counts.items(), key=lambda part: (-part[1], part[0]))
    )
    return f"{total:,} {noun}{'s' * (total != 1)} ({parts})"
