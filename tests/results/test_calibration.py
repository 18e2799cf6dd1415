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
from levels import Nominal  # noqa: E402
from noises import ALL_FAIL, BEST_FAILS  # noqa: E402


@pytest.mark.slow
def test_calibration_small_run_keeps_every_level_and_resumes(tmp_path: Path) -> None:
    record, groups = tmp_path / "record.jsonl", ("equal", "graded", "page")
    for seeds, repetitions in (("3", 10), ("2+3", 8)):
        calibrate.simulate(1, repetitions, record, groups, seeds)
    totals: dict[Nominal, tuple[float, int]] = {}
    for row in calibrate.results(record):
        for share, number, _ in row.shares.values():
            if row.nominal.claimed and not row.nominal.ratio:
                total, before = totals.get(row.nominal, (0.0, 0))
                totals[row.nominal] = total + share * number, before + number
    assert len(totals) > 15
    for nominal, (total, number) in totals.items():
        # Over all noises: a claim that is false in a sixth of runs shows; the committed table tells them apart.
        assert not calibrate.misses(nominal, total / number, number), (nominal.text, total / number)
    for noise in (ALL_FAIL, BEST_FAILS):
        shares = {row.nominal: row.shares["3"][0] for row in calibrate.results(record) if row.noise == noise}
        over_all = [share for nominal, share in shares.items() if "mean that includes seeds that fail" in nominal.text]
        # What no sentence claims: clean seeds do not show the mean of seeds that fail.
        assert min(over_all) < 0.5
    narrower = calibrate.found(record)
    for name in ("all_full", "the best baseline"):
        (now, _), (before, _) = (
            narrower[f"graded: half width against {name}{suffix}", "normal", "3"] for suffix in ("", ", before")
        )
        assert 0.8 < now / before < 0.92
    written = record.read_text()
    calibrate.simulate(1, 10, record, groups, "3")
    assert record.read_text() == written


def test_calibration_table_committed_is_made_of_the_record() -> None:
    assert calibrate.table() == (FOLDER / "table.md").read_text()


def test_calibration_misses_tell_a_wrong_level_from_noise() -> None:
    nominal = Nominal("a claim", "at most 5%", 0.0, 0.05)
    assert calibrate.misses(nominal, 0.16, 300)
    assert not calibrate.misses(nominal, 0.06, 300)
    interval = Nominal("an interval", "95%", 0.93, 0.98)
    assert calibrate.misses(interval, 0.82, 300)
    assert calibrate.misses(interval, 0.999, 3000)
    assert not calibrate.misses(interval, 0.99, 300)
    assert not calibrate.misses(Nominal("not said", "not claimed", claimed=False), 0.0, 300)
