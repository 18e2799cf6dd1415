"""One rank of a group: trains one step under each ZeRO stage and prints the bytes of what DeepSpeed keeps."""

from __future__ import annotations

import json
import os
import sys

import torch

from layersearch.config.recipe import deepspeed_file, load_recipe
from layersearch.model.decoder import Decoder
from layersearch.schedule import Schedule
from layersearch.training.deepspeed_config import deepspeed_config
from layersearch.training.engine import Engine, RankGroup, join


def total(tensors: object) -> int:
    """Return the bytes of nested lists and dictionaries of tensors, each storage once."""
    storages: dict[int, int] = {}

    def visit(found: object) -> None:
        if isinstance(found, torch.Tensor):
            storages[found.untyped_storage().data_ptr()] = found.untyped_storage().nbytes()
        elif isinstance(found, dict):
            visit(list(found.values()))
        elif isinstance(found, list | tuple):
            for item in found:
                visit(item)

    visit(tensors)
    return sum(storages.values())


def observe(stage: int, group: RankGroup) -> dict[str, int]:
    """Return bytes of weights, master weights, gradients before the step, and moments after it."""
    recipe = load_recipe("smoke", [f"training.ranks={group.size}", f"training.deepspeed=zero{stage}"])
    torch.manual_seed(0)
    model = Decoder(recipe.model, recipe.data.vocab_size, Schedule.parse("full*2"))
    engine = Engine(model, recipe.training, deepspeed_config(recipe.training, deepspeed_file(recipe)), group)
    inner = engine._engine
    parameters = list(model.parameters())
    tokens = torch.zeros(2, recipe.training.seq_len, dtype=torch.int64)
    inner.backward(inner(tokens, tokens))
    optimizer = inner.optimizer
    flat = "fp32_partitioned_groups_flat" if stage == 3 else "single_partition_of_fp32_groups"
    found = {
        "weights": total([p.ds_tensor if stage == 3 else p.data for p in parameters]),
        "master": total(getattr(optimizer, flat)) if stage else 0,
        "gradients": total([[p.grad for p in parameters], getattr(optimizer, "averaged_gradients", [])]),
    }
    inner.step()
    found["moments"] = engine.optimizer_state_bytes()
    engine.close()
    return found


def main() -> None:
    """Serve as ``observe_state.py RENDEZVOUS RANK SIZE``."""
    torch.set_num_threads(1)
    group = RankGroup(rank=int(sys.argv[2]), size=int(sys.argv[3]))
    join(group, sys.argv[1])
    found = {stage: observe(stage, group) for stage in range(4)}
    print("OBSERVED " + json.dumps(found), flush=True)
    torch.distributed.destroy_process_group()
    os._exit(0)  # at the interpreter's own end gloo's threads now and then abort the process, groups destroyed or not


if __name__ == "__main__":
    main()
