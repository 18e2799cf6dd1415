"""Losses without whole logits against those of whole logits: values, gradients, memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from layersearch.data.source import IGNORE
from layersearch.model import head_loss
from layersearch.model.hf_decoder import HFDecoder
from layersearch.training.memory import LiveBytes
from tests.helpers.hf_models import FAMILIES, FURTHER, VOCAB, make

TOKENS = 24


def texts() -> tuple[Tensor, Tensor]:
    """Return tokens and targets, some of which are not scored."""
    tokens, targets = torch.randint(VOCAB, (2, 2, TOKENS), generator=torch.Generator().manual_seed(0))
    targets[0, :5] = IGNORE
    return tokens, targets


def both(monkeypatch: pytest.MonkeyPatch, family: str, *, distil: float, **changes: Any) -> list[dict[str, Tensor]]:
    """Return loss, losses by token and gradients in pieces of 5 positions, then whole."""
    monkeypatch.setattr(head_loss, "PIECE_NUMBERS", 5 * VOCAB)
    found = []
    for in_pieces in (True, False):
        decoder = HFDecoder(make(family, **changes))
        decoder.in_pieces &= in_pieces
        if distil:
            teacher = HFDecoder(make(family, seed=1, **changes))
            teacher.in_pieces &= in_pieces
            decoder.distil_from(teacher, distil)
        loss = decoder(*texts())
        loss.backward()
        losses, right = decoder(*texts(), reduce=False)
        gradients = {name: value.grad for name, value in decoder.named_parameters() if value.grad is not None}
        found.append({"loss": loss.detach(), "losses": losses.detach(), "right": right.double(), **gradients})
    return found


@pytest.mark.slow
@pytest.mark.parametrize("distil", [0.0, 0.3])
@pytest.mark.parametrize("family", [*FAMILIES, *FURTHER])
def test_hf_decoder_losses_in_pieces_equal_those_of_whole_logits(
    family: str, distil: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    pieces, whole = both(monkeypatch, family, distil=distil)
    assert pieces.keys() == whole.keys()
    assert pieces["loss"].item() == pytest.approx(whole["loss"].item(), rel=1e-6)
    for name, wanted in whole.items():
        assert (pieces[name] - wanted).abs().max() <= 1e-5 * wanted.abs().max(), name


@pytest.mark.parametrize("tied", [True, False])
def test_hf_decoder_losses_in_pieces_serve_tied_weights_under_autocast(
    tied: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        pieces, whole = both(monkeypatch, "llama", distil=0.5, tie_word_embeddings=tied)
    assert pieces["loss"].item() == pytest.approx(whole["loss"].item(), rel=1e-3)
    for name in pieces:
        # bfloat16 keeps 8 bits.
        assert (pieces[name] - whole[name]).norm() <= 2e-2 * whole[name].norm(), name


def test_hf_decoder_changed_logits_are_made_whole() -> None:
    """Families that softcap their logits after the head are seen."""
    assert HFDecoder(make("llama")).in_pieces
    assert not HFDecoder(make("gemma2")).in_pieces


def test_hf_decoder_frozen_head_gets_no_gradient() -> None:
    decoder = HFDecoder(make("llama", tie_word_embeddings=False))
    decoder.model.get_output_embeddings().requires_grad_(False)
    decoder(*texts()).backward()
    assert decoder.model.get_output_embeddings().weight.grad is None
    assert all(value.grad is not None for value in decoder.parameters() if value.requires_grad)


@pytest.mark.parametrize("distil", [0.0, 0.5])
def test_hf_decoder_losses_in_pieces_never_hold_whole_logits(distil: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """From a text to a longer one, a step's peak grows by less than half of the longer one's added logits."""
    vocab, peaks = 4096, []
    monkeypatch.setattr(head_loss, "PIECE_NUMBERS", 64 * vocab)
    for tokens in (256, 512):
        changes = {"vocab_size": vocab, "max_position_embeddings": 512, "num_hidden_layers": 1}
        decoder = HFDecoder(make("llama", **changes))
        if distil:
            decoder.distil_from(HFDecoder(make("llama", **changes)), distil)
        given = torch.randint(vocab, (1, tokens))
        with LiveBytes([*decoder.parameters(), given]) as memory:
            decoder(given, given).backward()
        peaks.append(memory.peak)
    assert peaks[1] - peaks[0] < 4 * 256 * vocab / 2
