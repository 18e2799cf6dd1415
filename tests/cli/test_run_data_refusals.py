"""What a user can get wrong in local data and in a DeepSpeed file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.helpers.refusals import RUN, Refuses, write

ROW = json.dumps({"text": "to be or not to be " * 9, "id": 1}) + "\n"


@pytest.mark.parametrize(
    ("source", "file", "files", "more", "words"),
    [
        pytest.param(
            "text", ("a.txt", ""), "a.txt", "", ("data.files", "a.txt is empty", "leave it out"), id="empty file"
        ),
        pytest.param("text", None, "no.txt", "", ("data.files", "no.txt", "give an existing path"), id="missing file"),
        pytest.param("text", None, "*.txt", "", ("data.files", "'*.txt'", "correct the pattern"), id="glob of nothing"),
        pytest.param(
            "text", ("a.txt", "to be " * 9), "a.txt", "", ("data.files", "name more text"), id="too little text"
        ),
        pytest.param(
            "text", ("a.txt", b"\xff\xfe\x00" * 99), "a.txt", "", ("a.txt", "give UTF-8 text"), id="not UTF-8"
        ),
        pytest.param(
            "json",
            ("a.jsonl", ROW * 9 + "{oops\n"),
            "a.jsonl",
            "",
            ("a.jsonl", "one JSON object a line"),
            id="malformed JSON lines",
        ),
        pytest.param(
            "json",
            ("a.jsonl", ROW),
            "a.jsonl",
            "data.column=body",
            ("'body'", "set data.column to one of"),
            id="missing column",
        ),
        pytest.param(
            "json", ("a.jsonl", ROW), "a.jsonl", "data.column=id", ("'id'", "set data.column"), id="column of numbers"
        ),
        pytest.param(
            "parquet", ("a.parquet", "no"), "a.parquet", "", ("a.parquet", "give Parquet files"), id="no Parquet"
        ),
        pytest.param(
            "json",
            ("a.jsonl", ROW),
            "a.jsonl",
            "data.tokenizer=a.jsonl",
            ("data.tokenizer", "tokenizer.json"),
            id="no tokenizer",
        ),
        pytest.param(
            "json",
            ("a.jsonl", ROW),
            "a.jsonl",
            "data.tokenizer=no.json",
            ("no.json", "give a tokenizer"),
            id="missing tokenizer",
        ),
        pytest.param(
            "json",
            ("a.jsonl", ROW * 9),
            "a.jsonl",
            "data.vocab_size=9",
            ("data.vocab_size", "raise it to at least"),
            id="no bytes",
        ),
        pytest.param("text", None, "", "data.files=[]", ("data.files is empty", "name the text files"), id="no files"),
    ],
)
def test_run_wrong_data_file_is_refused_in_one_line(
    source: str, file: tuple[str, str | bytes] | None, files: str, more: str, words: tuple[str, ...], refuses: Refuses
) -> None:
    settings = [f"data.source={source}", f"data.files=[{files!r}]", "data.vocab_size=300", *([more] if more else [])]

    def line(at: Path, run: Path) -> list[str]:
        if file is not None:
            write(at / file[0], file[1])
        return [*RUN, *(part for setting in settings for part in ("--set", setting))]

    refuses(line, *words)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        pytest.param('{"zero_optimization": ', ("not a DeepSpeed JSON", "correct it"), id="broken"),
        pytest.param("[]", ("holds a mapping", "correct it"), id="a list"),
        pytest.param(
            '{"zero_optimization": {"stage": 7}}', ("zero_optimization.stage", "0, 1, 2 or 3, not 7"), id="stage 7"
        ),
        pytest.param(
            '{"zero_optimization": []}',
            ("zero_optimization must be a mapping", "correct it"),
            id="section that is a list",
        ),
        pytest.param(
            '{"zero_optimization": {"stage": "two"}}', ("zero_optimization.stage", "0, 1, 2 or 3"), id="stage in words"
        ),
        pytest.param(
            '{"train_batch_size": 7}', ("train_batch_size", 'remove it or write "auto"'), id="batch size of its own"
        ),
    ],
)
def test_run_wrong_deepspeed_file_is_refused_in_one_line(
    content: str, words: tuple[str, ...], refuses: Refuses
) -> None:
    refuses(lambda at, run: [*RUN, "--set", "training.deepspeed=" + write(at / "d.json", content)], "d.json", *words)
