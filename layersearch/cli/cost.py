"""Count a schedule's attention FLOPs and KV cache, exactly and without a model."""

import argparse
import dataclasses
import itertools
import json

from layersearch.cli.flags import add_shared, positive
from layersearch.errors import ConfigError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("schedule", help="for example 'full*4 block:1024*20', or a YAML or JSON file")
    add("--seq-len", type=positive, required=True, help="tokens in a sequence")
    add("--heads", type=positive, default=32, help="query heads (default: %(default)s)")
    add("--kv-heads", type=positive, help="key-value heads (default: as --heads)")
    add("--head-dim", type=positive, default=128, help="width of a head (default: %(default)s)")
    add("--bytes", type=positive, default=2, help="bytes of a cached value (default: %(default)s)")
    add_shared(parser, "--json")


def run(options: argparse.Namespace) -> None:
    """Count a schedule's cost in closed form; print the total, then runs of equal layers."""
    from layersearch.schedule.cost import attention_flops, budget_ratio, kv_cache_bytes, layer_costs
    from layersearch.schedule.files import schedule_argument

    kv_heads = options.kv_heads or options.heads
    if options.heads % kv_heads:
        raise ConfigError(f"--kv-heads {kv_heads} must divide --heads {options.heads}")
    schedule = schedule_argument(options.schedule)
    schedule.check(seq_len=options.seq_len, n_heads=options.heads)
    size_of = {"seq_len": options.seq_len, "n_heads": options.heads, "head_dim": options.head_dim}
    cache = {**size_of, "n_kv_heads": kv_heads, "bytes_per_value": options.bytes}
    layers = layer_costs(schedule, **cache)
    flops = attention_flops(schedule, **size_of)
    ratio = budget_ratio(schedule, seq_len=options.seq_len, n_heads=options.heads)
    cache_bytes = kv_cache_bytes(schedule, **cache)
    if options.json:
        rows = [dataclasses.asdict(layer) | {"span": str(layer.span)} for layer in layers]
        report = {"schedule": str(schedule), **cache, "ratio": ratio, "attention_flops": flops}
        print(json.dumps(report | {"kv_cache_bytes": cache_bytes, "layers": rows}, indent=1))
        return
    from layersearch.cli.tables import console, size, table

    screen = console()
    screen.print(f"schedule         {schedule}", soft_wrap=True)
    screen.print(f"attention cost   {ratio:.3f} of all-full at {options.seq_len:,} tokens (l = {schedule.n_full})")
    screen.print(f"attention FLOPs  {flops:,} a sequence, forward (one multiply-add = one FLOP)")
    screen.print(f"KV cache         {size(cache_bytes)} ({cache_bytes:,} bytes)\n")
    grid = table("layers", "span", "share", "of a full layer", "FLOPs a layer", "KV cache a layer", left=2)
    for span, run_of in itertools.groupby(layers, key=lambda layer: layer.span):
        group = list(run_of)
        first, last = group[0].layer, group[-1].layer
        grid.add_row(
            str(first) if first == last else f"{first}-{last}",
            str(span),
            f"{sum(layer.share for layer in group):.1%}",
            f"{group[0].ratio:.4f}",
            f"{group[0].flops:,}",
            size(group[0].cache_bytes),
        )
    screen.print(grid)
