"""A conversion's folder: what was asked, the log of its steps, its evaluations, its checkpoint, its result."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from layersearch.config.loader import build
from layersearch.errors import UserError
from layersearch.files import first_difference, hold, stamp, unwritable, write_text
from layersearch.study.run_folder import check_model
from layersearch.training.record import drop_torn_line

FORMAT = 1
"""Version of the folder's layout."""
_ASKED = ("model", "schedule", "recipe", "seed", "data", "family")
_BEGUN = ("run.lock", "convert.json.part")
Moment = Literal["original", "switched", "training", "converted"]


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """One pass over the validation set: a line of ``evaluations.jsonl``."""

    __pydantic_config__ = {"extra": "forbid", "allow_inf_nan": False}

    moment: Moment
    """``original``: the model as it came, its own spans; ``switched``: its weights under the schedule; ``training``;
    ``converted``: what is saved."""
    step: int
    """Optimiser steps done, of all stages."""
    schedule: str
    """What the layers saw."""
    seq_len: int
    """Tokens in a sequence."""
    loss: float
    """Nats, as `layersearch.training.evaluate.Measured.loss`."""
    loss_by_position: tuple[float, ...]
    """In equal bins of token position, first tokens first."""
    position_edges: tuple[int, ...]
    """Right edges of those bins, in tokens."""
    metrics: tuple[tuple[str, float], ...] = ()
    """Further named measures of the data."""
    seconds: float = 0.0
    """Of training so far, this process only."""


class ConvertFolder:
    """A conversion's folder that this process holds.

    Args:
        path: the folder; made if it does not exist.
        asked: what defines the conversion, as plain data.

    Raises:
        UserError: if the folder holds something else or another conversion, or a conversion is going on there.
    """

    def __init__(self, path: Path, asked: Mapping[str, Any]) -> None:
        assert set(asked) == {*_ASKED, "model_fingerprint"}
        wanted: dict[str, Any] = json.loads(json.dumps(asked))
        self.path = path
        self._lock: Any = None
        config = path / "convert.json"
        try:
            if path.exists() and not path.is_dir():
                raise UserError(f"--out {path}: a file stands there; name a folder")
            if config.exists():
                _check_same(config, wanted, path)
            elif path.is_dir() and any(entry.name not in _BEGUN for entry in path.iterdir()):
                raise UserError(f"--out {path}: the folder holds other things; name a new or empty folder")
            path.mkdir(parents=True, exist_ok=True)
            self._lock = hold(path)
            if not config.exists():
                write_text(config, json.dumps(stamp() | {"format": FORMAT} | wanted, indent=2) + "\n")
            for name in ("evaluations.jsonl", "steps.jsonl"):
                drop_torn_line(path / name)
        except OSError as error:
            self.release()
            raise unwritable(path, error) from None
        except UserError:
            self.release()
            raise

    @property
    def checkpoint(self) -> Path:
        """Weights, moments and place of a conversion that is not done."""
        return self.path / "checkpoint.pt"

    @property
    def model(self) -> Path:
        """The converted model."""
        return self.path / "model"

    def evaluations(self) -> list[Evaluation]:
        """Return what was measured so far.

        Raises:
            UserError: if a line is damaged.
        """
        return [build(Evaluation, line, f"{self.path / 'evaluations.jsonl'}") for line in self._lines("evaluations")]

    def add_evaluation(self, evaluation: Evaluation) -> None:
        """Append one evaluation, forced to the disk."""
        self._append("evaluations", dataclasses.asdict(evaluation))

    def add_step(self, **facts: Any) -> None:
        """Append one optimiser step to the log."""
        self._append("steps", facts, force=False)

    def rewind(self, step: int) -> None:
        """Drop what was logged after the step at which training goes on."""
        for name in ("evaluations", "steps"):
            kept = [line for line in self._lines(name) if line["step"] <= step]
            write_text(self.path / f"{name}.jsonl", "".join(json.dumps(line) + "\n" for line in kept))

    def _lines(self, name: str) -> list[dict[str, Any]]:
        path = self.path / f"{name}.jsonl"
        if not path.exists():
            return []
        try:
            found: list[dict[str, Any]] = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
            return found
        except ValueError:
            raise UserError(f"{path}: a line is damaged; restore the file or start anew with another --out") from None

    def _append(self, name: str, facts: Mapping[str, Any], force: bool = True) -> None:
        with (self.path / f"{name}.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(facts) + "\n")
            file.flush()
            if force:
                os.fsync(file.fileno())

    def release(self) -> None:
        """Let another process have the folder."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None


def _check_same(config: Path, wanted: Mapping[str, Any], path: Path) -> None:
    try:
        held = json.loads(config.read_text(encoding="utf-8"))
        form = held["format"]
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{config}: not a conversion's; restore it or start anew with another --out") from None
    if form != FORMAT:
        raise UserError(f"{path}: a conversion of format {form!r}, this layersearch reads {FORMAT}; name another --out")
    for key in _ASKED:
        found = first_difference(held.get(key), wanted[key], key)
        if found:
            raise UserError(
                f"--out {path}: holds a conversion with another {found}; run the same command to resume it, or name "
                "another folder"
            )
    check_model(held, wanted, path)
