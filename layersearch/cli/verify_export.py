"""Prove by experiment that an exported folder does what its schedule says; exit code 1 if it does not."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from layersearch.cli.flags import add_shared
from layersearch.errors import EXIT_NOT_PROVEN, ExportError

if TYPE_CHECKING:
    from layersearch.export.verify import EncoderProof, Proof
    from layersearch.export.verify.engines import EngineProof
    from layersearch.schedule import Schedule


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("folder", type=Path, metavar="DIR", help="holds config.json and schedule.yaml")
    add("--schedule", help="the expected schedule (default: its schedule.yaml)")
    add("--engine", metavar="NAME", help="run it in hf, vllm, mlx, llama.cpp or litgpt, and say which schedule ran")
    add("--engine-python", type=Path, metavar="PATH", help="the Python of the engine's environment")
    add("--model", type=Path, metavar="DIR", help="with vllm.yaml: the served model, or its config.json")
    add("--attention", metavar="NAME", help="an attention implementation of transformers, such as eager or sdpa")
    add("--trust-remote-code", action="store_true", help="run the code in DIR; read it first")
    add_shared(parser, "--json")


def run(options: argparse.Namespace) -> int:
    """Verify the folder; return 0, or 1 if another schedule runs."""
    from layersearch.export.verify import verify
    from layersearch.schedule.files import schedule_argument

    expected = None if options.schedule is None else schedule_argument(options.schedule)
    if options.engine is not None:
        return _run_engine(options, expected)
    for flag, value in (("--engine-python", options.engine_python), ("--model", options.model)):
        if value is not None:
            raise ExportError(f"{flag} {value} needs --engine; add it, or drop {flag}")
    proof = verify(
        options.folder,
        schedule=expected,
        trust_remote_code=options.trust_remote_code,
        attention=options.attention,
    )
    from layersearch.export.verify.encoder_proof import EncoderProof

    if options.json:
        print(json.dumps(proof.to_dict(), indent=1))
    elif isinstance(proof, EncoderProof):
        _print_encoder_proof(proof)
    else:
        _print_proof(proof)
    return 0 if proof.proven else EXIT_NOT_PROVEN


def _run_engine(options: argparse.Namespace, expected: Schedule | None) -> int:
    from layersearch.export.verify.engines import verify_in_engine

    for flag, value in (("--attention", options.attention), ("--trust-remote-code", options.trust_remote_code)):
        if value:
            raise ExportError(f"{flag} has no meaning with --engine; drop it")
    proof = verify_in_engine(
        options.folder, options.engine, schedule=expected, python=options.engine_python, model=options.model
    )
    if options.json:
        print(json.dumps(proof.to_dict(), indent=1))
    else:
        _print_engine_proof(proof)
    return 0 if proof.proven else EXIT_NOT_PROVEN


def _print_engine_proof(proof: EngineProof) -> None:
    from layersearch.cli.tables import console

    near, following = proof.nearest, proof.next_nearest
    verdict = f"PROVEN: {proof.engine} ran the schedule" if proof.proven else f"NOT PROVEN: {proof.problem}"
    lines = (
        f"engine     {proof.version}",
        f"model      {proof.architecture}, {proof.weights} weights, {proof.tokens:,} tokens",
        f"schedule   {proof.schedule}",
        f"nearest    {near.name}: '{near.schedule}', {near.error:.1e} nats off",
        f"next       {following.name}: {following.error:.1e} nats off, of {proof.tried} schedules compared",
        f"cache      {proof.equal} of {proof.generated} tokens past every window are the same without a cache, "
        f"{proof.cache_error:.1e} nats off",
        f"\n{verdict}",
    )
    for line in lines:
        console().print(line, soft_wrap=True)


def _print_encoder_proof(proof: EncoderProof) -> None:
    from layersearch.cli.tables import console

    for one in filter(None, (proof, proof.other)):
        if proof.other is not None:
            console().print(f"{'' if one is proof else chr(10)}stack      {one.stack}", soft_wrap=True)
        _print_masks(one)
        near, following = one.nearest, one.next_nearest
        lines = [
            f"\nnearest    {near.name}: '{near.schedule}', outputs within {near.error:.1e} of their spread, "
            f"{one.weights} weights",
            f"next       {following.name}: {following.error:.1e} off, of {one.tried} schedules compared",
        ]
        if one.cache_error is not None:
            lines.append(f"cache      outputs token by token within {one.cache_error:.1e} of their spread")
        for line in lines:
            console().print(line, soft_wrap=True)
    verdict = "PROVEN: every layer does what the schedule says" if proof.proven else f"NOT PROVEN: {proof.problem}"
    console().print(f"\n{verdict}", soft_wrap=True)


def _print_masks(proof: Proof | EncoderProof) -> None:
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
    screen = console()
    for line in (f"model      {proof.architecture}", f"schedule   {proof.schedule}"):
        screen.print(line, soft_wrap=True)
    screen.print(f"masks      {proof.tokens:,} tokens, {how}; {masks}\n", soft_wrap=True)
    screen.print(grid)


def _print_proof(proof: Proof) -> None:
    from layersearch.cli.tables import console

    _print_masks(proof)
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
    for line in (f"\nlogits     {logits}", f"texts      {generated}", f"\n{verdict}"):
        console().print(line, soft_wrap=True)
