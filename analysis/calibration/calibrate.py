"""How often is each printed claim true? Simulated on losses whose truth is known, through the functions that print it.

Command:  python analysis/calibration/calibrate.py [--chunks N] [--only GROUP ...]
Time:     25 seconds a chunk on one idle core; a chunk repeats the cells of a run 20 times, see `claims.REPETITIONS`
Writes:   record.jsonl, one line a cell, while it runs one a chunk; chunks that it holds are not simulated again
          table.md, from record.jsonl alone

The noises are normal (standard deviation 0.01 nats), heavy-tailed (Student's t with three degrees of freedom, the same
standard deviation), a seed effect of 0.03 nats shared by all schedules, standard deviations of 0.001 to 0.05 nats that
differ between schedules, those of `analysis/first_run`, and failing to learn (1 nat more) at one seed in ten: every
schedule, or the best alone. ``2+3`` seeds: two rounds of confirmation.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
sys.path.insert(0, str(HERE.parent / "search_efficiency"))

import claims  # noqa: E402
from levels import NOMINAL, WIDTHS, Nominal  # noqa: E402
from noises import NOISES, SEEDS  # noqa: E402

Counts = dict[str, tuple[float, int]]
Totals = dict[tuple[str, str, str], tuple[float, int]]
RECORD, TABLE = HERE / "record.jsonl", HERE / "table.md"
RATIO_OFF = 0.05
"""A ratio misses if it is farther than this from 1, and three standard errors of the simulation."""


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


def simulate(
    chunks: int, repetitions: int | None = None, record: Path = RECORD, only: Sequence[str] = (), seeds: str = ""
) -> None:
    """Simulate what the record does not hold.

    ``repetitions`` of each cell in a chunk, None: those of `claims.REPETITIONS`; ``only`` names groups, none: all;
    ``seeds`` names one number of seeds, empty: all.
    """
    held = {(row["group"], row["noise"], row["seeds"], chunk) for row in rows(record) for chunk in row["chunks"]}
    for chunk in range(chunks):
        for cell in cells():
            wanted = (not only or cell.group in only) and seeds in ("", cell.seeds)
            if (cell.group, cell.noise, cell.seeds, chunk) in held or not wanted:
                continue
            counts = cell.run(chunk, repetitions or claims.REPETITIONS.get(cell.group, 20))
            rounded = {claim: (round(total, 6), number) for claim, (total, number) in counts.items()}
            row = {"group": cell.group, "noise": cell.noise, "seeds": cell.seeds, "chunks": [chunk], "counts": rounded}
            with record.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")


def compact(record: Path = RECORD) -> None:
    """Rewrite the record with one line a cell, the sums over its chunks."""
    merged: dict[tuple[str, str, str], dict] = {}
    for row in rows(record):
        into = merged.setdefault((row["group"], row["noise"], row["seeds"]), {**row, "chunks": [], "counts": {}})
        into["chunks"] += row["chunks"]
        for claim, (total, number) in row["counts"].items():
            before = into["counts"].get(claim, (0.0, 0))
            into["counts"][claim] = round(before[0] + total, 6), before[1] + number
    written = record.with_suffix(".tmp")
    written.write_text("".join(json.dumps(row) + "\n" for row in merged.values()), encoding="utf-8")
    written.replace(record)


def rows(record: Path = RECORD) -> list[dict]:
    """Return the record's lines."""
    return [json.loads(line) for line in record.read_text().splitlines()] if record.exists() else []


def found(record: Path = RECORD) -> Totals:
    """Return (sum, number) of every claim, by claim's group and name, noise and seeds, over all chunks."""
    totals: Totals = {}
    for row in rows(record):
        for claim, (total, number) in row["counts"].items():
            key = f"{row['group']}: {claim}", row["noise"], row["seeds"]
            before = totals.get(key, (0.0, 0))
            totals[key] = before[0] + total, before[1] + number
    for (claim, noise, seeds), (total, number) in list(totals.items()):
        if claim == "equal: spread of placements":
            printed, _ = totals[f"{claim} from noise alone", noise, seeds]
            # A ratio of two means, not a mean of ratios.
            totals["equal: spread ratio", noise, seeds] = total / printed * number, number
            squares, _ = totals["equal: spread ratio squared", noise, seeds]
            relative = math.sqrt(squares / number) / (printed / number) / math.sqrt(number)
            totals["equal: spread ratio error", noise, seeds] = relative, 1
    return totals


def error(share: float, number: int) -> float:
    """Return the standard error of a simulated share."""
    return math.sqrt(max(share * (1 - share), 1 / number) / number)


def misses(nominal: Nominal, share: float, number: int, ratio_error: float = 0.0) -> bool:
    """Return whether a share misses its nominal level by more than three standard errors of the simulation.

    They are those of a share that just keeps the level: the error of the share found grows with the miss.
    """
    if not nominal.claimed:
        return False
    if nominal.ratio:
        return abs(share - 1) > RATIO_OFF + 3 * ratio_error
    low, high = (3 * error(level, number) for level in (nominal.low, nominal.high))
    return share < nominal.low - low or share > nominal.high + high


@dataclass(frozen=True)
class Row:
    """A claim under one noise: (share, repetitions, standard error of a ratio) by number of seeds."""

    nominal: Nominal
    noise: str
    shares: dict[str, tuple[float, int, float]]

    def line(self, columns: Sequence[str]) -> str:
        """Return the row as Markdown; what misses is bold, what may be chance stays plain."""
        nominal, texts = self.nominal, []
        for seeds in columns:
            share, number, wide = self.shares.get(seeds, (0.0, 0, 0.0))
            text = f"{share:.2f}" if nominal.ratio else f"{100 * share:.1f}%"
            texts.append("" if not number else f"**{text}**" if misses(nominal, share, number, wide) else text)
        fewest = min(number for _, number, _ in self.shares.values())
        return f"| {nominal.text} | {nominal.said} | {self.noise} | {' | '.join(texts)} | {fewest} |"

    @property
    def missed(self) -> bool:
        """Whether any number of seeds misses."""
        return any(misses(self.nominal, *held) for held in self.shares.values())


