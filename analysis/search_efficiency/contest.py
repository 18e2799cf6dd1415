"""Which search finds the cost-quality frontier with the least training?

Command:  python analysis/search_efficiency/contest.py [--methods ...] [--repetitions 21]
Needs:    pip install "layersearch[ray]" syne-tune==0.16.0
Time:     about an hour on one core, nearly all of it Optuna's GP sampler; finished repetitions are not run again
Writes:   contest.jsonl, one line per corpus, method and repetition: what was found for how much training

Every search pays for the trainings of `layersearch.study.benchmark`, one seed of it per repetition, and is
judged by the mean over all seeds. `report.py` draws the figure and writes the table.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import time
import warnings
from pathlib import Path

import optuna
from methods import ANCHORED, METHODS, Exhausted, Training, anchors

from layersearch.study.benchmark import load_bench

HERE = Path(__file__).resolve().parent
RECORDS = HERE / "contest.jsonl"
LIMIT = 120.0
"""Full trials that a search may spend."""
SLOW = {"GP": 40.0, "layersearch": 25.0}
"""Searches that take seconds a proposal from there on."""


def main() -> None:
    """Run what has no record yet."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--corpora", nargs="+", default=["mix", "recall", "text"])
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--repetitions", type=int, default=21)
    parser.add_argument("--records", type=Path, default=RECORDS)
    options = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    rows = [json.loads(line) for line in options.records.read_text().splitlines()] if options.records.exists() else []
    done = {(row["corpus"], row["method"], row["anchors"], row["repetition"]) for row in rows}
    for corpus in options.corpora:
        bench = load_bench(corpus)
        for method in options.methods:
            for anchored in (False, True) if method in ANCHORED else (False,):
                for repetition in range(options.repetitions):
                    if (corpus, method, anchored, repetition) in done:
                        continue
                    limit = SLOW.get(method, LIMIT)
                    training = Training(bench, bench.seeds[repetition % len(bench.seeds)], limit)
                    began = time.monotonic()
                    with contextlib.suppress(Exhausted):
                        METHODS[method](training, repetition, anchors(bench) if anchored else [])
                    row = {
                        "corpus": corpus,
                        "method": method,
                        "anchors": anchored,
                        "repetition": repetition,
                        "spent": round(training.spent, 3),
                        "search_seconds": round(time.monotonic() - began, 2),
                        "trace": training.trace,
                    }
                    with options.records.open("a", encoding="utf-8") as file:
                        file.write(json.dumps(row) + "\n")
                    reached = next((spent for spent, volume, *_ in training.trace if volume >= 0.99), None)
                    print(
                        f"{corpus} {method}{' + anchors' if anchored else ''} #{repetition}: 99% at {reached}",
                        flush=True,
                    )


if __name__ == "__main__":
    main()
