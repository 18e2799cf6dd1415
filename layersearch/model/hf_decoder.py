"""A Hugging Face causal language model whose attention layers run `attend` over a schedule.

transformers hands every attention layer's queries, keys and values to a function that is registered under a name
(``AttentionInterface``). The one registered here looks up the layer's span and calls
`layersearch.model.attention.attend`. So a converted model does the work that its spans need, and no more.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from layersearch.errors import UserError
from layersearch.model.attention.dispatch import attend
from layersearch.model.decoder import IGNORE
from layersearch.schedule import Schedule, Span

INTERFACE = "layersearch"
"""The name under which transformers knows our attention."""
BEYOND = {
    "softcap": "softcapping of attention logits",
    "s_aux": "learned attention sinks",
    "position_bias": "a position bias",
    "attention_bias": "an attention bias",
    "head_mask": "a head mask",
}
"""Arguments of an attention call that change its result and that `attend` does not know."""
PROBE_TOKENS = 24
"""Tokens of the sequence on which a routed model is compared with the stock one."""
AGREEMENT = 1e-3
"""Largest difference of logits from the stock model's, over their largest size, float32."""


@dataclass(frozen=True, kw_only=True)
class Call:
    """What one attention layer handed over."""

    module: nn.Module
    heads: int
    """Query heads."""
    kv_heads: int
    """Key and value heads."""
    head_dim: int
    """Width of a head."""
    window: int | None
    """Keys the stock layer sees, itself counted; None: all earlier ones."""


_PROBED: list[Call] = []


def routed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **given: Any,
) -> tuple[Tensor, None]:
    """Attend over the module's span. Called by transformers in place of its own attention.

    Args:
        module: the attention layer; `Routed` has put a span on it.
        query: (B, H, T, D), rotated.
        key: (B, G, T, D), rotated.
        value: (B, G, T, D).
        attention_mask: never made for an interface that has no mask function.
        scaling: factor on the logits; None: 1/sqrt(D).
        dropout: on attention weights; must be 0.
        given: what else the family passes.

    Returns:
        (B, T, H, D), and no attention weights.

    Raises:
        UserError: names what the layer asks for and `attend` cannot do.
    """
    name = type(module).__name__
    for argument, what in BEYOND.items():
        if given.get(argument) is not None:
            raise UserError(f"{name} uses {what} ({argument}), which this package's attention does not have")
    if dropout:
        raise UserError(f"{name} drops attention weights ({dropout}); set its dropout to 0")
    if attention_mask is not None:
        raise UserError(f"{name} was given a mask of its own; routed models take whole sequences only")
    if given.get("is_causal") is False or getattr(module, "is_causal", True) is False:
        raise UserError(f"{name} is not causal; only causal language models can be routed")
    if value.shape != key.shape:
        raise UserError(f"{name} has values of another width than its keys; this package's attention has one width")
    span = getattr(module, "layersearch_span", None)
    if span is None:  # the probe: what the stock layer sees, which Routed asks for first
        window = given.get("sliding_window")
        if window is not None and not isinstance(window, int):
            raise UserError(f"{name} is given the window {window!r}: a stock family holds one window, a whole number")
        call = Call(module=module, heads=query.shape[1], kv_heads=key.shape[1], head_dim=query.shape[3], window=window)
        _PROBED.append(call)
        span = Span(kind="full") if window is None else Span(kind="window", size=window)
    width = query.shape[3]
    factor = 1.0 if scaling is None else scaling * math.sqrt(width)  # `attend` divides by the root itself
    if not math.isclose(factor, 1.0, rel_tol=1e-9):
        query = query * factor
    return attend(query, key, value, span).transpose(1, 2).contiguous(), None


