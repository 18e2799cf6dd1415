"""A search on a pre-trained model: the same ladder, from its weights, with the selectors among the baselines."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from layersearch.config.recipe import load_recipe
from layersearch.data import open_source
from layersearch.files import parse_sealed
from layersearch.model.pretrained_recipe import recipe_for
from layersearch.schedule import Schedule
from layersearch.schedule.cost import budget_ratio
from layersearch.training.record import Trial
from layersearch.training.workers.pool import LocalPool
from tests.helpers.hf_models import save
from tests.helpers.runs import run

pytestmark = pytest.mark.integration

TOKENS = 48


def stock_loss(folder: Path) -> float:
    """Return the validation loss of the stock model on the smoke recipe's data."""
    from transformers import AutoModelForCausalLM

    batch = open_source(load_recipe("smoke").data, TOKENS).validation(8)
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        logits = model(input_ids=torch.from_numpy(batch.tokens), use_cache=False).logits
    targets = torch.from_numpy(batch.targets)
    losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
    return float((losses.view_as(targets).sum(1) / (targets != -100).sum(1)).mean())


def test_run_pretrained_search_starts_from_the_model_weights(tmp_path: Path) -> None:
    folder = save("gpt2", tmp_path / "model", vocab_size=64)
    sizes = [
        "training.steps=1",
        "training.warmup_steps=0",
        "training.learning_rate=1e-9",
        "search.trials=5",
        "search.workers=1",
    ]
    out = tmp_path / "run"
    more = [word for key in [*sizes, "search.rungs=[]"] for word in ("--set", key)]
    result = json.loads(run(out, "--model", str(folder), *more))
    config = json.loads((out / "config.json").read_text())
    assert config["recipe"]["pretrained"] == str(folder)
    assert config["recipe"]["model"]["n_layers"] == 3
    assert config["recipe"]["model"]["n_heads"] == 4
    records = [json.loads(line) for line in (out / "trials.jsonl").read_text().splitlines()]
    full = [record for record in records if record["schedule"] == "full*3"]
    # A step of 1e-9 leaves the weights where they were: all-full is the stock model.
    assert all(abs(record["loss"] - stock_loss(folder)) < 1e-4 for record in full)
    for record in records:
        schedule = Schedule.parse(record["schedule"])
        assert record["cost"] == budget_ratio(schedule, seq_len=TOKENS, n_heads=4)
    counted = json.loads((out / "flops.json").read_text())["forward_pass"]
    assert counted["all_full"] == {"schedule": "full*3", "attention_flops": full[0]["flops"]}
    chosen = parse_sealed((out / "selectors.json").read_text())
    assert {name.split("(")[0] for name in chosen} == {"restore_greedy", "remove_one"}
    names = {name for entry in result["entries"] for joined in entry["names"] for name in joined.split(" = ")}
    assert set(chosen) <= names
    assert {found["schedule"] for found in chosen.values()} <= {record["schedule"] for record in records}


def test_trial_softcapped_model_records_the_kernels_that_ran(tmp_path: Path) -> None:
    folder = save("gemma2", tmp_path / "model", vocab_size=64)
    recipe = load_recipe("pretrained", ["training.seq_len=48", "training.steps=1", "training.warmup_steps=0"])
    recipe = recipe_for(replace(recipe, data=load_recipe("smoke").data), str(folder))
    pool = LocalPool(recipe, 1, tmp_path)
    try:
        record = pool.submit(Trial(schedule=Schedule.parse("full window:4 full"), seed=0)).result()
    finally:
        pool.close()
    assert record.state == "complete", record.error
    assert record.kernels == ("chunked-span",) * 3  # torch's flash kernel, which else runs full layers, caps no logits
