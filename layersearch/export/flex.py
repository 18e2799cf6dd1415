"""Export to FlexAttention: a Python module of ``mask_mod`` and ``score_mod`` per layer that needs torch only."""

from __future__ import annotations

import pprint
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from layersearch.export.files import write_schedule, write_text
from layersearch.schedule import Schedule

MODULE = "flex_layersearch.py"
"""The module; its two constants are the schedule's."""


def write_flex(schedule: Schedule, *, n_heads: int, out: Path, evidence: Mapping[str, Any] | None = None) -> list[Path]:
    """Write the module with the schedule's spans, and ``schedule.yaml``.

    Args:
        schedule: one span per layer.
        n_heads: query heads of the model.
        out: the folder.
        evidence: what supports the schedule.

    Returns:
        The files written.

    Raises:
        UserError: if other files of the same names stand there, or the folder cannot be written.
    """
    code = resources.files("layersearch.export.remote").joinpath(MODULE).read_text(encoding="utf-8")
    spans = pprint.pformat(schedule.to_dicts(), width=110, sort_dicts=False)
    for constant, of_one_layer, value in [
        ("N_HEADS", "1", str(n_heads)),
        ("SPANS: list[dict[str, Any]]", '[{"kind": "full"}]', spans),
    ]:
        line = f"{constant} = {of_one_layer}\n"
        assert code.count(line) == 1
        code = code.replace(line, f"{constant} = {value}\n")
    return [write_text(out / MODULE, code), write_schedule(schedule, "yaml", out, evidence or {})]
