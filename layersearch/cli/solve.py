"""Answer for another budget, cache or latency from a run's trials; train nothing."""

import argparse
import json
import shlex
from pathlib import Path

from layersearch.cli.flags import add_shared
from layersearch.errors import ConfigError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_shared(parser, "run")
    limit = parser.add_mutually_exclusive_group(required=True)
    limit.add_argument("--budget", type=float, help="largest attention cost, as a share of all-full")
    limit.add_argument("--kv-cache", metavar="BYTES", help="largest KV cache of one sequence, such as 65536 or 64KiB")
    limit.add_argument("--latency", type=float, metavar="MS", help="largest sum over the layers of --latency-table")
    parser.add_argument(
        "--latency-table", type=Path, metavar="FILE", help="YAML: milliseconds of one layer by span ('window:32: 0.08')"
    )
    parser.add_argument("--bytes", type=int, help="with --kv-cache: bytes of a cached value (default: 2)")
    add_shared(parser, "--json")


def run(options: argparse.Namespace) -> None:
    """Find the best schedule within another constraint."""
    from layersearch.schedule.bound_space import BoundSpace
    from layersearch.study.saved_run import load_records, load_request
    from layersearch.surrogate import constraint
    from layersearch.surrogate.solve import solve

    if (options.latency is None) != (options.latency_table is None):
        flags = ["--latency", "--latency-table"]
        there, missing = flags if options.latency_table is None else reversed(flags)
        raise ConfigError(f"{there} needs {missing}: give the limit in milliseconds, and a YAML file with each span's")
    if options.bytes is not None and options.kv_cache is None:
        raise ConfigError("--bytes is the size of a cached value and needs --kv-cache; add it, or drop --bytes")
    recipe, space, _ = load_request(options.run)
    model = recipe.model
    bound = BoundSpace.of(space, recipe)
    if options.budget is not None:
        limit = constraint.cost_limit(bound, options.budget)
    elif options.kv_cache is not None:
        value_bytes = 2 if options.bytes is None else options.bytes
        limit = constraint.cache_limit(bound, constraint.parse_bytes(options.kv_cache), model, value_bytes)
    else:
        limit = constraint.latency_limit(bound, options.latency, constraint.read_latencies(options.latency_table))
    search = recipe.search
    found = solve(load_records(options.run), bound, limit, tolerance=search.tolerance, first_round=search.first_round)
    flops = 2 * model.head_dim * bound.work.total(found.answer.schedule)
    command = None
    if found.proposal is not None:
        command = shlex.join(["layersearch", "confirm", str(options.run), str(found.proposal.schedule)])
    if options.json:
        print(json.dumps(found.to_dict() | {"attention_flops": flops, "confirm_with": command}, indent=1))
        return
    from layersearch.cli.solution import print_solution

    print_solution(found, flops=flops, confirm_with=command)
