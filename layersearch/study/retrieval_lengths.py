"""Retrieval at shorter texts than a selection's own, on the same questions: whether a schedule fails by length."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from tokenizers import Tokenizer

from layersearch.config.selection import SHORTER
from layersearch.errors import ConfigError
from layersearch.files import write_text
from layersearch.results.held_out import compact
from layersearch.results.retrieval_cells import NAME, read_lengths
from layersearch.schedule import Schedule
from layersearch.selection.measure import Scorer
from layersearch.selection.retrieval import Example, make_example


def shorter_examples(
    tokenizer: Tokenizer, tasks: Sequence[str], *, seq_len: int, numbers: Sequence[int], seed: int
) -> dict[int, dict[int, Example]]:
    """Return examples by length in tokens and number; a length that the facts alone exceed is left out.

    Arguments as of `layersearch.selection.retrieval.make_example`.
    """
    found = {}
    for part in SHORTER:
        length = seq_len // part
        try:
            found[length] = {
                number: make_example(tokenizer, tasks, seq_len=length + 1, number=number, seed=seed)
                for number in numbers
            }
        except ConfigError:
            continue
    return found


def shares_of(scorer: Scorer, schedule: Schedule, examples: dict[int, Example]) -> dict[int, dict[str, float]]:
    """Return the share of each answer's digits that the model predicts, by number and task."""
    return {
        number: {task: share for task, (_, share) in scorer.answers(schedule, example).items()}
        for number, example in examples.items()
    }


def measure_lengths(
    run: Path,
    scorer: Scorer,
    schedules: Sequence[Schedule],
    examples: dict[int, dict[int, Example]],
    say: Callable[[int, int, str], None],
) -> None:
    """Measure schedules at each length, and keep it in the run folder; what is there is not measured again.

    Args:
        run: the run folder.
        scorer: of the model and the tasks that count.
        schedules: that are compared.
        examples: of `shorter_examples`.
        say: called with how many measurements are done and planned, and a note.

    Raises:
        RunFolderError: if the file in the run folder is damaged.
    """
    held = read_lengths(run)
    planned, done = len(schedules) * len(examples), 0
    for schedule in schedules:
        for length, by_number in examples.items():
            found = held.setdefault(schedule, {})
            if found.get(length, {}).keys() != by_number.keys():
                say(done, planned, f"{length:,} tokens, {compact(schedule)}")
                found[length] = shares_of(scorer, schedule, by_number)
                text = {str(one): by_length for one, by_length in held.items()}
                write_text(run / NAME, json.dumps(text, indent=1) + "\n")
            done += 1
