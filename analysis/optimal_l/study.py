"""The study: the dispute about placement, how l* moves, windows that grow, dilation, LaS, blocks against windows.

Command:  python analysis/optimal_l/study.py [GROUP ...] [--seeds 5] [--workers 2]      (--list: the groups; --estimate)
Time:     `--list` prints trainings per group; `--estimate` times one of each and prints core-minutes. On a busy
          machine a training of the mix took 20 core-seconds and one of text 26: about 30 core-minutes for a dispute on
          the mix, 38 on text, 6 to 15 for a group of spans, some 10 for a value of a factor (20 for 600 steps)
Writes:   study.jsonl, one line per training of a group; moves.jsonl, one line per training of a factor of l*

Groups are in groups.py. Finished trainings are taken from the records, so that the same command goes on after a kill.
Then `python analysis/optimal_l/report.py` makes the tables and the figures.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path

from groups import Group, Move, groups, moves
from jobs import HERE, WORK, Job, Records, run, trained_parts

from layersearch.config.recipe import load_recipe
from layersearch.optimal_l.config import OptimalLConfig
from layersearch.optimal_l.placements import first_round
from layersearch.optimal_l.run import optimal_l
from layersearch.schedule.files import plain
from layersearch.schedule.space import Space
from layersearch.training.record import TrialRecord, read

STUDY, MOVES = HERE / "study.jsonl", HERE / "moves.jsonl"
PLACEMENTS = ("top", "middle")
"""Of the factors of l*: the better of these at each l."""
DELTA = 0.02
"""Nats: the margin of l* in the factors."""


def ls_of(n_layers: int) -> tuple[int, ...]:
    """Return the numbers of full layers that are tried in a model of so many layers."""
    return (0, 1, 2, n_layers)


def asked_of(move: Move, value: int, *, seeds: int = 3, most: int = 5, workers: int = 2) -> OptimalLConfig:
    """Return the command's own study at one value of a factor."""
    changes, span = move.values[value]
    recipe = load_recipe(move.recipe, [*changes, f"search.workers={workers}"])
    space = Space(name=f"{move.recipe}-{span}", choices=("full", span), baseline_span=span)
    return OptimalLConfig(
        recipe=recipe,
        space=space,
        delta=DELTA,
        placements=PLACEMENTS,
        ls=ls_of(recipe.model.n_layers),
        measure_named=False,
        seeds=seeds,
        most_seeds=max(seeds, most),
    )


def setting_of(move: Move, value: int) -> str:
    """Return what decides the trainings of one value: factors share the values that mean the same."""
    asked = asked_of(move, value)
    whole = trained_parts(asked.recipe) | {"span": asked.space.baseline_span}
    return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()[:12]


def move_records(path: Path = MOVES) -> dict[str, list[TrialRecord]]:
    """Return the trainings of every finished setting; see `setting_of`."""
    found: dict[str, list[TrialRecord]] = {}
    for line in path.read_text().splitlines() if path.exists() else []:
        row = json.loads(line)
        found.setdefault(row["setting"], []).append(TrialRecord.from_json(json.dumps(row["record"])))
    return found


def run_move(move: Move, options: argparse.Namespace) -> None:
    """Run the values of a factor that are not finished."""
    done = move_records()
    for value in move.values:
        setting = setting_of(move, value)
        if setting in done:
            continue
        out = WORK / "moves" / setting
        asked = asked_of(move, value, seeds=options.move_seeds, most=options.move_most, workers=options.workers)
        (found,) = optimal_l(asked, out, figures=False).settings
        lines = [
            json.dumps({"move": move.name, "value": value, "setting": setting, "record": plain(record)})
            for record in read(out / "trials.jsonl")
            if record.state == "complete"
        ]
        with MOVES.open("a", encoding="utf-8") as file:
            file.write("\n".join(lines) + "\n")
        star = found.l_star
        print(
            f"{move.name} {value} {move.unit}: l* = {star.value} (from {star.low}), {len(lines)} trainings", flush=True
        )
        shutil.rmtree(out)


