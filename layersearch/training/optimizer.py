"""The optimizer of a trial: AdamW, or Muon for the layers' matrices with AdamW for other parameters."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from layersearch.config.training import TrainingConfig


def make_optimizer(model: nn.Module, training: TrainingConfig) -> torch.optim.Optimizer:
    """Return the recipe's optimizer over all trainable parameters of a model."""
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    # A parameter that ZeRO-3 sharded already is flat; DeepSpeed keeps its shape.
    dims = {name: len(getattr(p, "ds_shape", p.shape)) for name, p in named}
    vectors = {"params": [p for name, p in named if dims[name] < 2], "weight_decay": 0.0}
    if training.optimizer == "adamw":
        matrices = {"params": [p for name, p in named if dims[name] >= 2], "weight_decay": training.weight_decay}
        return torch.optim.AdamW([matrices, vectors], lr=training.learning_rate, betas=training.betas, fused=True)
    stacks = ("layers.", "decoder_layers.")
    inner = [p for name, p in named if p.dim() >= 2 and name.startswith(stacks)]
    outer = [p for name, p in named if p.dim() >= 2 and not name.startswith(stacks)]
    embeddings = {"params": outer, "weight_decay": training.weight_decay}
    return MuonAndAdamW(
        GroupedMuon(inner, lr=training.muon_learning_rate, weight_decay=training.weight_decay),
        torch.optim.AdamW([embeddings, vectors], lr=training.learning_rate, betas=training.betas, fused=True),
    )


MAX_BATCHED = 2**16 - 1  # Maximum elements of a matrix for which batched products are faster on a CPU


class GroupedMuon(torch.optim.Muon):
    """Torch's Muon, to the bit, but small matrices of one shape are orthogonalized in one batch.

    In a small decoder, calls cost more than products: at width 64, the batch of 42 matrices of six layers takes a
    quarter of the time. Larger matrices use torch's code.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Take one step."""
        assert closure is None
        for group in self.param_groups:
            shapes: dict[torch.Size, list[nn.Parameter]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None and parameter.numel() <= MAX_BATCHED:
                    shapes.setdefault(parameter.shape, []).append(parameter)
            gradients = {p: p.grad for members in shapes.values() for p in members}
            for members in shapes.values():
                self._step_together(group, members)
            for parameter in gradients:
                parameter.grad = None  # torch's step skips it
            super().step()  # type: ignore[no-untyped-call]
            for parameter, gradient in gradients.items():
                parameter.grad = gradient

    def _step_together(self, group: dict[str, Any], members: list[nn.Parameter]) -> None:
        grads: list[Tensor] = [p.grad for p in members if p.grad is not None]
        for parameter in members:
            if not self.state[parameter]:
                self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        momenta = [self.state[parameter]["momentum_buffer"] for parameter in members]
        torch._foreach_lerp_(momenta, grads, 1 - group["momentum"])
        updates = torch._foreach_lerp(grads, momenta, group["momentum"]) if group["nesterov"] else momenta
        directions = _orthogonal(torch.stack(list(updates)), group["ns_coefficients"], group["ns_steps"], group["eps"])
        rows, columns = members[0].shape
        weights: list[Tensor] = list(members)
        torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
        for weight, direction in zip(weights, directions, strict=True):
            weight.add_(direction, alpha=-group["lr"] * math.sqrt(max(1, rows / columns)))


def _orthogonal(x: Tensor, coefficients: tuple[float, float, float], steps: int, eps: float) -> Tensor:
    """Move the singular values of matrices (M, rows, columns) near 1 by Newton-Schulz iterations in bf16."""
    a, b, c = coefficients
    tall = x.shape[1] > x.shape[2]
    x = x.bfloat16()
    x = x.mT if tall else x
    x = x / torch.stack([matrix.norm() for matrix in x]).clamp(min=eps)[:, None, None]
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


class MuonAndAdamW(torch.optim.Optimizer):
    """Muon (K. Jordan and others, "Muon: An optimizer for hidden layers in neural networks", 2024) beside AdamW.

    DeepSpeed and the learning-rate schedule see one optimizer. Each parameter group is stepped by its own.
    """

    def __init__(self, muon: torch.optim.Muon, adamw: torch.optim.AdamW) -> None:
        count = len(muon.param_groups)
        super().__init__([*muon.param_groups, *adamw.param_groups], {})
        self._parts = (muon, adamw)
        muon.param_groups, adamw.param_groups = self.param_groups[:count], self.param_groups[count:]
        muon.state = adamw.state = self.state

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Tensor | None:  # type: ignore[override]
        """Take one step of both."""
        assert closure is None
        for part in self._parts:
            part.step()  # type: ignore[no-untyped-call]
        return None
