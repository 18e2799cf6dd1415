"""Does a small proxy rank attention schedules as a bigger model does? See README.md.

python analysis/transfer/study.py data                                      # once: the text as token ids
python analysis/transfer/study.py run --scales large,middle --device cuda:0 --compile --seconds 400
python analysis/transfer/study.py run --scales base,length-x2 --shard 0/2   # on a CPU; every second unit
python analysis/transfer/study.py report                                    # tables.md from the records alone

The study resumes. A unit is one scale, one data set and one seed with every schedule; its record is written as soon as
it is trained. A unit that does not fit in what is left of ``--seconds`` is left out, and the next one is tried.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from scales import DATA, EARLY, HERE, SCALES, prepare, recipe, schedules, source

RECORDS = HERE / "records"


def records(folder: Path = RECORDS) -> list[dict[str, Any]]:
    """Return the records of all files of a folder, one of each unit."""
    found: dict[tuple[str, str, int], dict[str, Any]] = {}
    for path in sorted(folder.glob("*.jsonl")):
        for line in path.read_text().splitlines():
            record = json.loads(line)
            found.setdefault((record["scale"], record["data"], record["seed"]), record)
    return list(found.values())


def units(names: list[str], data: list[str], seeds: int | None) -> Iterator[tuple[str, str, int]]:
    """Yield scale, data and seed of every unit: scale by scale, and of a scale the first seeds first."""
    for name in names:
        for seed in range(SCALES[name].seeds if seeds is None else seeds):
            for kind in data:
                yield name, kind, seed


def run_unit(name: str, data: str, seed: int, options: argparse.Namespace, ends: float) -> dict[str, Any] | None:
    """Train one unit; return its record, or None if the time was too short."""
    import torch
    from batched import train

    scale = SCALES[name]
    precision = options.precision or ("float32" if options.device == "cpu" else "bf16")
    made = recipe(scale, data, precision)
    opened = source(made)
    every = schedules(scale)
    checkpoints = sorted({max(1, round(share * scale.steps)) for share in EARLY})
    began = time.perf_counter()
    curve: list[tuple[int, dict[str, list[float]]]] = []
    for compiled in (True, False) if options.compile and scale.compiled else (False,):
        try:
            curve = list(
                train(
                    made,
                    opened,
                    list(every.values()),
                    seed=seed,
                    checkpoints=checkpoints,
                    device=options.device,
                    compiled=compiled,
                    left=lambda: ends - time.perf_counter(),
                )
            )
            break
        except RuntimeError as error:  # of the compiler, or too little memory: the other units may still be had
            lines = str(error).strip().splitlines() or [type(error).__name__]
            print(f"{name} {data} {seed}, compiled {compiled}: {lines[0]}", file=sys.stderr, flush=True)
    seconds = time.perf_counter() - began
    if not curve or curve[-1][0] != scale.steps:
        print(f"{name} {data} {seed}: no record ({seconds:.0f} s spent)", file=sys.stderr, flush=True)
        return None
    measures = curve[-1][1]
    return {
        "scale": name,
        "data": data,
        "seed": seed,
        "steps": [step for step, _ in curve],
        "vocabulary": opened.vocab_size,
        "fingerprint": opened.fingerprint,
        "device": options.device if options.device == "cpu" else torch.cuda.get_device_name(options.device),
        "precision": precision,
        "compiled": compiled,
        "torch": torch.__version__,
        "seconds": round(seconds, 1),
        "schedules": {each: str(schedule) for each, schedule in every.items()},
        # By measure and schedule, at every one of the steps; null where the loss is not finite.
        "measures": {
            key: {
                each: [finite(at[key][number]) for _, at in curve]  # plain JSON has no NaN
                for number, each in enumerate(every)
            }
            for key in measures
        },
    }


def finite(value: float) -> float | None:
    """Return a number, or None for one that is not finite."""
    return value if math.isfinite(value) else None


def run(options: argparse.Namespace) -> None:
    """Train the units that are wanted, of this shard, and have no record."""
    options.records.mkdir(parents=True, exist_ok=True)
    first, every = map(int, options.shard.split("/"))
    ends = time.perf_counter() + options.seconds
    done = {(r["scale"], r["data"], r["seed"]) for folder in (RECORDS, options.records) for r in records(folder)}
    wanted = [unit for unit in units(options.scales, options.data, options.seeds) if unit not in done][first::every]
    for unit in wanted:
        if time.perf_counter() >= ends:
            break
        record = run_unit(*unit, options, ends)
        if record is not None:
            with (options.records / f"units-{first}.jsonl").open("a") as file:
                file.write(json.dumps(record) + "\n")
            found = record["measures"]["loss"]
            best = min((losses[-1], each) for each, losses in found.items() if losses[-1] is not None)
            print(*unit, f"{record['seconds']} s; lowest: {best}", file=sys.stderr, flush=True)


def main() -> None:
    """Prepare the text, train, or report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("data", "run", "report"))
    parser.add_argument("--scales", type=lambda text: text.split(","), default=[n for n in SCALES if n != "toy"])
    parser.add_argument("--data", type=lambda text: text.split(","), default=list(DATA), help="mix, text or both")
    parser.add_argument("--seeds", type=int, help="seeds of every scale; default: its own number")
    parser.add_argument("--device", default="cpu", help="cpu or cuda:N")
    parser.add_argument("--precision", choices=("bf16", "float32"), help="default: bf16 on a GPU, float32 on a CPU")
    parser.add_argument("--compile", action="store_true", help="compile the larger scales")
    parser.add_argument("--shard", default="0/1", help="K/N: every N-th unit from the K-th on, in a file of its own")
    parser.add_argument("--seconds", type=float, default=math.inf, help="stop after so long")
    parser.add_argument("--records", type=Path, default=RECORDS, help="folder of the records")
    options = parser.parse_args()
    for key, known in (("scales", SCALES), ("data", DATA)):
        if unknown := [name for name in getattr(options, key) if name not in known]:
            parser.error(f"--{key} {unknown[0]}: expected some of {', '.join(known)}")
    if options.what == "data":
        prepare()
    elif options.what == "run":
        run(options)
    else:
        from tables import report

        (HERE / "tables.md").write_text(report(records()))


if __name__ == "__main__":
    main()
