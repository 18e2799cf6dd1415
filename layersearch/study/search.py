"""``layersearch.search``: one search, from its recipe to its result."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path

from layersearch.config.recipe import Recipe, deepspeed_file
from layersearch.files import unwritable
from layersearch.results.result import Result
from layersearch.schedule import Schedule
from layersearch.schedule.bound_space import BoundSpace
from layersearch.schedule.space import Space
from layersearch.study.journal import Study
from layersearch.study.loop import SearchLoop
from layersearch.study.plan import Listener, Stage, make_plan, no_listener, no_stage_listener
from layersearch.study.prepare import open_data, open_run_folder
from layersearch.study.run_folder import RunFolder
from layersearch.training.stages import check_stages
from layersearch.training.workers.pool import LocalPool, PoolFactory


def search(
    recipe: Recipe,
    space: Space,
    budget: float,
    out: Path | str,
    *,
    seed: int = 0,
    cache: Path | None = None,
    pool: PoolFactory = LocalPool,
    listener: Listener = no_listener,
    on_stage: Callable[[Stage], None] = no_stage_listener,
    confirm: Sequence[Schedule] | None = None,
) -> Result:
    """Search a space for the best schedule within a budget, or resume a search.

    Args:
        recipe: configuration of one trial.
        space: the search space.
        budget: maximum attention cost, as a share of the all-full schedule's.
        out: the run folder; if it holds this search, the search resumes.
        seed: random seed of the search; confirmation uses the following seeds.
        cache: folder of prepared data; None: the default one.
        pool: where the trials run: `LocalPool`, `RayPool` or ``functools.partial(RayPool, address=...)``. It changes
            no record, see `layersearch.training.workers.ray_pool`. A search may resume on another pool.
        listener: called after each trial.
        on_stage: called with the progress of a selection, if the recipe has the section ``selection``.
        confirm: do not search; only train these schedules at the confirmation seeds.

    Returns:
        The analyzed records, as in ``frontier.json`` of the folder.

    Raises:
        LayersearchError: names the fault and the remedy; finished trials are kept.

    Example:
        >>> import layersearch
        >>> recipe, space = layersearch.load_recipe("smoke"), layersearch.load_space("smoke")
        >>> result = layersearch.search(recipe, space, 0.6, "runs/smoke")  # doctest: +SKIP
    """
    # What imports torch is imported where it is needed: a run that is done needs none of it.
    bound = BoundSpace.of(space, recipe)
    for schedule in confirm or ():
        bound.check(schedule)
        check_stages(schedule, recipe)
    if recipe.selection is not None:
        from layersearch.study.model_selection import select

        return select(recipe, bound, budget, Path(out), seed, cache, on_stage, confirm)
    plan = make_plan(recipe, bound, budget, seed)
    rows = None
    if recipe.pretrained is not None:
        from layersearch.model.pretrained import load_config

        rows = load_config(recipe.pretrained).vocab_size
    source = open_data(
        recipe.data, recipe.training, deepspeed_file(recipe), rows=rows, cache=cache, kind=recipe.model.kind
    )
    out = Path(out)
    made = pool(recipe, recipe.search.workers, out / "logs", cache)
    folder: RunFolder | None = None
    try:
        folder = open_run_folder(out, recipe, bound, source, budget=budget, seed=seed)
        if recipe.pretrained is not None:
            from layersearch.study.layer_selection import selected_baselines

            further = selected_baselines(recipe, bound, budget, source, seed, out)
            plan = make_plan(recipe, bound, budget, seed, further)
        study = functools.partial(Study, folder.journal, bound, budget, recipe.search, seed)
        folder.drop_torn_line()
        loop = SearchLoop(plan, bound, folder, study, made, listener)
        return loop.run() if confirm is None else loop.confirm(confirm)
    except OSError as error:
        raise unwritable(out, error) from None
    finally:
        made.close()
        if folder is not None:
            folder.release()
