"""What of a model is trained, and how its low-rank updates begin."""

from __future__ import annotations

from pathlib import Path

import torch

from layersearch.convert.trainable import adapt
from layersearch.model.pretrained import load_pretrained
from tests.helpers import hf_models


def test_lora_updates_are_drawn_under_the_seed_alone(tmp_path: Path) -> None:
    folder = hf_models.save("llama", tmp_path / "llama")

    def drawn(seed: int, before: int) -> list[torch.Tensor]:
        decoder = load_pretrained(str(folder), check=False)
        torch.manual_seed(before)
        adapt(decoder, only_attention=False, lora=2, seed=seed)
        assert torch.equal(torch.rand(3), torch.rand(3, generator=torch.Generator().manual_seed(before)))
        return [value for name, value in decoder.model.named_parameters() if "lora_A" in name]

    first, again, other = drawn(0, before=1), drawn(0, before=2), drawn(5, before=1)
    assert len(first) > 0
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])
