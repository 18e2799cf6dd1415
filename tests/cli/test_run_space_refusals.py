"""What a user can get wrong in a search space's file."""

from __future__ import annotations

import pytest

from tests.helpers.refusals import RUN, SPACE, Refuses, write


@pytest.mark.parametrize(
    ("content", "words"),
    [
        pytest.param(
            SPACE.replace("choices", "choises"), ("s.yaml", "'choises'", "did you mean 'choices'"), id="unknown key"
        ),
        pytest.param("name: x\n", ("'choices'", "add it"), id="no choices"),
        pytest.param("name: x\nchoices: []\n", ("choices is empty", "name at least one span"), id="empty choices"),
        pytest.param("name: x\nchoices: full\n", ("choices", "expected a list"), id="choices that are one word"),
        pytest.param("name: x\nchoices: [5]\n", ("choices.0", "expected a span"), id="choice that is a number"),
        pytest.param("name: x\nchoices: [full, full]\n", ("full is named twice", "name it once"), id="choice twice"),
        pytest.param(
            "name: x\nchoices: [full, 'windwo:4']\n", ("choices.1", "did you mean 'window'"), id="unknown kind"
        ),
        pytest.param("name: x\nchoices: ['window:0']\n", ("'window:0'", "at least 1 token"), id="window 0"),
        pytest.param("name: x\nchoices: ['window:-4']\n", ("'window:-4'", "at least 1 token"), id="window -4"),
        pytest.param(
            "name: x\nchoices: ['window:49']\n", ("window:49", "use a smaller span"), id="window longer than the text"
        ),
        pytest.param(
            "name: x\nchoices: ['window:16/4']\n", ("window:16/4", "use a smaller span"), id="dilation beyond the text"
        ),
        pytest.param(
            "name: x\nchoices: ['block:64']\n", ("block:64", "use a smaller span"), id="block longer than the text"
        ),
        pytest.param(
            "name: x\nchoices: ['window:4+sink:99']\n",
            ("sink:99", "use a smaller span"),
            id="sink longer than the text",
        ),
        pytest.param(
            "name: x\nchoices: ['window:4/2@3']\n",
            ("@3", "more heads than the model's 2"),
            id="more dilated heads than heads",
        ),
        pytest.param(
            "name: x\nchoices: [{kind: window, sise: 4}]\n",
            ("'sise'", "did you mean 'size'"),
            id="unknown key of a span",
        ),
        pytest.param("name: x\nchoices: [{size: 4}]\n", ("choices.0", "needs the key 'kind'"), id="span without kind"),
        pytest.param(
            "name: x\nchoices: [{kind: window, size: []}]\n",
            ("size", "at least one value"),
            id="span with an empty list",
        ),
        pytest.param(SPACE + "layers: {7: [full]}\n", ("no layer 7", "the last is 1"), id="layer that is none"),
        pytest.param(
            SPACE + "layers: {0: ['window:5']}\n",
            ("layers.0", "did you mean 'window:"),
            id="layer with an unknown choice",
        ),
        pytest.param(
            SPACE + "tied: [[0, 1], [1, 0]]\n",
            ("tied: layer 1 stands in it twice", "name it once"),
            id="layer tied twice",
        ),
        pytest.param(SPACE + "tied: [[0, 1]]\npattern: 2\n", ("exclude each other", "keep one"), id="pattern and tied"),
        pytest.param(SPACE + "pattern: 0\n", ("pattern", "at least 1 layer"), id="pattern 0"),
        pytest.param(SPACE + "pattern: 9\n", ("pattern 9", "shorten it"), id="pattern longer than the model"),
        pytest.param(SPACE.replace("budget: 0.6", "budget: 2"), ("budget", "(0, 1]"), id="budget 2"),
        pytest.param(SPACE.replace("budget: 0.6", "budget: low"), ("budget", "valid number"), id="budget in words"),
        pytest.param(
            SPACE + "baseline_span: window:9\n",
            ("baseline_span", "did you mean 'window:8'"),
            id="baseline span that is no choice",
        ),
        pytest.param("- full\n", ("s.yaml", "expected a mapping"), id="a list"),
    ],
)
def test_run_wrong_space_file_is_refused_in_one_line(content: str, words: tuple[str, ...], refuses: Refuses) -> None:
    refuses(lambda at, run: [*RUN, "--budget", "0.6", "--space", write(at / "s.yaml", content)], *words)
