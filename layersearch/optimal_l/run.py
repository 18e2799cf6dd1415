"""A whole optimal-l study: its settings one after another, the scaling laws over them, and the files of the result."""

import json
from collections.abc import Sequence
from pathlib import Path

from layersearch.data import open_of
from layersearch.errors import RunFolderError
from layersearch.files import unwritable, write_text
from layersearch.optimal_l import report
from layersearch.optimal_l.answer import OptimalL, SettingAnswer, answer_setting, find_laws
from layersearch.optimal_l.config import OptimalLConfig, Setting
from layersearch.optimal_l.protocol import run_setting, trial_recipe
from layersearch.study.plan import Listener, no_listener
from layersearch.training.record import read
from layersearch.training.workers.pool import LocalPool, PoolFactory

_WRITTEN = ("answer.md", "answer.json", "l_star.png", "l_star.svg", "report.html")


def optimal_l(
    config: OptimalLConfig,
    out: Path | str,
    *,
    cache: Path | None = None,
    pool: PoolFactory = LocalPool,
    listener: Listener = no_listener,
    figures: bool = True,
) -> OptimalL:
    """Find out how many layers need full attention, or resume a study.

    Args:
        config: the study.
        out: its run folder; with several settings, a folder that holds a run folder for each.
        cache: folder of prepared data; None: the default one.
        pool: where the trials run.
        listener: called after each trial.
        figures: draw the figures too.

    Returns:
        The result, as in ``answer.json`` of the folder.

    Raises:
        LayersearchError: names the fault and the remedy; finished trials are kept.
    """
    from layersearch.optimal_l import plots

    out, settings = Path(out), config.settings()
    try:
        _check_folder(out, settings)
        answers = []
        for setting in settings:
            here = out if len(settings) == 1 else out / setting.name
            run_setting(setting, here, cache=cache, pool=pool, listener=listener)
            answers.append(answer_folder(setting, here, cache, len(settings)))
            if figures:
                plots.draw_setting(answers[-1], here)
        laws = find_laws(config, answers)
        title = f"How many layers need full attention? {config.recipe.name}, {config.regime}"
        found = OptimalL(settings=tuple(answers), laws=laws, text=report.page(title, answers, laws))
        if figures and len(answers) > 1:
            plots.draw_l_star(found, out / "l_star")
        write_text(out / "answer.md", found.text)
        write_text(out / "answer.json", json.dumps(found.to_dict(), indent=1, allow_nan=False) + "\n")
    except OSError as error:
        raise unwritable(out, error) from None
    return found


def answer_folder(setting: Setting, out: Path, cache: Path | None = None, settings: int = 1) -> SettingAnswer:
    """Return the result of a setting's run folder as it is; ``settings`` is the number of settings on its page.

    Raises:
        RunFolderError: if its records are damaged, or too few for a result.
    """
    records = list(read(out / "trials.jsonl", trial_recipe(setting, out)))
    made = {r.key for r in records if r.state != "failed"}
    failed = len({r.key for r in records if r.state == "failed"} - made)
    complete = [r for r in records if r.state == "complete"]
    full = [r for r in complete if r.schedule.n_full == setting.n_layers]
    if not {"search", "confirm"} <= {r.phase for r in full}:
        raise RunFolderError(
            f"{out}: all-full failed at its seeds, so there is nothing to compare with; see trials.jsonl"
        )
    known = open_of(setting.recipe, cache).answer
    return answer_setting(setting, complete, None if known is None else known.optimal_l, failed, settings)


def _check_folder(out: Path, settings: Sequence[Setting]) -> None:
    if len(settings) == 1 or not out.exists():
        return  # a run folder checks itself
    if not out.is_dir():
        raise RunFolderError(f"--out {out}: a file stands there; name a folder")
    for entry in out.iterdir():
        if entry.name not in _WRITTEN and not (entry.name.startswith("length-") and "-depth-" in entry.name):
            raise RunFolderError(
                f"--out {out}: the folder holds other things ({entry.name}); name a new or empty folder"
            )
