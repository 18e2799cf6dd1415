"""Does the screening that `layersearch run --set search.screening=SHARE` trains rank schedules as full trials do?

Command:  python analysis/signal/screening.py [--recipes recall hops2 local text] [--seeds 0 1 2] [--shares 1 2]
Time:     10 seconds (recall, one trial's steps) to a minute (hops2, two) each on one quiet core, after half a minute in
          which the first is compiled; finished ones are taken from screening.jsonl
Shows:    rank correlation of the screened losses of all 16 schedules with those of the search of the same seed in
          known_l.jsonl, how well they tell schedules that solve the task from those that do not, and, for comparison,
          the same of another seed's search; on text, with the 20 trials of seed 0 in shared_weights.jsonl

The screening is the package's own, run by its own worker, as a search runs it: its learning rate ends with its steps.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from layersearch.ladder import LocalPool
from layersearch.presets import all_full
from layersearch.recipe import load_recipe
from layersearch.schedule import Schedule
from layersearch.screening import make_screening
from layersearch.space import load_space
from layersearch.stats import rank_agreement
from layersearch.train import Trial

HERE = Path(__file__).resolve().parent
RECORDS = HERE / "screening.jsonl"
TEXT_STEPS = 240
"""Of the text's trials, whose layers are full or windows of 2."""
SOLVED = 0.3
"""A schedule solves recall or two hops below this loss, a tenth of chance."""


def truths(recipe: str) -> dict[int, dict[str, float]]:
    """Return the losses of schedules' own trials by seed."""
    if recipe == "text":
        found = map(json.loads, (HERE / "shared_weights.jsonl").read_text().splitlines())
        spans = {"f": "full", "w": "window:2"}
        alone = {
            str(Schedule.parse(" ".join(spans[letter] for letter in row["word"]))): row["loss"]
            for row in found
            if (row["kind"], row["recipe"], row["steps"]) == ("trial", "text", TEXT_STEPS)
        }
        return defaultdict(lambda: alone)
    rows = map(json.loads, (HERE / "known_l.jsonl").read_text().splitlines())
    return {row["seed"]: row["searched"] for row in rows if row["recipe"] == recipe}


def screened(recipe: str, seed: int, share: float, pools: dict[str, LocalPool], logs: Path) -> dict[str, Any]:
    """Run one screening; return its record."""
    more = [f"training.steps={TEXT_STEPS}"] if recipe == "text" else []
    asked = load_recipe(recipe, ["search.sampler=gain", f"search.screening={share}", *more])
    model = asked.model
    space = load_space("planted" if recipe == "text" else asked.default_space).bind(
        n_layers=model.n_layers, seq_len=asked.training.seq_len, n_heads=model.n_heads
    )
    screening = make_screening(asked, space, 1.0, seed, [])
    if recipe not in pools:
        pools[recipe] = LocalPool(asked, 1, logs)
    trial = Trial(
        schedule=str(all_full(model.n_layers)), seed=seed, phase="screen", role="screening", screening=screening
    )
    found = pools[recipe].submit(trial).result()
    assert found.state == "complete", found.error
    return {
        "recipe": recipe,
        "seed": seed,
        "share": share,
        "steps": found.steps,
        "train_seconds": round(found.train_seconds, 1),
        "score_seconds": round(found.eval_seconds, 1),
        "losses": {text: round(loss, 4) for text, loss in found.screened},
    }


def agreement(cheap: Mapping[str, float], full: Mapping[str, float]) -> str:
    """Return in words how well a cheap measure ranks schedules."""
    found = rank_agreement([cheap[text] for text in full], list(full.values()))
    assert found is not None
    said = f"Spearman {found.spearman:5.2f} [{found.spearman_low:5.2f}, {found.spearman_high:5.2f}]"
    solved = [text for text in full if full[text] <= SOLVED]
    pairs = [cheap[a] < cheap[b] for a in solved for b in full if b not in solved]
    return said + (f", AUC {sum(pairs) / len(pairs):.2f}, {len(solved)} solved" if pairs else "")


def main() -> None:
    """Run what has no record yet."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipes", nargs="+", default=["recall", "hops2", "local", "text"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--shares", nargs="+", type=float, default=[1.0, 2.0])
    options = parser.parse_args()
    rows = [json.loads(line) for line in RECORDS.read_text().splitlines()] if RECORDS.exists() else []
    pools: dict[str, LocalPool] = {}
    logs = tempfile.TemporaryDirectory()
    try:
        for recipe in options.recipes:
            full = truths(recipe)
            for share in options.shares:
                for seed in options.seeds:
                    key = {"recipe": recipe, "seed": seed, "share": share}
                    row = next((row for row in rows if row.items() >= key.items()), None)
                    if row is None:
                        row = screened(recipe, seed, share, pools, Path(logs.name))
                        with RECORDS.open("a", encoding="utf-8") as file:
                            file.write(json.dumps(row) + "\n")
                    cheap = {str(Schedule.parse(text)): loss for text, loss in row["losses"].items()}
                    print(
                        f"{recipe:6s} seed {seed}, {share:g} trials' steps: {agreement(cheap, full[seed])}", flush=True
                    )
            for seed in options.seeds if recipe != "text" else ():
                print(
                    f"{recipe:6s} seed {seed}, the search of seed {seed + 1}: {agreement(full[seed + 1], full[seed])}"
                )
    finally:
        for pool in pools.values():
            pool.close()
        logs.cleanup()


if __name__ == "__main__":
    main()
