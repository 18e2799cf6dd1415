"""The run folder: the configuration of a search, its records, and a lock that keeps it to one process."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import IO, Any

from layersearch.config.loader import build
from layersearch.config.recipe import Recipe
from layersearch.config.search import default_pruner
from layersearch.errors import LayersearchError, RunFolderError
from layersearch.files import (
    FORMAT,
    FREE,
    check_links,
    first_difference,
    is_unchanged,
    open_folder,
    parse_json,
    write_text,
)
from layersearch.results.result import Result
from layersearch.results.sentences import winner_evidence
from layersearch.schedule.files import schedule_text
from layersearch.schedule.space import Space
from layersearch.training.record import TrialRecord, append, drop_torn_line, read
from layersearch.version import __version__

RESULT = "frontier.json"
_REQUEST_KEYS = ("recipe", "space", "budget", "seed", "data")
"""Keys of the configuration that define a run. A resumed run must have the same values."""
_KINDS: dict[str, Any] = {
    "recipe": dict,
    "recipe.name": str,
    "space": dict,
    "space.name": str,
    "budget": int | float,
    "seed": int,
    "data": dict,
    "data.source": str,
    "data.vocab_size": int,
}
"""Types of the keys that showing, exporting or resuming a run needs; parents before their keys."""


class RunFolder:
    """A run folder that this process holds.

    Args:
        path: the folder; created if it does not exist.
        request: plain data: recipe, space, budget, seed and data, and ``model_fingerprint`` with a pre-trained model.
        free: keys that change no record and may differ from the folder's.

    Raises:
        RunFolderError: if the folder holds other things, another run, another version's run, or a running search;
            nothing in it changes then.
    """

    def __init__(self, path: Path, request: Mapping[str, Any], free: Collection[str] = FREE) -> None:
        assert set(request) - {"model_fingerprint"} == set(_REQUEST_KEYS)
        self.path, self.trials, self.journal = path, path / "trials.jsonl", path / "study.journal"

        def check(wanted: dict[str, Any]) -> None:
            _check_same(read_config(path), wanted, path, free)
            self.records()  # refuses a damaged file before anything changes

        self._recipe = request["recipe"]
        self._lock: IO[str] | None = open_folder(path, "config.json", request, check)

    def records(self) -> list[TrialRecord]:
        """Return the records so far; raise RunFolderError if one is damaged or not of this run."""
        if not self.trials.exists():
            return []
        return list(read(self.trials, build(Recipe, self._recipe, "recipe")))

    def write_flops(self, count: Callable[[], Mapping[str, Any]]) -> None:
        """Write ``flops.json`` unless it exists. See `model.fvcore_flops.check_flops`."""
        file = self.path / "flops.json"
        if not file.exists():
            write_text(file, json.dumps(count(), indent=2) + "\n")

    def drop_torn_line(self) -> None:
        """Remove a record that a kill left incomplete."""
        drop_torn_line(self.trials)

    def append(self, record: TrialRecord) -> None:
        """Append a record and sync it to disk."""
        append(self.trials, record)

    def release(self) -> None:
        """Release the lock."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None


def read_config(path: Path) -> dict[str, Any]:
    """Return the configuration of a run.

    Raises:
        RunFolderError: if the folder is no run folder, or its configuration is damaged or of another version, or a link
            leads out of it.
    """
    file = path / "config.json"
    check_links(path)
    if not file.is_file():
        raise RunFolderError(
            f"{path}: no run folder (it has no config.json); give a folder that 'layersearch run' made"
        )
    try:
        config = parse_json(file.read_text(encoding="utf-8"))
        found = config["format"]
    except (OSError, ValueError, KeyError, TypeError):
        raise RunFolderError(
            f"{file}: not a run's configuration; restore it or start anew with another --out"
        ) from None
    if found != FORMAT:
        raise RunFolderError(
            f"{path}: a run folder of format {found!r}, this layersearch {__version__} reads format {FORMAT}; "
            "use the version that made it, or start anew with another --out"
        )
    for key, kind in _KINDS.items():
        *parents, last = key.split(".")
        held = config
        for parent in parents:
            held = held[parent]  # a mapping, as _KINDS checked before
        if not isinstance(held.get(last), kind) or isinstance(held[last], bool):
            raise RunFolderError(
                f"{file}: the key {key!r} is missing or damaged; restore it or start anew with another --out"
            )
    if not is_unchanged(config):
        raise RunFolderError(
            f"{file}: changed since it was written; restore it, or remove its key 'crc32' if you changed it yourself"
        )
    search = config["recipe"].get("search")
    if isinstance(search, dict) and "pruner" not in search:
        # An older version had no such key: the sampler chose the pruner, and `reduction` could be there without effect.
        search["pruner"] = default_pruner(str(search.get("sampler")), search.get("rungs") or ())
        if search["pruner"] != "successive_halving":
            search.pop("reduction", None)
    return dict(config)


def _check_same(config: Mapping[str, Any], request: Mapping[str, Any], path: Path, free: Collection[str]) -> None:
    for key in _REQUEST_KEYS:
        difference = first_difference(_with_defaults(key, config.get(key)), request[key], key, free)
        if difference:
            raise RunFolderError(
                f"--out {path}: holds a run with another {difference}; give its own value to resume it "
                "(--set for a key of the recipe), or name another folder"
            )
    check_model(config, request, path)


def check_model(held: Mapping[str, Any], request: Mapping[str, Any], path: Path) -> None:
    """Raise RunFolderError if the model's weights or configuration changed; older folders have no fingerprint."""
    before = held.get("model_fingerprint")
    if before not in (None, request.get("model_fingerprint")):
        raise RunFolderError(
            f"--out {path}: the model's weights or its config.json changed since this began; restore them, or name "
            "another folder"
        )


def _with_defaults(key: str, held: Any) -> Any:
    """Return a recipe or a space with defaults for the keys that an older layersearch did not have."""
    kind: Any = {"recipe": Recipe, "space": Space}.get(key)
    if kind is None:
        return held
    try:
        return json.loads(json.dumps(dataclasses.asdict(build(kind, held, key))))
    except LayersearchError:
        return held  # the comparison then names the difference


def result_text(result: Result) -> str:
    """Return the content of ``frontier.json``."""
    return json.dumps(result.to_dict(), indent=1) + "\n"


def write_result(path: Path, result: Result) -> None:
    """Write ``frontier.json`` and, if there is a winner, ``winner.yaml``."""
    write_text(path / RESULT, result_text(result))
    if result.winner is not None:
        write_text(path / "winner.yaml", schedule_text(result.winner.schedule, winner_evidence(result)))
