"""Train given schedules at a run's fresh seeds, beside the ones it confirmed."""

import argparse
import json

from layersearch.cli.flags import add_shared, pool_of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_shared(parser, "run")
    text = "for example 'full window:32*3', or a winner.yaml"
    parser.add_argument("schedules", nargs="+", metavar="SCHEDULE", help=text)
    add_shared(parser, "--pool", "--ray-address", "--json")


def run(options: argparse.Namespace) -> None:
    """Train the schedules, then print their losses and their differences to the best confirmed schedule."""
    from layersearch.cli.progress import ProgressDisplay
    from layersearch.cli.tables import console
    from layersearch.results.sentences import comparison_text
    from layersearch.schedule.files import schedule_argument
    from layersearch.study.run_folder import read_config
    from layersearch.study.saved_run import load_request
    from layersearch.study.search import search
    from layersearch.surrogate.solve import compare_to_best

    pool = pool_of(options)
    first = read_config(options.run)["seed"]
    recipe, space, budget = load_request(options.run)
    schedules = [schedule_argument(text) for text in options.schedules]
    with ProgressDisplay("trials") as display:
        result = search(
            recipe,
            space,
            budget,
            options.run,
            seed=first,
            pool=pool,
            listener=display.trials,
            on_stage=display.stage,
            confirm=schedules,
        )
    if options.json:
        print(json.dumps(result.to_dict(), indent=1))
        return
    screen = console()
    for schedule in dict.fromkeys(schedules):
        entry, (rival, difference) = result.entry(schedule), compare_to_best(result, schedule)
        screen.print(str(schedule), style="bold", soft_wrap=True)
        reached = "failed on every fresh seed" if entry.mean is None else f"loss {entry.mean} nats"
        screen.print(f"  l = {entry.n_full}, cost {entry.cost:.4f}, {reached}, {len(entry.confirm)} fresh seeds")
        if rival is not None and difference is not None:
            said = comparison_text(difference, difference, 1)
            screen.print(f"  against {rival.label}, the best confirmed at no higher cost: {said}", soft_wrap=True)
