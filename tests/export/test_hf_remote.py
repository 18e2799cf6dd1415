"""The folder with a modeling file: every span, with and without a cache, in the real transformers."""

from __future__ import annotations

import ast
import copy
import inspect
import itertools
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache, StaticCache

from layersearch.config.model import ModelConfig
from layersearch.export import export
from layersearch.export.hf import MODELING
from layersearch.export.remote import modeling_layersearch
from layersearch.model.attention.reference import reference_attention
from layersearch.model.decoder import Decoder
from layersearch.schedule import Schedule, Span
from layersearch.schedule.cost import kv_cache_bytes
from tests.helpers.remote_models import VOCAB, strong, text

torch.set_num_threads(1)
EVERY = Schedule.parse(
    "window:5 full window:4/3 window:3/4@1 block:6 window:5+sink:3 block:5+sink:2 window:2/3@3+sink:2 "
    "full+las:0.1/3 window:7+las:0.05/4 block:7~3+sink:2+las:0.0/5 window:3/2@2+las:0.2/3 full+las:0.3 "
    "strided:4 fixed:5/2 bigbird:3/2/1 memory:7/5 strided:4@1 fixed:5/2@2 window:4+summary:5 block:6~2+summary:3+sink:2"
)
CACHE = next(
    name
    for name in modeling_layersearch.CACHE_NAMES
    if name in inspect.signature(transformers.LlamaModel.forward).parameters
)
SIZE: dict[str, Any] = {"d_model": 32, "n_heads": 4, "n_kv_heads": 2, "d_ff": 48, "rope_theta": 500.0}

spans = st.one_of(
    st.builds(Span, kind=st.just("full"), decay=st.sampled_from([0.0, 0.07]), pool=st.integers(1, 5)),
    st.builds(Span, kind=st.just("strided"), size=st.integers(2, 9), far_heads=st.sampled_from([None, 1, 2, 4])),
    st.builds(Span, kind=st.just("memory"), size=st.integers(1, 9), memory=st.integers(1, 12)),
    st.builds(
        Span,
        kind=st.just("fixed"),
        size=st.integers(4, 9),
        columns=st.integers(1, 3),
        far_heads=st.sampled_from([None, 1, 2, 4]),
    ),
    st.builds(
        Span,
        kind=st.just("bigbird"),
        size=st.integers(1, 4),
        random_blocks=st.integers(1, 3),
        seed=st.integers(0, 10**6),
    ),
    st.builds(
        Span,
        kind=st.just("window"),
        size=st.integers(1, 9),
        dilation=st.integers(1, 4),
        dilated_heads=st.sampled_from([None, 1, 2, 3, 4]),
        sink=st.integers(0, 4),
        decay=st.sampled_from([0.0, 0.07]),
        pool=st.integers(1, 5),
    ),
    st.builds(
        Span,
        kind=st.just("block"),
        size=st.integers(4, 9),
        offset=st.integers(0, 3),
        sink=st.integers(0, 4),
        decay=st.sampled_from([0.0, 0.07]),
        pool=st.integers(1, 5),
    ),
)


def entry(span: Span) -> modeling_layersearch.Span:
    return modeling_layersearch.Span(**span.to_dict())


def decoder(schedule: Schedule, **given: Any) -> Decoder:
    torch.manual_seed(1)
    return strong(Decoder(ModelConfig(n_layers=len(schedule), **SIZE | given), VOCAB, schedule).double())


