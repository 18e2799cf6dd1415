"""What a user can get wrong in a preset's name and sizes."""

from __future__ import annotations

import pytest

from tests.helpers.refusals import Line, Refuses


@pytest.mark.parametrize(
    ("line", "words"),
    [
        pytest.param(["presets", "masfomer"], ("'masfomer'", "did you mean 'masformer'"), id="preset that is none"),
        pytest.param(["presets", "masformer", "ll=4"], ("'ll'", "did you mean 'l'"), id="preset's parameter"),
        pytest.param(
            ["presets", "qwen2", "n_layers=4"],
            ("needs max_window_layers", "give max_window_layers="),
            id="preset without its size",
        ),
        pytest.param(["presets", "masformer", "l"], ("'l'", "KEY=VALUE"), id="preset's size without ="),
        pytest.param(
            ["presets", "masformer", "l=four"], ("l must be a whole number, not 'four'",), id="preset's size in words"
        ),
        pytest.param(["presets", "masformer", "l=25"], ("between 0 and n_layers (24)",), id="preset out of range"),
    ],
)
def test_presets_wrong_name_or_size_is_refused_in_one_line(
    line: Line, words: tuple[str, ...], refuses: Refuses
) -> None:
    refuses(line, *words)
