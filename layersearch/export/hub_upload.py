"""Upload of an exported folder to the Hugging Face hub, with the user's own token. Nothing calls it unless asked."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from layersearch.errors import ExportError, one_line


def check_repository(name: str) -> None:
    """Raise ExportError unless the name is ``owner/name``."""
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise ExportError(f"--push {name!r}: expected the hub id of a model, such as me/my-model")


def push(folder: Path, files: Sequence[str], repository: str) -> str:
    """Upload files of a folder in one commit and return the page's address.

    A repository that does not exist is made, and it is private. The token is that of ``hf auth login`` or ``HF_TOKEN``;
    ``HF_ENDPOINT`` names another hub.

    Raises:
        ExportError: the token is missing or not allowed, or the hub cannot be reached; the folder stays as it is.
    """
    from huggingface_hub import HfApi, errors

    check_repository(repository)
    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT") or None, library_name="layersearch")
    try:
        api.create_repo(repository, private=True, exist_ok=True)
        done = api.upload_folder(
            repo_id=repository,
            folder_path=folder,
            allow_patterns=list(files),
            commit_message="Upload a model with its attention schedule",
        )
    # The first is httpx's or httpx2's, by the release of huggingface_hub.
    except (errors.HTTPError, OSError, ValueError) as error:  # type: ignore[attr-defined]
        raise ExportError(
            f"--push {repository}: not uploaded ({one_line(error)}); the files are in {folder}. Log in with 'hf auth "
            "login' or set HF_TOKEN, and run the same command again"
        ) from None
    return str(done.commit_url)