def written(schedule: Schedule, out: Path, **given: Any) -> Path:
    model = ModelConfig(n_layers=len(schedule), **SIZE | given)
    export(schedule, "hf-remote", model=model, vocab_size=VOCAB, seq_len=128, out=out)
    return out


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return a model with every kind of span, loaded as a user does, with the weights of `decoder`."""
    folder = written(EVERY, tmp_path_factory.mktemp("remote") / "every")
    config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
    loaded = AutoModelForCausalLM.from_config(config, trust_remote_code=True, dtype=torch.float64).eval()
    loaded.load_state_dict(hub_names(decoder(EVERY)))
    return loaded


def hub_names(ours: Decoder) -> dict[str, Any]:
    return {name if name.startswith("lm_head.") else f"model.{name}": x for name, x in ours.state_dict().items()}


# The definitions.


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(spans)
def test_remote_mask_equals_span_mask_pair_by_pair(span: Span) -> None:
    at, head = torch.arange(30), torch.arange(4)[:, None, None]
    found = entry(span).visible(at[:, None], at[None, :], head).expand(4, 30, 30)
    assert torch.equal(found, span.visible(at[:, None], at[None, :], head).expand(4, 30, 30))


class Module:
    """The attributes of a stock attention module that the attention function reads."""

    layer_idx = 0

    def __init__(self, span: Span):
        self.config = transformers.PreTrainedConfig()
        self.config.layer_spans = [span.to_dict()]


@pytest.mark.slow
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(span=spans, tokens=st.integers(1, 41), kv_heads=st.sampled_from([1, 2, 4]), chunk=st.integers(1, 50))
def test_remote_attention_equals_dense_reference(
    span: Span, tokens: int, kv_heads: int, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(modeling_layersearch, "CHUNK", chunk)
    generator = torch.Generator().manual_seed(tokens)
    q, k, v = (
        torch.randn(2, heads, tokens, 8, generator=generator, dtype=torch.float64) for heads in (4, kv_heads, kv_heads)
    )
    found, weights = modeling_layersearch.span_attention(Module(span), q, k, v, torch.arange(tokens))
    assert weights is None
    assert torch.allclose(found.transpose(1, 2), reference_attention(q, k, v, span), rtol=1e-11, atol=1e-12)


# The folder.


def test_remote_files_modeling_file_is_copied_unchanged_and_imports_torch_and_transformers_only(
    tmp_path: Path,
) -> None:
    code = (written(EVERY, tmp_path / "new") / MODELING).read_text()
    assert code == Path(modeling_layersearch.__file__).read_text()
    imported = {
        name.split(".")[0]
        for node in ast.walk(ast.parse(code))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names])
    }
    assert imported - sys.stdlib_module_names == {"torch", "transformers"}


def test_remote_folder_without_trust_is_refused_not_read_as_another_model(tmp_path: Path) -> None:
    folder = written(EVERY, tmp_path / "new")
    with pytest.raises(ValueError, match="trust_remote_code=True"):
        AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False)


@pytest.mark.slow
def test_remote_logits_equal_our_model_and_no_other_schedule(model: Any) -> None:
    tokens = text(3, 71)
    with torch.no_grad():
        ours, theirs = decoder(EVERY).logits(tokens), model(tokens).logits
    assert (ours - theirs).norm() / ours.norm() < 1e-5  # transformers' norms compute in float32
    for layer in range(len(EVERY)):
        changed = [*EVERY.spans[:layer], Span(kind="window", size=6), *EVERY.spans[layer + 1 :]]
        with torch.no_grad():
            other = decoder(Schedule(tuple(changed))).logits(tokens)
        assert (other - theirs).norm() / ours.norm() > 1e-4, EVERY[layer]


@pytest.mark.parametrize("qk_norm", [False, True])
def test_remote_weights_survive_saving_and_loading(qk_norm: bool, tmp_path: Path) -> None:
    schedule = Schedule.parse("window:5/2@1+sink:1 full block:7+las:0.1/3")
    ours = decoder(schedule, qk_norm=qk_norm, tie_embeddings=not qk_norm)
    folder = written(schedule, tmp_path / "new", qk_norm=qk_norm, tie_embeddings=not qk_norm)
    config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
    first = AutoModelForCausalLM.from_config(config, trust_remote_code=True, dtype=torch.float64).eval()
    first.load_state_dict(hub_names(ours))
    first.save_pretrained(tmp_path / "saved")
    again, report = AutoModelForCausalLM.from_pretrained(
        tmp_path / "saved", trust_remote_code=True, dtype=torch.float64, output_loading_info=True
    )
    assert not any(report.values()), report
    assert (tmp_path / "saved" / MODELING).read_text() == Path(modeling_layersearch.__file__).read_text()
    with torch.no_grad():
        tokens = text(2, 33)
        found = again(tokens).logits
        assert torch.allclose(found, first(tokens).logits, atol=1e-5)
        assert (found - ours.logits(tokens)).norm() / found.norm() < 1e-5


# The cache.


@pytest.mark.slow
def test_remote_generation_with_and_without_cache_gives_the_same_texts(model: Any) -> None:
    request: dict[str, Any] = {"max_new_tokens": 29, "do_sample": False, "pad_token_id": VOCAB}
    tokens = text(2, 9)
    cached = model.generate(tokens, **request, return_dict_in_generate=True, output_logits=True)
    plain = model.generate(tokens, **request, return_dict_in_generate=True, output_logits=True, use_cache=False)
    assert torch.equal(cached.sequences, plain.sequences)
    for one, other in zip(cached.logits, plain.logits, strict=True):
        assert torch.allclose(one, other, atol=1e-5)
    assert len(set(cached.sequences[0].tolist())) > 5  # no text of one token, which any cache would give
    beams = [
        model.generate(tokens, **request | {"max_new_tokens": 9}, num_beams=3, use_cache=use) for use in (True, False)
    ]
    assert torch.equal(*beams)


@pytest.mark.parametrize("name", modeling_layersearch.CACHE_NAMES)
def test_forward_cache_under_either_name_is_kept(name: str, model: Any) -> None:
    cache = DynamicCache()
    with torch.no_grad():
        first = model.model(text(1, 9)[:, :5], **{name: cache}).last_hidden_state
        second = model.model(text(1, 9)[:, 5:], **{name: cache}).last_hidden_state
        assert torch.allclose(torch.cat((first, second), dim=1), model.model(text(1, 9)).last_hidden_state, atol=1e-5)
    assert cache.get_seq_length() == 9


def held_bytes(cache: Any) -> int:
    """Return the bytes of keys and values; the sum of a summary that is not finished is neither."""
    held = [x for layer in cache.layers for x in (layer.keys, layer.values, *(layer.summaries or ())[1:])]
    return sum(x.numel() * x.element_size() for x in held)


@pytest.mark.slow
def test_remote_cache_holds_what_the_cost_model_counts_at_every_length(model: Any) -> None:
    tokens = text(2, 67)
    cache = DynamicCache(config=model.config)
    at = 0
    with torch.no_grad():
        whole = model(tokens).logits
        for new in [11, *[1] * 40, 5, 1, 10]:  # a prompt, tokens, and longer pieces in between
            out = model(tokens[:, at : at + new], **{CACHE: cache})
            assert torch.allclose(out.logits, whole[:, at : at + new], atol=1e-5)
            at += new
            wanted = kv_cache_bytes(EVERY, seq_len=at, n_heads=4, n_kv_heads=2, head_dim=8, bytes_per_value=8)
            assert held_bytes(cache) == 2 * wanted, at
    assert at == 67
    assert sum(storages(cache).values()) == held_bytes(cache)


def storages(cache: Any) -> dict[int, int]:
    """Return the bytes that the cache keeps alive by storage: a view would keep its longer base tensor."""
    kept = [*(x for layer in cache.layers for part in layer.held for x in part)]
    kept += [x for layer in cache.layers for x in (layer.summaries or ())[1:]]
    held = [x.untyped_storage() for x in kept]
    return {storage.data_ptr(): storage.nbytes() for storage in held}


def test_remote_cache_after_a_prompt_keeps_no_longer_tensor(model: Any) -> None:
    with torch.no_grad():
        cache = getattr(model(text(1, 67), use_cache=True), CACHE)
    wanted = kv_cache_bytes(EVERY, seq_len=67, n_heads=4, n_kv_heads=2, head_dim=8, bytes_per_value=8)
    assert held_bytes(cache) == sum(storages(cache).values()) == wanted


# Batches.

LENGTHS = (23, 1, 8, 14)


def padded(side: str) -> tuple[list[torch.Tensor], torch.Tensor, torch.Tensor]:
    texts = [text(1, length, seed=length) for length in LENGTHS]
    rows, mask = torch.zeros(len(texts), max(LENGTHS), dtype=torch.long), torch.zeros(len(texts), max(LENGTHS)).long()
    for row, one in enumerate(texts):
        place = slice(max(LENGTHS) - one.shape[1], None) if side == "left" else slice(one.shape[1])
        rows[row, place], mask[row, place] = one[0], 1
    return texts, rows, mask


@pytest.mark.parametrize("side", ["left", "right"])
def test_remote_padding_changes_no_row(side: str, model: Any) -> None:
    texts, rows, mask = padded(side)
    with torch.no_grad():
        together = model(rows, attention_mask=mask).logits
        assert together.isfinite().all()
        for row, one in enumerate(texts):
            assert torch.allclose(together[row][mask[row] == 1], model(one).logits[0], atol=1e-5), row


@pytest.mark.slow
@pytest.mark.parametrize("use_cache", [True, False])
def test_remote_left_padded_texts_continue_as_each_alone(use_cache: bool, model: Any) -> None:
    texts, rows, mask = padded("left")
    request: dict[str, Any] = {"max_new_tokens": 17, "do_sample": False, "pad_token_id": VOCAB, "use_cache": use_cache}
    together = model.generate(rows, attention_mask=mask, **request)
    for row, one in enumerate(texts):
        alone = model.generate(one, attention_mask=torch.ones_like(one), **request)
        assert torch.equal(together[row, -17:], alone[0, -17:]), row


def test_remote_padding_ending_within_a_later_piece_changes_nothing(model: Any) -> None:
    texts, rows, mask = padded("left")
    with torch.no_grad():
        cache = None
        for first, last in itertools.pairwise([0, 4, 12, 19, 23]):
            out = model(rows[:, first:last], attention_mask=mask[:, :last], use_cache=True, **{CACHE: cache})
            cache = getattr(out, CACHE)
        for row, one in enumerate(texts):
            assert torch.allclose(out.logits[row, -1], model(one).logits[0, -1], atol=1e-5), row


# Arguments that contradict the schedule are refused.


def hole() -> torch.Tensor:
    mask = torch.ones(1, 12, dtype=torch.long)
    mask[0, 5] = 0
    return mask


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"attention_mask": hole()}, "padding inside a text"),
        ({"attention_mask": torch.ones(1, 1, 12, 12, dtype=torch.bool)}, r"give \(batch, 12\)"),
        ({"attention_mask": torch.ones(1, 9).long()}, r"give \(batch, 12\)"),
        ({"position_ids": torch.tensor([[*range(7), *range(5)]])}, "pack several texts"),
    ],
)
def test_remote_masks_and_positions_without_meaning_are_refused(given: dict[str, Any], words: str, model: Any) -> None:
    with pytest.raises(ValueError, match=words):
        model(text(1, 12), use_cache=False, **given)


def test_remote_cache_that_knows_no_spans_is_refused(model: Any) -> None:
    with pytest.raises(ValueError, match="StaticCache does not know the spans"):
        model(text(1, 5), **{CACHE: StaticCache(config=model.config, max_cache_len=9)})
    filled = DynamicCache()
    filled.update(torch.zeros(1, 2, 3, 8).double(), torch.zeros(1, 2, 3, 8).double(), 0)
    with pytest.raises(ValueError, match="give none or an empty DynamicCache"):
        model(text(1, 5), **{CACHE: filled})
    cache = getattr(model(text(1, 5), use_cache=True), CACHE)
    with pytest.raises(ValueError, match="cannot be cropped"):
        cache.crop(-1)


def test_remote_other_attention_implementation_is_refused(model: Any, tmp_path: Path) -> None:
    folder = written(Schedule.parse("full window:4"), tmp_path / "new")
    config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
    with pytest.raises(ValueError, match="ignores the schedule"):
        AutoModelForCausalLM.from_config(config, trust_remote_code=True, attn_implementation="eager")
    stray = AutoModelForCausalLM.from_config(
        AutoConfig.from_pretrained(folder, trust_remote_code=True), trust_remote_code=True
    )
    stray.config._attn_implementation = "sdpa"
    with pytest.raises(ValueError, match="ignores the schedule"):
        stray(text(1, 5))


@pytest.mark.parametrize(
    ("spans", "words"),
    [
        ([{"kind": "full"}], "1 layer_spans for 2 layers"),
        ([{"kind": "full"}, {"kind": "windw", "size": 4}], "neither full nor a window or block"),
        ([{"kind": "full"}, {"kind": "window"}], "neither full nor a window or block"),
    ],
)
def test_remote_span_without_meaning_is_refused(spans: list[dict[str, Any]], words: str, tmp_path: Path) -> None:
    file = written(Schedule.parse("full window:4"), tmp_path / "new") / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"layer_spans": spans}))
    with pytest.raises(ValueError, match=words):
        AutoConfig.from_pretrained(file.parent, trust_remote_code=True)


@pytest.mark.slow
def test_remote_lower_precision_texts_equal_with_and_without_cache(model: Any) -> None:
    low = copy.deepcopy(model).to(torch.bfloat16)
    with torch.no_grad():
        whole, cache = low(text(1, 19)).logits, DynamicCache(config=low.config)
        steps = [low(text(1, 19)[:, at : at + 1], **{CACHE: cache}).logits for at in range(19)]
    assert whole.dtype == torch.bfloat16
    assert (torch.cat(steps, dim=1) - whole).norm() / whole.norm() < 0.05


@pytest.mark.slow
def test_remote_training_with_and_without_recomputing_gives_the_same_gradients(model: Any) -> None:
    gradients = []
    for recomputing in (False, True):
        again = copy.deepcopy(model).train()
        if recomputing:
            # Its name since transformers 5.23, and before.
            (getattr(again, "activation_checkpointing_enable", None) or again.gradient_checkpointing_enable)()
        again(text(2, 33), labels=text(2, 33)).loss.backward()
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in again.parameters()]))
    assert torch.allclose(*gradients)
    assert gradients[0].norm() > 0
