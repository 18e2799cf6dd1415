"""Which search finds the cost-quality frontier with the least training?

Command:  python analysis/search_efficiency/contest.py [--corpora ...] [--methods ...] [--anchors yes] [--repetitions N]
Needs:    pip install "layersearch[ray]" syne-tune==0.16.0, and what rivals.py names
Time:     seconds a repetition, minutes with Optuna's GP sampler and BOCS; finished repetitions are not run again
Writes:   contest.jsonl, one line per corpus, method and repetition: what was found for how much training

Every search pays for the trainings of `layersearch.study.benchmark`, one seed of it per repetition, and is
judged by the mean over all seeds. `report.py` draws the figure and writes the table.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import time
import warnings
from pathlib import Path

import optuna
from landscape import Landscape
from methods import METHODS, WITHOUT_ANCHORS, Exhausted, Problem, Table, Training, anchors, as_run
from rivals import RIVALS

HERE = Path(__file__).resolve().parent
RECORDS = HERE / "contest.jsonl"
LIMIT = 120.0
"""Full trials that a search may spend."""
FROZEN = "layersearch, as frozen"
"""Ours as it was when prose, deep and smollm2 were made, before commit 31b477f, which learnt from text."""
BEFORE = "layersearch, before"
"""Ours as it was before commit 396403a, which learnt from prose, deep and smollm2.

Of both only the records are here; the parents of these commits make them, with this file's command."""
AS_RUN = "layersearch, as run"
"""Ours of today, but no anchor is stopped, as in a real run. Its sampler is the same."""
OURS = ("layersearch", AS_RUN, BEFORE, FROZEN)
SLOW = {"GP": 40.0, "SMAC3": 25.0, "Casmopolitan (MCBO)": 15.0, "BOCS (MCBO)": 15.0} | dict.fromkeys(OURS, 25.0)
"""Full trials that searches may spend that take seconds a proposal from there on."""
HELD_OUT, SECOND, OLD = ("hops", "smollm2-prose", "shallow"), ("prose", "deep", "smollm2"), ("mix", "recall", "text")
"""Tables that ours was never tuned on; those held out until commit 396403a; those it was first made on."""
LANDSCAPES = ("smollm2-24", "smollm2-48")
ALL = METHODS | RIVALS


def limit(corpus: str, method: str) -> float:
    """Return the full trials that a search may spend."""
    if corpus in LANDSCAPES:
        return 60.0 if method in SLOW else 200.0
    if corpus in (*HELD_OUT, *SECOND) and method == "GP":
        return 25.0
    if (corpus == "smollm2" and method in OURS) or (corpus in HELD_OUT and method in OURS[:2]):
        return 40.0
    return SLOW.get(method, LIMIT)


def problem(name: str) -> Problem:
    """Return the table of a name, or the landscape ``smollm2-LAYERS``."""
    landscape = re.fullmatch(r"smollm2-(\d+)", name)
    return Landscape(int(landscape[1])) if landscape else Table(name)


def main() -> None:
    """Run what has no record yet."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--corpora", nargs="+", default=[*HELD_OUT, *SECOND, *OLD])
    parser.add_argument("--methods", nargs="+", default=list(ALL), choices=[*ALL, AS_RUN])
    parser.add_argument("--anchors", choices=("yes", "no"), help="only with, or only without the anchors trained first")
    parser.add_argument("--repetitions", type=int, default=21)
    parser.add_argument("--records", type=Path, default=RECORDS)
    options = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    rows = [json.loads(line) for line in options.records.read_text().splitlines()] if options.records.exists() else []
    done = {(row["corpus"], row["method"], row["anchors"], row["repetition"]) for row in rows}
    for corpus in options.corpora:
        bench = problem(corpus)
        for method in options.methods:
            for anchored in (False, True):
                if (method in WITHOUT_ANCHORS and anchored) or options.anchors == ("no" if anchored else "yes"):
                    continue
                if method == AS_RUN and not anchored:
                    continue
                for repetition in range(options.repetitions):
                    if (corpus, method, anchored, repetition) in done:
                        continue
                    seed = bench.seeds[repetition % len(bench.seeds)]
                    training = Training(bench, seed, limit(corpus, method))
                    began = time.process_time()
                    with contextlib.suppress(Exhausted):
                        search = as_run if method == AS_RUN else ALL[method]
                        search(training, repetition, anchors(bench) if anchored else [])
                    row = {
                        "corpus": corpus,
                        "method": method,
                        "anchors": anchored,
                        "repetition": repetition,
                        "spent": round(training.spent, 3),
                        "cpu_seconds": round(time.process_time() - began, 2),
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
