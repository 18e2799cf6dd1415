"""Chooses a pre-trained model's schedule without training: gates, local search, confirmation on held-out documents.

1. Gates over all choices of all layers descend on calibration units, at the budget (`layersearch.selection.gates`).
2. A local search measures schedules on selection units (`layersearch.selection.local_search`).
3. The best within the budget, named placements at the budget, and schedules at other costs are measured on
   confirmation units. Only these decide.

The three sets of units share no document. Each unit of the confirmation is one "seed" of a record, so the analysis
pairs schedules by document. A killed run resumes: after each gate step, schedule and unit its results are on disk.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch

from layersearch.config.recipe import Recipe
from layersearch.config.selection import SelectionConfig
from layersearch.data.tokenizer import open_tokenizer
from layersearch.errors import ConfigError, RunFolderError
from layersearch.files import parse_json, unwritable, write_text
from layersearch.model.attention.dispatch import kernel_for
from layersearch.model.fvcore_flops import check_flops
from layersearch.model.pretrained import load_pretrained
from layersearch.results.analyze import analyze
from layersearch.results.compared import compared
from layersearch.results.held_out import measure_rows
from layersearch.results.plots.selection import plot_selection
from layersearch.results.result import ALL_FULL, PROPOSED, Result
from layersearch.results.retrieval_cells import first_example
from layersearch.schedule import Schedule, presets
from layersearch.schedule.bound_space import BoundSpace
from layersearch.selection.gates import descend, round_to_schedules
from layersearch.selection.layerwise import Layerwise
from layersearch.selection.local_search import DECIMALS, LocalSearch, Measured
from layersearch.selection.measure import Measurement, Scorer, Unit, by_task, position_edges
from layersearch.selection.templates import named_placements
from layersearch.study.plan import Stage
from layersearch.study.prepare import request_of
from layersearch.study.retrieval_lengths import measure_lengths, shorter_examples
from layersearch.study.run_folder import RunFolder, write_result
from layersearch.study.selection_plan import SelectionPlan, check_memory, plan_of, uniform_schedules
from layersearch.study.selection_units import make_units, units_without_facts
from layersearch.training.memory import device_name, peak_memory, reset_peak_memory
from layersearch.training.record import Trial, TrialRecord, blank_record

_LOG = logging.getLogger(__name__)

Listener = Callable[[Stage], None]
Array = np.ndarray


class ModelSelection:
    """One selection in a run folder.

    Args:
        recipe: with ``pretrained`` and ``selection``.
        space: the space, bound to the model.
        budget: largest cost, as a share of all-full's.
        folder: the run folder, held by this process.
        seed: of the local search.
        listener: called with the progress.
        plan: as `plan_of` returns it.
    """

    def __init__(
        self,
        recipe: Recipe,
        space: BoundSpace,
        budget: float,
        folder: RunFolder,
        seed: int,
        listener: Listener,
        plan: SelectionPlan,
    ) -> None:
        assert recipe.selection is not None
        assert recipe.pretrained is not None
        self._recipe, self._space, self._budget = recipe, space, budget
        self._config: SelectionConfig = recipe.selection
        self._folder, self._seed, self._listener = folder, seed, listener
        self._records = folder.records()
        self._tasks: tuple[str, ...] = self._config.used_tasks
        self._plan = plan
        self._began, self._first = time.monotonic(), 0

    def run(self, units: Mapping[str, Sequence[Unit]], confirm: Sequence[Schedule] | None = None) -> list[TrialRecord]:
        """Do what is left, or only confirm these schedules; return every record. ``units`` are of `make_units`."""
        self._say("loading", 0, 1, f"reading {Path(str(self._recipe.pretrained)).name}")
        model = self._load()
        self._tasks = self._usable_tasks(model, units["calibration"])
        if confirm is None:
            scores = self._gates(model, units["calibration"])
            search = self._search(model, units["selection"], scores)
            roles = self._to_confirm(search, scores)
        else:
            roles = dict.fromkeys(confirm, PROPOSED)
        self._confirm(model, units["confirmation"], roles)
        self._lengths(model)
        return self._records

    def _say(self, phase: str, done: int, planned: int, note: str) -> None:
        left = None
        if done > self._first:
            left = (time.monotonic() - self._began) / (done - self._first) * (planned - done)
        self._listener(Stage(phase=phase, done=done, planned=planned, note=note, seconds_left=left))

    def _enter(self, done: int) -> None:
        """Start a phase's clock; ``done`` units of its work were done before."""
        self._began, self._first = time.monotonic(), done

    def _load(self) -> Layerwise:
        dtype = self._plan.precision
        decoder = load_pretrained(str(self._recipe.pretrained), tokens=self._recipe.training.seq_len, dtype=dtype)
        self.dtype = dtype
        self._heads: dict[str, Any] = {
            "dtype": getattr(torch, dtype),
            "head_dim": decoder.head_dim,
            "softcap": decoder.softcap,
            "sinks": decoder.sinks,
        }
        if self._plan.device != "cpu":
            reset_peak_memory(self._plan.device)
        return Layerwise(decoder.to(self._plan.device), stride=self._plan.memory.stride)

    def _usable_tasks(self, model: Layerwise, units: Sequence[Unit]) -> tuple[str, ...]:
        """Return the tasks that the model does with full attention; ``retrieval.json`` keeps the levels."""
        file = self._folder.path / "retrieval.json"
        if not self._tasks:
            return ()
        if not file.exists():
            self._say("loading", 0, 1, "retrieval tasks: the original's level and chance")
            full = presets.all_full(model.n_layers)
            level = by_task(Scorer(model, units, self._tasks, 0.5).measure_all(full))
            without = units_without_facts(self._recipe, self._tasks, len(units), self._seed)
            guessed = by_task(Scorer(model, without, self._tasks, 0.5).measure_all(full))
            levels = {task: {"full": level[task], "chance": guessed[task]} for task in level}
            write_text(file, json.dumps(levels, indent=1) + "\n")
        try:
            held = parse_json(file.read_text(encoding="utf-8"))
            return tuple(task for task in self._tasks if held[task]["full"] >= self._config.min_accuracy)
        except (ValueError, TypeError, KeyError):
            raise RunFolderError(f"{file}: damaged; remove it, and run the same command again") from None

    def _scorer(self, model: Layerwise, units: Sequence[Unit]) -> Scorer:
        return Scorer(model, units, self._tasks, self._config.retrieval_weight)

    def _gates(self, model: Layerwise, units: Sequence[Unit]) -> list[Array]:
        """Return the gates' scores by layer and choice; ``gates.json`` holds each step."""
        file, steps = self._folder.path / "gates.json", self._config.gate_steps
        losses: list[float] = []
        scores = [np.zeros(len(options)) for options in self._space.options]
        if file.exists():
            try:
                held = parse_json(file.read_text(encoding="utf-8"))
                losses = [float(loss) for loss in held["losses"]]
                scores = [np.array(layer, dtype=np.float64) for layer in held["scores"]]
                if [s.shape for s in scores] != [(len(options),) for options in self._space.options]:
                    raise ValueError
            except (ValueError, TypeError, KeyError):
                raise RunFolderError(f"{file}: damaged; remove it, and run the same command again") from None
        done = len(losses)
        self._enter(done)

        def on_step(step: int, loss: float, now: Sequence[Array]) -> None:
            losses.append(loss)
            write_text(file, json.dumps({"scores": [layer.tolist() for layer in now], "losses": losses}) + "\n")
            self._say("gates", step, steps, f"relaxed loss {loss:.3f}")

        self._say("gates", done, steps, f"all {sum(map(len, self._space.options))} choices of {model.n_layers} layers")
        scorer = self._scorer(model, units)
        return descend(
            scorer,
            self._space.options,
            self._costs(),
            self._budget,
            steps=steps,
            rate=self._config.gate_rate,
            begin=scores,
            first=done,
            on_step=on_step,
        )

    def _costs(self) -> list[Array]:
        return [np.array([self._space.share(span) for span in options]) for options in self._space.options]

    def _search(self, model: Layerwise, units: Sequence[Unit], scores: Sequence[Array]) -> LocalSearch:
        config, space = self._config, self._space
        known = {r.schedule: _losses(r) for r in self._records if r.phase == "search"}
        planned = config.candidates

        def on_measured(made: Measured) -> None:
            self._append(made.schedule, self._seed, "search", made.losses, made.found, len(units))
            best = search.best[:1]
            note = f"best {best[0].estimate:.3f} at cost {space.cost(best[0].schedule):.3f} ({best[0].schedule})"
            self._say("search", len(search.measured), planned, note if best else "")

        search = LocalSearch(
            self._scorer(model, units), space, self._budget, self._prior(scores), on_measured, known, self._seed
        )
        self._enter(len(known))
        self._say("search", 0, planned, "measuring schedules on real losses")
        path = round_to_schedules(space.options, scores, self._costs())
        inside = [schedule for schedule in path if space.cost(schedule) <= self._budget]
        # Without gates nothing is known yet: begin at the named placements.
        first = inside[-1:-8:-2] if config.gate_steps else [*named_placements(space, self._budget).values()]
        search.run(first[: max(1, config.candidates)], max(0, config.candidates - len(set(first))))
        return search

    def _prior(self, scores: Sequence[Array]) -> Callable[[Schedule], float]:
        pairs = zip(self._space.options, scores, strict=True)
        tables = [dict(zip(options, layer.tolist(), strict=True)) for options, layer in pairs]
        groups = self._space.groups
        return lambda schedule: sum(table[schedule[group[0]]] for table, group in zip(tables, groups, strict=True))

    def _to_confirm(self, search: LocalSearch, scores: Sequence[Array]) -> dict[Schedule, str]:
        """Return the schedules to confirm and their roles."""
        space, config, n = self._space, self._config, self._space.n_layers
        roles: dict[Schedule, str] = {presets.all_full(n): ALL_FULL}
        for name, schedule in {**uniform_schedules(space), **named_placements(space, self._budget)}.items():
            roles[schedule] = f"{roles[schedule]} = {name}" if schedule in roles else name
        for made in search.best[: config.finalists]:
            roles.setdefault(made.schedule, PROPOSED)
        path = round_to_schedules(space.options, scores, self._costs())
        low, high = space.cost(path[0]), min(0.75, max(2.5 * self._budget, 0.4))
        for level in np.linspace(low, high, config.frontier + 2)[1:-1]:
            near = min(path, key=lambda schedule: abs(space.cost(schedule) - level))
            roles.setdefault(near, PROPOSED)
        return roles

    def _confirm(self, model: Layerwise, units: Sequence[Unit], roles: Mapping[Schedule, str]) -> None:
        done = {(r.schedule, r.seed) for r in self._records if r.phase == "confirm" and r.schedule in roles}
        planned, count = len(roles) * len(units), len(done)
        self._enter(count)
        self._say("confirm", count, planned, f"{len(roles)} schedules on {len(units)} held-out documents")
        # In this order each schedule shares the most lower layers with the one before; only those above run again.
        order = sorted(roles)
        for number, unit in enumerate(units):
            scorer = self._scorer(model, [unit])
            for schedule in order:
                if (schedule, number) in done:
                    continue
                scorer.start_from(schedule)
                found = scorer.measure(schedule, 0)
                loss = found.quality(scorer.weight)
                self._append(schedule, number, "confirm", [loss], [found], 1, roles[schedule])
                count += 1
                self._say("confirm", count, planned, self._leader())

    def _lengths(self, model: Layerwise) -> None:
        """Ask the compared schedules for the facts of shorter texts too; ``retrieval_lengths.json`` keeps it."""
        if not self._tasks:
            return
        recipe, first = self._recipe, first_example(self._recipe)
        result = analyze(self._records, self._budget, tolerance=recipe.search.tolerance, unit="document")
        chosen = result.best_searched if result.winner is None else result.winner.schedule
        examples = shorter_examples(
            open_tokenizer(str(recipe.data.tokenizer))[0],
            self._config.used_tasks,
            seq_len=recipe.training.seq_len,
            numbers=range(first, first + self._config.confirm_units),
            seed=self._seed,
        )
        self._enter(0)
        measure_lengths(
            self._folder.path,
            self._scorer(model, []),
            [entry.schedule for _, entry in compared(result, chosen)],
            examples,
            lambda done, planned, note: self._say("retrieval", done, planned, note),
        )

    def _leader(self) -> str:
        by: dict[Schedule, list[float]] = {}
        for r in self._records:
            if r.phase == "confirm" and r.loss is not None and r.cost <= self._budget:
                by.setdefault(r.schedule, []).append(r.loss)
        most = max(map(len, by.values()), default=0)
        whole = {schedule: fmean(found) for schedule, found in by.items() if len(found) == most}
        if not whole:
            return ""
        best = min(whole, key=lambda schedule: whole[schedule])
        return f"best {whole[best]:.3f} at cost {self._space.cost(best):.3f} ({best})"

    def _append(
        self,
        schedule: Schedule,
        seed: int,
        phase: str,
        losses: Sequence[float],
        found: Sequence[Measurement],
        units: int,
        role: str = PROPOSED,
    ) -> None:
        trial = Trial(schedule=schedule, seed=seed, phase=phase, role=role)  # type: ignore[arg-type]
        seq_len = self._recipe.training.seq_len
        curve = tuple((n, fmean(losses[:n])) for n in range(1, len(losses) + 1))
        device = self._plan.device
        record = dataclasses.replace(
            blank_record(trial, self._recipe),
            state="complete" if len(losses) == units else "stopped",
            steps=len(losses),
            full_steps=units,
            loss=curve[-1][1],
            curve=curve,
            loss_by_position=tuple(map(fmean, zip(*(one.by_position for one in found), strict=True))),
            position_edges=position_edges(seq_len),
            metrics=_metrics(found),
            peak_memory_bytes=peak_memory(device),
            kernels=tuple(kernel_for(span, device, **self._heads) for span in schedule),
            device=device_name(device),
            precision=f"{self.dtype} weights",
        )
        self._folder.append(record)
        self._records.append(record)


