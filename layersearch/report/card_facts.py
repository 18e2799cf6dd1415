"""What a run or a conversion measured of its schedule, for a model card."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from layersearch.config.data import DataConfig
from layersearch.convert.run_folder import ConvertFolder
from layersearch.errors import RunFolderError
from layersearch.export.card import CardFacts, Measure
from layersearch.export.files import read_json
from layersearch.results.held_out import measure_rows
from layersearch.results.stats import Interval
from layersearch.schedule.cost import budget_ratio
from layersearch.study.saved_run import load_records, load_request, load_result


def run_facts(run: Path) -> CardFacts:
    """Return what a run measured of its winner. See `load_result` for errors."""
    recipe, _, _ = load_request(run)
    result = load_result(run)
    if result.winner is None:
        raise RunFolderError(f"{run}: no winner yet ({result.verdict}); repeat the command that made it")
    schedule, data = result.winner.schedule, recipe.data
    entry = result.entry(schedule)
    shared: dict[str, Any] = {
        "verdict": result.verdict,
        **_source(data),
        "seq_len": recipe.training.seq_len,
        "cost": entry.cost,
        "base": recipe.pretrained,
    }
    if recipe.selection is not None:
        row = next(row for row in measure_rows(load_records(run)) if row.schedule == schedule)
        measures = [_measure("text loss, nats", "loss", row.text, row.text_to_full)]
        if row.accuracy is not None:
            measures.append(_measure("retrieval, digits right", "accuracy", row.accuracy, row.accuracy_to_full))
        for task, value in row.by_task.items():
            measures.append(Measure(name=f"{task}, digits right", kind="accuracy", value=value, n=row.text.n))
        said = (
            "Text loss and retrieval of the original weights with this schedule, on documents that the choice of the "
        )
        said += "schedule never saw. No weight was trained."
        return CardFacts(evidence=said, unit="held-out documents", measures=tuple(measures), **shared)
    if entry.mean is None:
        return CardFacts(**shared)
    full = result.winner.to_all_full
    measures = [_measure("validation loss, nats", "loss", entry.mean, None if full is None else full.difference)]
    said = (
        f"Validation loss of small models with this schedule, trained from scratch for {recipe.training.steps} steps. "
    )
    said += "It is evidence about models of that size, not about this folder's weights, if it holds any."
    if recipe.pretrained is not None:
        said = f"Validation loss after {recipe.training.steps} steps of training on, from the pre-trained weights."
    return CardFacts(evidence=said, unit="fresh seeds", measures=tuple(measures), **shared)


def conversion_facts(folder: Path) -> CardFacts:
    """Return what a conversion measured of its model.

    Args:
        folder: the ``--out`` of the conversion, which holds ``model``.

    Raises:
        LayersearchError: the folder is damaged, or the conversion has not ended.
    """
    request = read_json(folder / "convert.json", str(folder), "name the folder of a conversion")
    found = {one.moment: one for one in ConvertFolder(folder, None).evaluations() if one.moment != "training"}
    if "converted" not in found or "original" not in found:
        raise RunFolderError(f"{folder}: the conversion has not ended; run the same command again to go on")
    first, last = found["original"], found["converted"]
    schedule = last.spans
    training, data = request["recipe"]["training"], request["recipe"]["data"]
    measures = [
        Measure(
            name="validation loss, nats",
            kind="loss",
            value=last.loss,
            to_full=f"{last.loss - first.loss:+.4f} (original)",
        )
    ]
    before = dict(first.metrics)
    for name, value in last.metrics:
        if name.startswith(("accuracy_", "answer_accuracy")):
            label = name.removeprefix("accuracy_").replace("answer_accuracy", "retrieval") + ", digits right"
            gap = f"{value - before[name]:+.4f} (original)" if name in before else ""
            measures.append(Measure(name=label, kind="accuracy", value=value, to_full=gap))
    said = (
        f"This model after {training['steps']} optimizer steps with the schedule, on one validation set and one seed: "
    )
    said += "there is no interval. The original model had its own schedule."
    return CardFacts(
        evidence=said,
        seq_len=last.seq_len,
        cost=budget_ratio(schedule, seq_len=last.seq_len, n_heads=_heads(folder / "model")),
        base=request["model"],
        measures=tuple(measures),
        positions=tuple(zip(last.position_edges, last.loss_by_position, strict=True)),
        **_source_of(data),
    )


def _measure(name: str, kind: Any, value: Interval, to_full: Interval | None) -> Measure:
    said = "" if to_full is None else str(to_full)
    return Measure(name=name, kind=kind, value=value.mean, low=value.low, high=value.high, n=value.n, to_full=said)


def _source(data: DataConfig) -> dict[str, Any]:
    return _source_of({"source": data.source, "dataset": data.dataset})


def _source_of(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return the name of the data without any path."""
    names = {"stdlib": "source files of Python's standard library", "mix": "those files and a generated recall task"}
    dataset, source = data.get("dataset"), str(data["source"])
    if source == "hub" and dataset:
        return {"data": dataset, "dataset": dataset}
    local = source in ("files", "text", "json", "parquet")
    return {"data": "local files of the author" if local else names.get(source, f"generated task {source}")}


def _heads(model: Path) -> int:
    """Return the number of query heads, which dilated heads are a share of."""
    values = read_json(model / "config.json", str(model), "convert the model again")
    return int(values.get("num_attention_heads") or values["n_head"])
