"""Files by name, YAML without surprises, and frozen dataclasses from mappings."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest

from layersearch.config.loader import build, find_file, override, read_yaml
from layersearch.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Wheel:
    """A part."""

    __pydantic_config__ = {"extra": "forbid"}

    size: int
    weight: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Cart:
    """A whole."""

    __pydantic_config__ = {"extra": "forbid"}

    name: str
    wheel: Wheel
    spare: Wheel | None = None
    sizes: tuple[int, ...] = ()
    by_layer: dict[int, str] = field(default_factory=dict)


def test_find_file_bare_name_is_a_shipped_file_and_a_path_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shipped = find_file("smoke", "trials")
    assert shipped.parts[-2:] == ("trials", "smoke.yaml")
    assert find_file("smoke.yaml", "trials") == shipped
    assert find_file("zero2", "trials/deepspeed", ".json").name == "zero2.json"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "smoke.yaml").write_text("own")
    assert find_file("smoke.yaml", "trials").read_text() == "own"
    assert find_file("./smoke.yaml", "trials").read_text() == "own"
    assert find_file(str(tmp_path / "smoke.yaml"), "trials").read_text() == "own"
    assert find_file("smoke", "trials") == shipped


@pytest.mark.parametrize(
    ("name", "words"), [("smok", "did you mean 'smoke'"), ("a/smoke.yaml", "existing path"), ("b" * 999, "known: ")]
)
def test_find_file_missing_names_what_there_is(name: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        find_file(name, "trials")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a: 1e-3", {"a": 1e-3}),  # YAML 1.1 alone reads a word
        ("a: -2E+5", {"a": -2e5}),
        ("a: 1.5e3", {"a": 1500.0}),
        ("a: 1.e2", {"a": 100.0}),
        ("a: .5e1", {"a": 5.0}),
        ("a: e5", {"a": "e5"}),
        ("a: 1e5f", {"a": "1e5f"}),
        ("a: 7", {"a": 7}),
        ("a: 'window:4'", {"a": "window:4"}),
        ("[1, window:4]", [1, "window:4"]),
        ("base: &b {x: 1, y: 2}\nown: {<<: *b, y: 3}", {"base": {"x": 1, "y": 2}, "own": {"x": 1, "y": 3}}),
    ],
)
def test_read_yaml_plain_values_are_read_as_meant(text: str, value: object, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(text)
    assert read_yaml(tmp_path / "a.yaml") == value


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: 1\na: 2", r"line 2: not valid YAML \(key 'a' is written twice\)"),
        ("o: {b: 1, b: 2}", "'b' is written twice"),
        ("? [1, 2]\n: 3", "a key must be a word"),
        ("a: !!python/name:os.getcwd", "not valid YAML"),
        ("a: [", "not valid YAML"),
        ("a: 2001-99-99", "month must be"),
    ],
)
def test_read_yaml_ambiguous_file_is_refused(text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(ConfigError, match=words):
        read_yaml(tmp_path / "a.yaml")


def test_build_mapping_becomes_frozen_dataclasses() -> None:
    found = build(Cart, {"name": "c", "wheel": {"size": 3, "weight": 2}, "sizes": [1, 2], "by_layer": {4: "x"}}, "f")
    assert found == Cart(name="c", wheel=Wheel(size=3, weight=2.0), sizes=(1, 2), by_layer={4: "x"})


@pytest.mark.parametrize(
    ("mapping", "line"),
    [
        ([], "f: expected a mapping of keys to values, found list"),
        ({"name": "c"}, "f: the key 'wheel' is missing; add it"),
        ({"name": "c", "weel": {"size": 1}}, "f: unknown key 'weel'; did you mean 'wheel'?"),
        ({"name": "c", "wheel": {"siez": 1}}, "f: unknown key 'wheel.siez'; did you mean 'size'?"),
        (
            {"name": "c", "wheel": {"size": 1}, "spare": {"wieght": 1, "size": 2}},
            "f: unknown key 'spare.wieght'; did you mean 'weight'?",
        ),
        ({"name": "c", "wheel": {"size": "1"}}, "f: wheel.size: input should be a valid integer, found '1'"),
        ({"name": "c", "wheel": {"size": True}}, "f: wheel.size: input should be a valid integer, found True"),
        ({"name": 1, "wheel": {"size": 1}}, "f: name: input should be a valid string, found 1"),
        (
            {"name": "c", "wheel": {"size": 1}, "sizes": [1, "b"]},
            "f: sizes.1: input should be a valid integer, found 'b'",
        ),
    ],
)
def test_build_value_of_the_wrong_type_is_named(mapping: object, line: str) -> None:
    with pytest.raises(ConfigError) as refused:
        build(Cart, mapping, "f")
    assert str(refused.value) == line


def test_override_assignment_sets_one_key_and_makes_its_section() -> None:
    mapping: dict[str, object] = {"a": {"b": 1}}
    for assignment in ("a.b=2", "a.c=[1e-3, x]", "d.e.f=null", "g==1"):
        override(mapping, assignment)
    assert mapping == {"a": {"b": 2, "c": [1e-3, "x"]}, "d": {"e": {"f": None}}, "g": "=1"}


@pytest.mark.parametrize(
    ("assignment", "words"),
    [
        ("a.b", "expected KEY=VALUE"),
        ("=1", "expected KEY=VALUE"),
        ("a.b.c=1", "a.b holds no keys; drop the part after it"),
        ("a=[", "quote it"),
        ("a={x: 1, x: 2}", "quote it"),
    ],
)
def test_override_impossible_assignment_is_refused(assignment: str, words: str) -> None:
    mapping = {"a": {"b": 1}}
    with pytest.raises(ConfigError, match=words):
        override(mapping, assignment)
    assert mapping == {"a": {"b": 1}}
