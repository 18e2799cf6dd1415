"""An encoder's own modeling file: its masks, logits, padding and loss are those of the encoder that was trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForMaskedLM

from layersearch.cli.main import main
from layersearch.config.model import ModelConfig
from layersearch.errors import ExportError
from layersearch.export.encoders.remote import save_encoder
from layersearch.export.verify import EncoderProof, verify
from layersearch.model.decoder import Decoder
from layersearch.schedule import Schedule

torch.set_num_threads(1)
VOCAB = 61
SCHEDULES = [
    "full window:5+global:first:2 block:8~3",
    "window:4+las:0.2/3 full+las:0.1 block:7+las:0.0/5",
    "window:3+global:first:9+las:0.3",
    "bigbird:4/2/7 full bigbird:3/0",
    "window:3+summary:7 block:6~2+global:first:2+summary:5",
    "window:3+global:mask:3 block:8+global:mask:3+summary:6 full",
]


def saved(text: str, out: Path, seq_len: int = 40, **given: Any) -> tuple[Decoder, Path]:
    schedule = Schedule.parse(text)
    sizes: dict[str, Any] = {"d_model": 32, "n_heads": 4, "n_kv_heads": 2, "d_ff": 48, "kind": "encoder"} | given
    model = ModelConfig(n_layers=len(schedule), **sizes)
    torch.manual_seed(0)
    encoder = Decoder(model, VOCAB, schedule).eval()
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    save_encoder(encoder.state_dict(), schedule, model, vocab_size=VOCAB, seq_len=seq_len, out=out)
    return encoder, out


def loaded(folder: Path) -> Any:
    return AutoModelForMaskedLM.from_pretrained(folder, trust_remote_code=True).eval()


@pytest.mark.parametrize("text", SCHEDULES)
def test_masks_and_logits_are_those_of_the_trained_encoder(text: str, tmp_path: Path) -> None:
    _, folder = saved(text, tmp_path / "out", qk_norm="block" not in text, tie_embeddings="full" in text)
    proof = verify(folder, trust_remote_code=True)
    assert isinstance(proof, EncoderProof)
    assert proof.proven, proof.problem
    assert proof.weights == "the folder's own"
    assert all(layer.by_head for layer in proof.layers)
    assert proof.asked.error < 1e-5 < 1e-2 < proof.next_nearest.error


def test_another_schedule_is_not_proven_and_the_one_that_ran_is_named(tmp_path: Path) -> None:
    _, folder = saved("full window:5", tmp_path / "out")
    proof = verify(folder, trust_remote_code=True, schedule=Schedule.parse("full window:6"))
    assert [layer.proven for layer in proof.layers] == [True, False]
    assert "ran one key less on each side ('full window:5')" in str(proof.problem)
    with pytest.raises(ExportError, match="auto_map names code in the folder, which does not run without consent"):
        verify(folder)
    with pytest.raises(ExportError, match="--attention has no meaning for code of the folder's own; drop it"):
        verify(folder, trust_remote_code=True, attention="eager")


@pytest.mark.parametrize(
    "text",
    [
        "window:20+global:first:3 block:90~7",
        "full+las:0.05/3 window:300+las:0.1",
        "bigbird:32/2 bigbird:20/0",
        "window:30+global:mask:3+summary:50 block:90~7+summary:40",
    ],
)
def test_long_texts_in_chunks_and_padding_on_either_side_change_nothing(text: str, tmp_path: Path) -> None:
    encoder, folder = saved(text, tmp_path / "out", seq_len=700)
    model, tokens, pads = loaded(folder), 600, 37
    ids = torch.randint(VOCAB, (1, tokens), generator=torch.Generator().manual_seed(1))
    fill = torch.zeros(1, pads, dtype=torch.long)
    mask = torch.ones(1, tokens + pads, dtype=torch.long)
    marks = torch.zeros(1, tokens, dtype=torch.long).index_fill(1, torch.tensor([1, 300, 599]), 1)
    marked = "mask" in text

    def given(*parts: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"global_attention_mask": torch.cat(parts, 1)} if marked else {}

    with torch.no_grad():
        wanted = encoder.lm_head(encoder.norm(encoder.stream(ids, marks.bool() if marked else None)))
        assert torch.allclose(model(ids, **given(marks)).logits, wanted, atol=1e-4)
        after = mask.index_fill(1, torch.arange(tokens, tokens + pads), 0)
        right = model(torch.cat((ids, fill), 1), attention_mask=after, **given(marks, fill))
        before = mask.index_fill(1, torch.arange(pads), 0)
        left = model(torch.cat((fill, ids), 1), attention_mask=before, **given(fill, marks))
        assert torch.allclose(right.logits[:, :tokens], wanted, atol=1e-4)
        assert torch.allclose(left.logits[:, pads:], wanted, atol=1e-4)
        with pytest.raises(ValueError, match="padding inside a text"):
            model(ids, attention_mask=torch.ones_like(ids).index_fill(1, torch.tensor([5]), 0))


@torch.no_grad()
def test_texts_of_two_lengths_in_one_batch_have_their_own_last_block_summaries_and_marks(tmp_path: Path) -> None:
    encoder, folder = saved("bigbird:4/2 window:3+global:mask:2+summary:6", tmp_path / "out")
    model = loaded(folder)
    ids = torch.randint(VOCAB, (2, 40), generator=torch.Generator().manual_seed(1))
    mask, marks = torch.ones_like(ids), torch.zeros_like(ids)
    mask[1, 27:] = 0
    marks[0, [3, 39]] = marks[1, [0, 26]] = 1
    found = model(ids, attention_mask=mask, global_attention_mask=marks).logits
    for row, tokens in ((0, 40), (1, 27)):
        own = encoder.stream(ids[row : row + 1, :tokens], marks[row : row + 1, :tokens].bool())
        assert torch.allclose(found[row : row + 1, :tokens], encoder.lm_head(encoder.norm(own)), atol=1e-4)


def test_wrong_marks_are_refused(tmp_path: Path) -> None:
    model = loaded(saved("window:3+global:mask:2 full", tmp_path / "out")[1])
    ids = torch.zeros(1, 40, dtype=torch.long)
    mask = torch.ones_like(ids).index_fill(1, torch.tensor([38, 39]), 0)
    for marks, message in (
        ([1, 1] + [0] * 37, r"global_attention_mask \(1, 39\): give one mark a token, \(1, 40\)"),
        ([1] * 3 + [0] * 37, r"marks \[3\] tokens of a text, spans \[2\]"),
        ([1] + [0] * 38 + [1], "marks padding; mark tokens of the text"),
    ):
        with pytest.raises(ValueError, match=message):
            model(ids, attention_mask=mask, global_attention_mask=torch.tensor([marks]))
    plain = loaded(saved("window:3 full", tmp_path / "plain")[1])
    with pytest.raises(ValueError, match="no layer has marked tokens; leave it out"):
        plain(ids, global_attention_mask=torch.zeros_like(ids))


def test_loss_scores_each_label_in_its_place(tmp_path: Path) -> None:
    encoder, folder = saved("window:3 full", tmp_path / "out")
    model = loaded(folder)
    ids = torch.randint(VOCAB, (2, 40), generator=torch.Generator().manual_seed(1))
    labels = torch.where(torch.arange(40) % 7 == 0, ids, -100)
    with torch.no_grad():
        wanted = F.cross_entropy(encoder.logits(ids).flatten(0, 1), labels.flatten(), ignore_index=-100)
        assert torch.allclose(model(ids, labels=labels).loss, wanted, atol=1e-5)


def test_command_line_writes_and_proves_a_recipes_encoder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "out")
    schedule = "window:4+global:first:1 block:12~6"
    assert main(["export", schedule, "--to", "hf-remote", "--recipe", "smoke-encoder", "--out", out]) == 0
    assert main(["verify-export", out, "--trust-remote-code"]) == 0
    assert "PROVEN: every layer does what the schedule says" in capsys.readouterr().out
