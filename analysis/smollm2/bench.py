"""What the studies of this folder share: the model, units that never overlap, and files of records."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
RECORDS = HERE / "records"
BUDGET, WEIGHT = 0.27, 0.2
COUNTS = {"calibration": 8, "confirmation": 12, "healing": 40}
"""Units of each part. No document is in two parts."""
HEALING_ROWS, PER_DOCUMENT = 360, 8
"""Sequences of a long healing: about as many as Python's standard library holds apart from the other parts."""


def lines(name: str) -> list[dict[str, Any]]:
    """Return the records of a study."""
    path = RECORDS / f"{name}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def append(name: str, record: dict[str, Any]) -> None:
    """Append a record, and say it."""
    RECORDS.mkdir(exist_ok=True)
    with (RECORDS / f"{name}.jsonl").open("a") as file:
        file.write(json.dumps(record) + "\n")
    print(name, json.dumps(record)[:200], file=sys.stderr, flush=True)


class Bench:
    """The model and the units of one text at one length.

    Args:
        model: the GGUF file.
        seq_len: tokens of a unit.
        files: text; none: the source files of Python's standard library.
        counts: units of each part.
        shared: whose model is used; None: load it.
        device: where the model runs, ``cpu`` or ``cuda:N``.
    """

    def __init__(
        self,
        model: str,
        seq_len: int = 1024,
        files: Sequence[str] = (),
        counts: dict[str, int] | None = None,
        *,
        shared: Bench | None = None,
        device: str = "cpu",
    ) -> None:
        from layersearch.config.data import DataConfig
        from layersearch.data.sequences import document_sequences
        from layersearch.data.tokenizer import open_tokenizer
        from layersearch.model.pretrained import load_pretrained
        from layersearch.selection.layerwise import Layerwise
        from layersearch.study.selection_plan import weights_type

        self.seq_len, self.source = seq_len, model
        self.tokenizer, _ = open_tokenizer(model)
        self.data = DataConfig(source="files" if files else "stdlib", files=tuple(files), tokenizer=model)
        self.texts = document_sequences(self.data, model, seq_len, counts or COUNTS)
        if shared is None:
            decoder = load_pretrained(model, check=False, tokens=8192, dtype=weights_type("auto", device))
            self.model = Layerwise(decoder.to(device))
        else:
            self.model = shared.model

    def healing(self) -> Any:
        """Return (`HEALING_ROWS`, seq_len + 1) token ids to train on, of no document of another part.

        Documents are used to `PER_DOCUMENT` sequences, where the units take one of each.
        """
        from layersearch.data.sequences import document_sequences

        size = self.seq_len + 1
        counts = {"calibration": 1, "confirmation": 1, "healing": HEALING_ROWS // PER_DOCUMENT}
        found = document_sequences(self.data, self.source, PER_DOCUMENT * size - 1, counts)["healing"]
        return found.reshape(-1, size)

    def space(self, *choices: str) -> Any:
        """Return the space of these choices, bound to the model."""
        from layersearch.schedule.bound_space import BoundSpace
        from layersearch.schedule.space import Space

        baseline = next((choice for choice in choices[1:] if "sink" in choice), choices[1])
        space = Space(name="study", choices=choices, baseline_span=baseline)
        heads = self.model.decoder.n_heads
        return BoundSpace(space, n_layers=self.model.n_layers, seq_len=self.seq_len, n_heads=heads)

    def units(self, part: str, first: int = 0, count: int | None = None) -> list[Any]:
        """Return units of a part, each a text and a retrieval example."""
        import torch

        from layersearch.selection.measure import Unit
        from layersearch.selection.retrieval import TASKS, make_example

        offset = {"calibration": 0, "confirmation": 1000}[part]
        stop = len(self.texts[part]) if count is None else first + count
        return [
            Unit(
                torch.from_numpy(self.texts[part][n]),
                make_example(self.tokenizer, list(TASKS), seq_len=self.seq_len + 1, number=offset + n, seed=7),
            )
            for n in range(first, stop)
        ]

    def scorer(self, part: str, first: int = 0, count: int | None = None, weight: float = WEIGHT) -> Any:
        """Return a scorer of units of a part."""
        from layersearch.selection.measure import Scorer
        from layersearch.selection.retrieval import TASKS

        return Scorer(self.model, self.units(part, first, count), list(TASKS), weight)


def costs_of(space: Any) -> list[Any]:
    """Return the cost of every choice of every layer."""
    return [np.array([space.share(span) for span in options]) for options in space.options]


def within(space: Any, scores: Sequence[Any], budget: float) -> Any:
    """Return the dearest schedule within a budget that gates' scores round to."""
    from layersearch.selection.gates import round_to_schedules

    path = round_to_schedules(space.options, scores, costs_of(space))
    return max((s for s in path if space.cost(s) <= budget), key=space.cost)


def measure_all(bench: Bench, name: str, wanted: Iterable[str], units: int, **extra: Any) -> None:
    """Measure schedules on held-out units, unit by unit; records of the study ``name`` hold what is done."""
    from layersearch.schedule import Schedule

    schedules = [Schedule.parse(text) for text in dict.fromkeys(wanted)]
    done = {(r["schedule"], r["unit"]) for r in lines(name) if all(r[key] == value for key, value in extra.items())}
    for number in range(units):
        left = sorted(s for s in schedules if (str(s), number) not in done)
        if not left:
            continue
        scorer = bench.scorer("confirmation", number, 1)
        for schedule in left:
            scorer.start_from(schedule)  # in sorted order each runs only the layers above those it shares with the last
            append(name, {**extra, "schedule": str(schedule), "unit": number, **measured(scorer.measure(schedule, 0))})


def device_name(device: str) -> str:
    """Return a device's name for records."""
    import torch

    return device if device == "cpu" else torch.cuda.get_device_name(device)


def measured(found: Any) -> dict[str, float]:
    """Return a measurement as a record's fields."""
    accuracy = float(np.mean(list(found.accuracy.values())))
    return {"text": found.text_loss, "answers": found.answer_loss, "accuracy": accuracy}


class Held:
    """Measurements on held-out units, paired by unit."""

    def __init__(self, records: Iterable[dict[str, Any]]) -> None:
        self.by: dict[str, dict[int, dict[str, float]]] = {}
        for record in records:
            loss = (1 - WEIGHT) * record["text"] + WEIGHT * record["answers"]
            self.by.setdefault(record["schedule"], {})[record["unit"]] = {**record, "loss": loss}
        self.units = sorted(set.intersection(*(set(by) for by in self.by.values()))) if self.by else []

    def mean(self, schedules: str | Sequence[str], key: str) -> float:
        """Return the mean over schedules and units."""
        names = [schedules] if isinstance(schedules, str) else schedules
        return float(np.mean([self.by[name][unit][key] for name in names for unit in self.units]))

    def minus(self, schedules: str | Sequence[str], other: str | Sequence[str], key: str) -> Any:
        """Return the interval of the difference from another; each unit's mean over schedules is one value."""
        from layersearch.results.stats import mean_interval

        def by_unit(names: str | Sequence[str]) -> list[float]:
            names = [names] if isinstance(names, str) else names
            return [float(np.mean([self.by[name][unit][key] for name in names])) for unit in self.units]

        return mean_interval([a - b for a, b in zip(by_unit(schedules), by_unit(other), strict=True)])


def full_layers(text: str) -> str:
    """Return the full layers of a schedule."""
    from layersearch.schedule import Schedule

    return " ".join(str(at) for at, span in enumerate(Schedule.parse(text)) if span.is_full) or "none"
