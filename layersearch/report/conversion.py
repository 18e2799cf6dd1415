"""A conversion's folder, opened for a page: its schedule, and its losses before the switch, after it and at the end."""

from __future__ import annotations

import dataclasses
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from layersearch.config.loader import build
from layersearch.convert.config import ConvertRecipe, load_convert_recipe
from layersearch.convert.run_folder import FORMAT, ConvertFolder, Evaluation, Moment
from layersearch.errors import LayersearchError, RunFolderError
from layersearch.export.files import read_json
from layersearch.export.model_file import ModelFile, read_model_file
from layersearch.report import facts
from layersearch.report.answer import LATENCY, kept, size, tile
from layersearch.report.schedules import ScheduleTable
from layersearch.schedule import Schedule, presets
from layersearch.schedule.cost import budget_ratio, kv_cache_bytes

MOST_STEPS = 400
"""Points of the figure of training; more steps are averaged in groups."""
MOMENTS: tuple[Moment, ...] = ("original", "switched", "converted")


@dataclass(frozen=True, kw_only=True)
class OpenedConversion:
    """The folder of ``convert`` and what its page needs."""

    path: Path
    config: dict[str, Any]
    """``convert.json``."""
    recipe: ConvertRecipe
    schedule: Schedule
    evaluations: tuple[Evaluation, ...]
    steps: tuple[dict[str, Any], ...]
    """Lines of ``steps.jsonl``."""
    sizes: ModelFile | None
    """The model's sizes; None: it is not on this machine."""

    @property
    def finished(self) -> bool:
        """Whether the converted model was measured."""
        return self.at("converted") is not None

    @property
    def seq_len(self) -> int:
        """Tokens of a text."""
        return self.recipe.training.seq_len

    def at(self, moment: Moment) -> Evaluation | None:
        """Return the evaluation of a moment that comes once."""
        return next((one for one in self.evaluations if one.moment == moment), None)

    def cost(self, schedule: Schedule) -> float:
        """Return the attention FLOPs as a share of all-full's."""
        shared = max((span.dilated_heads or 1 for span in schedule), default=1)
        return budget_ratio(schedule, seq_len=self.seq_len, n_heads=self.sizes.n_heads if self.sizes else shared)

    def cache(self, schedule: Schedule) -> int | None:
        """Return the bytes of keys and values of one sequence, 2 bytes a value; None where sizes are not known."""
        if self.sizes is None:
            return None
        heads = {"n_heads": self.sizes.n_heads, "n_kv_heads": self.sizes.n_kv_heads, "head_dim": self.sizes.head_dim}
        return kv_cache_bytes(schedule, seq_len=self.seq_len, **heads)

    def settings(self) -> dict[str, Any]:
        """Return what can differ between two conversions."""
        names = ("model", "schedule", "seed", "family", "data", "versions")
        return {"recipe": dataclasses.asdict(self.recipe)} | {name: self.config.get(name) for name in names}


def is_conversion(path: Path) -> bool:
    """Return whether a folder is one of ``convert``."""
    return (path / "convert.json").exists()


def open_conversion(path: Path) -> OpenedConversion:
    """Open the folder of a conversion, finished or not.

    Raises:
        LayersearchError: if a file in it is damaged or of another version.
    """
    where = path / "convert.json"
    config = read_json(where, str(where), "restore it, or convert again with another --out")
    if config.get("format") != FORMAT:
        raise RunFolderError(f"{where}: a conversion of format {config.get('format')!r}, this version reads {FORMAT}")
    try:
        schedule, model, folder = Schedule.parse(config["schedule"]), str(config["model"]), ConvertFolder(path, None)
        recipe = build(ConvertRecipe, config["recipe"], f"{where}: recipe")
    except (KeyError, TypeError, AttributeError):
        raise RunFolderError(f"{where}: damaged; restore it, or convert again with another --out") from None
    return OpenedConversion(
        path=path,
        config=config,
        recipe=recipe,
        schedule=schedule,
        evaluations=tuple(folder.evaluations()),
        steps=tuple(folder.steps()),
        sizes=_sizes(path / "model", Path(model)),
    )


def _sizes(*places: Path) -> ModelFile | None:
    for place in places:
        if place.exists():
            try:
                return read_model_file(str(place))
            except LayersearchError:
                continue
    return None


