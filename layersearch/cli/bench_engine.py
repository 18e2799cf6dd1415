"""Time an exported model in an engine, with the KV memory it really holds, beside all-full of the same model."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from layersearch.cli.flags import add_shared, positive


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("folder", type=Path, metavar="DIR", help="holds schedule.yaml and a model with weights")
    add("--engine", required=True, metavar="NAME", help="hf, vllm, mlx, llama.cpp or litgpt")
    add("--engine-python", type=Path, metavar="PATH", help="the Python of the engine's environment")
    add("--model", type=Path, metavar="DIR", help="with vllm.yaml: the served model")
    add("--schedule", help="the model's schedule (default: its schedule.yaml)")
    add("--tokens", type=positive, nargs="+", default=[1024], help="lengths of prompts in tokens (default: 1024)")
    add("--new", type=positive, default=32, help="tokens generated after each prompt (default: %(default)s)")
    add("--repeats", type=positive, default=3, help="runs of each, in turn; the median counts (default: %(default)s)")
    text = "seconds that one pass may take (default: %(default)s)"
    add("--timeout", type=positive, default=1800, metavar="S", help=text)
    text = "write milliseconds of a decoded token by span, at the longest prompt, for layersearch solve --latency-table"
    add("--latency-table", type=Path, metavar="FILE", help=text)
    add_shared(parser, "--json")


def run(options: argparse.Namespace) -> None:
    """Time the folder's model and the same model all-full, and print both."""
    from layersearch.errors import ExportError
    from layersearch.export.verify.engines.bench import bench, layer_milliseconds, medians
    from layersearch.export.verify.engines.loading import folder_schedule
    from layersearch.schedule.files import schedule_argument

    schedule = None if options.schedule is None else schedule_argument(options.schedule)
    if options.latency_table is not None and options.latency_table.exists():
        raise ExportError(f"--latency-table {options.latency_table} exists; name another file or remove it")
    timings = bench(
        options.folder,
        options.engine,
        tokens=options.tokens,
        new=options.new,
        repeats=options.repeats,
        seconds=options.timeout,
        schedule=schedule,
        python=options.engine_python,
        model=options.model,
    )
    if options.latency_table is not None:
        asked, tokens = schedule or folder_schedule(options.folder), max(options.tokens)
        spans = layer_milliseconds(timings, asked, tokens)
        head = f"# milliseconds of one token of {timings[0].version} after {tokens} tokens, CPU time of one thread\n"
        lines = [f'"{span}": {value:.4g}\n' for span, value in spans.items()]
        try:
            options.latency_table.write_text(head + "".join(lines), encoding="utf-8")
        except OSError as error:
            raise ExportError(f"--latency-table {options.latency_table}: {error.strerror}; name another file") from None
    if options.json:
        print(json.dumps([one.to_dict() for one in timings], indent=1))
        return
    from layersearch.cli.tables import console, size, table

    grid = table("tokens", "layers", "prefill tokens/s", "decode tokens/s", "KV held", "cost counts", left=2)
    for tokens in options.tokens:
        for variant in ("schedule", "all-full"):
            one = medians(timings, tokens, variant)
            speeds = (f"{one['prefill']:,.1f}", f"{one['decode']:,.1f}")
            memory = (size(round(one["kv_bytes"])), size(round(one["cost_bytes"])))
            grid.add_row(f"{tokens:,}", variant, *speeds, *memory)
    screen = console()
    screen.print(f"{timings[0].version}, one thread, median of {options.repeats}\n", soft_wrap=True)
    screen.print(grid)
