"""How much each layer needs full attention, from what a run measured."""

from __future__ import annotations

from typing import Any

import numpy as np

from layersearch.errors import LayersearchError
from layersearch.report.folder import OpenedRun, damaged, read_json
from layersearch.schedule import Schedule
from layersearch.selection.rounding import Array
from layersearch.surrogate.gp import Surrogate


def layer_needs(run: OpenedRun, surrogate: Surrogate | None) -> dict[str, Any] | None:
    """Return a value per layer with what it means; None where nothing was measured.

    A selection has the scores of its gates, a study of l* single trials, and a search what its surrogate predicts.
    """
    if run.kind == "selection":
        return _from_gates(run)
    if run.answer is not None:
        return _from_trials(run)
    return None if surrogate is None else _from_surrogate(run, surrogate)


def gate_scores(run: OpenedRun) -> list[Array] | None:
    """Return the gates' scores by layer and choice, lower is better; None before the first step.

    Raises:
        RunFolderError: if ``gates.json`` is damaged.
    """
    file = run.path / "gates.json"
    if not file.exists():
        return None
    held = read_json(file)
    try:
        scores = [np.array(layer, dtype=np.float64) for layer in held["scores"]]
    except (KeyError, TypeError, ValueError):
        raise damaged(file) from None
    if [layer.shape for layer in scores] != [(len(options),) for options in run.space.options]:
        raise damaged(file)
    if not all(np.isfinite(layer).all() for layer in scores):
        raise damaged(file)
    return scores


def _from_gates(run: OpenedRun) -> dict[str, Any] | None:
    scores = gate_scores(run)
    if scores is None:
        return None
    values: list[float | None] = [None] * run.space.n_layers
    for group, options, layer in zip(run.space.groups, run.space.options, scores, strict=True):
        full = [score for span, score in zip(options, layer.tolist(), strict=True) if span.is_full]
        sparse = [score for span, score in zip(options, layer.tolist(), strict=True) if not span.is_full]
        if full and sparse:
            values[group[0]] = min(sparse) - full[0]
    return {
        "values": values,
        "axis": "log weight, full over sparse",
        "note": "From the gates, on calibration texts: the log weight of full over that of the best sparse span. A "
        "positive value means that full attention lowers the loss more than any sparse span. Its higher cost is not "
        "subtracted. The values order the layers; they are no nats.",
    }


def _from_trials(run: OpenedRun) -> dict[str, Any] | None:
    assert run.answer is not None
    try:
        restore = [None if value is None else float(value) for value in run.answer["effects"]["restore"]]
    except (KeyError, TypeError, ValueError):
        return None
    if len(restore) != run.space.n_layers or not any(value is not None for value in restore):
        return None
    return {
        "values": restore,
        "axis": "nats gained by one full layer",
        "note": "Loss of all-sparse minus the loss with this layer alone full, on one seed.",
    }


def _from_surrogate(run: OpenedRun, surrogate: Surrogate) -> dict[str, Any] | None:
    result, space = run.result, run.space
    base = result.best_searched if result.winner is None else result.winner.schedule
    if base is None or not space.holds(base):
        return None
    pairs = [_full_and_sparse(run, base, group) for group in space.groups]
    asked = [schedule for pair in pairs if pair is not None for schedule in pair]
    if not asked:
        return None
    try:
        found, stds = surrogate.predict(asked)
    except LayersearchError:
        return None
    means = dict(zip(asked, found.tolist(), strict=True))
    spread = dict(zip(asked, stds.tolist(), strict=True))
    values: list[float | None] = [None] * space.n_layers
    errors: list[float | None] = [None] * space.n_layers
    for group, pair in zip(space.groups, pairs, strict=True):
        for layer in group if pair is not None else ():
            full, sparse = pair or (base, base)
            values[layer] = means[sparse] - means[full]
            # One of the two is the base, which was trained; the other's error counts.
            errors[layer] = 1.96 * max(spread[sparse], spread[full])
    return {
        "values": values,
        "errors": errors,
        "axis": "predicted nats lost without full attention here",
        "note": "Predicted by the surrogate: the loss with this layer sparse minus the loss with it full. The other "
        "layers are those of the schedule above. Bars are the prediction's 95% interval.",
    }


def _full_and_sparse(run: OpenedRun, base: Schedule, group: tuple[int, ...]) -> tuple[Schedule, Schedule] | None:
    """Return the base with a group of layers full and sparse; None if the space lacks one of the two."""
    space, number = run.space, run.space.groups.index(group)
    options = space.options[number]
    full = [span for span in options if span.is_full]
    sparse = [span for span in options if not span.is_full]
    if not full or not sparse:
        return None
    own, preferred = base[group[0]], space.baseline_span
    used = {span for span in base if not span.is_full}
    one = next(iter(used)) if space.space.one_sparse and len(used) == 1 else preferred
    other = own if not own.is_full else one if one in sparse else sparse[0]

    def having(span: Any) -> Schedule:
        return Schedule(tuple(span if layer in group else base[layer] for layer in range(space.n_layers)))

    made = having(full[0]), having(other)
    return made if all(map(space.holds, made)) else None
