"""FLOPs counted by fvcore in the traced graph of the proxy model: an independent check of `layersearch.schedule.cost`.

One multiply-add = one FLOP, here as there. The model is traced on torch's meta device. Its tensors have shapes and no
storage: a model of 1.3 billion parameters at 8,192 tokens takes seconds and no memory.
"""

import functools
import importlib.metadata
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from layersearch.config.recipe import Recipe
from layersearch.model.attention.plain import read_text
from layersearch.model.build import new_model
from layersearch.model.decoder import Decoder
from layersearch.model.flops import attention_parts, recipe_flops
from layersearch.schedule import Schedule
from layersearch.schedule.bound_space import BoundSpace
from layersearch.schedule.cost import attention_flops
from layersearch.schedule.presets import all_full

OPERATOR = "layersearch::attend"
ATTEND, CROSS = OPERATOR.split("::")[1], "cross"
PRODUCTS = ("linear", "matmul", "mm", "bmm", "addmm", "baddbmm", "einsum", ATTEND, CROSS)
"""Matrix products, by fvcore's names. fvcore also counts norms, which the closed form leaves out."""
CONVENTION = "one multiply-add = one FLOP"
PAIRS_AT_ONCE = 1 << 22  # Pairs of a mask in memory together


class MismatchError(RuntimeError):
    """fvcore's count of a traced forward pass differs from the closed form: a defect of layersearch."""


class UnknownAttentionError(RuntimeError):
    """The traced model attends through an operator whose FLOPs are not known."""


