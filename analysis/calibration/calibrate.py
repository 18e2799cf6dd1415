"""How often is each printed claim true? Simulated on losses whose truth is known, through the functions that print it.

Command:  python analysis/calibration/calibrate.py [--chunks N]
Time:     about a minute a chunk on one core; a chunk repeats every cell 20 times, `solve` twice
Writes:   record.jsonl, one line a cell and chunk; cells that it holds are not simulated again
          table.md, from record.jsonl alone

The noises are normal (standard deviation 0.01 nats), heavy-tailed (Student's t with three degrees of freedom, the same
standard deviation), a seed effect of 0.03 nats shared by all schedules, standard deviations of 0.001 to 0.05 nats that
differ between schedules, those of `analysis/first_run`, and failing to learn (1 nat more) at one seed in ten. ``2+3``
seeds: two rounds of confirmation.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
sys.path.insert(0, str(HERE.parent / "search_efficiency"))

import claims  # noqa: E402

Counts = dict[str, tuple[float, int]]
RECORD, TABLE = HERE / "record.jsonl", HERE / "table.md"
REPETITIONS = 20


@dataclass(frozen=True)
class Cell:
    """One scenario that is repeated."""

    group: str
    noise: str
    seeds: str

    def run(self, chunk: int, repetitions: int) -> Counts:
        """Return (sum, number) of every claim over the repetitions of a chunk."""
        rng = np.random.default_rng(zlib.crc32(f"{self.group} {self.noise} {self.seeds} {chunk}".encode()))
        counts: Counts = {}
        for _ in range(repetitions):
            for claim, value in claims.GROUPS[self.group](rng, self.noise, self.seeds):
                total, number = counts.get(claim, (0.0, 0))
                counts[claim] = total + float(value), number + 1
        return counts


def cells() -> list[Cell]:
    """Return every scenario."""
    found = []
    for group, (noises, seeds) in claims.SCENARIOS.items():
        found += [Cell(group, noise, number) for noise in noises for number in seeds]
    return found


def simulate(chunks: int, repetitions: int = REPETITIONS, record: Path = RECORD, only: Sequence[str] = ()) -> None:
    """Simulate what the record does not hold; ``only`` names groups, none: all."""
    held = {(row["group"], row["noise"], row["seeds"], row["chunk"]) for row in rows(record)}
    for chunk in range(chunks):
        for cell in cells():
            if (cell.group, cell.noise, cell.seeds, chunk) in held or (only and cell.group not in only):
                continue
            counts = cell.run(chunk, max(1, repetitions // claims.SLOWER.get(cell.group, 1)))
            row = {"group": cell.group, "noise": cell.noise, "seeds": cell.seeds, "chunk": chunk, "counts": counts}
            with record.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")


def rows(record: Path = RECORD) -> list[dict]:
    """Return the record's lines."""
    return [json.loads(line) for line in record.read_text().splitlines()] if record.exists() else []


def found(record: Path = RECORD) -> dict[tuple[str, str, str], dict[str, list[float]]]:
    """Return (sum, number) of every claim, by claim's group and name, noise and seeds, over all chunks."""
    totals: dict[tuple[str, str, str], dict[str, list[float]]] = {}
    for row in rows(record):
        for claim, (total, number) in row["counts"].items():
            held = totals.setdefault((f"{row['group']}: {claim}", row["noise"], row["seeds"]), {"sum": [0.0, 0]})
            held["sum"] = [held["sum"][0] + total, held["sum"][1] + number]
    for (claim, noise, seeds), held in list(totals.items()):
        if claim == "equal: spread of placements":
            printed = totals[f"{claim} from noise alone", noise, seeds]["sum"][0]
            # A ratio of two means, not a mean of ratios.
            totals["equal: spread ratio", noise, seeds] = {
                "sum": [held["sum"][0] / printed * held["sum"][1], held["sum"][1]]
            }
    return totals


def misses(nominal: claims.Nominal, share: float, number: int) -> bool:
    """Return whether a share misses its nominal level by more than three standard errors of the simulation."""
    error = 3 * math.sqrt(max(share * (1 - share), 1 / number) / number)
    return share + error < nominal.low or share - error > nominal.high


def table(record: Path = RECORD) -> str:
    """Return the table of nominal against found, as Markdown."""
    lines = [
        "| claim | nominal | noise | " + " | ".join(claims.SEEDS) + " | repetitions |",
        "|---|---|---|" + "---|" * (len(claims.SEEDS) + 1),
    ]
    totals = found(record)
    for name, nominal in claims.NOMINAL.items():
        for noise in dict.fromkeys(n for claim, n, _ in totals if claim == name):
            texts, numbers = [], []
            for seeds in claims.SEEDS:
                held = totals.get((name, noise, seeds)) or totals.get((name, noise, "-"))
                if held is None:
                    texts.append("")
                    continue
                total, number = held["sum"]
                share = total / number
                numbers.append(int(number))
                text = f"{share:.2f}" if nominal.ratio else f"{100 * share:.1f}%"
                missed = abs(share - 1) > 0.15 if nominal.ratio else misses(nominal, share, int(number))
                texts.append(f"**{text}**" if missed else text)
            if set(texts) != {""}:
                lines.append(f"| {nominal.text} | {nominal.said} | {noise} | {' | '.join(texts)} | {min(numbers)} |")
    return "\n".join(lines) + "\n"


def missed(record: Path = RECORD) -> list[str]:
    """Return the lines of the table that miss their level."""
    return [line for line in table(record).splitlines() if "**" in line]


def main() -> None:
    """Simulate, then write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chunks", type=int, default=5)
    parser.add_argument("--only", nargs="*", default=(), choices=sorted(claims.GROUPS))
    options = parser.parse_args()
    simulate(options.chunks, only=options.only)
    head, rule, *_ = table().splitlines()
    TABLE.write_text(
        "Bold: misses its level by more than three standard errors of the simulation (a ratio: by more than 0.15).\n\n"
        f"## Misses\n\n{chr(10).join([head, rule, *missed()])}\n\n## All\n\n{table()}"
    )


if __name__ == "__main__":
    main()
