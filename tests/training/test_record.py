"""Lines of ``trials.jsonl``: what was changed since, or cannot be, is named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from layersearch.errors import RunFolderError
from layersearch.files import seal, unseal
from layersearch.study.saved_run import load_records
from layersearch.training.record import append, read

SAVED = Path(__file__).parents[1] / "data_runs" / "finished"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Return a run folder of an older version, whose lines have no checksum."""
    return Path(shutil.copytree(SAVED, tmp_path / "run"))


def change(run: Path, number: int, **changes: Any) -> None:
    file = run / "trials.jsonl"
    lines = file.read_text().splitlines()
    lines[number - 1] = json.dumps(json.loads(lines[number - 1]) | changes)
    file.write_text("".join(line + "\n" for line in lines))


def test_record_appended_carries_a_checksum_and_is_read_back(run: Path) -> None:
    records = list(read(run / "trials.jsonl"))
    for record in records:
        append(run / "sealed.jsonl", record)
    assert all("crc32" in json.loads(line) for line in (run / "sealed.jsonl").read_text().splitlines())
    assert list(read(run / "sealed.jsonl")) == records


@pytest.mark.parametrize("key", ["cost", "loss", "seed", "seconds", "role"])
def test_record_of_which_one_value_changed_is_named_with_its_line(run: Path, key: str) -> None:
    records = list(read(run / "trials.jsonl"))
    (run / "trials.jsonl").unlink()
    for record in records:
        append(run / "trials.jsonl", record)
    held = getattr(records[1], key)
    change(run, 2, **{key: "other" if isinstance(held, str) else held * 0.5 if isinstance(held, float) else held + 1})
    with pytest.raises(RunFolderError, match=r"trials\.jsonl line 2.*crc32.*restore the line, or delete it") as caught:
        load_records(run)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"cost": 1e308}, "cost"),
        ({"cost": 0.5}, "flops"),
        ({"flops": 12}, "flops"),
        ({"schedule": "full*3"}, "3 layers in a run of 2"),
        ({"seed": 10**30}, "seed"),
        ({"seed": -1}, "seed"),
        ({"loss": None}, "complete with the loss None"),
        ({"loss": 1e300}, "loss"),
        ({"state": "failed"}, "failed with the loss"),
        ({"state": "stopped", "steps": 10**30}, "steps"),
        ({"steps": 1}, "complete after 1 of"),
        ({"full_steps": -1}, "full_steps"),
        ({"steps": 7, "full_steps": 7, "curve": []}, "full_steps 7 in a run of"),
        ({"curve": [[9, 1.0], [3, 1.0]]}, "curve"),
        ({"metrics": []}, "metrics"),
        ({"loss_by_position": [1.0]}, "losses by position"),
        ({"loss_by_position": [1.0], "position_edges": [9]}, "position_edges"),
    ],
)
def test_record_that_no_trial_of_the_run_can_have_is_named_with_its_line(
    run: Path, changes: dict[str, Any], words: str
) -> None:
    change(run, 2, **changes)
    with pytest.raises(RunFolderError, match=r"trials\.jsonl line 2") as caught:
        load_records(run)
    assert words in str(caught.value)


def test_line_of_other_spaces_and_order_keeps_its_checksum_and_a_flipped_bit_does_not() -> None:
    line = seal({"b": [0.1, None], "a": "ü"})
    assert unseal(json.dumps(dict(reversed(json.loads(line).items())), indent=1)) == {"a": "ü", "b": [0.1, None]}
    data = bytearray(line.encode())
    for at in range(len(data)):
        data[at] ^= 1
        try:
            found = unseal(data.decode(errors="replace"))
        except RunFolderError:
            pass
        else:
            assert set(found) != {"a", "b"}  # the checksum's own name changed: `build` refuses the unknown key
        data[at] ^= 1
