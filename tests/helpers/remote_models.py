"""Models and texts for the tests of folders with a modeling file."""

from __future__ import annotations

from typing import Any

import torch

VOCAB = 61


def strong(model: torch.nn.Module) -> Any:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.2 + (parameter.ndim == 1))
    return model.eval()


def text(batch: int, tokens: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(VOCAB, (batch, tokens), generator=torch.Generator().manual_seed(seed))