def conversion_data(found: OpenedConversion) -> dict[str, Any]:
    """Return what the page shows of a conversion, under the keys of a run's."""
    flag, changed = _recipe_flag(found)
    table = ScheduleTable(
        seq_len=found.seq_len,
        bidirectional=False,
        cost=found.cost,
        cache=found.cache,
        export=lambda one: _use(found, one),
    )
    first = found.at("original")
    winner = table.add(found.schedule)
    if first is not None:
        table.add(first.spans)
    absent: dict[str, Any] = dict.fromkeys(("frontier_line", "needs", "budgets", "position_line", "depths", "noise"))
    absent |= {key: [] for key in ("points", "frontier", "baselines", "per_l", "noise_lines", "trust")}
    training, config = found.recipe.training, found.config
    return {
        **absent,
        "name": found.path.resolve().name,
        "kind": "conversion",
        "facts": [
            ["conversion", str(found.path)],
            ["model", str(config["model"])],
            ["recipe", found.recipe.name],
            ["tokens", f"{found.seq_len:,}"],
            ["data", found.recipe.data.source],
            ["steps", f"{training.steps:,}"],
            ["seed", str(config.get("seed"))],
        ],
        "finished": found.finished,
        "progress": "" if found.finished else f"{len(found.steps):,} of {training.steps:,} steps so far.",
        "headline": _headline(found),
        "sureness": _sureness(found),
        "tiles": _tiles(found),
        "budget": 1.0,
        "seq_len": found.seq_len,
        "n_layers": len(found.schedule),
        "unit": "evaluation",
        "winner": winner,
        "frontier_of": "confirm",
        "training": _training(found),
        "positions": _positions(found),
        "retrieval": _retrieval(found),
        "spent": _spent(found),
        "healed": [
            {"moment": one.moment, "step": one.step, "loss": one.loss, "metrics": [list(pair) for pair in one.metrics]}
            for one in found.evaluations
        ],
        "recipe": facts.as_yaml(config["recipe"]),
        "space": "",
        "command": _command(found, flag, changed),
        "recipe_file": flag == facts.RECIPE_FILE,
        "versions": facts.versions(config),
        "not_said": _not_said(found),
        "schedules": table.rows,
        "spans": table.spans,
    }


def _recipe_flag(found: OpenedConversion) -> tuple[str, list[str]]:
    try:
        shipped = load_convert_recipe(found.recipe.name)
    except LayersearchError:
        return facts.RECIPE_FILE, []
    return facts.changed_keys(
        found.recipe.name, dataclasses.asdict(found.recipe), dataclasses.asdict(shipped), ("data.tokenizer",)
    )


def _command(found: OpenedConversion, flag: str, changed: list[str]) -> str:
    words = ["layersearch", "convert", "--model", str(found.config["model"]), "--schedule", str(found.schedule)]
    words += ["--recipe", flag, *(word for assignment in changed for word in ("--set", assignment))]
    family = found.config.get("family")
    words += ["--family", str(family)] if family not in (None, "hf-remote") else []
    return shlex.join([*words, "--seed", str(found.config.get("seed")), "--out", str(found.path)])


def _use(found: OpenedConversion, schedule: Schedule) -> str:
    """Return the command that uses the converted model, or counts another schedule."""
    if schedule == found.schedule and found.finished:
        target = "hf-remote" if found.config.get("family") == "hf-remote" else "hf"
        return shlex.join(["layersearch", "export", str(found.path), "--to", target, "--out", "exported"])
    return shlex.join(["layersearch", "cost", str(schedule), "--seq-len", str(found.seq_len)])


def _headline(found: OpenedConversion) -> str:
    said = f"{kept(found.schedule)}. That is {found.cost(found.schedule):.1%} of the attention FLOPs of all-full"
    first, last = found.at("original"), found.at("converted") or found.at("switched")
    if first is None or last is None:
        return f"{said}. Its loss is not measured yet."
    steps = f"{last.step:,} {'step' if last.step == 1 else 'steps'}"
    after = "before any training" if last.moment == "switched" else f"after {steps} of training"
    right, before = _right(last), _right(first)
    digits = (
        "" if right is None or before is None else f"{right:.0%} of the hidden digits right (original: {before:.0%}), "
    )
    return f"{said}, with {digits}{last.loss - first.loss:+.4f} nats of loss against the original model {after}."


def _right(one: Evaluation) -> float | None:
    return dict(one.metrics).get("answer_accuracy")


