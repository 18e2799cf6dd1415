"""The optimizer: what Muon takes, what AdamW takes, and that together they are themselves."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

from layersearch.config.model import ModelConfig
from layersearch.config.training import TrainingConfig
from layersearch.model.decoder import Decoder
from layersearch.schedule import Schedule
from layersearch.training.optimizer import GroupedMuon, MuonAndAdamW, make_optimizer

TRAINING = TrainingConfig(
    seq_len=8, batch_size=2, steps=10, learning_rate=0.01, optimizer="muon", muon_learning_rate=0.05, weight_decay=0.3
)
MODEL = ModelConfig(n_layers=2, d_model=8, n_heads=2, n_kv_heads=1, d_ff=12, qk_norm=True, tie_embeddings=False)


def decoder() -> Decoder:
    torch.manual_seed(0)
    return Decoder(MODEL, 11, Schedule.parse("window:3 full"))


def loss(model: Decoder) -> torch.Tensor:
    tokens = torch.arange(16).view(2, 8) % 11
    return model(tokens, (tokens * 3 + 1) % 11)


def test_make_optimizer_muon_takes_layer_matrices_and_adamw_the_rest() -> None:
    model = decoder()
    optimizer = make_optimizer(model, TRAINING)
    names = {parameter: name for name, parameter in model.named_parameters()}
    muon, outer, vectors = ({names[p] for p in group["params"]} for group in optimizer.param_groups)
    assert muon == {n for p, n in names.items() if n.startswith("layers.") and p.dim() == 2}
    assert outer == {"embed_tokens.weight", "lm_head.weight"}
    assert all("norm" in name for name in vectors)
    assert len(muon) + len(outer) + len(vectors) == len(names)
    assert [group["lr"] for group in optimizer.param_groups] == [0.05, 0.01, 0.01]
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.3, 0.3, 0.0]


def test_muon_and_adamw_together_step_as_each_alone() -> None:
    """Torch's Muon and AdamW, each on a copy of the model with its own parameters, give the same weights."""
    together, apart = decoder(), decoder()
    joint = make_optimizer(together, TRAINING)
    assert isinstance(joint, MuonAndAdamW)
    inner = [p for n, p in apart.named_parameters() if n.startswith("layers.") and p.dim() == 2]
    outer = [p for n, p in apart.named_parameters() if not n.startswith("layers.") and p.dim() == 2]
    vectors = [p for p in apart.parameters() if p.dim() == 1]
    alone = [
        torch.optim.Muon(inner, lr=0.05, weight_decay=0.3),
        torch.optim.AdamW(outer, lr=0.01, betas=TRAINING.betas, weight_decay=0.3, fused=True),
        torch.optim.AdamW(vectors, lr=0.01, betas=TRAINING.betas, weight_decay=0.0, fused=True),
    ]
    before = copy.deepcopy(together.state_dict())
    for _ in range(3):
        for model, optimizers in ((together, [joint]), (apart, alone)):
            loss(model).backward()
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
    for name, weight in together.state_dict().items():
        torch.testing.assert_close(weight, apart.state_dict()[name], rtol=0, atol=0)
        assert not torch.equal(weight, before[name]), name


def test_grouped_muon_matrices_of_one_shape_equal_torch_muon_bit_for_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wide, tall and square ones, in groups, alone, without a gradient, and too large to be worth it."""
    monkeypatch.setattr("layersearch.training.optimizer.MAX_BATCHED", 150)
    torch.manual_seed(0)
    shapes = [(8, 8), (12, 8), (8, 12), (8, 8), (12, 8), (7, 5), (16, 16), (8, 8)]
    ours = [torch.nn.Parameter(torch.randn(shape)) for shape in shapes]
    torchs = [torch.nn.Parameter(p.detach().clone()) for p in ours]
    mine = GroupedMuon(ours, lr=0.03, weight_decay=0.2)
    theirs = torch.optim.Muon(torchs, lr=0.03, weight_decay=0.2)
    for step in range(4):
        for number, (p, q) in enumerate(zip(ours, torchs, strict=True)):
            p.grad = None if number == 7 and step % 2 else torch.randn_like(p)
            q.grad = None if p.grad is None else p.grad.clone()
        mine.step()
        theirs.step()
        assert [p.grad is None for p in ours] == [q.grad is None for q in torchs]
    for p, q in zip(ours, torchs, strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=0)
        torch.testing.assert_close(mine.state[p]["momentum_buffer"], theirs.state[q]["momentum_buffer"], rtol=0, atol=0)


def test_muon_and_adamw_learning_rate_schedule_reaches_both() -> None:
    model = decoder()
    optimizer = make_optimizer(model, TRAINING)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.0 if step else 1.0)
    loss(model).backward()
    optimizer.step()
    schedule.step()
    before = copy.deepcopy(model.state_dict())
    loss(model).backward()
    optimizer.step()
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, before[name]), name


def test_make_optimizer_adamw_takes_everything() -> None:
    model = decoder()
    optimizer = make_optimizer(model, replace(TRAINING, optimizer="adamw"))
    assert isinstance(optimizer, torch.optim.AdamW)
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(model.parameters()))


@pytest.mark.parametrize("scored", [(8, 2), (1, 8)])
def test_loss_sequences_with_few_scored_tokens_weigh_alike(scored: tuple[int, int]) -> None:
    model = decoder()
    tokens = torch.arange(16).view(2, 8) % 11
    targets = torch.full((2, 8), -100)
    for row, count in enumerate(scored):
        targets[row, :count] = torch.arange(count) % 11
    each = [model(tokens[row : row + 1], targets[row : row + 1]) for row in range(2)]
    torch.testing.assert_close(model(tokens, targets), torch.stack(each).mean())
