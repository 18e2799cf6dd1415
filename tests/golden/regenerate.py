"""Write losses.json anew. Read README.md first: this is for changes that are meant to change the computation."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from layersearch.schedule import Schedule
from layersearch.training.record import Trial
from layersearch.training.workers.pool import LocalPool
from tests.golden.test_losses import CHECKPOINTS, GOLDEN, RECIPE


def main() -> None:
    """Train the pinned schedules and write their losses."""
    found = {}
    with tempfile.TemporaryDirectory() as logs:
        pool = LocalPool(RECIPE, 1, Path(logs))
        try:
            for name, schedule in (("full", "full*2"), ("window", "window:4*2")):
                record = pool.submit(Trial(schedule=Schedule.parse(schedule), seed=1, checkpoints=CHECKPOINTS)).result()
                assert record.state == "complete", record.error
                found[name] = record.curve
        finally:
            pool.close()
    GOLDEN.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
