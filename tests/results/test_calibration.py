"""A small version of `analysis/calibration`: the printed claims keep their level in every noise."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import layersearch

FOLDER = Path(layersearch.__file__).parent.parent / "analysis" / "calibration"
if not FOLDER.is_dir():
    pytest.skip("the study lies in a checkout only", allow_module_level=True)
sys.path.insert(0, str(FOLDER))

import calibrate  # noqa: E402
import claims  # noqa: E402

FAILS = "fails 1 in 10"  # table.md shows what misses there


@pytest.mark.slow
def test_calibration_small_run_keeps_every_level_and_resumes(tmp_path: Path) -> None:
    record, groups = tmp_path / "record.jsonl", ("equal", "page")
    calibrate.simulate(1, 2, record, only=groups)
    totals: dict[str, list[float]] = {}
    for (name, noise, _), held in calibrate.found(record).items():
        if name in claims.NOMINAL and not claims.NOMINAL[name].ratio and noise != FAILS:
            total, number = held["sum"]
            before = totals.get(name, [0.0, 0])
            totals[name] = [before[0] + total, before[1] + number]
    assert len(totals) > 8
    for name, (total, number) in totals.items():
        # Over all noises: a claim that is false in a sixth of runs shows; the committed table tells them apart.
        assert not calibrate.misses(claims.NOMINAL[name], total / number, int(number)), (name, total / number)
    written = record.read_text()
    calibrate.simulate(1, 2, record, only=groups)
    assert record.read_text() == written
    assert len(calibrate.table(record).splitlines()) > 40


def test_calibration_table_committed_is_made_of_the_record() -> None:
    assert calibrate.table() in (FOLDER / "table.md").read_text()


def test_calibration_misses_tell_a_wrong_level_from_noise() -> None:
    nominal = claims.Nominal("a claim", "at most 5%", 0.0, 0.05)
    assert calibrate.misses(nominal, 0.16, 300)
    assert not calibrate.misses(nominal, 0.06, 300)
    assert calibrate.misses(claims.Nominal("an interval", "at least 95%", 0.93, 1.0), 0.82, 300)
