"""Train many schedules at once: one model with stacked weights, the same data, each schedule its own mask.

It computes what the project's decoder, optimizers and clipping compute for each schedule alone
(tests/study/test_transfer_study.py holds both together). Tiny models leave a GPU waiting for launches; stacked they
do not. Masks are dense, so the time of a step says nothing of a schedule's cost.

Shape legend: M models, B sequences, T tokens, N = B T, C width, H heads, D head width, V vocabulary.
"""

from __future__ import annotations

import contextlib
import functools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from layersearch.config.recipe import Recipe
from layersearch.data.source import IGNORE, Batch, Source
from layersearch.model.attention.reference import span_mask
from layersearch.model.decoder import Decoder, rotary_table
from layersearch.schedule import Schedule
from layersearch.training.engine import learning_rate_factor

Weights = dict[str, Tensor]


def _norm(x: Tensor, gain: Tensor) -> Tensor:  # (M, ..., C), (M, C) -> (M, ..., C)
    gain = gain.to(x.dtype).view(gain.shape[0], *(1,) * (x.dim() - 2), gain.shape[1])
    return F.rms_norm(x, x.shape[-1:], eps=1e-6) * gain


def _linear(x: Tensor, weight: Tensor) -> Tensor:  # (M, N, in), (M, out, in) -> (M, N, out)
    return torch.bmm(x, weight.mT)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:  # (M, B, T, H, D), (T, 1, D) -> (M, B, T, H, D)
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


