"""The Hugging Face hub: asked once whether it answers, then used, or else its local copies."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from layersearch.errors import UserError
from layersearch.errors import one_line as one_line

if TYPE_CHECKING:
    from datasets import IterableDataset

PATIENCE = 3.0
"""Seconds that the hub has to answer. Its client would retry for 20 s and more before it says that there is no net."""


def reachable() -> bool:
    """Tell whether the hub answers one request; any answer counts."""
    from huggingface_hub import constants, get_session

    if constants.is_offline_mode():
        return False
    try:
        get_session().head(constants.ENDPOINT, timeout=PATIENCE)
    except Exception:  # the client of one release raises httpx's errors, that of another httpx2's
        return False
    return True


@contextmanager
def _offline() -> Iterator[None]:
    """Serve `datasets` and the hub's client from their local copies; both read these names at each request."""
    import datasets
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE = before


def unreachable(key: str, name: str, remedy: str) -> UserError:
    from huggingface_hub import constants

    why = "HF_HUB_OFFLINE is set" if constants.is_offline_mode() else f"{constants.ENDPOINT} does not answer"
    return UserError(f"{key} {name}: {why} and there is no local copy; {remedy}")


def dataset(name: str, subset: str | None, *, streaming: bool) -> IterableDataset:
    """Return the training split of a hub data set.

    Raises:
        UserError: at once if the hub does not answer and no copy is in its cache, or if there is no such data set.
    """
    from datasets import IterableDataset, load_dataset

    if not reachable():
        remedy = "connect, or give local files (data.source text, json or parquet with data.files)"
        try:
            with _offline():
                copy = load_dataset(name, subset, split="train")
        except Exception:  # whatever the libraries raise, there is no copy
            raise unreachable("data.dataset", name, remedy) from None
        return copy.to_iterable_dataset()
    try:
        rows = load_dataset(name, subset, split="train", streaming=streaming)
    except Exception as error:  # the libraries raise many kinds
        raise UserError(
            f"data.dataset {name} cannot be loaded ({one_line(error)}); correct data.dataset or data.subset"
        ) from None
    return rows if isinstance(rows, IterableDataset) else rows.to_iterable_dataset()


def tokenizer_file(name: str) -> Path:
    """Return the local copy of a hub model's ``tokenizer.json``, downloaded if need be.

    Raises:
        UserError: at once if the hub does not answer and no copy is in its cache, or if there is no such file.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    online = reachable()
    try:
        return Path(hf_hub_download(name, "tokenizer.json", local_files_only=not online))
    except Exception as error:  # the client raises many kinds
        if not online and isinstance(error, LocalEntryNotFoundError):
            raise unreachable("data.tokenizer", name, "connect, or give a local tokenizer.json") from None
        raise UserError(
            f"data.tokenizer {name} cannot be loaded ({one_line(error)}); give a hub id that holds a tokenizer.json"
        ) from None
