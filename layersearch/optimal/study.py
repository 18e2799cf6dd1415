"""A whole study of l: its settings one after another, the laws over them, and the files of the answer."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from layersearch.data import open_source
from layersearch.errors import UserError
from layersearch.ladder import LocalPool, PoolFactory, Progress
from layersearch.ladder.folder import unwritable, write_text
from layersearch.ladder.ladder import Listener
from layersearch.optimal import say
from layersearch.optimal.answer import SettingAnswer, answer_setting
from layersearch.optimal.asked import Asked, Setting
from layersearch.optimal.investigate import investigate
from layersearch.optimal.law import Law, fit_laws
from layersearch.record import read

_WRITTEN = ("answer.md", "answer.json", "l_star.png", "l_star.svg")


@dataclass(frozen=True, kw_only=True)
class OptimalL:
    """The answer of a study."""

    settings: tuple[SettingAnswer, ...]
    laws: dict[str, tuple[Law, ...]]
    """By what varies: ``length``, ``depth``."""
    text: str
    """One page in words."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain data, as ``answer.json`` holds it."""
        plain: dict[str, Any] = _plain(dataclasses.asdict(self))
        return plain


def _silent(progress: Progress) -> None:
    del progress


def optimal_l(
    asked: Asked,
    out: Path | str,
    *,
    cache: Path | None = None,
    pool: PoolFactory = LocalPool,
    listener: Listener = _silent,
    figures: bool = True,
) -> OptimalL:
    """Find out how many layers need full attention, or go on with a study that was begun.

    Args:
        asked: the study.
        out: its folder: a run folder, or, of several lengths or depths, one folder that holds a run folder for each.
        cache: folder of prepared data; None: the default one.
        pool: where the trials run.
        listener: called after each trial.
        figures: draw them too.

    Returns:
        The answer; the same as ``answer.json`` in the folder holds.

    Raises:
        UserError: names what is wrong and the remedy; finished trials are kept.
    """
    out = Path(out)
    settings = asked.settings()
    try:
        _check_folder(out, settings)
        answers = []
        for setting in settings:
            here = out if len(settings) == 1 else out / setting.name
            investigate(setting, here, cache=cache, pool=pool, listener=listener)
            answers.append(answer_folder(setting, here, cache))
            if figures:
                from layersearch.optimal.figures import draw_setting

                draw_setting(answers[-1], here)
        laws = find_laws(asked, answers)
        title = f"How many layers need full attention? {asked.recipe.name}, {asked.regime}"
        found = OptimalL(settings=tuple(answers), laws=laws, text=say.page(title, answers, laws))
        if figures and len(answers) > 1:
            from layersearch.optimal.figures import draw_l_star

            draw_l_star(found, out / "l_star")
        write_text(out / "answer.md", found.text)
        write_text(out / "answer.json", json.dumps(found.to_dict(), indent=1) + "\n")
    except OSError as error:
        raise unwritable(out, error) from None
    return found


def answer_folder(setting: Setting, out: Path, cache: Path | None = None) -> SettingAnswer:
    """Return the answer of a setting's run folder as it is.

    Raises:
        UserError: if its records are damaged, or do not suffice for an answer.
    """
    found = list(read(out / "trials.jsonl"))
    made = {r.key for r in found if r.state != "failed"}
    failed = len({r.key for r in found if r.state == "failed"} - made)
    answer = open_source(setting.recipe.data, setting.seq_len, cache).answer
    complete = [r for r in found if r.state == "complete"]
    full = [r for r in complete if r.parsed().n_full == setting.n_layers]
    if not {"search", "confirm"} <= {r.phase for r in full}:
        raise UserError(f"{out}: all-full failed at its seeds, so there is nothing to compare with; see trials.jsonl")
    return answer_setting(setting, complete, None if answer is None else answer.optimal_l, failed)


def find_laws(asked: Asked, answers: Sequence[SettingAnswer]) -> dict[str, tuple[Law, ...]]:
    """Return the fitted laws of l* against length and depth, of those that were varied."""
    laws = {}
    for name, asked_for in (("length", asked.lengths), ("depth", asked.depths)):
        points = [(size_of(found, name), found.l_star) for found in varied(asked, answers, name)]
        if len(asked_for) > 1:
            laws[name] = fit_laws(
                [size for size, _ in points],
                [star.value for _, star in points],
                [(star.low, star.value) for _, star in points],
            )
    return laws


def varied(asked: Asked, answers: Sequence[SettingAnswer], name: str) -> list[SettingAnswer]:
    """Return the settings among which only the length, or only the depth, varies."""
    if name == "length":
        return [a for a in answers if a.n_layers == asked.recipe.model.n_layers and a.seq_len in asked.lengths]
    return [a for a in answers if a.seq_len == asked.recipe.training.seq_len and a.n_layers in asked.depths]


def size_of(found: SettingAnswer, name: str) -> int:
    """Return a setting's length in tokens or depth in layers."""
    return found.seq_len if name == "length" else found.n_layers


def _check_folder(out: Path, settings: Sequence[Setting]) -> None:
    if len(settings) == 1 or not out.exists():
        return  # a run folder checks itself
    if not out.is_dir():
        raise UserError(f"--out {out}: a file stands there; name a folder")
    for entry in out.iterdir():
        known = entry.name in _WRITTEN or (entry.name.startswith("length-") and "-depth-" in entry.name)
        if not known:
            raise UserError(f"--out {out}: the folder holds other things ({entry.name}); name a new or empty folder")


def _plain(value: Any) -> Any:
    """Return JSON's own kinds; a number that is not finite becomes null."""
    if isinstance(value, dict):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
