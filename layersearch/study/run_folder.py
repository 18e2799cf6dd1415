"""The run folder: what a search was asked, what it has found so far, and the lock that keeps it to one search."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import IO, Any

from layersearch.config.loader import build
from layersearch.config.recipe import Recipe, default_pruner
from layersearch.errors import RunFolderError
from layersearch.files import FORMAT, FREE, first_difference, open_folder, write_text
from layersearch.schedule.space import Space
from layersearch.training.record import TrialRecord, append, drop_torn_line, read
from layersearch.version import __version__

_ASKED = ("recipe", "space", "budget", "seed", "data")
"""Keys of the configuration that define a run: a resumed run must have the same."""


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
"""What a configuration must hold for a run to be shown, exported or resumed; parents before their keys."""


class RunFolder:
    """A run folder that this process holds.

    Args:
        path: the folder; made if it does not exist.
        asked: the resolved recipe, space, budget, seed and data description, as plain data; and ``model_fingerprint``
            of a search on a pre-trained model.
        free: keys that change no record, so that they may differ from the folder's.

    Raises:
        RunFolderError: if the folder holds something else, another run, a run of another version, or a search that is
            still going on; nothing in it is touched then.
    """

    def __init__(self, path: Path, asked: Mapping[str, Any], free: Collection[str] = FREE) -> None:
        assert set(asked) - {"model_fingerprint"} == set(_ASKED)
        self.path = path

        def check(wanted: dict[str, Any]) -> None:
            _check_same(read_config(path), wanted, path, free)
            self.records()  # refuses a damaged file before anything is changed

        self._lock: IO[str] | None = open_folder(path, "config.json", asked, check)

    @property
    def trials(self) -> Path:
        """One line per trial."""
        return self.path / "trials.jsonl"

    @property
    def journal(self) -> Path:
        """Optuna's study."""
        return self.path / "study.journal"

    def records(self) -> list[TrialRecord]:
        """Return the records so far."""
        return list(read(self.trials)) if self.trials.exists() else []

    def note_flops(self, count: Callable[[], Mapping[str, Any]]) -> None:
        """Write ``flops.json``, unless an earlier call of the run did. See `model.fvcore_flops.check_flops`."""
        file = self.path / "flops.json"
        if not file.exists():
            write_text(file, json.dumps(count(), indent=2) + "\n")

    def drop_torn_line(self) -> None:
        """Cut what a kill in the middle of a write left."""
        drop_torn_line(self.trials)

    def append(self, record: TrialRecord) -> None:
        """Add a record, forced to the disk."""
        append(self.trials, record)

    def release(self) -> None:
        """Let another process have the folder."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None


def read_config(path: Path) -> dict[str, Any]:
    """Return what a run was asked.

    Raises:
        RunFolderError: if the folder is no run folder, one of another version, or its configuration is damaged.
    """
    file = path / "config.json"
    if not file.is_file():
        raise RunFolderError(
            f"{path}: no run folder (it has no config.json); give a folder that 'layersearch run' made"
        )
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
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
            held = held[parent]  # a mapping: it stands before its own keys in _KINDS
        if not isinstance(held.get(last), kind) or isinstance(held[last], bool):
            raise RunFolderError(
                f"{file}: the key {key!r} is missing or damaged; restore it or start anew with another --out"
            )
    search = config["recipe"].get("search")
    if isinstance(search, dict) and "pruner" not in search:
        # Written before the pruner was a key: the sampler chose it, and `reduction` stood there without an effect too.
        search["pruner"] = default_pruner(str(search.get("sampler")), search.get("rungs") or ())
        if search["pruner"] != "successive_halving":
            search.pop("reduction", None)
    return dict(config)


def _check_same(config: Mapping[str, Any], asked: Mapping[str, Any], path: Path, free: Collection[str]) -> None:
    for key in _ASKED:
        difference = first_difference(_with_defaults(key, config.get(key)), asked[key], key, free)
        if difference:
            raise RunFolderError(
                f"--out {path}: holds a run with another {difference}; give its own value to resume it "
                "(--set for a key of the recipe), or name another folder"
            )
    check_model(config, asked, path)


def check_model(held: Mapping[str, Any], asked: Mapping[str, Any], path: Path) -> None:
    """Refuse a model that is not what it was; folders of an older layersearch do not say what it was.

    Raises:
        RunFolderError: if its weights or its configuration changed.
    """
    before = held.get("model_fingerprint")
    if before not in (None, asked.get("model_fingerprint")):
        raise RunFolderError(
            f"--out {path}: the model's weights or its config.json changed since this began; restore them, or name "
            "another folder"
        )


def _with_defaults(key: str, held: Any) -> Any:
    """Return a recipe or a space of an older layersearch with the keys it did not know yet, at their defaults."""
    kind: Any = {"recipe": Recipe, "space": Space}.get(key)
    if kind is None:
        return held
    try:
        return json.loads(json.dumps(dataclasses.asdict(build(kind, held, key))))
    except RunFolderError:
        return held  # what differs will be said of it as it is
