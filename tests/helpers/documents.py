"""Documents in local files, as tests of the data room write them."""

from __future__ import annotations

from pathlib import Path

from layersearch.config.data import DataConfig

TEXTS = [f"document {number}: the quick brown fox, jumping {number * 7919 % 101} times\n" * 3 for number in range(60)]


def write_text(folder: Path) -> DataConfig:
    """Write each text as a file of its own."""
    for number, text in enumerate(TEXTS):
        (folder / f"{number:03}.txt").write_text(text)
    return DataConfig(source="text", files=(str(folder / "*.txt"),), vocab_size=300)


def wrong(folder: Path, name: str, content: bytes | str) -> str:
    """Write a file, and return its path as a configuration takes it."""
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)
