"""Export to FlexAttention: a Python module with ``mask_mod`` and ``score_mod`` per layer; it needs only torch."""

from __future__ import annotations

import pprint
from importlib import resources

from layersearch.schedule import Schedule

MODULE = "flex_layersearch.py"
"""Name of the module, in the package and in the export."""


def flex_module(schedule: Schedule, n_heads: int) -> str:
    """Return the module's code: its two constants hold the schedule and the number of query heads."""
    code = resources.files("layersearch.export.remote").joinpath(MODULE).read_text(encoding="utf-8")
    spans = pprint.pformat(schedule.to_dicts(), width=110, sort_dicts=False)
    for name, default, value in [
        ("N_HEADS", "1", str(n_heads)),
        ("SPANS: list[dict[str, Any]]", '[{"kind": "full"}]', spans),
    ]:
        line = f"{name} = {default}\n"
        assert code.count(line) == 1
        code = code.replace(line, f"{name} = {value}\n")
    return code
