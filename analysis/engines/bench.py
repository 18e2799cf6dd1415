"""Time SmolLM2-135M's exported winner in three engines, beside the same model all-full.

    python analysis/engines/bench.py SmolLM2-135M-Instruct.Q4_1.gguf WORK   # hours; resumable
    python analysis/engines/bench.py SmolLM2-135M-Instruct.Q4_1.gguf WORK mlx --tokens 1024
    python analysis/engines/bench.py --table                                          # prints the table of bench.jsonl

WORK holds the exported models (2 GB); it may be removed. The schedule is the stock one that is nearest to the winner of
analysis/smollm2/run. Each line of bench.jsonl is one pass, in a process of its own, on one thread. A pair is a pass of
the schedule and a pass of all-full, one after the other; which is first alternates. So other work on the machine
disturbs both alike, and ratios are taken within pairs, from CPU seconds. Pairs that are there are not run again.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

from layersearch.export import export_model, read_source
from layersearch.export.capabilities import Capabilities, nearest
from layersearch.export.verify.engines.bench import bench
from layersearch.schedule.cost import attention_flops
from layersearch.schedule.files import read_schedule
from layersearch.schedule.presets import all_full

HERE = Path(__file__).parent
RECORD = HERE / "bench.jsonl"
TARGETS = {"llama.cpp": ("gguf", None), "mlx": ("mlx", None), "vllm": ("hf", "granite_swa")}
NEW, ROUNDS = 32, 2
PAIRS = 2
"""Pairs of one round: each of the two passes is first once."""
LONGEST = 6 * 3600
"""Seconds that one pass may take on a machine that does other work."""
LENGTHS = (1024, 4096, 8192)
HEADS, WIDTH = 9, 64
WINNER = read_schedule(HERE.parent / "smollm2" / "run" / "winner.yaml")
SCHEDULE = nearest(WINNER, Capabilities(name="an engine"), seq_len=1024, n_heads=HEADS)


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


def flops_ratio(tokens: int) -> float:
    """Return the schedule's attention FLOPs, as a share of all-full's."""
    sizes = {"seq_len": tokens, "n_heads": HEADS, "head_dim": WIDTH}
    return attention_flops(SCHEDULE, **sizes) / attention_flops(all_full(len(SCHEDULE)), **sizes)


def pairs(engine: str, length: int) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Return the passes of the schedule and of all-full that were run side by side."""
    sides: dict[tuple[int, str], dict[str, Any]] = {
        (one["pair"], one["variant"]): one for one in entries() if (one["engine"], one["length"]) == (engine, length)
    }
    numbers = sorted({number for number, _ in sides})
    return [(sides[number, "schedule"], sides[number, "all-full"]) for number in numbers]


def _speed(both: list[tuple[dict[str, Any], dict[str, Any]]], value: Callable[[dict[str, Any]], float]) -> list[str]:
    """Return the schedule's median and the median ratio to all-full within a pair, with the range of that ratio."""
    ratios = [value(ours) / value(full) for ours, full in both]
    middle = statistics.median(value(ours) for ours, _ in both)
    return [f"{middle:.1f}", f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"]


def table() -> str:
    """Return the medians as a Markdown table; speeds are tokens per CPU second."""
    header = ("engine", "tokens", "pairs", "FLOPs: of all-full", "prefill tokens/s", "times all-full")
    header += ("decode tokens/s", "times all-full", "KV held", "of all-full", "`cost`: of all-full", "peak memory")
    text = f"| {' | '.join(header)} |\n|{'---|' * len(header)}\n"
    for engine in TARGETS:
        for length in LENGTHS:
            both = pairs(engine, length)
            if not both:
                continue
            ours, full = both[-1]
            cells = [ours["version"].split(" (")[0], f"{length:,}", str(len(both)), f"{flops_ratio(length):.3f}"]
            cells += _speed(both, lambda one: one["tokens"] / one["prefill_cpu_s"])
            cells += _speed(both, lambda one: one["new"] / one["decode_cpu_s"])
            cells += [f"{ours['kv_bytes'] / 2**20:.1f} MiB", f"{ours['kv_bytes'] / full['kv_bytes']:.3f}"]
            cells += [f"{ours['cost_bytes'] / full['cost_bytes']:.3f}"]
            peaks = (one["details"]["peak_rss_bytes"] / 2**20 for one in (ours, full))
            cells += ["{:,.0f} against {:,.0f} MiB".format(*peaks)]
            text += f"| {' | '.join(cells)} |\n"
    loads = [one["load"] for one in entries()]
    return f"{text}\nSchedule: `{SCHEDULE}`. Load of the machine: {min(loads):.1f} to {max(loads):.1f} on two cores.\n"


def run(model: Path, work: Path, engine: str, length: int, number: int) -> None:
    """Run one round of pairs and record it."""
    if number * PAIRS in {one["pair"] for one in entries() if (one["engine"], one["length"]) == (engine, length)}:
        return
    loads = [os.getloadavg()[0]]
    folder, prompt = exported(model, work, engine), [length - NEW - 1]
    passes = bench(folder, engine, tokens=prompt, new=NEW, repeats=PAIRS, seconds=LONGEST)
    loads.append(os.getloadavg()[0])
    known = {"length": length, "date": datetime.date.today().isoformat(), "load": max(loads)}
    lines = [{**known, "pair": number * PAIRS + i // 2, **one.to_dict()} for i, one in enumerate(passes)]
    with RECORD.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)
    print(f"{engine}, {length} tokens, round {number}: done", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, nargs="?")
    parser.add_argument("work", type=Path, nargs="?")
    parser.add_argument("engines", nargs="*", default=list(TARGETS))
    parser.add_argument("--tokens", type=int, nargs="+", default=LENGTHS, help="prompt and answer together")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="two pairs each (default: %(default)s)")
    parser.add_argument("--table", action="store_true", help="print the table only")
    options = parser.parse_args()
    if options.table:
        print(table())
        return
    if options.work is None:
        parser.error("give the model and a folder for what is exported")
    for number in range(options.rounds):
        for length in options.tokens:
            for engine in options.engines:
                run(options.model, options.work, engine, length, number)


if __name__ == "__main__":
    main()