def _losses(record: TrialRecord) -> list[float]:
    """Return the loss on each unit from the running means."""
    sums = [0.0, *(number * mean for number, mean in record.curve)]
    return [round(after - before, DECIMALS) for before, after in itertools.pairwise(sums)]


def _metrics(found: Sequence[Measurement]) -> tuple[tuple[str, float], ...]:
    said = {"text_loss": fmean(one.text_loss for one in found)}
    if found[0].accuracy:
        said["answer_loss"] = fmean(one.answer_loss for one in found)
        levels = by_task(found)
        said["answer_accuracy"] = fmean(levels.values())
        said |= {f"accuracy_{task}": level for task, level in levels.items()}
    return tuple(sorted(said.items()))


def select(
    recipe: Recipe,
    space: BoundSpace,
    budget: float,
    out: Path,
    seed: int,
    cache: Path | None,
    listener: Listener,
    confirm: Sequence[Schedule] | None = None,
) -> Result:
    """Select a schedule in a run folder, resume, or only confirm schedules; see `layersearch.search`."""
    assert recipe.pretrained is not None
    if any(len(group) > 1 for group in space.groups) or space.space.one_sparse:
        raise ConfigError(
            f"search space {space.space.name!r} ties layers (tied, pattern or one_sparse), and a selection chooses for "
            "each layer alone; name another --space, or train with --recipe pretrained-training"
        )
    space.check_budget(budget)
    plan = plan_of(recipe, space, budget)
    check_memory(recipe, plan)
    if plan.device == "cpu" and torch.cuda.is_available():
        _LOG.info("this machine has a GPU: --set training.gpus=1 runs the selection on it")
    listener(Stage(phase="loading", done=0, planned=1, note=f"reading text, then hashing {recipe.pretrained}"))
    units, data = make_units(recipe, plan.vocab_size, seed, cache)
    folder = RunFolder(out, request_of(recipe, space, budget=budget, seed=seed, data=data))
    try:
        folder.write_flops(lambda: check_flops(recipe, space, plan.vocab_size))
        folder.drop_torn_line()
        records = ModelSelection(recipe, space, budget, folder, seed, listener, plan).run(units, confirm)
        result = analyze(records, budget, tolerance=recipe.search.tolerance, unit="document")
        write_result(out, result)
        plot_selection(result, measure_rows(records), out / "selection")
    except OSError as error:
        raise unwritable(out, error) from None
    finally:
        folder.release()
    listener(Stage(phase="done", done=1, planned=1, note=f"results in {out}"))
    return result
