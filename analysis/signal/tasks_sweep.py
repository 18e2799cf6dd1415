"""Which settings make a planted task quick to learn: train many small proxies, one JSON line each.

    python analysis/signal/tasks_sweep.py GRID.json RECORDS.jsonl

A grid is a list of mappings: ``data``, ``model`` and ``training`` as in a recipe, ``schedules`` and ``seeds``, and a
``name``. Training is the package's own model, AdamW and learning-rate curve in a plain loop (no DeepSpeed), on one
thread; records already in the file are not run again.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch

from layersearch.config.data import DataConfig
from layersearch.config.model import ModelConfig
from layersearch.config.training import TrainingConfig
from layersearch.data.source import IGNORE
from layersearch.data.tasks import TASKS
from layersearch.model.decoder import Decoder
from layersearch.schedule import Schedule
from layersearch.training.engine import learning_rate_factor


def train(case: dict[str, Any], schedule: str, seed: int) -> dict[str, Any]:
    """Train one schedule from one seed; return validation loss and accuracy along the way."""
    training = TrainingConfig(**case["training"])
    source = TASKS[case["data"]["source"]](DataConfig(**case["data"]), training.seq_len)
    held_out = source.validation(training.val_sequences)
    tokens, targets = (torch.from_numpy(part) for part in held_out)
    torch.manual_seed(seed)
    model = Decoder(ModelConfig(**case["model"]), source.vocab_size, Schedule.parse(schedule))
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": training.weight_decay}, {"params": vectors, "weight_decay": 0.0}],
        lr=training.learning_rate,
        betas=training.betas,
        fused=True,
    )
    curve = []
    seconds = 0.0
    for step in range(training.steps):
        began = time.perf_counter()
        batch = source.train(seed=seed, step=step, batch_size=training.batch_size)
        for group in optimizer.param_groups:
            group["lr"] = training.learning_rate * learning_rate_factor(step, training)
        with torch.autocast("cpu", torch.bfloat16, enabled=training.precision == "bf16"):
            loss = model(torch.from_numpy(batch.tokens), torch.from_numpy(batch.targets))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), training.grad_clip)
        optimizer.step()
        optimizer.zero_grad()
        seconds += time.perf_counter() - began
        if (step + 1) % max(1, training.steps // 8) == 0:
            with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=training.precision == "bf16"):
                losses, correct = model(tokens, targets, reduce=False)
            scored = targets != IGNORE
            accuracy = float(correct[scored].float().mean())
            curve.append([step + 1, round(float(losses[scored].mean()), 4), round(accuracy, 4)])
    return {
        "name": case["name"],
        "schedule": schedule,
        "seed": seed,
        "loss": curve[-1][1],
        "accuracy": curve[-1][2],
        "train_seconds": round(seconds, 2),
        "curve": curve,
        **{part: case[part] for part in ("data", "model", "training")},
    }


def main(grid: Path, records: Path) -> None:
    """Run what the grid asks for and the records lack."""
    torch.set_num_threads(1)
    lines = [json.loads(line) for line in records.read_text().splitlines()] if records.exists() else []
    done = {(line["name"], line["schedule"], line["seed"]) for line in lines}
    for case in json.loads(grid.read_text()):
        for seed in case["seeds"]:
            for schedule in case["schedules"]:
                if (case["name"], schedule, seed) in done:
                    continue
                record = train(case, schedule, seed)
                with records.open("a") as file:
                    file.write(json.dumps(record) + "\n")
                print(case["name"], schedule, seed, record["train_seconds"], record["curve"][1::2], flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
