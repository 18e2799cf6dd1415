"""Prove by experiment that an exported folder does what its schedule says; exit code 1 if it does not."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from layersearch.cli.flags import add_shared
from layersearch.errors import EXIT_NOT_PROVEN

if TYPE_CHECKING:
    from layersearch.export.verify import Proof


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("folder", type=Path, metavar="DIR", help="holds config.json and schedule.yaml")
    add("--schedule", help="the expected schedule (default: its schedule.yaml)")
    add("--attention", metavar="NAME", help="an attention implementation of transformers, such as eager or sdpa")
    add("--trust-remote-code", action="store_true", help="run the code in DIR; read it first")
    add_shared(parser, "--json")


def run(options: argparse.Namespace) -> int:
    """Verify the folder; return 0, or 1 if it does not do what its schedule says."""
    from layersearch.export.verify import verify
    from layersearch.schedule.files import schedule_argument

    proof = verify(
        options.folder,
        schedule=None if options.schedule is None else schedule_argument(options.schedule),
        trust_remote_code=options.trust_remote_code,
        attention=options.attention,
    )
    if options.json:
        print(json.dumps(proof.to_dict(), indent=1))
    else:
        _print_proof(proof)
    return 0 if proof.proven else EXIT_NOT_PROVEN


def _print_proof(proof: Proof) -> None:
    from layersearch.cli.tables import console, table

    how = f"{proof.keys} keys tested against every query, those at the spans' edges among them"
    if proof.keys == proof.tokens:
        how = "every pair tested"
    masks = "random weights, widths shrunk" if proof.shrunk else "random weights"
    grid = table("layer", "span", "pairs tested", "seen", "too many", "too few", "each head", "as scheduled", left=2)
    for layer in proof.layers:
        heads = "not tested" if not layer.by_head else "yes" if not layer.wrong_heads else f"{layer.wrong_heads:,} off"
        counts = (f"{count:,}" for count in (layer.pairs, layer.seen, layer.too_many, layer.too_few))
        grid.add_row(str(layer.layer), layer.span, *counts, heads, "yes" if layer.proven else "NO")
    logits = f"not compared with layersearch's own model: {proof.logits_reason}"
    if proof.logits is not None:
        logits = f"{proof.logits.difference:.1e} of their norm from layersearch's own model, {proof.weights} weights"
        if proof.logits.all_full:
            logits += f" (all-full would be {proof.logits.all_full:.1e} off)"
    texts = proof.texts
    generated = texts.error or (
        f"{texts.equal} of {texts.tokens} tokens up to position {texts.longest:,} are the same with and without a "
        f"cache, logits within {texts.difference:.1e} of their spread, {proof.weights} weights"
    )
    verdict = "PROVEN: every layer does what the schedule says" if proof.proven else f"NOT PROVEN: {proof.problem}"
    screen = console()
    for line in (f"model      {proof.architecture}", f"schedule   {proof.schedule}"):
        screen.print(line, soft_wrap=True)
    screen.print(f"masks      {proof.tokens:,} tokens, {how}; {masks}\n", soft_wrap=True)
    screen.print(grid)
    for line in (f"\nlogits     {logits}", f"texts      {generated}", f"\n{verdict}"):
        screen.print(line, soft_wrap=True)