def _before(x: Tensor, layer: Weights, cos: Tensor, sin: Tensor, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return queries, keys and values (M, B H, T, D) of x (M, N, C)."""
    models, tokens = x.shape[0], cos.shape[0]
    weight = torch.cat([layer[f"self_attn.{name}_proj.weight"] for name in "qkv"], dim=1)
    found = _linear(_norm(x, layer["input_layernorm.weight"]), weight)
    q, k, v = found.view(models, -1, tokens, 3 * heads, cos.shape[-1]).chunk(3, dim=3)
    q = _rotate(_norm(q, layer["self_attn.q_norm.weight"]), cos, sin)
    k = _rotate(_norm(k, layer["self_attn.k_norm.weight"]), cos, sin)
    return tuple(each.transpose(2, 3).flatten(1, 2).contiguous() for each in (q, k, v))  # type: ignore[return-value]


def _after(x: Tensor, out: Tensor, layer: Weights, heads: int) -> Tensor:
    """Return the residual stream (M, N, C) after attention's output (M, B H, T, D) and the feed-forward layer."""
    models, _, tokens, width = out.shape
    out = out.view(models, -1, heads, tokens, width).transpose(2, 3).reshape(models, -1, heads * width)
    x = x + _linear(out, layer["self_attn.o_proj.weight"])
    both = torch.cat((layer["mlp.gate_proj.weight"], layer["mlp.up_proj.weight"]), dim=1)
    gate, up = _linear(_norm(x, layer["post_attention_layernorm.weight"]), both).chunk(2, dim=-1)
    return x + _linear(F.silu(gate) * up, layer["mlp.down_proj.weight"])


@functools.cache
def _compiled() -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Return the code between attention calls, compiled; what the compiler refuses runs as it is."""
    import torch._dynamo

    torch._dynamo.config.suppress_errors = True
    torch._dynamo.config.recompile_limit = 64
    return torch.compile(_before, dynamic=False), torch.compile(_after, dynamic=False)


class BatchedDecoder:
    """The project's decoder for M schedules of one seed, their weights stacked.

    Args:
        recipe: sizes and training of every model.
        vocab_size: tokens of the vocabulary.
        schedules: one of each model.
        seed: seed of the initial weights, which all models share.
        device: where it runs.
        compiled: compile the code between attention calls.
    """

    def __init__(
        self, recipe: Recipe, vocab_size: int, schedules: Sequence[Schedule], seed: int, device: str, compiled: bool
    ) -> None:
        config, self.device = recipe.model, torch.device(device)
        assert config.qk_norm, "the norms of queries and keys are part of _before"
        assert not config.tie_embeddings, "two matrices"
        assert config.n_heads == config.n_kv_heads, "no grouped heads"
        torch.manual_seed(seed)
        one = Decoder(config, vocab_size, schedules[0])
        self.config, self.models = config, len(schedules)
        self.dims = {name: value.dim() for name, value in one.named_parameters()}
        self.weights = {
            name: value.detach().to(self.device).expand(self.models, *value.shape).clone().requires_grad_(True)
            for name, value in one.named_parameters()
        }
        self.kind = torch.bfloat16 if recipe.training.precision == "bf16" else torch.float32
        tokens = recipe.training.seq_len
        self.masks = [
            self._bias([schedule[layer] for schedule in schedules], tokens) for layer in range(len(one.layers))
        ]
        self.layers = [
            {
                name.removeprefix(f"layers.{n}."): w
                for name, w in self.weights.items()
                if name.startswith(f"layers.{n}.")
            }
            for n in range(len(one.layers))
        ]
        cos, sin = rotary_table(tokens, config.head_dim, config.rope_theta, self.device)
        self.cos, self.sin = cos[:, None].to(self.kind), sin[:, None].to(self.kind)
        self.compiled: tuple[Callable[..., Any], Callable[..., Any]] | None = _compiled() if compiled else None

    def _bias(self, spans: Sequence[Any], tokens: int) -> Tensor:
        """Return what is added to the logits of a layer, (M, 1, T, T): 0 where a key is visible, else -inf."""
        made = {span: span_mask(span, tokens, 1, self.device) for span in set(spans)}
        visible = torch.stack([made[span] for span in spans])
        return torch.zeros(visible.shape, dtype=self.kind, device=self.device).masked_fill_(~visible, -math.inf)

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """Return the precision of the matrix products."""
        if self.kind is torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, self.kind)

    def logits(self, tokens: Tensor) -> Tensor:  # (B, T) -> (M, N, V), float32
        """Return the scores of every next token of every model."""
        w, heads = self.weights, self.config.n_heads
        table = w["embed_tokens.weight"]
        # Validation is too short to be worth a compilation without gradients.
        before, after = self.compiled if self.compiled and torch.is_grad_enabled() else (_before, _after)
        offset = torch.arange(self.models, device=self.device)[:, None] * table.shape[1]
        x = F.embedding(tokens.flatten()[None] + offset, table.flatten(0, 1))
        # Torch's other kernels for CUDA take no mask, or hold every pair in memory.
        kernels = [SDPBackend.EFFICIENT_ATTENTION] if self.device.type == "cuda" else None
        for layer, bias in zip(self.layers, self.masks, strict=True):
            q, k, v = before(x, layer, self.cos, self.sin, heads)
            with sdpa_kernel(kernels) if kernels else contextlib.nullcontext():
                q, k, v = q.to(self.kind), k.to(self.kind), v.to(self.kind)
                out = F.scaled_dot_product_attention(q, k, v, bias.expand(-1, q.shape[1], -1, -1))
            x = after(x, out, layer, heads)
        return _linear(_norm(x, w["norm.weight"]), w["lm_head.weight"]).float()

    def losses(self, tokens: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return each target's loss in nats, 0 where not scored, and whether it was predicted, both (M, B, T)."""
        with self.autocast():
            logits = self.logits(tokens)
            every = targets.flatten().repeat(self.models)
            found = F.cross_entropy(logits.flatten(0, 1), every, ignore_index=IGNORE, reduction="none")
        shape = (self.models, *targets.shape)
        return found.view(shape), (logits.detach().argmax(-1).flatten() == every).view(shape)


def sequence_means(losses: Tensor, targets: Tensor) -> Tensor:  # (M, B, T), (B, T) -> (M, B)
    """Return the mean loss of every sequence over its scored targets."""
    return losses.sum(dim=2) / (targets != IGNORE).sum(dim=1)


def clip_each(weights: Weights, most: float) -> None:
    """Scale the gradient of every model to a norm of at most ``most``."""
    squares = torch.stack([w.grad.flatten(1).square().sum(1) for w in weights.values() if w.grad is not None])
    scale = (most / (squares.sum(0).sqrt() + 1e-6)).clamp(max=1.0)
    for weight in weights.values():
        if weight.grad is not None:
            weight.grad.mul_(scale.view(-1, *(1,) * (weight.dim() - 1)))


class Optimizer:
    """The recipe's optimizer of stacked weights: Muon for the layers' matrices, AdamW for others."""

    MOMENTUM, COEFFICIENTS, ROUNDS, EPS = 0.95, (3.4445, -4.7750, 2.0315), 5, 1e-7
    """As `torch.optim.Muon` has them."""

    def __init__(self, model: BatchedDecoder, training: Any) -> None:
        self.training = training
        muon = training.optimizer == "muon"
        inner = {n for n, dims in model.dims.items() if muon and dims >= 2 and n.startswith("layers.")}
        outer = [w for n, w in model.weights.items() if model.dims[n] >= 2 and n not in inner]
        vectors = [w for n, w in model.weights.items() if model.dims[n] < 2]
        self.adamw = torch.optim.AdamW(
            [{"params": outer, "weight_decay": training.weight_decay}, {"params": vectors, "weight_decay": 0.0}],
            lr=training.learning_rate,
            betas=training.betas,
            fused=True,
        )
        shapes: dict[torch.Size, list[Tensor]] = {}
        for name in sorted(inner):
            shapes.setdefault(model.weights[name].shape, []).append(model.weights[name])
        self.groups = [(members, [torch.zeros_like(w) for w in members]) for members in shapes.values()]

    @torch.no_grad()
    def step(self, number: int) -> None:
        """Take one step, counted from 0."""
        factor = learning_rate_factor(number, self.training)
        for group in self.adamw.param_groups:
            group["lr"] = self.training.learning_rate * factor
        self.adamw.step()
        rate = self.training.muon_learning_rate * factor
        for members, momenta in self.groups:
            grads = [w.grad for w in members if w.grad is not None]
            torch._foreach_lerp_(momenta, grads, 1 - self.MOMENTUM)
            updates = torch._foreach_lerp(grads, momenta, self.MOMENTUM)
            directions = self._orthogonal(torch.cat(list(updates))).chunk(len(members))
            rows, columns = members[0].shape[1:]
            torch._foreach_mul_(members, 1 - rate * self.training.weight_decay)
            torch._foreach_add_(members, list(directions), alpha=-rate * math.sqrt(max(1, rows / columns)))

    def zero_grad(self) -> None:
        """Drop the gradients."""
        self.adamw.zero_grad(set_to_none=True)
        for members, _ in self.groups:
            for weight in members:
                weight.grad = None

    def _orthogonal(self, x: Tensor) -> Tensor:
        """Move the singular values of matrices (K, rows, columns) near 1 by Newton-Schulz iterations in bf16."""
        a, b, c = self.COEFFICIENTS
        kind, tall = x.dtype, x.shape[1] > x.shape[2]
        x = x.bfloat16()
        x = x.mT if tall else x
        x = x / torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True).clamp(min=self.EPS)
        for _ in range(self.ROUNDS):
            gram = x @ x.mT
            x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
        return (x.mT if tall else x).to(kind)


