"""Named placements that published models ship, as baselines at a budget: full layers and one sparse span."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from layersearch.schedule import Schedule, Span, presets
from layersearch.schedule.bound_space import BoundSpace

TEMPLATES: dict[str, Callable[[int], Collection[int]]] = {
    "3:1, last full": lambda n: range(n - 1, -1, -4),
    "5:1 and layer 0": lambda n: {0, *range(5, n, 6)},
    "5:1": lambda n: range(5, n, 6),
    "odd layers": lambda n: range(1, n, 2),
}
"""The full layers of n layers. 3:1 counted from the top as in Muse; 5:1 as in Gemma 3, with layer 0 as in MiMo-V2; odd
layers as in gpt-oss (their configurations in transformers 5.24)."""
_PLACES = (presets.bottom, presets.top, presets.middle, presets.interleaved)


def named_placements(space: BoundSpace, budget: float) -> dict[str, Schedule]:
    """Return named placements within a budget, each with its widest sparse span that fits, by name.

    bottom, top, middle and interleaved take the largest l that fits with the space's baseline span. A template has a
    fixed l; it is left out where no sparse span of the space fits.
    """
    found: dict[str, Schedule] = {}
    span = space.baseline_span
    if span is None:
        return {}
    n = space.n_layers

    def fits(schedule: Schedule) -> bool:
        return space.cost(schedule) <= budget and space.holds(schedule)

    for place in _PLACES:
        placed = next((s for l in range(n - 1, 0, -1) if fits(s := place(n, l, span))), None)  # noqa: E741
        if placed is not None:
            found[f"{place.__name__}({placed.n_full})"] = placed
    for name, full in TEMPLATES.items():
        made = [s for sparse in _sparse_spans(space) if fits(s := presets.place(n, full(n), sparse))]
        if made:
            found[name] = max(made, key=space.cost)
    widest = [s for sparse in _sparse_spans(space) if fits(s := presets.all_sparse(n, sparse))]
    if widest:
        found["one window"] = max(widest, key=space.cost)
    return found


def _sparse_spans(space: BoundSpace) -> Sequence[Span]:
    spans = dict.fromkeys(span for options in space.options for span in options if not span.is_full)
    sinks = any(span.sink for span in spans)
    return [span for span in spans if bool(span.sink) == sinks]  # with sinks where the space has any
