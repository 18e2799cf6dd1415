"""Time SmolLM2-135M with a schedule in three engines, beside the same model all-full.

    python analysis/engines/bench.py SmolLM2-135M-Instruct.Q4_1.gguf WORK   # hours; resumable
    python analysis/engines/bench.py SmolLM2-135M-Instruct.Q4_1.gguf WORK mlx --tokens 1024
    python analysis/engines/bench.py --table                                          # prints the table of bench.jsonl

WORK holds the exported models (2 GB); it may be removed. Each line of bench.jsonl is one pass. The schedule and
all-full are run in turn. Passes that are there are not run again.
"""

from __future__ import annotations

import argparse
import datetime
import json
import statistics
from pathlib import Path
from typing import Any

from layersearch.export import export_model, read_source
from layersearch.export.verify.engines.bench import bench
from layersearch.schedule import Schedule, Span

RECORD = Path(__file__).with_name("bench.jsonl")
TARGETS = {"llama.cpp": ("gguf", None), "mlx": ("mlx", None), "vllm": ("hf", "granite_swa")}
FULL = (8, 15, 17, 18, 20, 23)
WINDOW, LAYERS, NEW, REPEATS = 256, 30, 32, 3
LENGTHS = (1024, 4096, 8192)
SCHEDULE = Schedule(
    tuple(Span(kind="full") if layer in FULL else Span(kind="window", size=WINDOW) for layer in range(LAYERS))
)


def entries() -> list[dict[str, Any]]:
    """Return what was recorded."""
    lines = RECORD.read_text(encoding="utf-8").splitlines() if RECORD.exists() else []
    return [json.loads(line) for line in lines]


def exported(model: Path, work: Path, engine: str) -> Path:
    """Return the exported model of an engine; it is written once."""
    target, family = TARGETS[engine]
    out = work / target
    if not out.exists():
        export_model(SCHEDULE, target, read_source(str(model)), out=out, family=family)
    return out


def table() -> str:
    """Return the medians as a Markdown table; speeds are tokens per CPU second."""
    text = (
        "| engine | tokens | passes | prefill | | decode | | KV held | | `cost` counts | |\n|---|" + "---|" * 10 + "\n"
    )
    text += "| | | | schedule | all-full | schedule | all-full | schedule | of all-full | schedule | of all-full |\n"
    found = entries()
    for engine in TARGETS:
        for length in LENGTHS:
            both = [
                [one for one in found if (one["engine"], one["length"], one["variant"]) == (engine, length, variant)]
                for variant in ("schedule", "all-full")
            ]
            if not all(both):
                continue
            prefill, decode, held, cost = (
                [statistics.median(value(one) for one in side) for side in both]
                for value in (
                    lambda one: one["tokens"] / one["prefill_cpu_s"],
                    lambda one: one["new"] / one["decode_cpu_s"],
                    lambda one: one["kv_bytes"],
                    lambda one: one["cost_bytes"],
                )
            )
            cells = [both[0][0]["version"].split(" (")[0], f"{length:,}", f"{min(map(len, both))}"]
            cells += [f"{speed:.1f}" for pair in (prefill, decode) for speed in pair]
            for ours, full in (held, cost):
                cells += [f"{ours / 2**20:.1f} MiB", f"{ours / full:.3f}"]
            text += f"| {' | '.join(cells)} |\n"
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, nargs="?")
    parser.add_argument("work", type=Path, nargs="?")
    parser.add_argument("engines", nargs="*", default=list(TARGETS))
    parser.add_argument("--tokens", type=int, nargs="+", default=LENGTHS, help="prompt and answer together")
    parser.add_argument("--repeats", type=int, default=REPEATS)
    parser.add_argument("--table", action="store_true", help="print the table only")
    options = parser.parse_args()
    if options.table:
        print(table())
        return
    if options.work is None:
        parser.error("give the model and a folder for what is exported")
    for engine in options.engines:
        for length in options.tokens:
            for repeat in range(options.repeats):
                key = (engine, length, repeat)
                if key in {(one["engine"], one["length"], one["repeat"]) for one in entries()}:
                    continue
                folder = exported(options.model, options.work, engine)
                passes = bench(folder, engine, tokens=[length - NEW - 1], new=NEW, repeats=1)
                date = datetime.date.today().isoformat()
                lines = [{"length": length, "repeat": repeat, "date": date, **one.to_dict()} for one in passes]
                with RECORD.open("a", encoding="utf-8") as file:
                    file.writelines(json.dumps(line) + "\n" for line in lines)
                print(f"{engine} {length} tokens, repeat {repeat}: done", flush=True)


if __name__ == "__main__":
    main()
