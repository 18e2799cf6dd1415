"""Writes the model card of a folder that a command has written, and uploads the folder if that was asked for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from layersearch.export.card import CardFacts
    from layersearch.schedule import Schedule


def publish(
    schedule: Schedule, target: str, folder: Path, facts: CardFacts, repository: str | None, files: Sequence[str]
) -> str | None:
    """Write ``README.md``; with a repository, upload it and the files, and return the address of the commit."""
    from layersearch.export.card import NAME, card_text, check_card
    from layersearch.export.hub_upload import push
    from layersearch.files import write_text

    check_card(folder)
    title = folder.resolve().name if repository is None else repository.partition("/")[2]
    write_text(folder / NAME, card_text(schedule, target, title, facts))
    if repository is None:
        return None
    return push(folder, sorted({*files, NAME}), repository)
