"""Tell whether a small run ranks schedules as a larger run does."""

import argparse
import json
from pathlib import Path

from layersearch.cli.flags import add_shared


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("small", metavar="RUN_SMALL", type=Path, help="run folder of small proxies")
    parser.add_argument("large", metavar="RUN_LARGE", type=Path, help="run folder of larger or longer trained proxies")
    add_shared(parser, "--json")


def run(options: argparse.Namespace) -> None:
    """Print the rank correlation, the regret of the small run's winner, and a verdict."""
    from layersearch.cli.tables import console, table
    from layersearch.results.stats import decimals
    from layersearch.schedule.files import plain
    from layersearch.study.transfer import compare_runs

    found = compare_runs(options.small, options.large)
    if options.json:
        print(json.dumps(plain(found), indent=1))
        return
    screen = console()
    screen.print(found.verdict, style="bold", soft_wrap=True)
    rows = {
        "small run": found.small,
        "large run": found.large,
        "shared": f"{len(found.schedules)} schedules, "
        + (
            f"confirmed on {found.seeds[0]} and {found.seeds[1]} seeds"
            if found.phase == "confirm"
            else "of the searches, one seed each: their noise is not corrected for"
        ),
    }
    if found.correlation is not None:
        c = found.correlation
        rows["Spearman"] = f"{c}, corrected for seed noise; as measured {c.spearman:.2f}"
        if found.cost_alone is not None:
            rows["the dearer, the better"] = f"{found.cost_alone:.2f}"
    if found.regret is not None:
        r = found.regret
        picked, best = (str(found.schedules[at][1]) for at in (r.picked, r.best))
        half = None if r.interval is None else r.interval.half_width
        places = decimals(half)
        rows["the small run's winner"] = picked
        rows["the large run's best"] = best
        rows["regret"] = f"{r.nats:.{places}f}" + (f" ± {half:.{places}f}" if half else "") + " nats"
        if r.fresh is not None:
            rows["regret"] += f"; {r.fresh:.{places}f} against the choice of the other seeds"
        rows["regret at random"] = f"{r.chance:.{places}f} nats"
    grid = table("", "", left=2, show_header=False)
    for row in rows.items():
        grid.add_row(*row)
    screen.print(grid)
