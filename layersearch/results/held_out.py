"""Text loss and retrieval of schedules on held-out documents, with paired intervals."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from layersearch.results import stats
from layersearch.results.result import ALL_FULL, PROPOSED
from layersearch.schedule import Schedule
from layersearch.training.record import TrialRecord


@dataclass(frozen=True, kw_only=True)
class MeasureRow:
    """One schedule, over the held-out documents on which every schedule was measured."""

    schedule: Schedule
    names: tuple[str, ...]
    """Names of the placement; empty if the selection proposed it."""
    cost: float
    n_full: int
    text: stats.Interval
    """Loss of the text, nats."""
    text_to_full: stats.Interval
    """Loss of the text minus that of all_full, paired by document, nats."""
    accuracy: stats.Interval | None
    """Share of the answers' digits that the model predicts; None without retrieval tasks."""
    accuracy_to_full: stats.Interval | None
    """That minus all_full's, paired."""
    by_task: Mapping[str, float]
    """Mean accuracy by task."""

    @property
    def label(self) -> str:
        """The placement's name, or the schedule."""
        return self.names[0] if self.names else str(self.schedule)


def measure_rows(records: Sequence[TrialRecord]) -> list[MeasureRow]:
    """Return a row for every confirmed schedule, cheapest first; empty before all_full is measured.

    Args:
        records: of a selection; those of the phase ``confirm`` count, one a document.
    """
    found: dict[Schedule, dict[int, dict[str, float]]] = {}
    roles: dict[Schedule, set[str]] = {}
    costs: dict[Schedule, float] = {}
    for record in records:
        if record.phase == "confirm" and record.state == "complete":
            found.setdefault(record.schedule, {})[record.seed] = dict(record.metrics)
            roles.setdefault(record.schedule, set()).add(record.role)
            costs[record.schedule] = record.cost
    full = next((schedule for schedule, names in roles.items() if ALL_FULL in names), None)
    if full is None:
        return []
    documents = sorted(set.intersection(*(set(by) for by in found.values())))
    if not documents:
        return []

    def values(schedule: Schedule, name: str) -> list[float]:
        return [found[schedule][document][name] for document in documents]

    def difference(schedule: Schedule, name: str) -> stats.Interval:
        pairs = zip(values(schedule, name), values(full, name), strict=True)
        return stats.mean_interval(a - b for a, b in pairs)

    metrics = found[full][documents[0]]
    tasks = [name for name in metrics if name.startswith("accuracy_")]
    rows = [
        MeasureRow(
            schedule=schedule,
            names=tuple(sorted(roles[schedule] - {PROPOSED})),
            cost=costs[schedule],
            n_full=schedule.n_full,
            text=stats.mean_interval(values(schedule, "text_loss")),
            text_to_full=difference(schedule, "text_loss"),
            accuracy=stats.mean_interval(values(schedule, "answer_accuracy")) if tasks else None,
            accuracy_to_full=difference(schedule, "answer_accuracy") if tasks else None,
            by_task={
                name.removeprefix("accuracy_"): stats.mean_interval(values(schedule, name)).mean for name in tasks
            },
        )
        for schedule in found
    ]
    return sorted(rows, key=lambda row: (row.cost, row.schedule))


def compact(schedule: Schedule) -> str:
    """Return a schedule in few words: its full layers, and how many layers have each other span."""
    full = [layer for layer, span in enumerate(schedule) if span.is_full]
    counts = Counter(str(span).removeprefix("window:") for span in schedule if not span.is_full)
    others = ", ".join(f"{span} x{count}" for span, count in counts.most_common())
    if not full or not counts:
        return others or f"full x{len(full)}"
    return f"full {' '.join(map(str, full))}; {others}"
