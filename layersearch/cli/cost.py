"""Count attention FLOPs and KV cache exactly, of a schedule or of a model file, without its weights."""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import os
from typing import TYPE_CHECKING

from layersearch.cli.flags import add_shared, positive
from layersearch.errors import ConfigError, located

if TYPE_CHECKING:
    from layersearch.export.model_file import ModelFile
    from layersearch.schedule import Schedule

_SIZES = {"heads": 32, "head_dim": 128}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    text = "for example 'full*4 block:1024*20', a YAML or JSON file, or a model: config.json, its folder, a GGUF file"
    add("schedule", metavar="SCHEDULE|CONFIG|DIR|GGUF", help=text)
    add("--seq-len", type=positive, help="tokens in a sequence (default: the longest that the model file allows)")
    add("--heads", type=positive, help="query heads (default: the model file's, else 32)")
    add("--kv-heads", type=positive, help="key-value heads (default: the model file's, else as --heads)")
    add("--head-dim", type=positive, help="width of a head (default: the model file's, else 128)")
    add("--bytes", type=positive, default=2, help="bytes of a cached value (default: %(default)s)")
    text = "of a model file: count its other matrix products too (projections, MLPs, experts, output layer)"
    add("--model-flops", action="store_true", help=text)
    add("--encoder", action="store_true", help="count a schedule for an encoder: tokens see later ones, no KV cache")
    text = "count for an encoder-decoder with so many target tokens; the schedule is the encoder's"
    add("--target-len", type=positive, metavar="T", help=text)
    add("--decoder", metavar="SCHEDULE", help="with --target-len: the decoder's schedule (default: as deep, all full)")
    add_shared(parser, "--json")


def run(options: argparse.Namespace) -> None:
    """Count a schedule's cost in closed form; print the total, then runs of equal layers."""
    from layersearch.schedule.cost import attention_flops, budget_ratio, kv_cache_bytes, layer_costs
    from layersearch.schedule.files import schedule_argument
    from layersearch.schedule.presets import all_full

    model = _model_file(options)
    if model is None:
        schedule = schedule_argument(options.schedule)
        seq_len, heads = options.seq_len, options.heads or _SIZES["heads"]
        kv_heads, head_dim = options.kv_heads or heads, options.head_dim or _SIZES["head_dim"]
        if seq_len is None:
            raise ConfigError("--seq-len is missing: a schedule names no length; see layersearch cost --help")
        if heads % kv_heads:
            raise ConfigError(f"--kv-heads {kv_heads} must divide --heads {heads}")
        if options.target_len is not None:
            _two_stacks(options, schedule, seq_len, heads, kv_heads, head_dim)
            return
        if options.decoder is not None:
            raise ConfigError("--decoder is the schedule of an encoder-decoder's decoder; give --target-len too")
        schedule.check(seq_len=seq_len, n_heads=heads, bidirectional=options.encoder)
    else:
        if options.target_len is not None or options.decoder is not None:
            raise ConfigError("--target-len counts a schedule, and a model file is a decoder's; leave it out")
        if options.encoder:
            raise ConfigError("--encoder counts a schedule, and a model file says its own direction; leave it out")
        schedule, seq_len = model.schedule, options.seq_len or model.positions
        heads, kv_heads, head_dim = model.n_heads, model.n_kv_heads, model.head_dim
        if seq_len is None:
            raise ConfigError(f"--seq-len is missing, and {model.path} names no longest sequence; give the tokens")
    size_of = {"seq_len": seq_len, "n_heads": heads, "head_dim": head_dim}
    cache = {**size_of, "n_kv_heads": kv_heads, "bytes_per_value": options.bytes}
    both = options.encoder or (model is not None and model.bidirectional)
    layers = layer_costs(schedule, **cache, bidirectional=both)
    flops = attention_flops(schedule, **size_of, bidirectional=both)
    full_flops = attention_flops(all_full(len(schedule)), **size_of, bidirectional=both)
    ratio = budget_ratio(schedule, seq_len=seq_len, n_heads=heads, bidirectional=both)
    cache_bytes = 0 if both else kv_cache_bytes(schedule, **cache)
    parts = {name: count * seq_len for name, count in _token_flops(options, model).items()}
    if options.json:
        rows = [dataclasses.asdict(layer) | {"span": str(layer.span)} for layer in layers]
        named = {} if model is None else {"model": str(model.path), "model_type": model.kind}
        report = {**named, "schedule": str(schedule), **cache, "ratio": ratio, "attention_flops": flops}
        if parts:
            report["model_flops"] = {"attention": flops, **parts, "total": flops + sum(parts.values())}
        print(json.dumps(report | {"kv_cache_bytes": cache_bytes, "layers": rows}, indent=1))
        return
    from layersearch.cli.tables import console, size, table

    screen = console()
    if model is not None:
        sizes = f"{heads} query heads and {kv_heads} key-value heads of {head_dim}"
        kind = f"{model.kind} (encoder)" if both else model.kind
        screen.print(f"model            {kind}, {len(schedule)} layers, {sizes}", soft_wrap=True)
    screen.print(f"schedule         {schedule}", soft_wrap=True)
    screen.print(f"attention cost   {ratio:.3f} of all-full at {seq_len:,} tokens (l = {schedule.n_full})")
    screen.print(f"attention FLOPs  {flops:,} a sequence, forward (one multiply-add = one FLOP)")
    if parts:
        total, whole = (count + sum(parts.values()) for count in (flops, full_flops))
        screen.print(f"model FLOPs      {total:,} a sequence, forward: {total / whole:.3f} of all-full")
    screen.print(f"KV cache         {size(cache_bytes)} ({cache_bytes:,} bytes)\n")
    if parts:
        shares = table("part of the model", "FLOPs a sequence", "share", left=1)
        for name, count in {"attention (QK^T and AV)": flops, **parts}.items():
            shares.add_row(name, f"{count:,}", f"{count / total:.1%}")
        screen.print(shares)
        screen.print()
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


