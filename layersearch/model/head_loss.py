"""Losses of a language model whose logits are made for a few positions at a time and never kept.

Shapes: N positions, d hidden width, V vocabulary. The whole logits of a text, N x V in float32, and their copies for
softmax, divergence and gradient would be the largest objects of a training step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from layersearch.data.source import IGNORE

PIECE_NUMBERS = 1 << 24
"""Logits in memory at once: 64 MiB in float32."""

PieceLoss = Callable[[Tensor, slice], Tensor]
"""(logits in float32, (n, V), their positions) -> losses in nats, (n,)."""


def pieces(count: int, vocab_size: int) -> Iterator[slice]:
    """Yield positions 0..count-1 in pieces of at most `PIECE_NUMBERS` logits."""
    rows = max(1, PIECE_NUMBERS // vocab_size)
    for start in range(0, count, rows):
        yield slice(start, min(start + rows, count))


def run_watched(model: Any, run: Callable[[], Tensor]) -> tuple[Tensor, bool]:
    """Return the model's logits, and whether they are what its output layer gives, a plain linear layer, unchanged.

    ``run`` runs the model and returns its logits. Softcapped and scaled logits are changed.
    """
    head, seen = model.get_output_embeddings(), list[Tensor]()
    if type(head) is not nn.Linear:
        return run(), False
    hook = head.register_forward_hook(lambda module, given, out: seen.append(out))
    try:
        logits = run()
    finally:
        hook.remove()
    return logits, len(seen) == 1 and seen[0] is logits


@contextmanager
def head_returns(head: nn.Linear, forward: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Let the output layer return something else than logits. Its hooks run as ever; ZeRO-3 gathers weights there."""
    head.forward = forward  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        del head.forward


def mean_loss(head: nn.Linear, hidden: Tensor, loss: PieceLoss, weights: Tensor) -> Tensor:
    """Return sum_i weights_i loss_i, (), over the logits of hidden states.

    The gradient is made in the forward pass, piece by piece, so no logits wait for the backward pass and none are made
    twice. The weight's gradient is summed in float32.

    Args:
        head: a linear layer; called below ``head_returns``, so its weights are there.
        hidden: (N, d).
        loss: of one piece.
        weights: (N,), without a gradient.
    """
    result: Tensor = _MeanLoss.apply(  # type: ignore[no-untyped-call]
        hidden, head.weight, head.bias, loss, weights
    )
    return result


class _MeanLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, loss: PieceLoss, weights: Tensor
    ) -> Tensor:
        kind = hidden.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype
        wanted: list[bool] = list(ctx.needs_input_grad[:3])
        # Cast once for all pieces.
        own_weight = weight.detach().to(dtype)
        own_bias = None if bias is None else bias.detach().to(dtype)
        own = (own_weight, own_bias)
        for value, needs in zip(own, wanted[1:], strict=True):
            if value is not None:
                value.requires_grad_(needs)
        sums: list[Tensor | None] = [
            torch.zeros_like(value, dtype=torch.promote_types(value.dtype, torch.float32))
            if value is not None and needs
            else None
            for value, needs in zip((hidden, weight, bias), wanted, strict=True)
        ]
        total = hidden.new_zeros((), dtype=weights.dtype)
        for at in pieces(len(hidden), len(weight)):
            with torch.enable_grad():
                states = hidden[at].detach().requires_grad_(wanted[0])
                logits = F.linear(states.to(dtype), own_weight, own_bias)
                part = (loss(logits.float(), at) * weights[at]).sum()
            total += part.detach()
            if not any(wanted):
                continue
            inputs = [value for value in (states, *own) if value is not None and value.requires_grad]
            found = iter(torch.autograd.grad(part, inputs))
            if sums[0] is not None:
                sums[0][at] = next(found)
            for place in (1, 2):
                if (summed := sums[place]) is not None:
                    summed += next(found)
            del logits, part, found
        ctx.sums = sums
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, ...]:
        found = tuple(None if value is None else value.mul_(scale) for value in ctx.sums)
        del ctx.sums  # the engine owns them now, and keeps no copy
        return (*found, None, None)


@torch.no_grad()
def losses_and_hits(head: nn.Linear, logits: Callable[[Tensor], Tensor], hidden: Tensor, targets: Tensor) -> Tensor:
    """Return each target's cross-entropy in nats, and 1 where it has the largest logit, (N, 2).

    Args:
        head: the output layer.
        logits: its own forward, (n, d) -> (n, V).
        hidden: (N, d).
        targets: (N,); the loss is 0 where it is not scored.
    """
    found = []
    for at in pieces(len(hidden), head.out_features):
        made, wanted = logits(hidden[at]).float(), targets[at]
        losses = F.cross_entropy(made, wanted, ignore_index=IGNORE, reduction="none")
        found.append(torch.stack([losses, (made.argmax(-1) == wanted).to(losses.dtype)], dim=-1))
    return torch.cat(found)