def _sureness(found: OpenedConversion) -> list[str]:
    lines = ["One validation text and one seed: no interval is known. Nothing says that another seed gives this loss."]
    first, switched, last = map(found.at, MOMENTS)
    if first is not None and switched is not None:
        gap = switched.loss - first.loss
        said = f"The switch alone changed the loss by {gap:+.4f} nats"
        if last is not None and gap > 0:
            said += f"; training won back {(switched.loss - last.loss) / gap:.0%} of it"
        lines.append(said + ".")
    return lines


def _tiles(found: OpenedConversion) -> list[dict[str, str]]:
    schedule, whole = found.schedule, presets.all_full(len(found.schedule))
    made = [
        tile("Full layers", f"{schedule.n_full} of {len(schedule)}", "l, the layers that see every earlier token"),
        tile("Attention cost", f"{found.cost(schedule):.1%}", "of all-full"),
    ]
    first, last = found.at("original"), found.at("converted")
    if first is not None and last is not None:
        made.append(tile("Loss", f"{last.loss - first.loss:+.4f}", f"nats against the original's {first.loss:.4f}"))
        right, before = _right(last), _right(first)
        if right is not None and before is not None:
            made.append(tile("Hidden digits right", f"{right:.0%}", f"original {before:.0%}"))
    cache, most = found.cache(schedule), found.cache(whole)
    if cache is not None and most is not None:
        note = f"of {size(most)} for all-full, one sequence of {found.seq_len:,} tokens, 16-bit values"
        made.append(tile("KV cache", size(cache), note))
    return made


def _training(found: OpenedConversion) -> dict[str, Any]:
    """Return losses by step: those of training, in at most `MOST_STEPS` groups, and the evaluations."""
    group = -(-len(found.steps) // MOST_STEPS) or 1
    groups = [found.steps[at : at + group] for at in range(0, len(found.steps), group)]
    try:
        steps = [[some[-1]["step"], sum(float(one["loss"]) for one in some) / len(some)] for some in groups]
    except (KeyError, TypeError, ValueError):
        raise RunFolderError(f"{found.path / 'steps.jsonl'}: damaged; restore it, or convert again") from None
    first = found.at("original")
    return {
        "steps": steps,
        "original": None if first is None else first.loss,
        "evaluations": [[one.step, one.loss, one.moment] for one in found.evaluations if one is not first],
    }


def _compared(found: OpenedConversion) -> list[Evaluation]:
    """Return the evaluations of the bars, in the order of a run's: the answer first."""
    order: tuple[Moment, ...] = ("converted", "original", "switched")
    return [one for one in map(found.at, order) if one is not None]


def _positions(found: OpenedConversion) -> dict[str, Any] | None:
    rows = _compared(found)
    rows = [one for one in rows if len(one.position_edges) > 1 and one.position_edges == rows[0].position_edges]
    if not rows:
        return None
    lines = [{"label": one.moment, "values": list(one.loss_by_position)} for one in rows]
    return {"edges": list(rows[0].position_edges), "lines": lines}


def _retrieval(found: OpenedConversion) -> dict[str, Any] | None:
    rows = _compared(found)
    names = dict.fromkeys(
        name for one in rows for name, _ in one.metrics if "accuracy" in name and name != "answer_accuracy"
    )
    if not names:
        return None
    return {
        "tasks": [name.removeprefix("accuracy_").replace("_", " ") for name in names],
        "chance": [],
        "rows": [{"label": one.moment, "values": [dict(one.metrics).get(name) for name in names]} for one in rows],
    }


def _spent(found: OpenedConversion) -> list[list[str]]:
    training = found.recipe.training
    tokens = sum(int(one.get("seq_len", found.seq_len)) for one in found.steps) * training.batch_size
    rows = [["optimizer steps", f"{len(found.steps):,}"], ["tokens trained on", f"{tokens:,}"]]
    rows.append(["evaluations", f"{len(found.evaluations):,}"])
    file = found.path / "memory.json"
    if file.exists():
        held = read_json(file, str(found.path), "convert again")
        peak = held.get("peak")
        if isinstance(peak, list) and peak and all(isinstance(one, int) for one in peak):
            rows.append(["peak memory of a rank", size(max(peak))])
    return rows


def _not_said(found: OpenedConversion) -> list[str]:
    source = found.recipe.data.source
    lines = [] if found.finished else ["The conversion has not ended. Its answer may change."]
    return [
        *lines,
        f"It is one model on one validation text from {source}, at {found.seq_len:,} tokens and one seed. Another "
        "text, length or seed may give another loss.",
        "Nothing says that this schedule is better than others: one was given. layersearch run compares schedules.",
        "The loss against the original holds what more training on this text brings, beside what the schedule costs.",
        LATENCY,
    ]
