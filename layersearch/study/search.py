"""``layersearch.search``: one search from its recipe to its result."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from layersearch.config.recipe import Recipe, deepspeed_file
from layersearch.data import describe, open_source
from layersearch.files import unwritable
from layersearch.model.fvcore_flops import check_flops
from layersearch.model.pretrained import check_vocabulary, fingerprint, load_config
from layersearch.results.result import Result
from layersearch.schedule import Schedule
from layersearch.schedule.space import Space
from layersearch.study.journal import Study
from layersearch.study.layer_selection import selected_baselines
from layersearch.study.loop import Ladder
from layersearch.study.plan import Listener, Progress, make_plan
from layersearch.study.run_folder import RunFolder
from layersearch.training.deepspeed_config import deepspeed_config
from layersearch.training.workers.pool import LocalPool, PoolFactory


def _silent(progress: Progress) -> None:
    del progress


def search(
    recipe: Recipe,
    space: Space,
    budget: float,
    out: Path | str,
    *,
    seed: int = 0,
    cache: Path | None = None,
    pool: PoolFactory = LocalPool,
    listener: Listener = _silent,
    confirm: Sequence[Schedule] | None = None,
) -> Result:
    """Search a space for the best schedule within a budget, or go on with a search that was begun.

    Args:
        recipe: what one trial runs.
        space: what may vary.
        budget: the largest attention cost, as a share of the all-full schedule's.
        out: the run folder; if it holds this very search, it is taken up where it stopped.
        seed: of the search; the confirming phase uses the seeds after it.
        cache: folder of prepared data; None: the default one.
        pool: where the trials run: `LocalPool`, `RayPool` or ``functools.partial(RayPool, address=...)``. It changes
            no record, see `layersearch.training.workers.ray_pool`; a search may be taken up on another.
        listener: called after each trial.
        confirm: do not go on with the search; train these schedules at its confirming seeds, so that they stand beside
            what it confirmed.

    Returns:
        The analysed records; the same as ``frontier.json`` in the folder holds.

    Raises:
        UserError: names what is wrong and the remedy; finished trials are kept.
    """
    model, training = recipe.model, recipe.training
    bound = space.bind(n_layers=model.n_layers, seq_len=training.seq_len, n_heads=model.n_heads)
    plan = make_plan(recipe, bound, budget, seed)
    for schedule in confirm or ():
        bound.check(schedule)
    source = open_source(recipe.data, training.seq_len, cache)
    further_asked = {}
    if recipe.pretrained is not None:
        check_vocabulary(load_config(recipe.pretrained).vocab_size, source.vocab_size, recipe.data.tokenizer)
        further_asked["model_fingerprint"] = fingerprint(recipe.pretrained)
    source.validation(training.val_sequences)  # refuses a text that is too short before anything is trained
    deepspeed_config(training, deepspeed_file(recipe))
    out = Path(out)
    made = pool(recipe, recipe.search.workers, out / "logs", cache)
    folder: RunFolder | None = None
    try:
        folder = RunFolder(
            out,
            {
                "recipe": recipe.to_dict(),
                "space": dataclasses.asdict(space),
                "budget": budget,
                "seed": seed,
                "data": describe(source),
            }
            | further_asked,
        )
        folder.note_flops(lambda: check_flops(recipe, bound, source.vocab_size))
        if recipe.pretrained is not None:
            further = selected_baselines(recipe, bound, budget, source, seed, out)
            plan = make_plan(recipe, bound, budget, seed, further)
        study = Study(folder.journal, bound, budget, recipe.search, seed)
        folder.mend()
        ladder = Ladder(plan, bound, folder, study, made, listener)
        return ladder.run() if confirm is None else ladder.confirm(confirm)
    except OSError as error:
        raise unwritable(out, error) from None
    finally:
        made.close()
        if folder is not None:
            folder.release()
