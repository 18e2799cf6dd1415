"""The experiment protocol of one setting: select placements on the selection seeds, then measure them on fresh seeds.

`docs/methods/l-star.md` lists the steps. Only the records decide what is trained next, so a killed study resumes with
the same trials.
"""

from __future__ import annotations

import contextlib
import functools
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from layersearch.config.recipe import Recipe, deepspeed_file
from layersearch.errors import LayersearchError, RunFolderError
from layersearch.optimal_l.config import SEARCHED, Setting
from layersearch.optimal_l.noninferiority import LStar, find_l_star
from layersearch.optimal_l.placements import count, first_round, named_placements, placement, proposals, role_of
from layersearch.results.failures import Losses
from layersearch.schedule import Schedule
from layersearch.study.plan import Listener, Progress
from layersearch.study.prepare import open_data, open_run_folder
from layersearch.study.run_folder import RunFolder
from layersearch.training.record import Phase, Trial, TrialRecord
from layersearch.training.workers.pool import Pool, PoolFactory
from layersearch.training.workers.run_trials import run_trials

QUARTERS = (0.25, 0.5, 0.75)  # shares of the training after which the validation loss is measured too
GENERATIONS = 2  # rounds of proposals by the surrogate
MIN_SECOND, MAX_SECOND = 2, 3  # placements of one l that are trained at the second selection seed
START = "start"  # folder of the trainings before the switch, in the converted regime


