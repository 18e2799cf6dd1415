"""Would several trials trained as one model, or one graph for a whole step, be faster than today's trials?

Command:  python analysis/throughput/stacked.py --nanogpt PATH_TO_A_NANOGPT_CHECKOUT [--rounds 9] [--only WORDS]
Time:     a few minutes on one core, mostly compiling
Shows:    tokens per processor second of one thread, as ratios to nanoGPT's, compiled and in bf16, interleaved round by
          round, so that other work on the machine matters little; writes stacked.json

The stacked model is the proxy with the weights of K trials in one tensor each, (K, ...). All trials read the same
batch, as paired seeds do. A layer's span is a mask (K, T, T) that the graph takes as an input, so one compiled graph
serves all schedules. Each trial's gradient is clipped by its own norm. Losses are those of `layersearch.model.decoder`
(checked when the script starts), so this is the same training at another speed.

Shape legend: K trials, B batch, T tokens, C model width, H heads, D head width, V vocabulary.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from bench import STEPS, batch, nanogpt_step, our_step, rows
from torch import Tensor

from layersearch.config.recipe import Recipe, load_recipe
from layersearch.model.attention.reference import span_mask
from layersearch.model.decoder import Decoder, rotary_table, rotate
from layersearch.schedule import Schedule
from layersearch.training.engine import RankGroup, join
from layersearch.training.workers.process import KEEP_FREED_MEMORY

HERE = Path(__file__).resolve().parent
Weights = dict[str, Tensor]


def stack(models: list[Decoder]) -> Weights:
    """Return the weights of several models, (K, ...) each."""
    named = [dict(model.named_parameters()) for model in models]
    return {name: torch.stack([each[name].detach() for each in named]) for name in named[0]}


def norm(x: Tensor, weight: Tensor) -> Tensor:  # (K, ..., width), (K, width) -> (K, ..., width)
    """Root-mean-square normalization, one weight a trial."""
    shape = (len(weight), *(1 for _ in x.shape[1:-1]), -1)
    return F.rms_norm(x, x.shape[-1:], eps=1e-6) * weight.view(shape).to(x.dtype)


def losses(
    weights: Weights, tokens: Tensor, targets: Tensor, masks: Tensor, recipe: Recipe, products: bool = True
) -> Tensor:
    """Return the mean loss of each trial, (K,): tokens and targets (B, T), masks (layers, K, T, T), 0 or -inf.

    ``products``: attention is two batched products and a softmax, else torch's own scaled dot product attention.
    """
    model, (size, length) = recipe.model, tokens.shape
    count, heads, width = len(masks[0]), model.n_heads, model.head_dim
    cos, sin = (part.bfloat16() for part in rotary_table(length, width, model.rope_theta, tokens.device))
    x = weights["embed_tokens.weight"][:, tokens.flatten()]  # (K, BT, C)
    for at in range(model.n_layers):
        own = {name: weights[f"layers.{at}.{name}"] for name in LAYER}
        h = norm(x, own["input_layernorm.weight"])
        parts = [own[f"self_attn.{name}_proj.weight"] for name in "qkv"]
        qkv = torch.bmm(h, torch.cat(parts, dim=1).mT).view(count, size, length, 3, heads, width)
        q, k, v = qkv.unbind(3)
        q, k = (
            rotate(norm(each, own[f"self_attn.{name}_norm.weight"]).flatten(0, 1), cos, sin)
            for name, each in (("q", q), ("k", k))
        )
        q, k, v = (
            each.reshape(count, size, length, heads, width).transpose(2, 3).reshape(count, -1, length, width)
            for each in (q, k, v)
        )
        if products:
            scores = torch.bmm(q.flatten(0, 1), k.flatten(0, 1).mT).view(count, -1, length, length).float()
            shares = torch.softmax(scores * width**-0.5 + masks[at][:, None], dim=-1).to(q.dtype)
            out = torch.bmm(shares.flatten(0, 1), v.flatten(0, 1))
        else:
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=masks[at][:, None].to(q.dtype))
        out = out.view(count, size, heads, length, width).transpose(2, 3).reshape(count, size * length, -1)
        x = x + torch.bmm(out, own["self_attn.o_proj.weight"].mT)
        h = norm(x, own["post_attention_layernorm.weight"])
        both = torch.cat((own["mlp.gate_proj.weight"], own["mlp.up_proj.weight"]), dim=1)
        gate, up = torch.bmm(h, both.mT).chunk(2, dim=-1)
        x = x + torch.bmm(F.silu(gate) * up, own["mlp.down_proj.weight"].mT)
    logits = torch.bmm(norm(x, weights["norm.weight"]), weights["lm_head.weight"].mT).float()
    wanted = targets.flatten().repeat(count)
    return F.cross_entropy(logits.flatten(0, 1), wanted, reduction="none").view(count, -1).mean(dim=1)


LAYER = (
    *(f"self_attn.{name}_proj.weight" for name in "qkvo"),
    *("self_attn.q_norm.weight", "self_attn.k_norm.weight"),
    *("input_layernorm.weight", "post_attention_layernorm.weight"),
    *(f"mlp.{name}_proj.weight" for name in ("gate", "up", "down")),
)


def stacked_step(
    recipe: Recipe, schedules: list[str], *, compiled: bool = True, products: bool = True
) -> Callable[[Tensor, Tensor], Tensor]:
    """Return one training step of several trials in bf16, with AdamW; it returns their losses, (K,)."""
    model, length = recipe.model, recipe.training.seq_len
    made = []
    for text in schedules:
        torch.manual_seed(0)
        made.append(Decoder(model, recipe.data.vocab_size, Schedule.parse(text)))
    weights = {name: value.requires_grad_() for name, value in stack(made).items()}
    seen = [torch.stack([span_mask(d.layers[at].self_attn.span, length, model.n_heads, torch.device("cpu"))[0]
                         for d in made]) for at in range(model.n_layers)]  # fmt: skip
    masks = torch.zeros(len(seen), *seen[0].shape).masked_fill(~torch.stack(seen), float("-inf"))
    function = torch.compile(losses, dynamic=False) if compiled else losses
    optimizer = torch.optim.AdamW(list(weights.values()), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=True)

    def step(tokens: Tensor, targets: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            found = function(weights, tokens, targets, masks, recipe, products)
        found.sum().backward()
        gradients = [value.grad for value in weights.values() if value.grad is not None]
        squares = torch.stack([gradient.flatten(1).square().sum(dim=1) for gradient in gradients]).sum(dim=0)
        factor = (1.0 / (squares.sqrt() + 1e-6)).clamp(max=1.0)
        for gradient in gradients:
            gradient.mul_(factor.view(-1, *(1 for _ in gradient.shape[1:])))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return found.detach()

    return step


def check(recipe: Recipe, schedule: str) -> float:
    """Return the largest difference of the stacked model's losses from the decoder's over five steps, nats."""
    tokens, targets = batch(recipe)
    step, worst = stacked_step(recipe, [schedule, f"full*{recipe.model.n_layers}"], compiled=False), 0.0
    torch.manual_seed(0)
    model = Decoder(recipe.model, recipe.data.vocab_size, Schedule.parse(schedule))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    for _ in range(5):
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(tokens, targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        worst = max(worst, abs(loss.item() - step(tokens, targets)[0].item()))
    return worst


def main() -> None:
    """Check, time and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nanogpt", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--only", nargs="+", help="ways whose names hold one of these")
    options = parser.parse_args()
    if not KEEP_FREED_MEMORY.items() <= os.environ.items():
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | KEEP_FREED_MEMORY)
    torch.set_num_threads(1)
    join(RankGroup(), str(Path(tempfile.mkdtemp()) / "rendezvous"))
    recipe = load_recipe("laptop")
    layers = recipe.model.n_layers
    schedule = f"window:4*{layers - 1} full"
    other = [" ".join("full" if at == one else "window:4" for at in range(layers)) for one in range(layers)]
    print(f"largest difference from the decoder: {check(recipe, schedule):.1e} nats", flush=True)
    makers: dict[str, tuple[Callable[[], Callable[[Tensor, Tensor], Any]], int]] = {
        "nanoGPT, bf16, compiled": (lambda: nanogpt_step(options.nanogpt, recipe, "bf16", True), 1),
        "nanoGPT, bf16, eager": (lambda: nanogpt_step(options.nanogpt, recipe, "bf16"), 1),
        "nanoGPT, float32, compiled": (lambda: nanogpt_step(options.nanogpt, recipe, "float32", True), 1),
        "nanoGPT, float32, eager": (lambda: nanogpt_step(options.nanogpt, recipe), 1),
        "ours, AdamW, bf16, compiled": (lambda: our_step(recipe, schedule, precision="bf16", compiled=True), 1),
        "one graph, torch's attention": (lambda: stacked_step(recipe, [schedule], products=False), 1),
        "one graph, attention by products": (lambda: stacked_step(recipe, [schedule]), 1),
    }
    for count in (2, 4, 8):
        chosen = [other[at % layers] for at in range(count)]
        makers[f"{count} trials stacked"] = (lambda chosen=chosen: stacked_step(recipe, chosen), count)
    makers = {k: v for k, v in makers.items() if not options.only or any(word in k for word in options.only)}
    ways = {name: make() for name, (make, _) in makers.items()}
    tokens, targets = batch(recipe)
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for round_ in range(options.rounds + 1):
        for name, step in ways.items():
            step(tokens, targets)
            begun = time.process_time()
            for _ in range(STEPS):
                step(tokens, targets)
            taken = (time.process_time() - begun) / STEPS
            if round_:
                rates[name].append(makers[name][1] * tokens.numel() / taken)
            else:  # the first compiles and warms up
                print(f"compiled: {name}", flush=True)
        if round_:
            record = {"torch": torch.__version__, "rounds": round_, "steps_a_round": STEPS, "ways": rows(rates)}
            (HERE / "stacked.json").write_text(json.dumps(record, indent=1) + "\n")
    for row in rows(rates):
        low, high = row["ratio_range"]
        print(f"{row['way']:40s} {row['tokens_per_second']:8,d} tokens/s {row['ratio']:6.2f} ({low}-{high})")


if __name__ == "__main__":
    main()
