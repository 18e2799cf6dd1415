"""What a run was and what it took: its recipe, its command, its versions, its trials and its time."""

from __future__ import annotations

import dataclasses
import json
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from layersearch.config.recipe import Recipe, load_recipe
from layersearch.errors import LayersearchError
from layersearch.report.answer import size
from layersearch.report.folder import OpenedRun
from layersearch.schedule.space import Space, load_space

RECIPE_FILE, SPACE_FILE = "recipe.yaml", "space.yaml"
FILLED = ("model", "pretrained", "data.tokenizer")
"""Keys that ``--model`` fills in."""


def flatten(held: Any, key: str = "") -> dict[str, Any]:
    """Return nested mappings as one mapping with dotted keys."""
    if not isinstance(held, Mapping):
        return {key: held}
    parts = (flatten(value, f"{key}.{name}" if key else str(name)) for name, value in held.items())
    return {name: value for part in parts for name, value in part.items()}


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value))


def _shipped(recipe: Recipe) -> Recipe | None:
    """Return the recipe of that name that ships, or None."""
    try:
        return load_recipe(recipe.name)
    except LayersearchError:
        return None


def recipe_flag(run: OpenedRun) -> tuple[str, list[str]]:
    """Return the recipe of a command line, and the keys to set: a shipped recipe, or the file that the page prints."""
    shipped = _shipped(run.recipe)
    if shipped is None:
        return RECIPE_FILE, []
    skip = FILLED if run.recipe.pretrained else ()
    if run.kind == "optimal-l" and run.recipe.training.start is not None:
        skip = (*skip, "training.start", "training.steps", "training.warmup_steps")  # --regime converted sets them
    return changed_keys(run.recipe.name, run.recipe.to_dict(), shipped.to_dict(), skip)


def changed_keys(name: str, own: Any, shipped: Any, skip: Sequence[str]) -> tuple[str, list[str]]:
    """Return the name of a recipe that ships and the keys to set; a file's name if many differ.

    Keys in ``skip``, and those below them, are not compared: other flags fill them.
    """
    found, base = flatten(_plain(own)), flatten(_plain(shipped))
    changed = [
        f"{key}={json.dumps(value)}"
        for key, value in found.items()
        if base.get(key) != value and not any(key == one or key.startswith(one + ".") for one in skip)
    ]
    return (name, changed) if len(changed) <= 8 else (RECIPE_FILE, [])


def command(run: OpenedRun) -> str:
    """Return the command that makes the run again."""
    flag, changed = recipe_flag(run)
    words = ["layersearch", "optimal-l" if run.kind == "optimal-l" else "run", "--recipe", flag]
    if run.recipe.pretrained:
        words += ["--model", run.recipe.pretrained]
    for assignment in changed:
        words += ["--set", assignment]
    words += _space_words(run, flag)
    if run.kind == "optimal-l":
        answer = run.answer or {}
        words += [word for key in ("regime", "delta", "budget") for word in _optional(answer, key)]
    else:
        words += ["--budget", f"{run.budget!r}"]
    return shlex.join([*words, "--seed", str(run.config["seed"])])


def _optional(answer: Mapping[str, Any], key: str) -> list[str]:
    return [] if answer.get(key) is None else [f"--{key}", str(answer[key])]


def _space_words(run: OpenedRun, recipe: str) -> list[str]:
    space = run.space.space
    if run.kind == "selection" and space.name == "model":
        return []  # the default space of a selection
    if run.kind == "optimal-l":
        name = space.name.removesuffix("-l")
        return ["--space", name] if _ships(name) else ["--space", SPACE_FILE]
    if not _ships(space.name, space):
        return ["--space", SPACE_FILE]
    default = run.recipe.default_space
    return [] if recipe != RECIPE_FILE and default == space.name else ["--space", space.name]


def _ships(name: str, like: Space | None = None) -> bool:
    try:
        found = load_space(name)
    except LayersearchError:
        return False
    return like is None or found == like


