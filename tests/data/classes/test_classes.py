"""Sources with classes: what their examples are, and what every one of them holds."""

from __future__ import annotations

import importlib.util
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from layersearch.config.data import DataConfig
from layersearch.config.recipe import load_recipe
from layersearch.data import open_source
from layersearch.data.classes import MAKERS, Examples
from layersearch.data.classes.documents import Retrieval
from layersearch.data.classes.examples import CONTENT, FIRST, PADDING, SEPARATOR
from layersearch.data.classes.lists import END, MAX, MED, MIN, SM, Lists
from layersearch.data.classes.pathfinder import Pathfinder
from layersearch.errors import LayersearchError

LISTS: dict[str, Any] = {"source": "lra_listops", "list_min": 8, "list_max": 60}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("classes")
    random = np.random.default_rng(0)
    for name, letters in (("a", "abcd"), ("b", "wxyz")):
        (folder / name).mkdir()
        for number in range(30):
            text = "".join(random.choice(list(letters), size=200)) + f" {name}{number}"
            (folder / name / f"{number}.txt").write_text(text)
    for part, count in (("train", 40), ("held", 20)):
        y = random.integers(3, size=count)
        np.savez(folder / f"{part}.npz", x=random.integers(9, size=(count, 30)) + 10 * y[:, None], y=y)
    return folder


def config(name: str, folder: Path) -> DataConfig:
    files = {
        "text_classes": (str(folder / "a"), str(folder / "b")),
        "retrieval": (str(folder / "a"), str(folder / "b")),
        "arrays": (str(folder / "train.npz"), str(folder / "held.npz")),
    }.get(name, ())
    more = LISTS if name == "lra_listops" else {"source": name}
    return DataConfig(**more, files=files, examples=30, contour_length=6, classes=3)


SOURCES = [name for name in MAKERS if name != "digits" or importlib.util.find_spec("mnist1d")]


@pytest.fixture(params=SOURCES)
def source(request: pytest.FixtureRequest, folder: Path) -> Examples:
    length = {"pathfinder": 1025, "lra_listops": 60}.get(request.param, 42)
    found = open_source(config(request.param, folder), length, folder / "cache")
    assert isinstance(found, Examples)
    return found


def test_examples_have_one_class_a_first_token_and_padding_at_the_end(source: Examples) -> None:
    batch = source.train(seed=0, step=0, batch_size=16)
    assert batch.tokens.shape == (16, source.seq_len)
    assert batch.targets.shape == (16, 1)
    assert batch.tokens.max() < source.vocab_size
    assert (batch.tokens[:, 0] == FIRST).all()
    pads = batch.tokens == PADDING
    assert (np.diff(pads.astype(int), axis=1) >= 0).all()
    assert batch.marked is not None
    assert (batch.marked.sum(axis=1) == source.marked).all()
    assert batch.marked[:, 0].all()


def test_examples_depend_on_seed_and_step_and_a_smaller_batch_is_a_prefix(source: Examples) -> None:
    batch = source.train(seed=0, step=3, batch_size=8)
    np.testing.assert_array_equal(source.train(seed=0, step=3, batch_size=3).tokens, batch.tokens[:3])
    assert (source.train(seed=1, step=3, batch_size=8).tokens != batch.tokens).any()
    held = source.validation(2)
    np.testing.assert_array_equal(held.tokens, source.validation(2).tokens)
    train = {tuple(row) for row in np.asarray(source._tokens["train"]).tolist()}
    assert not train & {tuple(row) for row in held.tokens.tolist()}


def test_accuracy_stands_beside_that_of_the_most_frequent_class(source: Examples) -> None:
    batch = source.validation(3)
    found = source.metrics(np.ones((3, 1), dtype=bool), batch)
    assert found["accuracy"] == 1.0
    assert found["majority"] == max(np.unique(batch.targets, return_counts=True)[1]) / 3


def value(tokens: list[int]) -> int:
    """Evaluate an expression with a stack."""
    stack: list[Any] = []
    for token in tokens:
        if token < CONTENT + 10:
            stack.append(token - CONTENT)
        elif token != END:
            stack.append((token,))
        else:
            values = []
            while isinstance(stack[-1], int):
                values.append(stack.pop())
            operator = stack.pop()[0]
            whole = {MIN: min, MAX: max, MED: lambda v: int(np.median(v)), SM: lambda v: sum(v) % 10}
            stack.append(int(whole[operator](values)))
    (result,) = stack
    return int(result)


def test_lists_are_evaluated_lie_between_their_bounds_and_differ() -> None:
    maker = Lists(DataConfig(**LISTS, examples=400), 60)
    drawn = list(itertools.islice(maker._distinct(), 400))
    assert len({bytes(example.tokens) for example in drawn}) == 400
    for example in drawn:
        assert 8 < len(example.tokens) < 60
        assert value(example.tokens) == example.label
    # One operator in four nodes, each of 2 to 10 arguments, at most 10 levels.
    counts = [sum(token == END for token in example.tokens) for example in drawn]
    assert min(counts) >= 1