def _register() -> None:
    from transformers import AttentionInterface

    AttentionInterface.register(INTERFACE, routed_attention)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers from logging and warning what our one line says, and from drawing progress bars."""
    from transformers.utils import logging as its_logging

    logging: Any = its_logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(50)  # critical
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


class Routed(nn.Module):
    """A stock causal language model that attends over a schedule, with the interface of `Decoder`.

    Args:
        model: a transformers causal language model with its weights; routed in place, dropout set to 0.
        check: compare the routed logits with the stock ones on a short sequence first.

    Raises:
        UserError: if a layer does not attend through transformers' attention interface, asks for what `attend` cannot
            do, or the configuration names spans that the family ignores.
    """

    def __init__(self, model: Any, *, check: bool = True) -> None:
        super().__init__()
        self.compiled = False
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
            if isinstance(getattr(module, "attention_dropout", None), float):
                module.attention_dropout = 0.0
        tokens = torch.arange(PROBE_TOKENS)[None] % model.get_input_embeddings().num_embeddings
        tokens = tokens.to(next(model.parameters()).device)
        training = model.training
        model.eval()
        with torch.no_grad(), quiet():
            stock = model(input_ids=tokens, use_cache=False).logits if check else None
            calls, routed = _probe(model, tokens)
        model.train(training)
        self.model = model
        self.attention = [call.module for call in calls]
        """The attention layers, bottom first. A plain list: they are modules of ``model`` already."""
        first = calls[0]
        self.n_heads, self.n_kv_heads, self.head_dim = first.heads, first.kv_heads, first.head_dim
        spans = (Span(kind="full") if call.window is None else Span(kind="window", size=call.window) for call in calls)
        self.rows: int = model.get_input_embeddings().num_embeddings
        """Token ids that have an embedding."""
        self.original = Schedule(tuple(spans))
        """What the stock model's layers see."""
        _check_layer_types(model.config, self.original)
        if stock is not None:
            difference = float((stock - routed).abs().max() / stock.abs().max())
            if not difference <= AGREEMENT:
                raise UserError(
                    f"{type(model).__name__}: routed through this package's attention its logits differ from the stock "
                    f"model's by {difference:.2g} of their size: its attention does more; give another architecture"
                )
        self.teacher: tuple[Routed, float] | None = None
        """A model to distil from, and its weight. A tuple, so that its weights are not this module's."""
        self.set_schedule(self.original)

    def set_schedule(self, schedule: Schedule) -> None:
        """Let the layers attend over another schedule from now on.

        Raises:
            UserError: if its length is not the model's.
        """
        if len(schedule) != len(self.attention):
            raise UserError(
                f"a schedule of {len(schedule)} layers for a model of {len(self.attention)}: give one span per layer"
            )
        for module, span in zip(self.attention, schedule, strict=True):
            module.layersearch_span = span  # type: ignore[assignment]
        self.schedule = schedule

    def distil_from(self, teacher: Routed, weight: float) -> None:
        """Train on (1 - weight) cross-entropy + weight KL(teacher || this) from now on; the teacher is frozen."""
        teacher.requires_grad_(False).eval()
        self.teacher = (teacher, weight)

    def logits(self, tokens: Tensor) -> Tensor:  # (B, T) -> (B, T, V)
        """Return the scores of every next token."""
        return self.model(input_ids=tokens, use_cache=False).logits

    def forward(self, tokens: Tensor, targets: Tensor, reduce: bool = True) -> Tensor | tuple[Tensor, Tensor]:
        """Return the cross-entropy of the targets in nats, as `layersearch.model.decoder.Decoder` does.

        With a teacher the reduced loss is the weighted sum of `distil_from`; losses by token never are.

        Args:
            tokens: (B, T) token ids.
            targets: (B, T) token ids to predict after each token; `IGNORE` where not scored.
            reduce: the mean over scored targets, (); else each target's own loss, 0 where not scored, and whether it
                was predicted, both (B, T).
        """
        logits = self.logits(tokens).float()
        losses = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORE, reduction="none")
        losses = losses.view_as(targets)
        if not reduce:
            return losses, logits.argmax(-1) == targets
        scored = targets != IGNORE
        if self.teacher is not None:
            teacher, weight = self.teacher
            with torch.no_grad():
                aim = teacher.logits(tokens).float()
            losses = (1.0 - weight) * losses + weight * token_kl(aim, logits) * scored
        return (losses.sum(dim=1) / scored.sum(dim=1)).mean()

    def train(self, mode: bool = True) -> Routed:
        """Set the mode; dropout is 0 in either."""
        super().train(mode)
        return self


def token_kl(aim: Tensor, logits: Tensor) -> Tensor:  # (..., V), (..., V) -> (...)
    """Return KL(aim || logits) of next-token distributions in nats."""
    wanted, found = aim.log_softmax(-1), logits.log_softmax(-1)
    return (wanted.exp() * (wanted - found)).sum(-1)


def _probe(model: Any, tokens: Tensor) -> tuple[list[Call], Tensor]:
    """Route the model and run it once; return what its layers handed over, bottom first, and the logits."""
    _register()
    kind, layers = type(model).__name__, getattr(model.config, "num_hidden_layers", 0)
    for module in model.modules():
        if hasattr(module, "layersearch_span"):
            del module.layersearch_span
    model.set_attn_implementation(INTERFACE)
    if model.config._attn_implementation != INTERFACE:
        raise UserError(f"{kind} has no attention that can be routed through transformers' attention interface")
    _PROBED.clear()
    try:
        logits = model(input_ids=tokens, use_cache=False).logits
        calls = sorted(_PROBED, key=lambda call: getattr(call.module, "layer_idx", -1))
    finally:
        _PROBED.clear()
    found = [getattr(call.module, "layer_idx", None) for call in calls]
    if not calls or found != list(range(layers)):
        raise UserError(
            f"{kind}: {len(set(found))} of {layers} layers attend through transformers' attention interface; "
            "only a model of which all do can be routed"
        )
    sizes = {(call.heads, call.kv_heads, call.head_dim) for call in calls}
    if len(sizes) > 1:
        raise UserError(f"{kind}: its layers differ in heads or their width; only equal ones can be searched")
    return calls, logits


def _check_layer_types(config: Any, original: Schedule) -> None:
    """Refuse per-layer spans that the configuration names and the family's attention is never told."""
    kinds = getattr(config, "layer_types", None)
    if kinds is not None:
        names = {"full": "full_attention", "window": "sliding_attention"}
        for layer, (kind, span) in enumerate(zip(kinds, original, strict=True)):
            if kind != names[span.kind]:
                raise UserError(
                    f"config.json: layer_types says {kind!r} for layer {layer}, but {config.model_type} runs it as "
                    f"{span}; correct layer_types, or give the spans with --schedule"
                )
