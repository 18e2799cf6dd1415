"""Run a pre-trained decoder from any layer on, within a stated bound of memory.

Shapes: T tokens, d hidden width, V vocabulary, L layers. One sequence runs at a time.

A schedule that differs from another in layers k and above has the same activations below k. `Layerwise.trace` keeps the
inputs of layers, (T, d) each, and `Layerwise.run` starts at the highest kept layer at or below k. Logits are made for
a few positions at a time and are never kept: T x V numbers are the largest object of a plain forward pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from layersearch.errors import LayersearchError
from layersearch.model.hf_decoder import HFDecoder, token_kl
from layersearch.schedule import Schedule

PIECE = 128
"""Positions whose logits are in memory at once."""


@dataclass(frozen=True)
class Trace:
    """Activations of one sequence under one schedule."""

    schedule: Schedule
    inputs: Mapping[int, Tensor]
    """Input of each kept layer, (T, d)."""
    last: Tensor
    """(T, d): the output of the final norm, from which the head makes logits."""

    @property
    def nbytes(self) -> int:
        """Memory of the kept activations, bytes."""
        return sum(kept.nbytes for kept in (*self.inputs.values(), self.last))


class Layerwise:
    """A decoder that can be run from any layer on.

    Args:
        decoder: the model, on the device where it runs; its weights are frozen here. Tokens and targets may be on
            another device.
        stride: every stride-th layer's input is kept in a trace.

    Raises:
        LayersearchError: if its layers do not stand in one list of blocks.
    """

    def __init__(self, decoder: HFDecoder, stride: int = 1) -> None:
        self.decoder = decoder.requires_grad_(False).eval()
        self.n_layers, self.stride = len(decoder.attention), stride
        model: Any = decoder.model
        self._body, self._head = model.get_decoder(), model.get_output_embeddings()
        self.blocks = _blocks(self._body, decoder.attention)
        text = getattr(model.config, "text_config", model.config)
        self.device = next(decoder.parameters()).device
        self._softcap = getattr(text, "final_logit_softcapping", None)
        self._scale = getattr(text, "logit_scale", None) or 1.0 / (getattr(text, "logits_scaling", None) or 1.0)
        self.tokens_spent = 0.0
        """Tokens run through the whole depth so far: layers run / L x T, a gradient with all its passes."""

    @torch.no_grad()
    def run(self, tokens: Tensor, schedule: Schedule, start: Trace | None = None, *, keep: bool = False) -> Trace:
        """Run one sequence under a schedule.

        Args:
            tokens: (T,) token ids.
            schedule: one span per layer.
            start: activations of the same tokens under another schedule; layers below the first that differs do not
                run again.
            keep: keep the inputs of every stride-th layer in the result, so that it can be a ``start``.

        Returns:
            The last hidden states, with the kept inputs.
        """
        first = 0
        if start is not None:
            pairs = zip(schedule, start.schedule, strict=True)
            differs = next((layer for layer, (span, other) in enumerate(pairs) if span != other), None)
            if differs is None and (start.inputs or not keep):
                return start
            first = max((layer for layer in start.inputs if layer <= (differs or 0)), default=0)
        kept: dict[int, Tensor] = {}
        self.decoder.set_schedule(schedule)
        with ExitStack() as stack:
            if start is not None and first:
                kept = {layer: value for layer, value in start.inputs.items() if layer < first}
                stack.enter_context(_skipped(self.blocks[:first], start.inputs[first][None]))
            if keep:
                stack.enter_context(self._recorded(range(first, self.n_layers), kept))
            last = self._body(input_ids=tokens[None].to(self.device), use_cache=False).last_hidden_state[0]
        self.tokens_spent += len(tokens) * (self.n_layers - first) / self.n_layers
        return Trace(schedule, kept if keep else {}, last)

    def hidden(self, tokens: Tensor) -> Tensor:
        """Return the last hidden states (T, d) under the present schedule, with a graph for gradients.

        It counts as three passes: forward, forward again in the backward pass, and the gradient of the activations.
        """
        self.tokens_spent += 3 * len(tokens)
        return self._body(input_ids=tokens[None].to(self.device), use_cache=False).last_hidden_state[0]

    @contextmanager
    def _recorded(self, layers: Sequence[int], kept: dict[int, Tensor]) -> Iterator[None]:
        def hook(layer: int) -> Any:
            return self.blocks[layer].register_forward_pre_hook(
                lambda _, given: kept.__setitem__(layer, given[0][0].detach().clone())
            )

        hooks = [hook(layer) for layer in layers if layer % self.stride == 0]
        try:
            yield
        finally:
            for one in hooks:
                one.remove()

    def logits(self, hidden: Tensor) -> Tensor:
        """Return the scores of the next token, (n, d) -> (n, V) in float32."""
        found = self._head(hidden).float() * self._scale
        return found if self._softcap is None else torch.tanh(found / self._softcap) * self._softcap

    @torch.no_grad()
    def losses(self, hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return the cross-entropy of targets in nats and whether each was predicted, (n, d), (n,) -> (n,), (n,)."""
        losses, right = [], []
        targets = targets.to(self.device)
        for states, wanted in zip(torch.split(hidden, PIECE), torch.split(targets, PIECE), strict=True):
            logits = self.logits(states)
            losses.append(F.cross_entropy(logits, wanted, reduction="none"))
            right.append(logits.argmax(-1) == wanted)
        return torch.cat(losses), torch.cat(right)

    def mean_loss(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """Return the mean cross-entropy of targets in nats, with a graph that keeps no logits, (n, d), (n,) -> ()."""

        def summed(states: Tensor, wanted: Tensor) -> Tensor:
            return F.cross_entropy(self.logits(states), wanted, reduction="sum")

        pieces = zip(torch.split(hidden, PIECE), torch.split(targets.to(self.device), PIECE), strict=True)
        sums: list[Tensor] = [checkpoint(summed, *piece, use_reentrant=False) for piece in pieces]
        return torch.stack(sums).sum() / len(targets)

    @torch.no_grad()
    def divergence(self, original: Tensor, hidden: Tensor) -> Tensor:
        """Return KL(original || other) of the next-token distributions in nats, (n, d), (n, d) -> (n,)."""
        pieces = zip(torch.split(original, PIECE), torch.split(hidden, PIECE), strict=True)
        return torch.cat([token_kl(self.logits(wanted), self.logits(states)) for wanted, states in pieces])


def _blocks(body: Any, attention: Sequence[nn.Module]) -> list[Any]:
    """Return the decoder's blocks, each of which holds one attention layer."""
    for module in body.modules():
        if isinstance(module, nn.ModuleList) and len(module) == len(attention):
            pairs = zip(module, attention, strict=True)
            if all(any(inner is layer for inner in block.modules()) for block, layer in pairs):
                return list(module)
    raise LayersearchError(f"{type(body).__name__}: its layers do not stand in one list of blocks; give another model")


@contextmanager
def _skipped(blocks: Sequence[Any], output: Tensor) -> Iterator[None]:
    """Let blocks hand on ``output`` without any work."""

    def skip(hidden: Tensor, *given: Any, **named: Any) -> Tensor:
        return output

    try:
        for block in blocks:
            block.forward = skip
        yield
    finally:
        for block in blocks:
            del block.forward