def _two_stacks(
    options: argparse.Namespace, schedule: Schedule, source: int, heads: int, kv_heads: int, head_dim: int
) -> None:
    """Print the cost of an encoder-decoder: each stack, and the cross attention between them."""
    from layersearch.schedule.cost import kv_cache_bytes
    from layersearch.schedule.files import schedule_argument
    from layersearch.schedule.presets import all_full
    from layersearch.schedule.work import Work

    target: int = options.target_len
    decoder = all_full(len(schedule)) if options.decoder is None else schedule_argument(options.decoder)
    schedule.check(seq_len=source, n_heads=heads, bidirectional=True)
    with located("--decoder"):
        decoder.check(seq_len=target, n_heads=heads)
    written = Work(seq_len=target, n_heads=heads).total(decoder)
    cross = ("cross", len(decoder) * source * target * heads)
    others = (("decoder", written), cross)
    work = Work(seq_len=source, n_heads=heads, bidirectional=True, others=others, stack="encoder")
    flops = {name: 2 * head_dim * pairs for name, pairs in work.parts(schedule).items()}
    cache = kv_cache_bytes(
        decoder, seq_len=target, n_heads=heads, n_kv_heads=kv_heads, head_dim=head_dim, bytes_per_value=options.bytes
    )
    held = 2 * len(decoder) * source * kv_heads * head_dim * options.bytes
    ratio, total = work.ratio(schedule), sum(flops.values())
    if options.json:
        report = {"schedule": str(schedule), "decoder": str(decoder), "seq_len": source, "target_len": target}
        report |= {"ratio": ratio, "attention_flops": total, "attention_parts": flops}
        print(json.dumps(report | {"kv_cache_bytes": cache, "cross_cache_bytes": held}, indent=1))
        return
    from layersearch.cli.tables import console, size, table

    screen = console()
    screen.print(f"encoder          {schedule} (l = {schedule.n_full} of {len(schedule)})", soft_wrap=True)
    screen.print(f"decoder          {decoder} (l = {decoder.n_full} of {len(decoder)})", soft_wrap=True)
    screen.print(
        f"attention cost   {ratio:.3f} of an all-full encoder with this decoder, {source:,} to {target:,} tokens"
    )
    screen.print(f"attention FLOPs  {total:,} a sequence, forward (one multiply-add = one FLOP)")
    screen.print(f"KV cache         {size(cache)} of the target, {size(held)} of the source\n")
    grid = table("attention", "FLOPs a sequence", "share", left=1)
    for name, count in flops.items():
        grid.add_row(name, f"{count:,}", f"{count / total:.1%}")
    screen.print(grid)


def _model_file(options: argparse.Namespace) -> ModelFile | None:
    """Return the model file that is counted; None: a schedule is."""
    name: str = options.schedule
    if not (name.lower().endswith((".json", ".gguf")) or os.path.isdir(name)):
        return None  # a schedule's own text imports nothing more
    from layersearch.export.model_file import is_model_file, read_model_file

    if not is_model_file(name):
        return None
    for flag in ("heads", "kv_heads", "head_dim"):
        if getattr(options, flag) is not None:
            raise ConfigError(f"--{flag.replace('_', '-')} is the model file's to say; leave it out")
    return read_model_file(name)


def _token_flops(options: argparse.Namespace, model: ModelFile | None) -> dict[str, int]:
    """Return a token's other matrix products by part; nothing where they were not asked for."""
    if not options.model_flops:
        return {}
    if model is None:
        raise ConfigError("--model-flops needs a model's sizes; give its config.json, its folder or a GGUF file")
    return model.token_flops()
