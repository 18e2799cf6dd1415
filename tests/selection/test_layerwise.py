"""A run from any layer on is the plain forward pass, and logits in pieces are the stock model's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor

from layersearch.errors import LayersearchError
from layersearch.model.hf_decoder import HFDecoder
from layersearch.schedule import Schedule
from layersearch.selection import layerwise as module
from layersearch.selection.layerwise import Layerwise
from tests.helpers.hf_models import VOCAB, make
from tests.helpers.selections import LAYERS, SCHEDULES, TOKENS, layerwise, token_ids

torch.set_num_threads(1)
FAMILIES = ("llama", "qwen3", "gpt2", "gpt_neox", "gemma")


def plain(model: Layerwise, tokens: Tensor, schedule: Schedule) -> Tensor:
    """Return the hidden states of the whole decoder, run by transformers alone."""
    model.decoder.set_schedule(schedule)
    with torch.no_grad():
        return model.decoder.model.get_decoder()(input_ids=tokens[None], use_cache=False).last_hidden_state[0]


@pytest.mark.slow
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("family", FAMILIES)
def test_layerwise_run_from_any_trace_equals_the_plain_pass_to_the_bit(family: str, stride: int) -> None:
    model, tokens = layerwise(family, stride=stride), token_ids(0)
    wanted = {schedule: plain(model, tokens, schedule) for schedule in SCHEDULES}
    assert len({tuple(states.flatten().tolist()) for states in wanted.values()}) == len(SCHEDULES)
    for before in SCHEDULES:
        start = model.run(tokens, before, keep=True)
        assert torch.equal(start.last, wanted[before])
        for after in SCHEDULES:
            assert torch.equal(model.run(tokens, after, start).last, wanted[after])
    assert torch.equal(plain(model, tokens, SCHEDULES[1]), wanted[SCHEDULES[1]])


@pytest.mark.slow
@pytest.mark.parametrize("stride", [1, 2])
def test_layerwise_run_kept_from_a_start_gives_the_trace_of_a_fresh_run(stride: int) -> None:
    model, tokens = layerwise(stride=stride), token_ids(1)
    for before in SCHEDULES:
        for kept in (True, False):
            start = model.run(tokens, before, keep=kept)
            for after in SCHEDULES:
                found, fresh = model.run(tokens, after, start, keep=True), model.run(tokens, after, keep=True)
                assert found.schedule == fresh.schedule == after
                assert sorted(found.inputs) == sorted(fresh.inputs) == list(range(0, LAYERS, stride))
                assert all(torch.equal(found.inputs[layer], fresh.inputs[layer]) for layer in fresh.inputs)
                assert torch.equal(found.last, fresh.last)
                assert found.nbytes == fresh.nbytes == (len(fresh.inputs) + 1) * TOKENS * 32 * 4


@pytest.mark.parametrize(("stride", "layers_run"), [(1, (1, 2, 3)), (2, (2, 2, 4))])
def test_layerwise_tokens_spent_counts_the_layers_that_ran(stride: int, layers_run: tuple[int, ...]) -> None:
    model, tokens, base = layerwise(stride=stride), token_ids(2), SCHEDULES[1]
    start = model.run(tokens, base, keep=True)
    assert model.tokens_spent == TOKENS
    for other, ran in zip(SCHEDULES[2:5], layers_run, strict=True):
        before = model.tokens_spent
        model.run(tokens, other, start)
        assert model.tokens_spent - before == TOKENS * ran / LAYERS
    before = model.tokens_spent
    assert model.run(tokens, base, start) is start
    assert model.tokens_spent == before


def test_layerwise_run_that_fails_leaves_the_model_whole() -> None:
    model, tokens = layerwise(), token_ids(3)
    start = model.run(tokens, SCHEDULES[1], keep=True)
    wanted = model.run(tokens, SCHEDULES[2]).last

    def fails(*_: Any) -> None:
        raise RuntimeError("stopped here")

    with (
        model.blocks[3].register_forward_pre_hook(fails),
        pytest.raises(RuntimeError, match="stopped here"),
    ):
        model.run(tokens, SCHEDULES[2], start, keep=True)
    assert all("forward" not in vars(block) and not block._forward_pre_hooks for block in model.blocks)
    assert torch.equal(model.run(tokens, SCHEDULES[2]).last, wanted)


def strong(config: Any) -> Any:
    """Return a model of such a configuration whose weights are strong enough to show."""
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.2 + (parameter.ndim == 1))
    return model.eval()


SIZE = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}
CAPPED = {"attn_logit_softcapping": None, "final_logit_softcapping": 2.0, "layer_types": ["full_attention"] * LAYERS}
STOCK = {
    **{family: (lambda family=family: make(family, num_hidden_layers=LAYERS)) for family in FAMILIES},
    "softcap": lambda: strong(transformers.Gemma2Config(**SIZE, **CAPPED, head_dim=8)),
    "logit_scale": lambda: strong(transformers.CohereConfig(**SIZE, logit_scale=3.0)),
    "logits_scaling": lambda: strong(transformers.GraniteConfig(**SIZE, logits_scaling=0.25)),
}


@pytest.mark.parametrize("name", STOCK)
def test_layerwise_losses_in_pieces_equal_those_of_the_stock_logits(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PIECE", 7)  # the last piece of 40 positions holds 5
    stock, tokens, targets = STOCK[name](), token_ids(4), token_ids(5)
    with torch.no_grad():
        logits = stock(input_ids=tokens[None], use_cache=False).logits[0].float()
    model = Layerwise(HFDecoder(stock))
    full = Schedule.parse(f"full*{LAYERS}")
    hidden, other = model.run(tokens, full).last, model.run(tokens, SCHEDULES[1]).last
    torch.testing.assert_close(model.logits(hidden), logits, rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        sparse = model.decoder.logits(tokens[None])[0].float()
    losses, right = model.losses(hidden, targets)
    wanted = F.cross_entropy(logits, targets, reduction="none")
    torch.testing.assert_close(losses, wanted, rtol=1e-4, atol=1e-4)
    assert torch.equal(right, logits.argmax(-1) == targets)
    torch.testing.assert_close(model.mean_loss(hidden, targets), wanted.mean(), rtol=1e-4, atol=1e-4)
    divergence = (logits.softmax(-1) * (logits.log_softmax(-1) - sparse.log_softmax(-1))).sum(-1)
    assert divergence.max() > 1e-3
    torch.testing.assert_close(model.divergence(hidden, other), divergence, rtol=1e-3, atol=1e-4)


def test_layerwise_mean_loss_gives_the_gradient_of_whole_logits() -> None:
    model, targets = layerwise(double=True), token_ids(6)
    model.decoder.set_schedule(SCHEDULES[1])
    hidden = model.hidden(token_ids(7)).detach()
    found, wanted = hidden.clone().requires_grad_(), hidden.clone().requires_grad_()
    model.mean_loss(found, targets).backward()  # type: ignore[no-untyped-call]
    F.cross_entropy(model.logits(wanted), targets).backward()  # type: ignore[no-untyped-call]
    assert found.grad is not None
    assert wanted.grad is not None
    torch.testing.assert_close(found.grad, wanted.grad, rtol=1e-5, atol=1e-8)


def test_layerwise_freezes_the_weights_it_is_given() -> None:
    model = layerwise()
    assert not any(parameter.requires_grad for parameter in model.decoder.parameters())
    assert not model.decoder.model.training


def test_layerwise_model_without_one_list_of_blocks_is_refused() -> None:
    decoder = HFDecoder(make("llama", num_hidden_layers=LAYERS))
    body = decoder.model.get_decoder()
    body.layers = torch.nn.ModuleList([torch.nn.ModuleList(body.layers[:2]), torch.nn.ModuleList(body.layers[2:])])
    with pytest.raises(LayersearchError, match="do not stand in one list of blocks; give another model"):
        Layerwise(decoder)
