"""The folder of a conversion: its request, the log of its steps, its evaluations, its checkpoint, its model."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, get_args

from layersearch.config.loader import build
from layersearch.convert.config import ConvertRecipe
from layersearch.errors import LayersearchError, RunFolderError
from layersearch.files import first_difference, is_unchanged, open_folder, parse_json, seal, unseal, write_text
from layersearch.schedule import Schedule
from layersearch.study.run_folder import check_model
from layersearch.training.record import drop_torn_line

FORMAT = 1
"""Version of the folder's layout."""
_REQUEST = ("model", "schedule", "recipe", "seed", "data", "family")
Moment = Literal["original", "switched", "training", "converted"]


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """One pass over the validation set: a line of ``evaluations.jsonl``."""

    __pydantic_config__ = {"extra": "forbid", "allow_inf_nan": False}

    moment: Moment
    """``original``: the given model with its own spans; ``switched``: its weights under the schedule; ``training``;
    ``converted``: the saved model."""
    step: int
    """Optimizer steps done, in all stages."""
    schedule: str
    """The spans during the evaluation."""
    seq_len: int
    """Tokens in a sequence."""
    loss: float
    """Nats, as `layersearch.training.evaluate.ValidationResult.loss`."""
    loss_by_position: tuple[float, ...]
    """Loss in equal bins of token position, first tokens first, nats."""
    position_edges: tuple[int, ...]
    """Right edges of those bins, in tokens."""
    metrics: tuple[tuple[str, float], ...] = ()
    """Further named metrics of the data."""
    seconds: float = 0.0
    """Seconds since this process began the conversion."""

    @property
    def spans(self) -> Schedule:
        """The schedule during the evaluation."""
        return Schedule.parse(self.schedule)


class ConvertFolder:
    """The folder of a conversion, locked by this process.

    Args:
        path: the folder; made if it does not exist.
        request: plain data that defines the conversion; None: the folder is held by the process that started this one.

    Raises:
        RunFolderError: if the folder holds something else or another conversion, or another process has it.
    """

    def __init__(self, path: Path, request: Mapping[str, Any] | None) -> None:
        self.path, self.model = path, path / "model"
        self.checkpoint = path / "checkpoint.pt"  # weights, optimizer state and step of an unfinished conversion
        self.shards = path / "checkpoint"  # at ZeRO 1 and above, with checkpoint.pt to name the newest
        self._lock: IO[str] | None = None
        if request is None:
            return
        assert set(request) == {*_REQUEST, "model_fingerprint"}
        self._lock = open_folder(
            path, "convert.json", {"format": FORMAT, **request}, lambda wanted: _check_same(wanted, path)
        )
        for name in ("evaluations.jsonl", "steps.jsonl"):
            drop_torn_line(path / name)

    def evaluations(self) -> list[Evaluation]:
        """Return the evaluations so far, in the order in which a conversion makes them.

        Raises:
            RunFolderError: if a line is damaged.
        """
        found = [build(Evaluation, line, f"{self.path / 'evaluations.jsonl'}") for line in self._lines("evaluations")]
        return sorted(found, key=lambda one: (one.step, get_args(Moment).index(one.moment)))

    def steps(self) -> list[dict[str, Any]]:
        """Return the log of the optimizer steps: step, loss in nats, learning rate, tokens, seconds.

        Raises:
            RunFolderError: if a line is damaged.
        """
        return self._lines("steps")

    def add_evaluation(self, evaluation: Evaluation) -> None:
        """Append one evaluation, forced to the disk."""
        self._append("evaluations", dataclasses.asdict(evaluation), force=True)

    def add_step(self, **facts: Any) -> None:
        """Append one optimizer step to the log."""
        self._append("steps", facts, force=False)

    def rewind(self, step: int) -> None:
        """Drop all log lines after the step at which training resumes, and a converted model that was not saved."""
        for name in ("evaluations", "steps"):
            kept = [line for line in self._lines(name) if line["step"] <= step and line.get("moment") != "converted"]
            write_text(self.path / f"{name}.jsonl", "".join(seal(line) + "\n" for line in kept))

    def _lines(self, name: str) -> list[dict[str, Any]]:
        path, found = self.path / f"{name}.jsonl", list[dict[str, Any]]()
        text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
        for number, line in enumerate(text.split("\n")[:-1], start=1):
            try:
                found.append(unseal(line))
                if not isinstance(found[-1].get("step"), int):
                    raise RunFolderError("no whole number in the key 'step'")
            except RunFolderError as error:
                raise RunFolderError(
                    f"{path} line {number}: {error}; restore the line, or start again with another --out"
                ) from None
        return found

    def _append(self, name: str, facts: Mapping[str, Any], *, force: bool) -> None:
        with (self.path / f"{name}.jsonl").open("a", encoding="utf-8") as file:
            file.write(seal(facts) + "\n")
            file.flush()
            if force:
                os.fsync(file.fileno())

    def release(self) -> None:
        """Unlock the folder."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None


def _with_defaults(recipe: Any) -> Any:
    """Return a recipe with defaults for the keys that an older layersearch did not have."""
    try:
        return json.loads(json.dumps(dataclasses.asdict(build(ConvertRecipe, recipe, "recipe"))))
    except LayersearchError:
        return recipe  # the comparison then names the difference


def _check_same(wanted: Mapping[str, Any], path: Path) -> None:
    config = path / "convert.json"
    try:
        held = parse_json(config.read_text(encoding="utf-8"))
        form = held["format"]
    except (ValueError, KeyError, TypeError):
        raise RunFolderError(f"{config}: damaged; restore it, or start again with another --out") from None
    if form != FORMAT:
        raise RunFolderError(
            f"{path}: a conversion of format {form!r}, this version reads {FORMAT}; name another --out"
        )
    if not is_unchanged(held):
        raise RunFolderError(
            f"{config}: changed since it was written; restore it, or remove its key 'crc32' if you changed it yourself"
        )
    for key in _REQUEST:
        before = _with_defaults(held.get(key)) if key == "recipe" else held.get(key)
        found = first_difference(before, wanted[key], key)
        if found:
            raise RunFolderError(
                f"--out {path}: holds a conversion with another {found}; run the same command to resume it, or name "
                "another folder"
            )
    check_model(held, wanted, path)
