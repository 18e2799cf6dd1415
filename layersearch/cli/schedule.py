"""``layersearch cost`` and ``presets``."""

from __future__ import annotations

import argparse
import dataclasses
import json
from typing import TYPE_CHECKING

from layersearch.errors import UserError

if TYPE_CHECKING:
    pass


def cost(options: argparse.Namespace) -> None:
    """Count a schedule's cost in closed form."""
    from layersearch.schedule.cost import attention_flops, budget_ratio, kv_cache_bytes, layer_costs
    from layersearch.schedule.files import schedule_argument

    for flag in ("seq_len", "heads", "kv_heads", "head_dim", "bytes"):
        value = getattr(options, flag)
        if value is not None and value < 1:
            raise UserError(f"--{flag.replace('_', '-')} must be at least 1, not {value}")
    kv_heads = options.kv_heads or options.heads
    if options.heads % kv_heads:
        raise UserError(f"--kv-heads {kv_heads} must divide --heads {options.heads}")
    schedule = schedule_argument(options.schedule)
    schedule.check(seq_len=options.seq_len, n_heads=options.heads)
    size = {"seq_len": options.seq_len, "n_heads": options.heads, "head_dim": options.head_dim}
    cache = {**size, "n_kv_heads": kv_heads, "bytes_per_value": options.bytes}
    layers = layer_costs(schedule, **cache)
    flops = attention_flops(schedule, **size)
    ratio = budget_ratio(schedule, seq_len=options.seq_len, n_heads=options.heads)
    cache_bytes = kv_cache_bytes(schedule, **cache)
    if options.json:
        rows = [dataclasses.asdict(layer) | {"span": str(layer.span)} for layer in layers]
        report = {"schedule": str(schedule), **cache, "ratio": ratio, "attention_flops": flops}
        print(json.dumps(report | {"kv_cache_bytes": cache_bytes, "layers": rows}, indent=1))
        return
    from layersearch.cli.tables import cost_table

    cost_table(schedule, layers, ratio=ratio, flops=flops, cache_bytes=cache_bytes, seq_len=options.seq_len)


def presets(options: argparse.Namespace) -> None:
    """List the literature's schedules, or print one."""
    from layersearch.schedule.presets import PRESETS, make_preset

    if options.name:
        pairs = [pair.partition("=") for pair in options.sizes]
        for key, equals, _ in pairs:
            if not equals:
                raise UserError(f"presets {options.name}: expected KEY=VALUE such as n_layers=24, found {key!r}")
        schedule = make_preset(options.name, {key: value for key, _, value in pairs})
        print(json.dumps(schedule.to_dicts(), indent=1) if options.json else schedule)
        return
    if options.json:
        rows = {
            name: {"summary": preset.summary, "source": preset.source, "parameters": preset.parameters}
            for name, preset in PRESETS.items()
        }
        print(json.dumps(rows, indent=1))
        return
    from layersearch.cli.tables import preset_table

    preset_table(PRESETS)
