"""One setting of a study: choose placements on the selection seeds, then measure them on fresh ones.

1. Placements are trained at the first selection seed, the best two or three of each l at the second.
2. For every l the best placement, and each named one, is trained at fresh seeds, the same for all.
3. Where l* is not decided, what could decide it and the reference get more fresh seeds, twice at the most.

What is trained depends on records only, so that a study that was killed goes on as if it had not been.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from layersearch.config.recipe import Recipe, deepspeed_file
from layersearch.errors import UserError
from layersearch.optimal_l.config import SEARCHED, Setting
from layersearch.optimal_l.noninferiority import LStar, find_l_star
from layersearch.optimal_l.placements import count, first_round, named, place, proposals, role
from layersearch.optimal_l.runner import Trainer
from layersearch.schedule import Schedule
from layersearch.study.plan import Listener
from layersearch.study.prepare import open_data, open_run_folder
from layersearch.study.run_folder import RunFolder
from layersearch.training.record import Phase, Trial, TrialRecord
from layersearch.training.workers.pool import PoolFactory

QUARTERS = (0.25, 0.5, 0.75)
"""Shares of the training at which the validation loss is taken too."""
GENERATIONS = 2
"""Rounds of proposals by the surrogate."""
MOST_RUNNERS, LEAST_RUNNERS = 3, 2
"""Placements of one l that are trained at the second selection seed."""
START = "start"
"""Folder of the trainings before the switch, in the converted regime."""

SelectionLosses = Mapping[Schedule, Mapping[int, float]]


def trial_recipe(setting: Setting, out: Path) -> Recipe:
    """Return what the setting's trials run: in the converted regime, what comes after the switch.

    Args:
        setting: the setting.
        out: its run folder, which holds the weights at the switch.
    """
    recipe, asked = setting.recipe, setting.asked
    if asked.regime == "scratch":
        return recipe
    steps = max(1, round(recipe.training.steps * asked.continued))
    warmup = min(recipe.training.warmup_steps, max(0, steps // 4))
    start = str(out / START / "seed-{seed}.safetensors")
    return replace(recipe, training=replace(recipe.training, steps=steps, warmup_steps=warmup, start=start))


@dataclass(frozen=True, kw_only=True)
class Selection:
    """What the selection seeds decided."""

    best: Mapping[int, Schedule]
    """By l: the best placement of exactly l full layers."""
    envelope: Mapping[int, tuple[Schedule, ...]]
    """By l: the best schedule of at most l full layers, then, if there is one, another of as many layers that is within
    delta of it."""

    @property
    def reference(self) -> Schedule:
        """The best schedule of any l."""
        return self.envelope[max(self.envelope)][0]


def select(setting: Setting, losses: SelectionLosses) -> Selection:
    """Choose by the mean loss over both selection seeds, fewer full layers first where it is equal.

    Args:
        setting: the setting.
        losses: on the selection seeds. Schedules that lack one of them are passed over, unless all of an l do.
    """
    need = set(setting.asked.selection_seeds)
    scored: dict[int, list[tuple[float, int, Schedule]]] = {}
    for schedule, by_seed in losses.items():
        n_full = schedule.n_full
        if n_full in setting.ls and by_seed:
            missing = len(need - by_seed.keys())
            scored.setdefault(n_full, []).append((math.fsum(by_seed.values()) / len(by_seed), missing, schedule))
    best: dict[int, tuple[float, Schedule]] = {}
    candidates: dict[int, tuple[Schedule, ...]] = {}
    for n_full, rows in scored.items():
        whole = sorted([row for row in rows if not row[1]] or rows)
        loss, _, schedule = whole[0]
        best[n_full] = (loss, schedule)
        candidates[n_full] = (schedule, *[other for far, _, other in whole[1:2] if far <= loss + setting.asked.delta])
    envelope = {}
    for l in setting.ls:
        held = [(loss, n_full, schedule) for n_full, (loss, schedule) in best.items() if n_full <= l]
        if held:
            envelope[l] = candidates[min(held)[1]]
    return Selection(best={n_full: schedule for n_full, (_, schedule) in sorted(best.items())}, envelope=envelope)


def confirmed_schedules(setting: Setting, chosen: Selection) -> list[Schedule]:
    """Return what is measured on fresh seeds: the best of every l, the named placements, both ends."""
    found = dict.fromkeys(chosen.best.values())
    for l in setting.ls if setting.asked.measure_named else ():
        found |= dict.fromkeys(named(setting, l).values())
    return list(found | {place(setting, range(setting.n_layers)): None})


def l_star_of(setting: Setting, chosen: Selection, losses: SelectionLosses) -> LStar:
    """Return l* against the best schedule found, by the test of the look that these losses on fresh seeds are."""
    share = setting.asked.share(len(losses.get(chosen.reference, ())))
    return find_l_star(chosen.envelope, losses, chosen.reference, setting.asked.delta, share=share)


def run_setting(
    setting: Setting, out: Path, *, cache: Path | None, pool: PoolFactory, listener: Listener
) -> list[TrialRecord]:
    """Train what a setting needs, or what is left of it; return all complete records.

    Args:
        setting: the setting.
        out: its run folder.
        cache: folder of prepared data; None: the default one.
        pool: makes the pool of the trials.
        listener: called after each trial.

    Raises:
        UserError: names what is wrong and the remedy; finished trials are kept.
    """
    recipe = trial_recipe(setting, out)
    folder = _folder(setting, recipe, out, cache)
    trainer = Trainer(folder, lambda: pool(recipe, recipe.search.workers, out / "logs", cache), listener)
    try:
        study = _Study(setting, out, trainer, recipe, cache, pool, listener)
        study.choose()
        study.measure()
        return trainer.records
    finally:
        trainer.close()
        folder.release()


def _folder(setting: Setting, recipe: Recipe, out: Path, cache: Path | None) -> RunFolder:
    source = open_data(recipe.data, recipe.training, deepspeed_file(recipe), cache=cache)
    free = ("recipe.search",)  # how schedules are proposed and pruned is the study's own matter
    return open_run_folder(out, recipe, setting.bound, source, budget=1.0, seed=setting.asked.seed, free=free)


class _Study:
    def __init__(
        self,
        setting: Setting,
        out: Path,
        trainer: Trainer,
        recipe: Recipe,
        cache: Path | None,
        pool: PoolFactory,
        listener: Listener,
    ) -> None:
        self.setting, self.out, self.trainer, self.recipe = setting, out, trainer, recipe
        self._cache, self._pool, self._listener = cache, pool, listener
        steps = recipe.training.steps
        self._checkpoints = tuple(sorted({max(1, round(share * steps)) for share in QUARTERS} - {steps}))

    def choose(self) -> None:
        """Train placements at the selection seeds."""
        setting, (first, second) = self.setting, self.setting.asked.selection_seeds
        if setting.asked.regime == "converted":
            self._start([first, second, *setting.asked.fresh_seeds[: setting.asked.looks[0]]])  # one pool for all
        tried = first_round(setting)
        self._train("select", tried, [first], "search")
        for generation in range(GENERATIONS if SEARCHED in setting.asked.placements else 0):
            known = {held: loss for held, loss in self._at(first).items() if held in tried}
            new: list[Schedule] = []
            for l in setting.ls:
                here = sum(schedule.n_full == l for schedule in tried)
                open_ = min(setting.asked.per_l, count(setting, l)) - here
                number = math.ceil(open_ / (GENERATIONS - generation))
                if number > 0:
                    new += proposals(setting, l, known, number)
            tried += new
            self._train("select", new, [first], "search")
        losses = self._at(first)
        runners = [schedule for l in setting.ls for schedule in self._runners(l, losses)]
        self._train("select", runners, [second], "search")

    def measure(self) -> None:
        """Train what was chosen at fresh seeds, as many as the answer needs."""
        setting, asked = self.setting, self.setting.asked
        chosen = select(setting, self.trainer.losses("search"))
        wanted = confirmed_schedules(setting, chosen)
        for look, number in enumerate(asked.looks):
            seeds = asked.fresh_seeds[:number]
            self._train("confirm", wanted, seeds, "confirm")
            losses = {
                held: {seed: loss for seed, loss in by_seed.items() if seed in seeds}
                for held, by_seed in self.trainer.losses("confirm").items()
            }
            found = l_star_of(setting, chosen, losses)
            if found.decided or look + 1 == len(asked.looks):
                return
            wanted = [*found.undecided, found.reference]

    def _at(self, seed: int) -> dict[Schedule, float]:
        return {t: by_seed[seed] for t, by_seed in self.trainer.losses("search").items() if seed in by_seed}

    def _runners(self, l: int, losses: Mapping[Schedule, float]) -> list[Schedule]:
        """Return the placements of an l that the first seed leaves in doubt, the best first."""
        here = sorted((loss, schedule) for schedule, loss in losses.items() if schedule.n_full == l)
        if not here:
            return []
        near = sum(loss <= here[0][0] + self.setting.asked.delta for loss, _ in here)
        return [schedule for _, schedule in here[: min(max(near, LEAST_RUNNERS), MOST_RUNNERS)]]

    def _train(self, phase: str, schedules: Iterable[Schedule], seeds: Sequence[int], kind: Phase) -> None:
        schedules = list(schedules)
        if self.setting.asked.regime == "converted":
            self._start(seeds)
        self.trainer.train(
            phase,
            [
                Trial(
                    schedule=schedule,
                    seed=seed,
                    phase=kind,
                    role=role(self.setting, schedule),
                    checkpoints=self._checkpoints,
                )
                for seed in seeds
                for schedule in schedules
            ],
        )

    def _start(self, seeds: Sequence[int]) -> None:
        """Train all-full up to the switch at these seeds, where its weights are not there yet."""
        here = self.out / START
        weights = {seed: here / f"seed-{seed}.safetensors" for seed in seeds}
        if all(path.exists() for path in weights.values()):
            return
        recipe = self.setting.recipe
        folder = _folder(self.setting, recipe, here, self._cache)
        self.trainer.close()  # a cluster may have room for the one pool or the other
        trainer = Trainer(
            folder, lambda: self._pool(recipe, recipe.search.workers, here / "logs", self._cache), self._listener
        )
        try:
            # Weights that are gone are trained again, whatever the records say.
            trainer.records = [r for r in trainer.records if r.seed not in weights or weights[r.seed].exists()]
            full = place(self.setting, range(self.setting.n_layers))
            trials = [
                Trial(schedule=full, seed=seed, role="all_full", save=str(path)) for seed, path in weights.items()
            ]
            trainer.train("before the switch", trials)
        finally:
            trainer.close()
            folder.release()
        ended = {record.seed for record in trainer.records if record.state == "complete"}
        if lost := [path for seed, path in weights.items() if seed in ended and not path.exists()]:
            raise UserError(
                f"{lost[0]}: the weights were written on another machine; give an --out that all machines of the "
                "cluster share"
            )
