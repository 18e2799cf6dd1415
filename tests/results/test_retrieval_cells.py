"""Retrieval by depth and length: cells hold the right answers, whoever wrote the run folder."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import fmean

import pytest

from layersearch.config.selection import DEPTHS, TASK_NAMES, depth_of
from layersearch.errors import RunFolderError
from layersearch.results.compared import compared
from layersearch.results.held_out import measure_rows
from layersearch.results.retrieval_cells import NAME, first_example, read_lengths, retrieval_cells, run_cells
from layersearch.selection.retrieval import make_example
from layersearch.study.retrieval_lengths import shorter_examples
from layersearch.study.saved_run import load_records, load_request, load_result
from tests.helpers.selections import small_tokenizer

SELECTION = Path(__file__).resolve().parents[2] / "analysis" / "smollm2" / "run"


def test_cells_take_each_answer_to_its_depth_and_length() -> None:
    tasks = ("a", "b")
    shares = {20: {4: {"a": 1.0, "b": 0.0}, 5: {"a": 0.5}, 8: {"b": 0.4}}, 10: {4: {"b": 0.2, "dropped": 1.0}}}
    found = {(cell.length, cell.depth): cell.accuracy for cell in retrieval_cells(shares, tasks)}
    assert list(found) == [(10, 0.3), (20, 0.1), (20, 0.3)]
    # Example 4 asks a at 0.1 and b at 0.3; example 5 asks a at 0.3; example 8 is as 4.
    assert found[20, 0.1].mean == 1.0
    assert (found[20, 0.3].mean, found[20, 0.3].n) == (pytest.approx(fmean([0.0, 0.5, 0.4])), 3)
    assert (found[10, 0.3].mean, found[10, 0.3].high) == (0.2, None)


def test_depth_of_a_number_is_the_depth_of_the_example_that_is_made() -> None:
    tokenizer = small_tokenizer()
    for number in range(5):
        example = make_example(tokenizer, TASK_NAMES, seq_len=600, number=number, seed=3)
        assert {a.task: a.depth for a in example.answers} == {t: depth_of(t, TASK_NAMES, number) for t in TASK_NAMES}


def test_cells_of_an_earlier_run_hold_every_depth_at_its_own_length(tmp_path: Path) -> None:
    """Its folder lacks the file of shorter lengths and names no depth; the numbers of its examples tell them."""
    records, recipe = load_records(SELECTION), load_request(SELECTION)[0]
    assert first_example(recipe) == 10
    found = run_cells(tmp_path, recipe, records)
    rows = {row.schedule: row for row in measure_rows(records)}
    assert found.keys() == rows.keys()
    for schedule, cells in found.items():
        assert [(cell.length, cell.depth) for cell in cells] == [(1024, depth) for depth in DEPTHS]
        assert [cell.accuracy.n for cell in cells] == [12] * 4
        accuracy = rows[schedule].accuracy
        assert accuracy is not None
        assert fmean(cell.accuracy.mean for cell in cells) == pytest.approx(accuracy.mean)


def test_compared_are_the_winner_all_full_and_the_best_placement() -> None:
    result = load_result(SELECTION)
    assert result.winner is not None
    labels, entries = zip(*compared(result, result.winner.schedule), strict=True)
    assert labels[:2] == ("winner", "all_full")
    assert entries[0].schedule == result.winner.schedule
    assert entries[2].loss == min(e.loss for e in result.entries if e.names and e.within_budget)


def test_shorter_examples_have_the_same_questions_and_leave_out_what_is_too_short() -> None:
    tokenizer = small_tokenizer()
    found = shorter_examples(tokenizer, TASK_NAMES, seq_len=1600, numbers=[3, 4], seed=1)
    assert list(found) == [400, 800]
    for length, by_number in found.items():
        for number, example in by_number.items():
            whole = make_example(tokenizer, TASK_NAMES, seq_len=1601, number=number, seed=1)
            assert len(example.tokens) == length + 1
            for ours, theirs in zip(example.answers, whole.answers, strict=True):
                assert (ours.task, ours.depth) == (theirs.task, theirs.depth)
                digits = (one.tokens[a.start : a.stop].tolist() for one, a in ((example, ours), (whole, theirs)))
                assert len({tuple(ids) for ids in digits}) == 1
    assert list(shorter_examples(tokenizer, TASK_NAMES, seq_len=800, numbers=[3], seed=1)) == [400]
    assert shorter_examples(tokenizer, TASK_NAMES, seq_len=300, numbers=[3], seed=1) == {}


@pytest.mark.parametrize("text", ["{", "[]", '{"full*2": 3}', '{"ful": {}}', '{"full*2": {"9": {"1": {"a": "x"}}}}'])
def test_read_lengths_damaged_file_is_refused_by_name(text: str, tmp_path: Path) -> None:
    assert read_lengths(tmp_path) == {}
    (tmp_path / NAME).write_text(text)
    with pytest.raises(RunFolderError, match=rf"{NAME}: damaged; remove it"):
        read_lengths(tmp_path)


def test_read_lengths_gives_back_what_was_written(tmp_path: Path) -> None:
    (tmp_path / NAME).write_text(json.dumps({"full window:3": {"8": {"2": {"a": 0.5}}}}))
    ((schedule, found),) = read_lengths(tmp_path).items()
    assert (str(schedule), found) == ("full window:3", {8: {2: {"a": 0.5}}})
