"""What a user can get wrong in a schedule, as text and as a file, and in what it is counted at."""

from __future__ import annotations

import pytest

from tests.helpers.refusals import Line, Refuses, write

MILLION = str(2**20)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        pytest.param("", ("empty schedule", "expected terms such as"), id="empty"),
        pytest.param("full ful*2", ("term 2 at character 6", "did you mean 'full'"), id="full ful*2"),
        pytest.param("full*0", ("'full*0'", "1 to 100000"), id="full*0"),
        pytest.param("full*x", ("'full*x'", "whole number of layers"), id="full*x"),
        pytest.param("full*²", ("'full*²'", "whole number of layers"), id="full*²"),
        pytest.param("full*1000000000000", ("whole number of layers", "1 to 100000"), id="full*1000000000000"),
        pytest.param("full:3", ("'full:3'", "write 'full'"), id="full:3"),
        pytest.param("window", ("'window'", "needs a size"), id="window"),
        pytest.param("window:", ("'window:'", "expected a whole number for the size"), id="window:"),
        pytest.param("window:0", ("'window:0'", "at least 1 token"), id="window:0"),
        pytest.param("window:" + "9" * 5000, ("whole number for the size",), id="size of 5000 digits"),
        pytest.param("window:1025", ("window:1025", "use a smaller span or 'full'"), id="window:1025"),
        pytest.param("window:4/0", ("dilation", "at least 1"), id="window:4/0"),
        pytest.param("window:4/2@5", ("@5", "more heads than the model's 4"), id="window:4/2@5"),
        pytest.param("block:4/2", ("only a window can be dilated",), id="block:4/2"),
        pytest.param("strided:1", ("write 'full'",), id="strided:1"),
        pytest.param("fixed:8/8", ("1 <= C < L", "not 8 of 8"), id="fixed:8/8"),
        pytest.param("memory:0/8", ("write 'block:8'",), id="memory:0/8"),
        pytest.param("memory:8", ("needs a size",), id="memory:8"),
        pytest.param("memory:8/2000", ("use a smaller span",), id="memory:8/2000"),
        pytest.param("bigbird:8", ("needs a number R",), id="bigbird:8"),
        pytest.param("strided:8+sink:2", ("takes no '+sink'",), id="strided:8+sink:2"),
        pytest.param("window:4+global:first:2", ("in a causal model", "'+sink:2'"), id="global"),
        pytest.param("window:4+global:all", ("expected +global:first:G",), id="global:all"),
        pytest.param("window:4+global:mask:2", ("in a causal model", "'+sink:2'"), id="global:mask"),
        pytest.param("window:4+global:first:2+global:mask", ("each once",), id="global twice"),
        pytest.param("full+summary:8", ("drop '+summary'",), id="full+summary"),
        pytest.param("window:4+summary:1", ("2 tokens or more",), id="summary:1"),
        pytest.param("window:4+summary:8+las:0.1", ("drop '+las' or '+summary'",), id="summary+las"),
        pytest.param("bigbird:8/0/3", ("drop its seed",), id="bigbird:8/0/3"),
        pytest.param("window:8@2", ("expected full",), id="window:8@2"),
        pytest.param("strided:8@5", ("names more heads than the model's 4",), id="strided:8@5"),
        pytest.param("block:8~8", ("block:8~8", "must be 0 to 7 tokens"), id="block:8~8"),
        pytest.param("block:8~0", ("drop '~0'",), id="block:8~0"),
        pytest.param("window:8~2", ("only blocks have an offset",), id="window:8~2"),
        pytest.param("window:4+sink:0", ("drop '+sink:0'",), id="window:4+sink:0"),
        pytest.param("window:4+las:1", ("LaS decay", "[0, 1)"), id="window:4+las:1"),
        pytest.param("window:4+las:nan", ("LaS decay", "[0, 1)"), id="window:4+las:nan"),
        pytest.param("window:4+las:x", ("expected a number after 'las:'",), id="window:4+las:x"),
        pytest.param("window:4+snik:2", ("'+snik:2'", "expected +sink:G"), id="window:4+snik:2"),
    ],
)
def test_cost_wrong_schedule_is_refused_in_one_line(text: str, words: tuple[str, ...], refuses: Refuses) -> None:
    refuses(["cost", text, "--seq-len", "1024", "--heads", "4"], *words)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        pytest.param(
            ["cost", "window:4+sink:2", "--seq-len", "64", "--encoder"],
            ("in an encoder", "'+global:first:2'"),
            id="sinks of an encoder",
        ),
        pytest.param(
            ["cost", "full", "--seq-len", "64", "--decoder", "full"], ("give --target-len too",), id="no target"
        ),
        pytest.param(
            ["cost", "full", "--seq-len", "64", "--target-len", "8", "--decoder", "window:9"],
            ("--decoder", "longer than the text of 8 tokens"),
            id="decoder longer than its target",
        ),
        pytest.param(["cost", "full"], ("--seq-len", "cost --help"), id="no length"),
        pytest.param(["cost", "full", "--seq-len", "0"], ("--seq-len", "at least 1, not 0"), id="length 0"),
        pytest.param(
            ["cost", "full", "--seq-len", MILLION, "--heads", "0"], ("--heads", "at least 1, not 0"), id="heads 0"
        ),
        pytest.param(
            ["cost", "full", "--seq-len", MILLION, "--heads", "6", "--kv-heads", "4"],
            ("--kv-heads 4", "must divide --heads 6"),
            id="heads not divisible",
        ),
        pytest.param(
            ["cost", "full", "--seq-len", "8", "--head-dim", "-1"], ("--head-dim", "at least 1"), id="head dimension"
        ),
        pytest.param(["cost", "no.yaml", "--seq-len", "8"], ("no.yaml", "give an existing file"), id="no such file"),
        *[
            pytest.param(
                lambda at, run, content=content: ["cost", write(at / "w.yaml", content), "--seq-len", "8"],
                ("w.yaml", *words),
                id=f"file {name}",
            )
            for name, content, words in (
                ("without key", "verdict: good\n", ("no key 'layers'", "give a winner.yaml")),
                ("empty", "", ("no key 'layers'", "give a winner.yaml")),
                ("not YAML", "layers: [", ("not valid YAML", "correct it")),
                ("a number", "layers: 3\n", ("a list with one mapping per layer",)),
                ("wrong layer", "- kind: full\n- kind: windwo\n", ("layer 1", "did you mean 'window'")),
                ("size in words", "- {kind: window, size: four}\n", ("layer 0", "must be a whole number, not 'four'")),
                ("unknown key", "- {kind: window, sise: 4}\n", ("layer 0", "did you mean 'size'")),
            )
        ],
    ],
)
def test_cost_wrong_size_or_file_is_refused_in_one_line(line: Line, words: tuple[str, ...], refuses: Refuses) -> None:
    refuses(line, *words)
