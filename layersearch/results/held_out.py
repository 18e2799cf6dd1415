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


AGREES = 0.7
"""Spearman's correlation below which two rankings are said to differ: they share less than half of their variance."""


@dataclass(frozen=True, kw_only=True)
class RankingAgreement:
    """How alike two measures rank the confirmed schedules, all_full left out."""

    first: str
    second: str
    correlation: stats.RankCorrelation

    @property
    def differs(self) -> bool:
        """Whether Spearman's correlation is shown to be below `AGREES`."""
        high = self.correlation.spearman_high
        return high is not None and high < AGREES

    @property
    def agrees(self) -> bool:
        """Whether Spearman's correlation is shown to reach `AGREES`. A perfect order of enough trials has no bound."""
        low, perfect = self.correlation.spearman_low, self.correlation.spearman > 1 - 1e-12
        return low >= AGREES if low is not None else perfect and self.correlation.n >= stats.MIN_BOUNDED

    def __str__(self) -> str:
        c = self.correlation
        said = f"{self.first} and {self.second} rank these {c.n} schedules " if self.differs or self.agrees else ""
        if self.differs:
            said += "DIFFERENTLY"
        elif self.agrees:
            said += "alike"
        else:
            said = f"It is not shown whether {self.first.lower()} and {self.second} rank these {c.n} schedules alike"
        return f"{said} (Spearman {c.spearman:.2f}, {c.bounds(c.spearman_low, c.spearman_high)})"


def ranking_agreements(records: Sequence[TrialRecord]) -> list[RankingAgreement]:
    """Return whether text and retrieval, and near and far positions of the text, rank the schedules alike.

    A choice for one of two measures that differ may be a bad choice for the other. See `measure_rows` for arguments.
    """
    measures: dict[Schedule, list[dict[str, float]]] = {}
    for record in records:
        if record.phase == "confirm" and record.state == "complete" and record.schedule.n_full < len(record.schedule):
            metrics, bins = dict(record.metrics), record.loss_by_position
            half = len(bins) // 2
            found = {"text loss": metrics["text_loss"]}
            if "answer_loss" in metrics:
                found["answers"] = metrics["answer_loss"]
            if half:
                found["near"], found["far"] = sum(bins[:half]), sum(bins[-half:])
            measures.setdefault(record.schedule, []).append(found)
    out = []
    for keys, names in (
        (("text loss", "answers"), ("Text loss", "loss of the answers")),
        (("near", "far"), ("The text's first half", "its second half")),
    ):
        means = [
            [sum(one[key] for one in found) / len(found) for key in keys]
            for found in measures.values()
            if all(key in found[0] for key in keys)
        ]
        correlation = stats.rank_correlation([m[0] for m in means], [m[1] for m in means]) if means else None
        if correlation is not None:
            out.append(RankingAgreement(first=names[0], second=names[1], correlation=correlation))
    return out


def compact(schedule: Schedule) -> str:
    """Return a schedule in few words: its full layers, and how many layers have each other span."""
    full = [layer for layer, span in enumerate(schedule) if span.is_full]
    counts = Counter(str(span).removeprefix("window:") for span in schedule if not span.is_full)
    others = ", ".join(f"{span} x{count}" for span, count in counts.most_common())
    if not full or not counts:
        return others or f"full x{len(full)}"
    return f"full {' '.join(map(str, full))}; {others}"
