"""A whole study of l: its settings one after another, the laws over them, and the files of the answer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from layersearch.data import open_source
from layersearch.errors import UserError
from layersearch.files import unwritable, write_text
from layersearch.optimal_l import report
from layersearch.optimal_l.answer import SettingAnswer, answer_setting
from layersearch.optimal_l.config import OptimalLConfig, Setting
from layersearch.optimal_l.protocol import run_setting
from layersearch.optimal_l.summary import OptimalL, find_laws
from layersearch.study.plan import Listener, Progress
from layersearch.training.record import read
from layersearch.training.workers.pool import LocalPool, PoolFactory

_WRITTEN = ("answer.md", "answer.json", "l_star.png", "l_star.svg")


def _silent(progress: Progress) -> None:
    del progress


def optimal_l(
    asked: OptimalLConfig,
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
            run_setting(setting, here, cache=cache, pool=pool, listener=listener)
            answers.append(answer_folder(setting, here, cache))
            if figures:
                from layersearch.optimal_l.plots import draw_setting

                draw_setting(answers[-1], here)
        laws = find_laws(asked, answers)
        title = f"How many layers need full attention? {asked.recipe.name}, {asked.regime}"
        found = OptimalL(settings=tuple(answers), laws=laws, text=report.page(title, answers, laws))
        if figures and len(answers) > 1:
            from layersearch.optimal_l.plots import draw_l_star

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
    full = [r for r in complete if r.schedule.n_full == setting.n_layers]
    if not {"search", "confirm"} <= {r.phase for r in full}:
        raise UserError(f"{out}: all-full failed at its seeds, so there is nothing to compare with; see trials.jsonl")
    return answer_setting(setting, complete, None if answer is None else answer.optimal_l, failed)


def _check_folder(out: Path, settings: Sequence[Setting]) -> None:
    if len(settings) == 1 or not out.exists():
        return  # a run folder checks itself
    if not out.is_dir():
        raise UserError(f"--out {out}: a file stands there; name a folder")
    for entry in out.iterdir():
        known = entry.name in _WRITTEN or (entry.name.startswith("length-") and "-depth-" in entry.name)
        if not known:
            raise UserError(f"--out {out}: the folder holds other things ({entry.name}); name a new or empty folder")
