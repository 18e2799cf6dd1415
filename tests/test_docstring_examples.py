"""The examples in the docstrings of public names run as they are written."""

from __future__ import annotations

import doctest

import pytest

import layersearch


@pytest.mark.parametrize("name", sorted({*layersearch.__all__} - {"__version__"}))
def test_docstring_example_of_a_public_name_runs(name: str) -> None:
    example = doctest.DocTestParser().get_doctest(getattr(layersearch, name).__doc__ or "", {}, name, None, None)
    assert example.examples, f"give the docstring of {name} an example"
    report: list[str] = []
    assert doctest.DocTestRunner().run(example, out=report.append).failed == 0, "".join(report)
