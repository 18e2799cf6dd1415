"""A run folder whose every free text attacks the page that shows it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

TAG = "<script>window.attacked = 1</script>"
CLOSING = '</script><img src="x" onerror="window.attacked = 2">'
LINK = "javascript:window.attacked=3"
ANSI = "\x1b[31mred\x1b[0m\x07\u202eback\u2028"
PLOTLY = '<a href="javascript:window.attacked=4">click</a>'
TEXTS = (TAG, CLOSING, LINK, ANSI, PLOTLY)


def hostile_run(saved: Path, at: Path) -> Path:
    """Return a copy of a finished search in ``at``; its names, roles, versions and errors are hostile."""
    run = Path(shutil.copytree(saved, at / "<img src=x onerror=window.attacked=5>"))
    config = json.loads((run / "config.json").read_text(encoding="utf-8"))
    config["space"]["name"] = TAG + ANSI
    config["data"]["source"] = CLOSING
    config["recipe"]["pretrained"] = LINK
    config["versions"] = {TAG: CLOSING, "torch": ANSI}
    config["git_commit"] = PLOTLY
    (run / "config.json").write_text(json.dumps(config), encoding="utf-8")
    lines = (run / "trials.jsonl").read_text(encoding="utf-8").splitlines()
    (run / "trials.jsonl").write_text("".join(json.dumps(_spoiled(json.loads(line))) + "\n" for line in lines))
    return run


def _spoiled(record: dict[str, Any]) -> dict[str, Any]:
    role = record["role"]
    named = role not in ("proposed", "all_full")
    return record | {
        "role": f"{role} {PLOTLY}{CLOSING}{ANSI}" if named else role,
        "device": TAG,
        "kernels": [CLOSING for _ in record["kernels"]],
        "metrics": [[f"{TAG}_accuracy", value] for _, value in record["metrics"]],
    }
