"""A conversion's folder as `convert` writes it, without the training: figures that are known."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from layersearch.convert.config import load_convert_recipe
from layersearch.convert.run_folder import ConvertFolder, Evaluation, Moment

SCHEDULE, TOKENS, STEPS = "window:8*2 full", 64, 12
MEASURED: tuple[tuple[Moment, float, float], ...] = (
    ("original", 2.0, 0.95),
    ("switched", 3.0, 0.2),
    ("training", 2.5, 0.6),
    ("converted", 2.05, 0.93),
)
"""Moments with their loss and share of digits right."""


def conversion_folder(path: Path, *, steps: int = STEPS, schedule: str = SCHEDULE) -> Path:
    """Write a finished conversion of a model that is not there."""
    recipe = load_convert_recipe("plain", [f"training.seq_len={TOKENS}", f"training.steps={steps}"])
    request = {
        "model": "lost-model",
        "schedule": schedule,
        "recipe": dataclasses.asdict(recipe),
        "seed": 0,
        "data": {"source": recipe.data.source},
        "family": "ministral",
        "model_fingerprint": "0",
    }
    folder = ConvertFolder(path, request)
    done = {"original": 0, "switched": 0, "training": steps // 2, "converted": steps}
    for moment, loss, right in MEASURED:
        folder.add_evaluation(
            Evaluation(
                moment=moment,
                step=done[moment],
                schedule="full*3" if moment == "original" else schedule,
                seq_len=TOKENS,
                loss=loss,
                loss_by_position=(loss + 0.1, loss - 0.1),
                position_edges=(TOKENS // 2, TOKENS),
                metrics=(("accuracy_pass_key", right), ("answer_accuracy", right)),
            )
        )
    for step in range(1, steps + 1):
        folder.add_step(step=step, loss=2.0 + 1 / step, learning_rate=1e-4, seq_len=TOKENS, seconds=float(step))
    folder.release()
    return path