def run_group(group: Group, records: Records, options: argparse.Namespace) -> None:
    """Run what a group lacks; what is trained next may depend on what was chosen."""
    while True:
        jobs = group.jobs(records, range(options.seeds))
        todo = [job for job in jobs if records.get(job) is None]
        if not todo:
            return
        print(f"{group.name}: {len(todo)} trainings", flush=True)
        before = len(todo)
        run(todo, records, options.workers, lambda line: print(line, flush=True))
        if sum(records.get(job) is None for job in jobs) == before:
            raise SystemExit(f"{group.name}: none of {before} trainings succeeded; see {WORK / 'logs'}")


def move_count(move: Move, value: int, seeds: int) -> int:
    """Return about how many trainings one value takes, if its first look decides."""
    (setting,) = asked_of(move, value).settings()
    first = len(first_round(setting))
    return 2 * first + seeds * len(setting.ls)


def _size(move: Move, value: int) -> tuple[int, int]:
    recipe = load_recipe(move.recipe, list(move.values[value][0]))
    return recipe.training.seq_len, recipe.model.n_layers


def seconds_of(recipe: str, changes: tuple[str, ...], schedule: str, switch: float | None) -> float:
    """Train once, with a worker that has compiled before, and return the seconds it took."""
    path = WORK / "estimate.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    records = Records(path)
    jobs = [Job(recipe=recipe, changes=changes, schedule=schedule, seed=seed, switch=None) for seed in (900, 901)]
    run(jobs, records, 1, lambda line: None)
    record = records.get(jobs[1])
    assert record is not None
    return record.seconds * (1.0 if switch is None else switch)


def overview(chosen: Mapping[str, Group], factors: Mapping[str, Move], options: argparse.Namespace) -> None:
    """Print the trainings of each group and, if asked, the time they take."""
    total = 0.0
    for group in chosen.values():
        count, each = group.count(options.seeds), None
        if options.estimate:
            each = seconds_of(group.recipe, group.changes, next(iter(group.lines.values())), group.switch)
        total += _say(group.name, count, each, group.question)
    seen: set[str] = set()
    for move in factors.values():
        for value in move.values:
            if setting_of(move, value) in seen:
                continue  # shared with another factor
            seen.add(setting_of(move, value))
            changes, _ = move.values[value]
            each = None
            if options.estimate:
                each = seconds_of(move.recipe, changes, f"full*{_size(move, value)[1]}", None)
            total += _say(f"{move.name} {value}", move_count(move, value, options.move_seeds), each, move.unit)
    if options.estimate:
        print(f"in all about {total / 60:.0f} core-minutes")


def _say(name: str, count: int, each: float | None, note: str) -> float:
    time = "" if each is None else f", {each:.1f} s each as all-full: {count * each / 60:.0f} core-minutes"
    print(f"{name:28s} about {count:4d} trainings{time}   {note}", flush=True)
    return 0.0 if each is None else count * each


def main() -> None:
    """Run the chosen groups."""
    every, factors = groups(), moves()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("groups", nargs="*", help="names or beginnings of names; none: all")
    parser.add_argument("--seeds", type=int, default=5, help="of every line of a group")
    parser.add_argument("--move-seeds", type=int, default=3, help="of the factors of l*, at the first look")
    parser.add_argument("--move-most", type=int, default=5, help="of the factors of l*, at the last look")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--list", action="store_true", help="print the groups and their trainings")
    parser.add_argument("--estimate", action="store_true", help="time one training of each group")
    options = parser.parse_args()
    wanted = tuple(options.groups) or ("",)
    chosen = {name: group for name, group in every.items() if name.startswith(wanted)}
    moved = {name: move for name, move in factors.items() if name.startswith(wanted)}
    if not chosen and not moved:
        raise SystemExit(f"no group {' '.join(wanted)}; known: {', '.join([*every, *factors])}")
    if options.list or options.estimate:
        overview(chosen, moved, options)
        return
    records = Records(STUDY)
    for group in chosen.values():
        run_group(group, records, options)
    for move in moved.values():
        run_move(move, options)


if __name__ == "__main__":
    main()