@torch.no_grad()
def validate(model: BatchedDecoder, batch: Batch, rows: int, groups: dict[str, Any]) -> dict[str, list[float]]:
    """Return every model's validation loss, the loss of each group of tokens, and the share of predicted targets."""
    losses, right = [], []
    for start in range(0, len(batch.tokens), rows):
        pieces = (
            torch.from_numpy(part[start : start + rows]).to(model.device) for part in (batch.tokens, batch.targets)
        )
        found, predicted = model.losses(*pieces)
        losses.append(found)
        right.append(predicted)
    loss, hit = torch.cat(losses, dim=1), torch.cat(right, dim=1)
    targets = torch.from_numpy(batch.targets).to(model.device)
    out = {"loss": sequence_means(loss, targets).mean(dim=1)}
    for name, part in groups.items():
        scored = torch.from_numpy(part.copy()).to(model.device) & (targets != IGNORE)
        out[name] = loss[:, scored].mean(dim=1)
        out[f"{name}_right"] = hit[:, scored].float().mean(dim=1)
    return {name: [round(value, 6) for value in values.tolist()] for name, values in out.items()}


def train(
    recipe: Recipe,
    source: Source,
    schedules: Sequence[Schedule],
    *,
    seed: int,
    checkpoints: Sequence[int],
    device: str = "cpu",
    compiled: bool = False,
    left: Callable[[], float] = lambda: math.inf,
) -> Iterator[tuple[int, dict[str, list[float]]]]:
    """Train all schedules from one seed; yield the step and the measurements at every checkpoint.

    It ends early, without the last checkpoint, as soon as the steps that remain do not fit in ``left()`` seconds.
    """
    training = recipe.training
    model = BatchedDecoder(recipe, source.vocab_size, schedules, seed, device, compiled)
    optimizer = Optimizer(model, training)
    held = source.validation(training.val_sequences)
    groups = dict(source.groups(held))
    mark, marked = time.perf_counter(), 0
    for step in range(training.steps):
        batch = source.train(seed=seed, step=step, batch_size=training.batch_size)
        tokens, targets = (torch.from_numpy(part).to(model.device) for part in (batch.tokens, batch.targets))
        losses, _ = model.losses(tokens, targets)
        sequence_means(losses, targets).mean(dim=1).sum().backward()
        clip_each(model.weights, training.grad_clip)
        optimizer.step(step)
        optimizer.zero_grad()
        if step + 1 in checkpoints:
            yield step + 1, validate(model, held, training.batch_size, groups)
        if step == 4:  # the first steps also compile and choose kernels
            losses.sum().item()
            mark, marked = time.perf_counter(), step
        elif step > 4 and step % 10 == 0:
            losses.sum().item()
            each = (time.perf_counter() - mark) / (step - marked)
            if each * (training.steps - step) > left():
                return