def trial_recipe(setting: Setting, out: Path) -> Recipe:
    """Return the recipe of the setting's trials; in the converted regime, of the training after the switch.

    The run folder ``out`` holds the weights at the switch.
    """
    recipe, config = setting.recipe, setting.config
    if config.regime == "scratch":
        return recipe
    steps = max(1, round(recipe.training.steps * config.continued))
    warmup = min(recipe.training.warmup_steps, max(0, steps // 4))
    start = str(out / START / "seed-{seed}.safetensors")
    return replace(recipe, training=replace(recipe.training, steps=steps, warmup_steps=warmup, start=start))


@dataclass(frozen=True, kw_only=True)
class Selection:
    """The schedules chosen on the selection seeds."""

    best: Mapping[int, Schedule]
    """The best placement of exactly l full layers, by l."""
    envelope: Mapping[int, tuple[Schedule, ...]]
    """The best schedule of at most l full layers, by l. Its runner-up follows if it is within delta: the second best
    with the same number of full layers."""

    @property
    def reference(self) -> Schedule:
        """The best schedule of any l."""
        return self.envelope[max(self.envelope)][0]


def select(setting: Setting, losses: Losses) -> Selection:
    """Choose by the mean loss over both selection seeds; of equal losses, the fewer full layers.

    A schedule that lacks a selection seed is skipped, unless all schedules of its l do.
    """
    need = set(setting.config.selection_seeds)
    scored: dict[int, list[tuple[float, int, Schedule]]] = {}
    for schedule, by_seed in losses.items():
        if schedule.n_full in setting.ls and by_seed:
            row = (math.fsum(by_seed.values()) / len(by_seed), len(need - by_seed.keys()), schedule)
            scored.setdefault(schedule.n_full, []).append(row)
    means: dict[int, float] = {}
    candidates: dict[int, tuple[Schedule, ...]] = {}
    for n_full, rows in sorted(scored.items()):
        (mean, _, best), *others = sorted([row for row in rows if not row[1]] or rows)
        means[n_full] = mean
        candidates[n_full] = (best, *[other for loss, _, other in others[:1] if loss <= mean + setting.config.delta])
    envelope = {}
    for l in setting.ls:
        within = [(mean, n_full) for n_full, mean in means.items() if n_full <= l]
        if within:
            envelope[l] = candidates[min(within)[1]]
    return Selection(best={n_full: found[0] for n_full, found in candidates.items()}, envelope=envelope)


def confirmed_schedules(setting: Setting, chosen: Selection) -> list[Schedule]:
    """Return the schedules to measure on fresh seeds: the best of every l, the named placements, both ends."""
    found = dict.fromkeys(chosen.best.values())
    for l in setting.ls if setting.config.measure_named else ():
        found |= dict.fromkeys(named_placements(setting, l).values())
    return list(found | {placement(setting, range(setting.n_layers)): None})


def l_star_of(setting: Setting, chosen: Selection, losses: Losses) -> LStar:
    """Return l* against the best schedule found. The number of fresh seeds tells which look this is."""
    share = setting.config.share(len(losses.get(chosen.reference, ())))
    return find_l_star(chosen.envelope, losses, chosen.reference, setting.config.delta, share=share)


def run_setting(
    setting: Setting, out: Path, *, cache: Path | None, pool: PoolFactory, listener: Listener
) -> list[TrialRecord]:
    """Train the trials of a setting that have no record in its run folder; return all complete records.

    The other arguments and the errors are those of `layersearch.optimal_l.run.optimal_l`.
    """
    protocol = _Protocol(setting, out, cache, pool, listener)
    try:
        protocol.select()
        protocol.confirm()
        return protocol.runner.records
    finally:
        protocol.runner.close()
        protocol.runner.folder.release()


class _Protocol:
    def __init__(self, setting: Setting, out: Path, cache: Path | None, pool: PoolFactory, listener: Listener) -> None:
        self.setting, self.out = setting, out
        self._cache, self._pool, self._listener = cache, pool, listener
        recipe = trial_recipe(setting, out)
        self.runner = self._runner(recipe, out)
        steps = recipe.training.steps
        self._checkpoints = tuple(sorted({max(1, round(share * steps)) for share in QUARTERS} - {steps}))

    def select(self) -> None:
        """Train placements at the selection seeds."""
        setting, config = self.setting, self.setting.config
        first, second = config.selection_seeds
        if config.regime == "converted":
            self._start([first, second, *config.fresh_seeds[: config.looks[0]]])  # one pool for all
        tried = first_round(setting)
        self._train("select", tried, [first], "search")
        for generation in range(GENERATIONS if SEARCHED in config.placements else 0):
            known = {schedule: loss for schedule, loss in self._first_losses().items() if schedule in tried}
            new: list[Schedule] = []
            for l in setting.ls:
                room = min(config.per_l, count(setting, l)) - sum(schedule.n_full == l for schedule in tried)
                number = math.ceil(room / (GENERATIONS - generation))
                if number > 0:
                    new += proposals(setting, l, known, number)
            tried += new
            self._train("select", new, [first], "search")
        losses = self._first_losses()
        self._train("select", [s for l in setting.ls for s in self._near_best(l, losses)], [second], "search")

    def confirm(self) -> None:
        """Train the selected schedules at fresh seeds, look by look, until l* is decided."""
        setting, config = self.setting, self.setting.config
        chosen = select(setting, losses_of(self.runner.records, "search"))
        wanted = confirmed_schedules(setting, chosen)
        for number in config.looks:
            seeds = config.fresh_seeds[:number]
            self._train("confirm", wanted, seeds, "confirm")
            found = l_star_of(
                setting, chosen, losses_of((r for r in self.runner.records if r.seed in seeds), "confirm")
            )
            if found.decided:
                return
            wanted = [*found.undecided, found.reference]

    def _first_losses(self) -> dict[Schedule, float]:
        seed, losses = self.setting.config.seed, losses_of(self.runner.records, "search")
        return {schedule: by_seed[seed] for schedule, by_seed in losses.items() if seed in by_seed}

    def _near_best(self, l: int, losses: Mapping[Schedule, float]) -> list[Schedule]:
        """Return the placements of an l whose loss at the first seed is within delta of the best, the best first."""
        here = sorted((loss, schedule) for schedule, loss in losses.items() if schedule.n_full == l)
        near = sum(loss <= here[0][0] + self.setting.config.delta for loss, _ in here)
        return [schedule for _, schedule in here[: min(max(near, MIN_SECOND), MAX_SECOND)]]

    def _train(self, phase: str, schedules: Iterable[Schedule], seeds: Sequence[int], kind: Phase) -> None:
        if self.setting.config.regime == "converted":
            self._start(seeds)
        roles = {schedule: role_of(self.setting, schedule) for schedule in schedules}
        trials = [
            Trial(schedule=schedule, seed=seed, phase=kind, role=role, checkpoints=self._checkpoints)
            for seed in seeds
            for schedule, role in roles.items()
        ]
        self.runner.train(phase, trials)

    def _start(self, seeds: Sequence[int]) -> None:
        """Train all-full up to the switch at the seeds whose weights do not exist yet."""
        here = self.out / START
        weights = {seed: here / f"seed-{seed}.safetensors" for seed in seeds}
        if all(path.exists() for path in weights.values()):
            return
        self.runner.close()  # a cluster may have room for one pool only
        runner = self._runner(self.setting.recipe, here)
        try:
            # A seed whose weights are lost is trained again, although it has a record.
            runner.records = [r for r in runner.records if r.seed not in weights or weights[r.seed].exists()]
            full = placement(self.setting, range(self.setting.n_layers))
            trials = [
                Trial(schedule=full, seed=seed, role="all_full", save=str(path)) for seed, path in weights.items()
            ]
            runner.train("before the switch", trials)
        finally:
            runner.close()
            runner.folder.release()
        ended = {record.seed for record in runner.records if record.state == "complete"}
        if lost := [path for seed, path in weights.items() if seed in ended and not path.exists()]:
            raise RunFolderError(
                f"{lost[0]}: the weights were written on another machine; give an --out that all machines of the "
                "cluster share"
            )

    def _runner(self, recipe: Recipe, out: Path) -> TrialRunner:
        source = open_data(
            recipe.data, recipe.training, deepspeed_file(recipe), cache=self._cache, kind=recipe.model.kind
        )
        free = ("recipe.search",)  # the study has its own way to propose schedules
        seed, space = self.setting.config.seed, self.setting.bound
        folder = open_run_folder(out, recipe, space, source, budget=1.0, seed=seed, free=free)
        pool = functools.partial(self._pool, recipe, recipe.search.workers, out / "logs", self._cache)
        return TrialRunner(folder, pool, self._listener)


def losses_of(records: Iterable[TrialRecord], phase: Phase) -> dict[Schedule, dict[int, float]]:
    """Return the losses of complete trials of a phase by schedule and seed, nats."""
    found: dict[Schedule, dict[int, float]] = {}
    for record in records:
        if record.phase == phase and record.state == "complete" and record.loss is not None:
            found.setdefault(record.schedule, {})[record.seed] = record.loss
    return found


class TrialRunner:
    """Trains the trials of one run folder that have no record yet, failed ones again.

    The pool is made when the first trial is to run. The listener is called after each trial.
    """

    def __init__(self, folder: RunFolder, pool: Callable[[], Pool], listener: Listener) -> None:
        self.folder, self._make_pool, self._listener = folder, pool, listener
        self._pool: Pool | None = None
        folder.drop_torn_line()
        self.records: list[TrialRecord] = [r for r in folder.records() if r.state != "failed"]
        self._planned = self._new = 0
        self._began = time.monotonic()

    def train(self, phase: str, trials: Sequence[Trial]) -> None:
        """Run the trials that have no record, in this order. The listener is told the phase.

        Raises:
            LayersearchError: if every trial failed; gives the first reason.
        """
        made = {record.key for record in self.records}
        todo = [t for key, t in {t.key: t for t in trials}.items() if key not in made]
        self._planned = max(self._planned, len(self.records) + len(todo))
        if not todo:
            return
        pool = self._pool = self._pool or self._make_pool()
        failed: dict[object, TrialRecord] = {}
        with contextlib.closing(run_trials(pool, todo)) as records:
            for record in records:
                self.folder.append(record)
                # A trial that was lost with its worker and tried again has two records.
                self.records = [*(r for r in self.records if r.key != record.key), record]
                self._new += 1
                failed.pop(record.key, None)
                failed |= {record.key: record} if record.state == "failed" else {}
                self._announce(phase, record)
        if len(failed) == len(todo) and all(r.state == "failed" for r in self.records):
            reason = next(iter(failed.values())).error
            raise LayersearchError(
                f"every trial failed ({reason}): correct the recipe and start anew with another --out, or, if "
                "the machine was the cause, run the same command again"
            )

    def close(self) -> None:
        """Close the pool. The next trial makes another."""
        if self._pool is not None:
            self._pool.close()
            self._pool = None

    def _announce(self, phase: str, last: TrialRecord) -> None:
        done = len(self.records)
        complete = [r for r in self.records if r.state == "complete" and r.phase == last.phase]
        seconds_per_trial = (time.monotonic() - self._began) / self._new
        self._listener(
            Progress(
                phase=phase,
                done=done,
                planned=max(self._planned, done),
                best=min(complete, key=lambda r: (r.loss, r.cost), default=None),
                last=last,
                seconds_left=seconds_per_trial * max(0, self._planned - done),
            )
        )
