"""Flags that several commands share, and the types of their values."""

from __future__ import annotations

import argparse
import functools
import glob
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from layersearch.errors import ConfigError, DataError

if TYPE_CHECKING:
    from layersearch.training.workers.pool import PoolFactory

DEFAULT_RECIPE = "laptop"
SEED_LIMIT = 2**31
"""Seeds below this suit every random number generator, and so do the confirmation seeds after them."""

SHARED: dict[str, dict[str, Any]] = {
    "run": {"type": Path, "help": "run folder, finished or not"},
    "--json": {"action": "store_true", "help": "print JSON"},
    "--dry-run": {"action": "store_true", "help": "print the plan, its FLOPs and estimated time; train nothing"},
    "--data": {
        "nargs": "+",
        "action": "extend",
        "metavar": "DATA",
        "help": "files or folders (text, code, HTML, JSON lines, Parquet, also packed), hub:ID, or a source like "
        "stdlib (default: the recipe's)",
    },
    "--set": {
        "dest": "overrides",
        "action": "append",
        "default": [],
        "metavar": "KEY=VALUE",
        "help": "change a key of the recipe, for example training.steps=200",
    },
    "--pool": {
        "choices": ("local", "ray"),
        "default": "local",
        "help": "where trials run: processes on this machine, or a Ray cluster (default: %(default)s)",
    },
    "--ray-address": {
        "metavar": "HOST:PORT",
        "help": "with --pool ray: the cluster, or 'auto' (default: $RAY_ADDRESS, else a local cluster)",
    },
}


def print_files(paths: Sequence[Path], as_json: bool, note: str | None = None) -> None:
    """Print the paths of written files, one a line, then a note; or both as JSON (``files``, ``note``)."""
    if as_json:
        print(json.dumps({"files": [str(path) for path in paths], "note": note}, indent=1))
        return
    print(*paths, sep="\n")
    if note:
        print(f"note: {note}")


def add_card(parser: argparse.ArgumentParser) -> None:
    """Add ``--card`` and ``--push``."""
    parser.add_argument("--card", action="store_true", help="write a model card, README.md, with what was measured")
    text = "then upload the folder to this hub repository, with a card and your own token; a new one is private"
    parser.add_argument("--push", metavar="OWNER/NAME", help=text)


def add_shared(parser: argparse.ArgumentParser, *names: str) -> None:
    """Add flags of `SHARED` to a command."""
    for name in names:
        parser.add_argument(name, **SHARED[name])


def add_key(parser: argparse.ArgumentParser, flag: str, key: str, metavar: str, text: str) -> None:
    """Add a flag that stands for ``--set KEY=VALUE``; of several for one key the last one counts."""
    more = {"metavar": metavar, "type": f"{key}={{}}".format, "help": f"{text}; the same as --set {key}={metavar}"}
    parser.add_argument(flag, **SHARED["--set"] | more)


def data_overrides(words: Sequence[str] | None) -> list[str]:
    """Return the recipe's keys for ``--data``: a source's name, ``hub:ID``, or files, patterns and folders.

    Raises:
        DataError: if a word is neither a source nor a file, or such a word is not alone.
    """
    from layersearch.config.data import SourceKind

    if not words:
        return []
    sources = sorted({*get_args(SourceKind)} - {"files", "text", "json", "parquet", "hub"})
    for word in words:
        if glob.glob(os.path.expanduser(word), recursive=True):
            continue
        if word not in sources and not word.startswith("hub:"):
            known = ", ".join(sources)
            raise DataError(f"--data {word}: no such file, and no source; give files, hub:ID, or one of {known}")
        if len(words) > 1:
            raise DataError(f"--data {word} stands alone; leave out the other values of --data")
        name = word.removeprefix("hub:")
        return [f"data.source={word}"] if name == word else ["data.source=hub", f"data.dataset={name}"]
    return ["data.source=files", f"data.files={json.dumps([*words])}"]


def _whole_number(least: int, limit: float, wanted: str, text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a whole number {wanted}, not {text!r}") from None
    if not least <= value < limit:
        raise argparse.ArgumentTypeError(f"must be {wanted}, not {value}")
    return value


positive = functools.partial(_whole_number, 1, math.inf, "at least 1")
seed = functools.partial(_whole_number, 0, SEED_LIMIT, f"in [0, {SEED_LIMIT})")


def pool_of(options: argparse.Namespace) -> PoolFactory:
    """Return the pool that ``--pool`` and ``--ray-address`` name.

    Raises:
        ConfigError: if an address is given for a pool that has none.
    """
    if options.ray_address is not None and options.pool != "ray":
        raise ConfigError(f"--ray-address {options.ray_address} needs --pool ray; add it, or drop the address")
    from layersearch.training.workers.pool import LocalPool
    from layersearch.training.workers.ray_pool import RayPool

    return functools.partial(RayPool, address=options.ray_address) if options.pool == "ray" else LocalPool
