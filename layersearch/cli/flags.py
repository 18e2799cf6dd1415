"""What several commands share: ``--pool`` and ``--ray-address``, the seeds they take, the default recipe."""

from __future__ import annotations

import argparse
import functools
from typing import TYPE_CHECKING, Any

from layersearch.errors import UserError

if TYPE_CHECKING:
    from layersearch.training.workers.pool import PoolFactory

DEFAULT_RECIPE = "laptop"
SEED_LIMIT = 2**31
"""Seeds below this suit every random number generator, and so do the confirmation seeds after them."""


def check_seed(seed: int) -> None:
    """Refuse a ``--seed`` that is out of range.

    Raises:
        UserError: names the range.
    """
    if not 0 <= seed < SEED_LIMIT:
        raise UserError(f"--seed must lie in [0, {SEED_LIMIT}), not {seed}")


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags to a command."""
    parser.add_argument(
        "--pool",
        choices=("local", "ray"),
        default="local",
        help="where trials run: processes on this machine, or a Ray cluster (default: %(default)s)",
    )
    parser.add_argument(
        "--ray-address",
        metavar="HOST:PORT",
        help="with --pool ray: the cluster, or 'auto' (default: $RAY_ADDRESS, else one of its own on this machine)",
    )


def pool_of(options: argparse.Namespace) -> PoolFactory:
    """Return what the flags ask for.

    Raises:
        UserError: if an address is given for a pool that has none.
    """
    if options.ray_address is not None and options.pool != "ray":
        raise UserError(f"--ray-address {options.ray_address} needs --pool ray; add it, or drop the address")
    from layersearch.training.workers.pool import LocalPool
    from layersearch.training.workers.ray_pool import RayPool

    return functools.partial(RayPool, address=options.ray_address) if options.pool == "ray" else LocalPool


def _command(groups: Any, name: str, function: Any, text: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = groups.add_parser(
        name, help=text, description=text[0].upper() + text[1:] + ".", allow_abbrev=False
    )
    parser.set_defaults(command=function)
    return parser
