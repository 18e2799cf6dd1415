"""The Hugging Face hub. One request tells whether it answers; else its local copies are used."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from layersearch.errors import DataError, one_line

TIMEOUT = 3.0
"""Seconds that the hub has to answer. Its client alone would retry for 20 s and more without a network."""


def reachable() -> bool:
    """Return whether the hub answers one request; any answer counts."""
    from huggingface_hub import constants, get_session

    if constants.is_offline_mode():
        return False
    try:
        get_session().head(constants.ENDPOINT, timeout=TIMEOUT)
    except Exception:  # some releases of the client raise httpx's errors, others httpx2's
        return False
    return True


def unreachable(key: str, name: str, remedy: str) -> DataError:
    """Return the error for a name that neither the hub nor a local copy gives."""
    from huggingface_hub import constants

    why = "HF_HUB_OFFLINE is set" if constants.is_offline_mode() else f"{constants.ENDPOINT} does not answer"
    return DataError(f"{key} {name}: {why} and there is no local copy; {remedy}")


@contextmanager
def _session(*, offline: bool) -> Iterator[None]:
    """Hide the progress bars and logged errors of `datasets`. Offline, serve it from local copies.

    `datasets` and the hub's client read the offline names at each request.
    """
    import datasets
    from huggingface_hub import constants

    hub, data = constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE
    level, bars = datasets.logging.get_verbosity(), datasets.are_progress_bars_disabled()
    constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE = hub or offline, data or offline
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE = hub, data
        datasets.logging.set_verbosity(level)
        if not bars:
            datasets.enable_progress_bars()


def read_rows(name: str, subset: str | None, *, streaming: bool) -> Iterator[dict[str, Any]]:
    """Yield the rows of the training split of a hub data set.

    Raises:
        DataError: if the hub does not answer and its cache holds no copy, or a row cannot be read.
    """
    from datasets import load_dataset

    key, online = f"data.dataset {name}", reachable()
    remedy = "connect, or give local files (data.source text, json or parquet with data.files)"
    missing = None if online else unreachable("data.dataset", name, remedy)
    with _session(offline=not online):
        try:
            rows = load_dataset(name, subset, split="train", streaming=streaming and online)
        except Exception as error:  # the libraries raise many kinds
            refused = f"{key} cannot be loaded ({one_line(error)}); correct data.dataset or data.subset"
            raise (missing or DataError(refused)) from None
        try:
            yield from rows
        except Exception as error:  # the network and the formats each raise their own
            raise DataError(
                f"{key} cannot be read ({_cause(error)}); run the command again if the connection broke, else give "
                "another data set"
            ) from None


def _cause(error: BaseException) -> str:
    """Return the innermost cause in one line; Arrow's own error comes first, because it names the row."""
    import pyarrow

    causes = [error]
    while inner := causes[-1].__cause__ or causes[-1].__context__:
        causes.append(inner)
    return one_line(next((cause for cause in reversed(causes) if isinstance(cause, pyarrow.ArrowInvalid)), causes[-1]))


def tokenizer_file(name: str) -> Path:
    """Return the local copy of a hub model's ``tokenizer.json``; download it if there is none.

    Raises:
        DataError: if the hub does not answer and its cache holds no copy, or there is no such file.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    online = reachable()
    try:
        return Path(hf_hub_download(name, "tokenizer.json", local_files_only=not online))
    except Exception as error:  # the client raises many kinds
        if not online and isinstance(error, LocalEntryNotFoundError):
            raise unreachable("data.tokenizer", name, "connect, or give a local tokenizer.json") from None
        raise DataError(
            f"data.tokenizer {name} cannot be loaded ({one_line(error)}); give a hub id that holds a tokenizer.json"
        ) from None
