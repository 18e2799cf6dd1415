"""The search loop: baselines, then generations of proposals, then confirmation on fresh seeds.

1. Baselines are trained to the end at the search's seed.
2. Generations of proposals are trained. At each rung the recipe's pruner stops the worse trials, but for a few that are
   kept to show how early losses rank.
3. The best proposals within the budget and all baselines are trained at the same fresh seeds, in two rounds if the
   recipe asks for them (`layersearch.study.confirmation`). Only these decide the winner, because selection biases a
   schedule's loss at the search's seed.

A generation's proposals and stops depend only on earlier generations. So one seed gives the same records for any number
and speed of workers, and a killed search resumes with the same records. A failed trial is trained again when the search
resumes; its later record counts.
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

from layersearch.errors import LayersearchError
from layersearch.results.analyze import analyze
from layersearch.results.pareto import nondominated
from layersearch.results.result import PROPOSED, Result
from layersearch.schedule import Schedule
from layersearch.schedule.bound_space import BoundSpace
from layersearch.study.confirmation import DECIDING, second_round
from layersearch.study.journal import Study
from layersearch.study.plan import GENERATION, Listener, Plan, Progress
from layersearch.study.pruning import ExpectedGainPruner, SuccessiveHalvingPruner, TrialPruner
from layersearch.study.run_folder import RESULT, RunFolder, result_text, write_result
from layersearch.surrogate.fit import leave_one_out_losses
from layersearch.training.record import KeepGoing, Trial, TrialRecord
from layersearch.training.workers.pool import Pool
from layersearch.training.workers.run_trials import run_trials


class SearchLoop:
    """One search, from its first baseline to its winner. See the module docstring."""

    def __init__(
        self,
        plan: Plan,
        space: BoundSpace,
        folder: RunFolder,
        study: Callable[[], Study],
        pool: Pool,
        listener: Listener,
    ):
        """``study`` opens the study: reading a journal of thousands of trials takes longer than all else."""
        self._plan, self._space, self._folder, self._open_study, self._pool = plan, space, folder, study, pool
        self._listener = listener
        self._found = folder.records()
        self._records = [record for record in self._found if record.state != "failed"]
        self._resumed = len(self._records)
        self._planned = plan.trials
        self._planned_steps = plan.full_trials() * plan.recipe.training.steps
        self._began = time.monotonic()

    @functools.cached_property
    def _study(self) -> Study:
        return self._open_study()

    def run(self) -> Result:
        """Run the remaining trials; write and return the result."""
        if not self._searched():
            self._search()
        self._confirm()
        return self._finish()

    def _searched(self) -> bool:
        """Whether the search was over when the result was written, and no record of it is missing."""
        records, baselines = self._search_records(), {schedule for _, schedule in self._plan.baselines}
        schedules = {record.schedule for record in records}
        if not baselines <= schedules or len(schedules - baselines) < self._plan.proposals:
            return False
        try:
            return self._folder.journal.stat().st_mtime_ns <= (self._folder.path / RESULT).stat().st_mtime_ns
        except OSError:
            return False

    def _search(self) -> None:
        made, found = {record.key for record in self._records}, self._found
        self._to_retry = {r.schedule for r in found if r.phase == "search" and r.key not in made}
        # A record may be lost: another program cut the file, or the user deleted a damaged line.
        kept = {r.schedule for r in found if r.phase == "search"}
        self._to_retry |= {schedule for schedule in self._study.generations() if schedule not in kept}
        for record in self._search_records():
            self._study.tell(record)  # a kill may come between record and study
        for schedule in sorted(self._to_retry):
            self._study.retry(schedule)
        self._train_baselines()
        reasons = [record.error for record in self._records if record.state == "failed"]
        if len(reasons) == len(self._records):
            raise LayersearchError(
                f"every baseline failed ({reasons[0]}): correct the recipe and start anew with another --out, "
                "or, if the machine was the cause, run the same command again"
            )
        self._race()

    def confirm(self, schedules: Sequence[Schedule]) -> Result:
        """Train these schedules at the confirmation seeds; write and return the result."""
        names = {schedule: name for name, schedule in self._plan.baselines}
        seeds = (*self._plan.confirm_seeds, *self._plan.further_seeds)
        trials = self._confirm_trials({schedule: names.get(schedule, PROPOSED) for schedule in schedules}, seeds)
        made = {record.key for record in self._records}
        new = sum(trial.key not in made for trial in trials)
        self._planned = len(self._records) + new
        self._planned_steps = sum(r.steps for r in self._records) + new * self._plan.recipe.training.steps
        self._train("confirm", trials, None)
        return self._finish()

    def _finish(self) -> Result:
        tolerance = self._plan.recipe.search.tolerance
        leave_one_out = leave_one_out_losses(self._records, self._space)
        result = analyze(
            self._records,
            self._plan.budget,
            tolerance=tolerance,
            leave_one_out=leave_one_out,
            first_round=self._plan.recipe.search.first_round,
        )
        self._write(result)
        self._announce("done", None)
        return result

    def _train_baselines(self) -> None:
        entered = self._study.generations()
        for name, schedule in self._plan.baselines:
            if schedule not in entered:
                self._study.enter(schedule, name, 0)
        self._train("baselines", [self._search_trial(held, name) for name, held in self._plan.baselines], None)

    def _race(self) -> None:
        entered = self._study.generations()
        # The newest generation may lack proposals; the loop below fills it up before it is trained.
        newest = max([1, *entered.values()])
        for generation in sorted({entered.get(held, 0) for held in self._to_retry} & set(range(1, newest))):
            self._train_generation(generation, entered)
        while True:
            entered = self._study.generations()
            generation = max([1, *entered.values()])
            members = [schedule for schedule, number in entered.items() if number == generation]
            trained = {record.schedule for record in self._search_records()}
            if len(members) == GENERATION and trained.issuperset(members):
                generation, members = generation + 1, []
            # A search killed between proposals fills up the generation as without the kill.
            proposed = sum(number > 0 for number in entered.values())
            seen = {*entered, *(schedule for _, schedule in self._plan.baselines)}
            room = min(self._plan.proposals - proposed, GENERATION - len(members))
            added = 0
            for index in range(len(members), len(members) + room):
                schedule = self._study.propose(seen, generation, index)
                if schedule is None:
                    break
                members.append(schedule)
                seen.add(schedule)
                added += 1
            if not added and trained.issuperset(members):
                return
            self._train_generation(generation, self._study.generations())

    def _train_generation(self, generation: int, entered: Mapping[Schedule, int]) -> None:
        members = [schedule for schedule, number in entered.items() if number == generation]
        earlier = [r for r in self._search_records() if entered.get(r.schedule, 0) < generation]
        trials = [self._search_trial(schedule, PROPOSED) for schedule in members]
        first = (generation - 1) * GENERATION
        kept = {schedule for number, schedule in enumerate(members, first) if self._plan.keeps(number)}
        self._train("search", trials, self._pruner(earlier, members), kept)

    def _pruner(self, earlier: Sequence[TrialRecord], members: Sequence[Schedule]) -> TrialPruner | None:
        """Return the recipe's pruner for a generation; None: every trial runs to the end."""
        search = self._plan.recipe.search
        if search.pruner == "none" or not self._plan.checkpoints:
            return None
        if search.pruner == "expected_gain":
            steps = self._plan.recipe.training.steps
            return ExpectedGainPruner(self._space, self._plan.budget, earlier, members, steps)
        assert search.reduction is not None
        return SuccessiveHalvingPruner(self._space, earlier, search.reduction)

    def _confirm(self) -> None:
        roles = {schedule: name for name, schedule in self._plan.baselines}
        within = [r for r in self._within_budget() if r.schedule not in roles]
        within.sort(key=lambda r: (r.loss, r.cost, r.schedule))
        # Schedules on the Pareto front first, then by loss, so the confirmed front is the found one.
        front = {within[at].schedule for at in nondominated([(r.loss or 0.0, r.cost) for r in within])}
        ranked = sorted(within, key=lambda r: (r.schedule not in front, r.loss))
        roles |= {r.schedule: r.role for r in ranked[: self._plan.recipe.search.finalists]}
        trials = self._confirm_trials(roles, self._plan.confirm_seeds)
        further = min(DECIDING, len(roles)) * len(self._plan.further_seeds)
        self._planned = len(self._search_records()) + len(trials) + further
        self._train("confirm", trials, None)
        if further:
            self._train("confirm", self._second_round(roles), None)

    def _second_round(self, roles: Mapping[Schedule, str]) -> list[Trial]:
        """Return the trials of the schedules that decide, by the first round alone: a resumed run chooses the same."""
        plan = self._plan
        first = [r for r in self._records if r.schedule in roles and r.seed in plan.confirm_seeds]
        chosen = second_round(analyze(first, plan.budget, tolerance=plan.recipe.search.tolerance))
        return self._confirm_trials({schedule: roles[schedule] for schedule in chosen}, plan.further_seeds)

    def _confirm_trials(self, roles: Mapping[Schedule, str], seeds: Sequence[int]) -> list[Trial]:
        return [
            Trial(schedule=schedule, seed=seed, phase="confirm", role=role, checkpoints=self._plan.checkpoints)
            for seed in seeds
            for schedule, role in roles.items()
        ]

    def _search_trial(self, schedule: Schedule, role: str) -> Trial:
        return Trial(schedule=schedule, seed=self._plan.seed, role=role, checkpoints=self._plan.checkpoints)

    def _search_records(self) -> list[TrialRecord]:
        return [r for r in self._records if r.phase == "search"]

    def _within_budget(self) -> list[TrialRecord]:
        return [r for r in self._search_records() if r.state == "complete" and r.cost <= self._plan.budget]

    def _train(
        self, phase: str, trials: Sequence[Trial], rule: TrialPruner | None, kept: Collection[Schedule] = ()
    ) -> None:
        """Run the trials that have no record yet; the rule stops none that is kept. Tell the study in their order."""
        done = {record.key for record in self._records}
        todo = [trial for trial in trials if trial.key not in done]

        def keep_going(trial: Trial) -> KeepGoing | None:
            return (
                None if rule is None or trial.schedule in kept else functools.partial(rule.keep_going, trial.schedule)
            )

        with contextlib.closing(run_trials(self._pool, todo, keep_going)) as records:
            for record in records:
                self._folder.append(record)
                # A trial that was lost with its worker and tried again has two records.
                self._records = [*(r for r in self._records if r.key != record.key), record]
                self._announce(phase, record)
        if phase != "confirm":
            made = {r.schedule: r for r in self._search_records()}
            for trial in trials:  # also those with an older record: the journal may have lost its end
                self._study.tell(made[trial.schedule])

    def _announce(self, phase: str, last: TrialRecord | None) -> None:
        new = len(self._records) - self._resumed
        left = None
        if new:
            # Stopped trials are short, so the estimate counts training steps, not trials.
            done = sum(r.steps for r in self._records[self._resumed :])
            missing = max(0.0, self._planned_steps - sum(r.steps for r in self._records))
            left = missing / max(1, done) * (time.monotonic() - self._began)
        self._listener(
            Progress(
                phase=phase,
                done=len(self._records),
                planned=max(self._planned, len(self._records)),
                best=min(self._within_budget(), key=lambda r: (r.loss, r.cost), default=None),
                last=last,
                seconds_left=0.0 if phase == "done" else left,
            )
        )

    def _write(self, result: Result) -> None:
        path = self._folder.path
        files = [path / f"{name}{suffix}" for name in ("pareto", "signal") for suffix in (".png", ".svg")]
        if result_text(result) != _content(path / RESULT):
            for file in files:  # of an older result; a kill before they are drawn again leaves none
                file.unlink(missing_ok=True)
        write_result(path, result)
        if not all(file.exists() for file in files):
            from layersearch.results.plots.noise import plot_signal
            from layersearch.results.plots.pareto import plot_pareto

            plot_pareto(result, path / "pareto")
            plot_signal(result, path / "signal")


def _content(file: Path) -> str | None:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None
