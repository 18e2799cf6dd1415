"""The optimiser of a trial: AdamW, or Muon for the layers' matrices and AdamW for what is not one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from layersearch.recipe import TrainingConfig


def make_optimizer(model: nn.Module, training: TrainingConfig) -> torch.optim.Optimizer:
    """Return the optimiser that the recipe names, over all parameters of a decoder."""
    named = list(model.named_parameters())
    vectors = {"params": [p for _, p in named if p.dim() < 2], "weight_decay": 0.0}
    if training.optimizer == "adamw":
        matrices = {"params": [p for _, p in named if p.dim() >= 2], "weight_decay": training.weight_decay}
        return torch.optim.AdamW([matrices, vectors], lr=training.learning_rate, betas=training.betas, fused=True)
    inner = [p for name, p in named if p.dim() >= 2 and name.startswith("layers.")]
    outer = [p for name, p in named if p.dim() >= 2 and not name.startswith("layers.")]
    embeddings = {"params": outer, "weight_decay": training.weight_decay}
    return MuonAndAdamW(
        torch.optim.Muon(inner, lr=training.muon_learning_rate, weight_decay=training.weight_decay),
        torch.optim.AdamW([embeddings, vectors], lr=training.learning_rate, betas=training.betas, fused=True),
    )


class MuonAndAdamW(torch.optim.Optimizer):
    """Muon (K. Jordan and others, "Muon: An optimizer for hidden layers in neural networks", 2024) beside AdamW.

    One optimiser to DeepSpeed and to the learning-rate schedule; each group is stepped by the one it came from.
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