@pytest.mark.slow
def test_lists_of_the_published_bounds_have_the_published_length_and_majority() -> None:
    # Sampled from the published generator: 1,067 tokens on average, class 0 for 16.6%, class 9 for 15.7%.
    maker = Lists(DataConfig(source="lra_listops"), 2000)
    drawn = list(itertools.islice(maker._distinct(), 1500))
    lengths = [len(example.tokens) for example in drawn]
    assert 500 < min(lengths) <= max(lengths) < 2000
    # 4 standard errors: of lengths that spread by 400, and of shares near 0.16.
    assert abs(np.mean(lengths) - 1067) < 4 * np.std(lengths) / 1500**0.5 + 12
    shares = np.bincount([example.label for example in drawn]) / 1500
    assert abs(shares[0] - 0.166) < 0.04
    assert abs(shares[9] - 0.157) < 0.04
    assert maker.examples == 96_000


def test_pathfinder_marks_two_ends_and_classes_are_even() -> None:
    maker = Pathfinder(DataConfig(source="pathfinder", contour_length=6), 1025)
    drawn = list(itertools.islice(maker._pictures(0), 12))
    again = list(itertools.islice(maker._pictures(0), 2))
    assert again == drawn[:2]
    for example in drawn:
        picture = np.array(example.tokens).reshape(32, 32) - CONTENT
        assert picture.max() == 255
        assert 0.05 < (picture > 60).mean() < 0.4
    assert 0 < sum(example.label for example in drawn) < 12


def test_retrieval_pairs_are_of_one_file_or_of_two(folder: Path) -> None:
    maker = Retrieval(config("retrieval", folder), 42)
    train, _ = maker.make()
    texts = {path: path.read_text() for path in folder.rglob("*.txt")}

    def file_of(tokens: list[int]) -> Path:
        passage = bytes(token - CONTENT for token in tokens).decode()
        (found,) = [path for path, text in texts.items() if passage in text]
        return found

    drawn = list(itertools.islice(train, 40))
    for example in drawn:
        assert example.tokens[20] == SEPARATOR
        same = file_of(example.tokens[:20]) == file_of(example.tokens[21:])
        assert same == bool(example.label)
    assert 8 < sum(example.label for example in drawn) < 32
    assert maker.marks == (0, 21)


@pytest.mark.parametrize(
    ("given", "length", "said"),
    [
        ({"source": "imdb"}, 42, "nothing is downloaded: put its positive and its negative reviews in two folders"),
        ({"source": "cifar10"}, 42, "nothing is downloaded: save its pictures"),
        ({"source": "aan"}, 42, "nothing is downloaded: save its pairs"),
        ({"source": "arrays", "files": ("a", "b")}, 42, "name the number of classes"),
        ({"source": "arrays", "files": ("a", "b"), "classes": 2}, 42, "data.files a: .*give two .npz files"),
        ({"source": "arrays", "files": ("a",), "classes": 2}, 42, "give two .npz files"),
        ({"source": "text_classes", "files": ("a",)}, 42, "name two or more files or folders"),
        ({"source": "text_classes"}, 42, "data.files is empty"),
        ({"source": "pathfinder"}, 1000, r"give one of 1025 \(32 x 32\)"),
        ({"source": "lra_listops"}, 500, "training.seq_len 500 is too short for lists of up to 1999 tokens"),
        ({"source": "lra_listops", "list_min": 50, "list_max": 51}, 60, "must lie below"),
        ({"source": "lra_listops", "list_depth": 1}, 2000, "data.list_depth 1 gives no list of over 500 tokens"),
        ({"source": "digits"}, 4, "needs the package mnist1d|too short for a curve"),
        ({"source": "lra_listops", "mask_share": 0.2}, 42, "mask_share masks text"),
    ],
)
def test_source_with_classes_that_cannot_be_is_refused(
    given: dict[str, Any], length: int, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(LayersearchError, match=said):
        open_source(DataConfig(**given), length, tmp_path)


@pytest.mark.parametrize(
    ("name", "assignment", "said"),
    [
        ("smoke-classes", "model.kind=encoder_decoder", "learns from masked text"),
        ("smoke", "model.pooling=mean", "for sources with classes"),
        ("smoke-classes", "pretrained=some/model", "trains from scratch"),
    ],
)
def test_recipe_with_classes_that_cannot_be_is_refused(name: str, assignment: str, said: str) -> None:
    with pytest.raises(LayersearchError, match=said):
        load_recipe(name, [assignment])
    with pytest.raises(LayersearchError, match="sees nothing in a decoder"):
        load_recipe("smoke-classes", ["model.kind=decoder", "model.pooling=first"])