@functools.lru_cache(maxsize=256)
def _visible_pairs(text: str, tokens: int, heads: int) -> int:
    """Count a span's pairs by `Span.visible` for each of them: no closed form is trusted here."""
    span, bidirectional = read_text(text)
    head, keys = torch.arange(heads)[:, None, None], torch.arange(tokens)
    rows = max(1, PAIRS_AT_ONCE // (heads * tokens))
    pairs = 0
    for first in range(0, tokens, rows):
        queries = torch.arange(first, min(first + rows, tokens))[:, None]
        seen = span.visible(queries, keys, head, bidirectional=bidirectional, tokens=tokens)
        pairs += int(seen.sum()) * (heads * len(queries) * tokens // seen.numel())  # one mask may stand for all heads
        if blocks := span.summaries(tokens):
            more = span.sees_summary(queries, torch.arange(blocks), bidirectional=bidirectional)
            pairs += heads * int(more.expand(len(queries), blocks).sum())
    return pairs


def _attend_flops(inputs: list[Any], outputs: list[Any]) -> Counter[str]:
    """Count one attention call from the traced graph alone: the span's text and the shapes of q and v."""
    queries, values = inputs[0].type().sizes(), inputs[2].type().sizes()
    batch, heads, tokens, width = queries
    pairs = _visible_pairs(inputs[3].toIValue(), tokens, heads)
    return Counter({ATTEND: batch * pairs * (width + values[-1])})


def _cross_flops(inputs: list[Any], outputs: list[Any]) -> Counter[str]:
    """Count attention of every query over every key, from the shapes in the traced graph."""
    queries, keys = inputs[0].type().sizes(), inputs[1].type().sizes()
    batch, heads, tokens, width = queries
    return Counter({CROSS: 2 * batch * heads * tokens * keys[2] * width})


def traced_flops(model: nn.Module, seq_len: int, targets: int | None = None) -> dict[str, int]:
    """Return the FLOPs of one sequence's forward pass by operator, as fvcore counts the traced graph.

    ``model`` is a `Decoder`, or a module with the same arguments; ``seq_len`` is in tokens. ``targets`` is the number
    of targets of a sequence; None: one for each token.

    Raises:
        UnknownAttentionError: names an attention operator that cannot be counted; fvcore alone would count it as 0.
    """
    with warnings.catch_warnings():
        # fvcore compiles a loss with torch.jit when it is imported, which torch 2.14 calls deprecated.
        warnings.simplefilter("ignore", FutureWarning)
        from fvcore.nn import FlopCountAnalysis

    device = next(model.parameters()).device
    tokens = torch.zeros((1, seq_len), dtype=torch.long, device=device)
    wanted = torch.zeros((1, targets or seq_len), dtype=torch.long, device=device)
    analysis = FlopCountAnalysis(model, (tokens, wanted))
    analysis.set_op_handle(OPERATOR, _attend_flops)
    if getattr(model, "cross_attends", False):
        analysis.set_op_handle("aten::scaled_dot_product_attention", _cross_flops)
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    with warnings.catch_warnings(), _whole_logits(model):
        # Tracing freezes Python numbers taken from shapes, as a count for one shape needs.
        warnings.simplefilter("ignore", torch.jit.TracerWarning)  # type: ignore[attr-defined]
        warnings.simplefilter("ignore", DeprecationWarning)
        counts = analysis.by_operator()
    unknown = sorted(name for name in analysis.unsupported_ops() if "attention" in name or "attend" in name)
    if unknown:
        raise UnknownAttentionError(f"FLOPs of {', '.join(unknown)} are not known; attend through layersearch.attend")
    return {name: int(count) for name, count in counts.items()}


@contextmanager
def _whole_logits(model: Any) -> Iterator[None]:
    """Let a model make all logits at once: fvcore cannot look into a loss that is made in pieces."""
    in_pieces = getattr(model, "in_pieces", None)
    if in_pieces is None:
        yield
        return
    model.in_pieces = False
    try:
        yield
    finally:
        model.in_pieces = in_pieces


def check_flops(recipe: Recipe, space: BoundSpace, vocab_size: int) -> dict[str, Any]:
    """Count a run's proxy model with fvcore, once all-full and once at the space's cheapest schedule.

    Only the attention of a pre-trained model is counted: the closed form of the rest covers the proxy model only.
    Returns the content of ``flops.json``: FLOPs of one sequence's forward pass.

    Raises:
        MismatchError: a count differs from the closed form; names both.
    """
    schedules = {"all_full": all_full(space.n_layers), "sparsest": space.cheapest()}
    seq_len = recipe.training.seq_len
    counts = {name: _count(recipe, schedule, vocab_size) for name, schedule in schedules.items()}
    counter = f"fvcore {importlib.metadata.version('fvcore')}"
    return {"convention": CONVENTION, "counted_by": counter, "seq_len": seq_len, "forward_pass": counts}


def _count(recipe: Recipe, schedule: Schedule, vocab_size: int) -> dict[str, Any]:
    model, seq_len = recipe.model, recipe.training.seq_len
    traced = traced_flops(_on_meta(recipe, schedule, vocab_size), seq_len, recipe.n_targets)
    parts: dict[str, int] = {}
    if recipe.target_len is None:
        size = {"seq_len": seq_len, "n_heads": model.n_heads, "head_dim": model.head_dim}
        closed = attention_flops(schedule, **size, bidirectional=model.bidirectional)
    else:
        parts = attention_parts(model, schedule, seq_len=seq_len, target_len=recipe.target_len)
        closed = sum(parts.values())
    pairs = {"attention_flops": (traced.get(ATTEND, 0) + traced.get(CROSS, 0), closed)}
    if parts:
        pairs["cross_flops"] = (traced.get(CROSS, 0), parts["cross"])
    if recipe.pretrained is None:
        products = sum(count for name, count in traced.items() if name in PRODUCTS)
        whole = recipe_flops(recipe, vocab_size, schedule)
        pairs["model_flops"] = (products, whole)
    for name, (counted, closed) in pairs.items():
        if counted != closed:
            raise MismatchError(
                f"internal error: fvcore counts {counted} {name} in the traced forward pass of '{schedule}', the "
                f"closed form {closed}; please report it"
            )
    found: dict[str, Any] = {"schedule": str(schedule)} | {name: counted for name, (counted, _) in pairs.items()}
    return found | ({"attention_parts": parts} if parts else {})


def _on_meta(recipe: Recipe, schedule: Schedule, vocab_size: int) -> nn.Module:
    """Return the model of a trial, without storage."""
    if recipe.pretrained is None:
        with torch.device("meta"):
            if recipe.training.segments is not None:  # memories are counted in one pass
                return Decoder(recipe.model, vocab_size, schedule)
            return new_model(recipe, vocab_size, schedule)
    from layersearch.model.pretrained import load_skeleton

    decoder = load_skeleton(recipe.pretrained, tokens=recipe.training.seq_len)
    decoder.set_schedule(schedule)
    return decoder