def results(record: Path = RECORD) -> list[Row]:
    """Return all rows, claims in the order of `levels.NOMINAL`."""
    totals, made = found(record), []
    for name, nominal in NOMINAL.items():
        for noise in dict.fromkeys(n for claim, n, _ in totals if claim == name):
            held = {s: totals[name, noise, s] for s in (*SEEDS, "-") if (name, noise, s) in totals}
            wide = {s: totals.get((f"{name} error", noise, s), (0.0, 0))[0] for s in held}
            shares = {s: (total / number, number, wide[s]) for s, (total, number) in held.items()}
            made.append(Row(nominal, noise, shares))
    return made


def _grid(found_rows: Sequence[Row]) -> Iterator[str]:
    """Yield tables of rows: with a column for each number of seeds, and of claims that have none."""
    for columns in (SEEDS, ("-",)):
        own = [row for row in found_rows if set(row.shares) & set(columns)]
        if own:
            heads = columns if columns == SEEDS else ("found",)
            yield f"| claim | nominal | noise | {' | '.join(heads)} | repetitions |"
            yield "|---|---|---|" + "---|" * (len(columns) + 1)
            yield from (row.line(columns) for row in own)
            yield ""


def _worst(found_rows: Sequence[Row]) -> Iterator[str]:
    """Yield one line for each claim: the lowest and the highest share over noises and seeds."""
    yield "| claim | nominal | lowest | highest | repetitions, fewest |"
    yield "|---|---|---|---|---|"
    for nominal in dict.fromkeys(row.nominal for row in found_rows):
        shares = [
            (*held, row.noise, s) for row in found_rows if row.nominal == nominal for s, held in row.shares.items()
        ]
        ends = []
        for share, number, wide, noise, seeds in (min(shares), max(shares)):
            text = f"{share:.2f}" if nominal.ratio else f"{100 * share:.1f}%"
            bold = "**" if misses(nominal, share, number, wide) else ""
            ends.append(f"{bold}{text}{bold} ({noise}{'' if seeds == '-' else f', {seeds} seeds'})")
        yield f"| {nominal.text} | {nominal.said} | {' | '.join(ends)} | {min(number for _, number, *_ in shares)} |"


def _widths(record: Path) -> Iterator[str]:
    """Yield half widths and power, before and now."""
    totals = found(record)
    yield "| of unequal schedules, mean | noise | " + " | ".join(SEEDS) + " |"
    yield "|---|---|" + "---|" * len(SEEDS)
    for name, text in WIDTHS.items():
        for noise in NOISES:
            texts = []
            for seeds in SEEDS:
                ends = [totals.get((f"graded: {name}{suffix}", noise, seeds), (0.0, 0)) for suffix in (", before", "")]
                means = [total / max(1, number) for total, number in ends]
                texts.append(" → ".join(f"{x:.4f}" if "±" in text else f"{100 * x:.0f}%" for x in means))
            yield f"| {text} | {noise} | {' | '.join(texts)} |"


def counts_text(found_rows: Sequence[Row]) -> str:
    """Return how many cells of each kind of level lie below, within and above 93 to 98%."""
    lines = ["| level | cells | under 93% | 93 to 98% | over 98% | missed |", "|---|---|---|---|---|---|"]
    claimed = [(row.nominal, *held) for row in found_rows if row.nominal.claimed for held in row.shares.values()]
    kinds = dict.fromkeys(nominal.said for nominal, *_ in claimed)
    for kind in kinds:
        held = [one for one in claimed if one[0].said == kind]
        missed = sum(misses(*one) for one in held)
        shares = [share for _, share, *_ in held]
        inside = [sum(x < 0.93 for x in shares), sum(0.93 <= x <= 0.98 for x in shares), sum(x > 0.98 for x in shares)]
        cells_text = " | ".join(map(str, inside)) if "95%" in kind else " |  | "
        lines.append(f"| {kind} | {len(held)} | {cells_text} | {missed} |")
    return "\n".join(lines) + "\n"


def table(record: Path = RECORD) -> str:
    """Return the tables of nominal against found, as Markdown."""
    all_rows = results(record)
    claimed = [row for row in all_rows if row.nominal.claimed]
    missed = [row for row in claimed if row.missed]
    parts = [
        "Bold: misses its level by more than three standard errors of the simulation, and a ratio "
        f"by {RATIO_OFF:g} more.\n",
        "## Misses\n",
        *(_grid(missed) if missed else ["None.\n"]),
        "## Cells by kind of level\n",
        counts_text(all_rows),
        "## Each claim, worst and best\n",
        *_worst(claimed),
        "\n## Half widths and power, before → now\n",
        *_widths(record),
        "\n## Not claimed\n",
        *_grid([row for row in all_rows if not row.nominal.claimed]),
        "## All\n",
        *_grid(claimed),
    ]
    return "\n".join(parts)


def main() -> None:
    """Simulate, then write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chunks", type=int, default=20)
    parser.add_argument("--only", nargs="*", default=(), choices=sorted(claims.GROUPS))
    options = parser.parse_args()
    simulate(options.chunks, only=options.only)
    compact()
    TABLE.write_text(table())


if __name__ == "__main__":
    main()
