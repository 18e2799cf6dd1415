"""Prove in four engines which schedule they run on SmolLM2-135M's exported winner, with the model's own weights.

    python analysis/engines/smollm2.py SmolLM2-135M-Instruct.Q4_1.gguf WORK        # 4 to 10 minutes on 2 cores
    python analysis/engines/smollm2.py SmolLM2-135M-Instruct.Q4_1.gguf WORK vllm   # one engine; others stay

The exports are those of bench.py, in WORK. `layersearch verify-export --engine` makes each entry of smollm2.json. Exit
code 1: an engine ran another schedule.
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
from pathlib import Path

from bench import TARGETS, exported
from executed import entry_of

from layersearch.export.verify.engines import verify_in_engine

RECORD = Path(__file__).with_name("smollm2.json")
ENGINES = {"hf": "vllm", **{engine: engine for engine in TARGETS}}
"""Each engine with the one whose export it reads."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("engines", nargs="*", default=list(ENGINES), help="(default: %(default)s)")
    options = parser.parse_args()
    entries = json.loads(RECORD.read_text(encoding="utf-8")) if RECORD.exists() else []
    wrong = 0
    for engine in options.engines:
        target, _ = TARGETS[ENGINES[engine]]
        proof = verify_in_engine(exported(options.model, options.work, ENGINES[engine]), engine)
        entry = {"engine": engine, "target": target, "family": proof.architecture}
        entry |= {"date": datetime.date.today().isoformat(), **entry_of(proof)}
        entries = [one for one in entries if one["engine"] != engine] + [entry]
        entries.sort(key=lambda one: list(ENGINES).index(one["engine"]))
        RECORD.write_text(json.dumps(entries, indent=1) + "\n", encoding="utf-8")
        wrong += not proof.proven
        print(f"{engine} --to {target}: {entry['verdict']}", flush=True)
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
