"""Say what is installed, which kernels, device, precision and engines will be used, and what is missing for what."""

from __future__ import annotations

import argparse
import json
from typing import Any

from layersearch.cli.flags import add_shared
from layersearch.errors import EXIT_NOT_PROVEN


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_shared(parser, "--json")


def run(options: argparse.Namespace) -> int:
    """Print the state; return 0, or 1 if a search cannot run here."""
    from layersearch.cli.installation import diagnose

    found = diagnose()
    if options.json:
        print(json.dumps(found, indent=1))
    else:
        _print(found)
    return EXIT_NOT_PROVEN if found["problems"] else 0


def _print(found: dict[str, Any]) -> None:
    from layersearch.cli.tables import console, table

    screen = console()
    screen.print(f"layersearch {found['layersearch']}, Python {found['python']}, {found['system']}\n", style="bold")
    if found["installed_by_pip"]:
        grid = table("library", "needed", "installed", "", left=4)
        for row in found["libraries"]:
            if row["extra"] is None:
                said = "" if row["ok"] else "MISSING" if row["found"] is None else "TOO OLD"
                grid.add_row(row["name"], row["needs"], row["found"] or "none", said)
        screen.print(grid)
    else:
        screen.print("layersearch runs from a folder: the versions that it needs were not compared", soft_wrap=True)
    devices = found["devices"]
    grid = table("device", "full attention", "windows and blocks", "weights of --model", "torch.compile", left=5)
    for name in ("cpu", "cuda"):
        one = devices.get(name)
        if one is not None:
            label = f"{name} ({one['name']})"
            compiles = "yes" if one["compiles"] else "no: needs " + ("a C++ compiler" if name == "cpu" else "Triton")
            grid.add_row(label, one["kernel_full"], one["kernel_sparse"], one["weights_auto"], compiles)
    screen.print("", grid, sep="\n")
    if devices["problem"] is None and devices["cuda"] is None:
        screen.print("No GPU: recipes need training.gpus=0, as they have by default.", soft_wrap=True)
    grid = table("extra", "for", "", left=3)
    for name, one in found["extras"].items():
        grid.add_row(name, one["for"], "installed" if one["ok"] else str(one["install"]))
    screen.print("", grid, sep="\n")
    grid = table("engine", "", left=2)
    for name, one in found["engines"].items():
        grid.add_row(name, one["python"] or str(one["problem"]))
    screen.print("", grid, sep="\n")
    for problem in found["problems"]:
        screen.print(f"\n{problem}", style="bold", soft_wrap=True)
    screen.print("" if found["problems"] else "\nA search can run here.", soft_wrap=True)