def recipe_yaml(run: OpenedRun) -> str:
    """Return the recipe as YAML."""
    return as_yaml(run.config["recipe"])


def space_yaml(run: OpenedRun) -> str:
    """Return the search space as YAML."""
    held = {key: value for key, value in _plain(dataclasses.asdict(run.space.space)).items() if value not in (None, [])}
    return as_yaml(held)


def as_yaml(held: Any) -> str:
    """Return plain data as YAML."""
    return str(yaml.safe_dump(_plain(held), sort_keys=False, allow_unicode=False, width=100))


def spent(run: OpenedRun) -> list[list[str]]:
    """Return rows of (what, amount): trials by phase, steps, time, memory and device."""
    rows = []
    noun = "schedules" if run.kind == "selection" else "trials"
    for phase, word in (("search", noun), ("confirm", "passes" if run.kind == "selection" else "trials")):
        states = Counter(record.state for record in run.records if record.phase == phase)
        if states:
            said = ", ".join(
                f"{states[state]:,} {state}" for state in ("complete", "stopped", "failed") if states[state]
            )
            rows.append([f"{phase}: {word}", said])
    unit = "sequences measured" if run.kind == "selection" else "optimizer steps"
    rows.append([unit, f"{sum(record.steps for record in run.records):,}"])
    flops = _training_flops(run)
    if flops:
        rows.append(["attention FLOPs of these", f"{flops:.3g} (forward passes; one multiply-add = one FLOP)"])
    seconds = sum(record.seconds for record in run.records)
    rows.append(["time in trials", duration(seconds) if seconds else "not recorded"])
    memory = max((record.peak_memory_bytes for record in run.records), default=0)
    if memory:
        rows.append(["peak memory of a process", size(memory)])
    for label, values in (
        ("device", {record.device for record in run.records}),
        ("precision", {record.precision for record in run.records}),
        ("kernels", {kernel for record in run.records for kernel in record.kernels}),
    ):
        said = ", ".join(sorted(filter(None, values)))
        if said:
            rows.append([label, said])
    return rows


def _training_flops(run: OpenedRun) -> float:
    """Return the attention FLOPs of all forward passes: sequences times those of one."""
    batch = 1 if run.kind == "selection" else run.recipe.training.batch_size
    return float(sum(record.flops * record.steps * batch for record in run.records))


def duration(seconds: float) -> str:
    """Return a time in the two largest units."""
    minutes, rest = divmod(round(seconds), 60)
    hours, left = divmod(minutes, 60)
    return f"{hours} h {left} min" if hours else f"{minutes} min {rest} s" if minutes else f"{seconds:.3g} s"


def versions(config: Mapping[str, Any]) -> list[list[str]]:
    """Return rows of (what, version) of a folder's request, the commit of the checkout included."""
    held = config.get("versions")
    rows = [[str(name), str(value)] for name, value in held.items()] if isinstance(held, Mapping) else []
    return [*rows, ["git commit", str(config.get("git_commit") or "unknown")]]


def settings(run: OpenedRun) -> dict[str, Any]:
    """Return what can differ between two runs. An older folder may lack keys, so these have their defaults."""
    whole: dict[str, Any] = {"recipe": run.recipe.to_dict(), "space": dataclasses.asdict(run.space.space)}
    return whole | {key: run.config.get(key) for key in ("budget", "seed", "data", "versions")}


def differences(all_settings: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the keys in which runs differ, with every run's value as text. See `settings`."""
    held = [flatten(_plain(whole)) for whole in all_settings]
    keys = dict.fromkeys(key for one in held for key in one)
    rows = []
    for key in keys:
        values = [json.dumps(one[key]) if key in one else "" for one in held]
        if len(set(values)) > 1:
            rows.append({"key": key, "values": [value.strip('"') for value in values]})
    return rows
