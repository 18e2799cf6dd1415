"""A Hugging Face causal language model whose attention layers run `attend` over a schedule.

transformers passes every attention layer's queries, keys and values to a registered function
(``AttentionInterface``), here `span_attention`. So a converted model does only the work that its spans need.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from layersearch.data.quiet import quiet as quiet  # also for those that import it from here
from layersearch.data.source import IGNORE
from layersearch.errors import ConfigError, LayersearchError
from layersearch.model.attention.dispatch import attend
from layersearch.model.decoder import mean_over_scored, token_losses
from layersearch.model.head_loss import head_returns, losses_and_hits, mean_loss, run_watched
from layersearch.schedule import Schedule, Span

ATTENTION_NAME = "layersearch"
"""The name of `span_attention` in transformers."""
UNSUPPORTED_ARGUMENTS = {
    "position_bias": "a position bias",
    "attention_bias": "an attention bias",
    "head_mask": "a head mask",
}
"""Arguments of an attention call that change its result and that `attend` does not have."""
PROBE_TOKENS = 24
"""Tokens of the sequence on which the model is compared with the stock one."""
PROBE_STRIDE = 7919
"""Difference of neighboring token ids in that sequence; a prime."""
LOGIT_TOLERANCE = {torch.bfloat16: 0.1}
"""Largest difference from the stock model's logits, relative to the largest logit, by weight type; else 1e-3."""


class AttentionCall(NamedTuple):
    """One attention layer in the probe: its numbers of heads, and the stock layer's span, softcap and learned sinks."""

    module: nn.Module
    heads: int
    kv_heads: int
    head_dim: int
    span: Span
    softcap: float
    sinks: bool


_PROBED: list[AttentionCall] = []


def span_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **given: Any,
) -> tuple[Tensor, None]:
    """Attend over the module's span. transformers calls this in place of its own attention.

    query is (B, H, T, D), key and value are (B, G, T, D), both rotated already. ``scaling`` multiplies the logits; None
    means 1/sqrt(D). ``softcap`` and ``s_aux``, (H,), are as in `attend`; None: the layer has none. The result is
    (B, T, H, D), and no attention weights.

    Raises:
        LayersearchError: names the layer and the feature that `attend` does not have.
    """
    name = type(module).__name__
    for argument, feature in UNSUPPORTED_ARGUMENTS.items():
        if given.get(argument) is not None:
            raise LayersearchError(f"{name} uses {feature} ({argument}), which this package's attention does not have")
    if dropout:
        raise LayersearchError(f"{name} drops attention weights ({dropout}); set its dropout to 0")
    if attention_mask is not None:
        raise LayersearchError(f"{name} was given an attention mask; give whole sequences without padding")
    if given.get("is_causal") is False or getattr(module, "is_causal", True) is False:
        raise LayersearchError(f"{name} is not causal; give a causal language model")
    if value.shape != key.shape:
        raise LayersearchError(
            f"{name} has values of another width than its keys; this package's attention has one width"
        )
    width = query.shape[3]
    span = getattr(module, "layersearch_span", None)
    if span is None:  # the probe records the span of the stock layer
        window = given.get("sliding_window")
        if window is not None and not isinstance(window, int):
            raise LayersearchError(f"{name} has the window {window!r}: a stock family has one window, a whole number")
        span = Span(kind="full") if window is None else Span(kind="window", size=window)
        heads, sinks = (query.shape[1], key.shape[1]), s_aux is not None
        _PROBED.append(AttentionCall(module, *heads, width, span, softcap or 0.0, sinks))
    factor = 1.0 if scaling is None else scaling * math.sqrt(width)  # `attend` divides by the root itself
    if not math.isclose(factor, 1.0, rel_tol=1e-9):
        query = query * factor
    out = attend(query, key, value, span, softcap=softcap or 0.0, s_aux=s_aux)
    return out.transpose(1, 2).contiguous(), None


class HFDecoder(nn.Module):
    """A stock causal language model that attends over a schedule, with the interface of `Decoder`.

    Args:
        model: a transformers causal language model with its weights. It is changed in place: its attention is
            replaced, its dropout is set to 0.
        check: compare the logits with the stock model's on a short sequence first.

    Raises:
        LayersearchError: a layer does not use transformers' attention interface or needs more than `attend` has, or the
            configuration names spans that the family ignores.
    """

    def __init__(self, model: Any, *, check: bool = True) -> None:
        super().__init__()
        self.compiled = False
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
            if isinstance(getattr(module, "attention_dropout", None), float):
                module.attention_dropout = 0.0
        self.num_embeddings: int = model.get_input_embeddings().num_embeddings
        """Token ids that have an embedding."""
        # Far apart in the vocabulary: on the first ids, special tokens, bfloat16 differs from float32 by half.
        steps = torch.arange(1, PROBE_TOKENS + 1, device=next(model.parameters()).device)
        tokens = steps[None] * PROBE_STRIDE % self.num_embeddings
        training = model.training
        model.eval()
        with torch.no_grad(), quiet():
            stock = model(input_ids=tokens, use_cache=False).logits if check else None
            calls, logits, in_pieces = _probe(model, tokens)
        self.in_pieces = in_pieces
        """Whether losses are made without whole logits, as nothing changes logits after the output layer."""
        model.train(training)
        self.model = model
        self.attention = [call.module for call in calls]
        """The attention layers, bottom first. A plain list: they are modules of ``model`` already."""
        self.n_heads, self.n_kv_heads, self.head_dim = calls[0].heads, calls[0].kv_heads, calls[0].head_dim
        self.softcap = calls[0].softcap
        """What every layer caps its attention logits at, as `attend` takes it; 0: nothing."""
        self.sinks = calls[0].sinks
        """Whether heads have learned sinks, the ``s_aux`` of `attend`."""
        self.original = Schedule(tuple(call.span for call in calls))
        """The schedule of the stock model."""
        _check_layer_types(model.config, self.original)
        if stock is not None:
            if not bool(torch.isfinite(stock).all()):
                raise LayersearchError(
                    f"{type(model).__name__}: its logits are nan or infinite, so its weights are damaged; restore them"
                )
            difference = float((stock - logits).abs().max() / stock.abs().max())
            if not difference <= LOGIT_TOLERANCE.get(stock.dtype, 1e-3):
                raise LayersearchError(
                    f"{type(model).__name__}: with this package's attention its logits differ from the stock model's "
                    f"by {difference:.2g} of their size, so its own attention does more; give another architecture"
                )
        self.teacher: tuple[HFDecoder, float] | None = None
        """The model to distill from, and its weight. A tuple, so that its weights are not this module's."""
        self.set_schedule(self.original)

    def set_schedule(self, schedule: Schedule) -> None:
        """Attend over another schedule from now on.

        Raises:
            ConfigError: its length is not the model's.
        """
        if len(schedule) != len(self.attention):
            raise ConfigError(
                f"a schedule of {len(schedule)} layers for a model of {len(self.attention)}: give one span per layer"
            )
        for layer, span in enumerate(schedule):
            if span.summary:
                raise ConfigError(
                    f"layer {layer}: {span}: summaries are made of a layer's inputs, and a pre-trained model gives its "
                    "attention no inputs; use a span without '+summary'"
                )
        for module, span in zip(self.attention, schedule, strict=True):
            module.layersearch_span = span  # type: ignore[assignment]
        self.schedule = schedule

    def take_weights_of(self, model: Any) -> None:
        """Run another model of the same configuration from now on, such as one whose weights are sharded.

        This decoder was made of a model without weights, so nothing is compared.
        """
        names = {id(module): name for name, module in self.model.named_modules()}
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
            if isinstance(getattr(module, "attention_dropout", None), float):
                module.attention_dropout = 0.0
        model.set_attn_implementation(ATTENTION_NAME)
        self.attention = [model.get_submodule(names[id(module)]) for module in self.attention]
        self.model = model
        self.set_schedule(self.schedule)

    def distil_from(self, teacher: HFDecoder, weight: float) -> None:
        """Train on (1 - weight) cross-entropy + weight KL(teacher || this) from now on; the teacher is frozen."""
        teacher.requires_grad_(False).eval()
        self.teacher = (teacher, weight)

    def logits(self, tokens: Tensor) -> Tensor:  # (B, T) -> (B, T, V)
        """Return the scores of every next token."""
        return self.model(input_ids=tokens, use_cache=False).logits

    def forward(self, tokens: Tensor, targets: Tensor, reduce: bool = True) -> Tensor | tuple[Tensor, Tensor]:
        """Return the cross-entropy of the targets in nats; arguments and result as in `Decoder.forward`.

        With a teacher the reduced loss is the weighted sum of `distil_from`. Losses by token do not include it, and
        have no gradient.
        """
        if not self.in_pieces:
            return self._whole_forward(tokens, targets, reduce)
        head, shape, wanted = self.model.get_output_embeddings(), targets.shape, targets.flatten()
        if not reduce:
            made = head.forward
            with head_returns(head, lambda hidden: losses_and_hits(head, made, hidden.flatten(0, 1), wanted)):
                found = self.logits(tokens)
            return found[:, 0].view(shape), found[:, 1].view(shape).bool()
        target_logits, weight = self._target_logits(tokens)

        def loss(logits: Tensor, at: slice) -> Tensor:
            losses = F.cross_entropy(logits, wanted[at], ignore_index=IGNORE, reduction="none")
            if target_logits is None:
                return losses
            return (1.0 - weight) * losses + weight * token_kl(target_logits(at), logits)

        scored = targets != IGNORE
        shares = (scored / (scored.sum(dim=1, keepdim=True) * len(scored))).flatten()
        with head_returns(head, lambda hidden: mean_loss(head, hidden.flatten(0, 1), loss, shares)):
            return self.logits(tokens)

    @torch.no_grad()
    def _target_logits(self, tokens: Tensor) -> tuple[Callable[[slice], Tensor] | None, float]:
        """Return what makes the teacher's logits of some positions, (n, V), and its weight; None: no teacher."""
        if self.teacher is None:
            return None, 0.0
        teacher, weight = self.teacher
        if not teacher.in_pieces:
            whole = teacher.logits(tokens).flatten(0, 1)
            return lambda at: whole[at].float(), weight
        head = teacher.model.get_output_embeddings()
        with head_returns(head, lambda hidden: hidden):
            hidden = teacher.logits(tokens).flatten(0, 1)

        @torch.no_grad()
        def some(at: slice) -> Tensor:
            return head(hidden[at]).float()

        return some, weight

    def _whole_forward(self, tokens: Tensor, targets: Tensor, reduce: bool) -> Tensor | tuple[Tensor, Tensor]:
        """Do the same with the logits of all positions at once, for a family that changes them after its head."""
        logits = self.logits(tokens).float()
        losses = token_losses(logits, targets)
        if not reduce:
            return losses, logits.argmax(-1) == targets
        target_logits, weight = self._target_logits(tokens)
        if target_logits is not None:
            kl = token_kl(target_logits(slice(None)), logits.flatten(0, 1)).view_as(losses)
            # Where a target is not scored, its cross-entropy is 0 already.
            losses = (1.0 - weight) * losses + weight * kl * (targets != IGNORE)
        return mean_over_scored(losses, targets)


def token_kl(target_logits: Tensor, logits: Tensor) -> Tensor:  # (..., V), (..., V) -> (...)
    """Return KL(target || model) of next-token distributions in nats."""
    target, model = target_logits.log_softmax(-1), logits.log_softmax(-1)
    return (target.exp() * (target - model)).sum(-1)


def _probe(model: Any, tokens: Tensor) -> tuple[list[AttentionCall], Tensor, bool]:
    """Replace the model's attention and run it once.

    Returns:
        The layers' calls, bottom first, the logits, and what `makes_logits` returns.
    """
    from transformers import AttentionInterface

    AttentionInterface.register(ATTENTION_NAME, span_attention)
    kind, layers = type(model).__name__, getattr(model.config, "num_hidden_layers", 0)
    for module in model.modules():
        if hasattr(module, "layersearch_span"):
            del module.layersearch_span
    model.set_attn_implementation(ATTENTION_NAME)
    if model.config._attn_implementation != ATTENTION_NAME:
        raise LayersearchError(f"{kind} does not use transformers' attention interface; give another architecture")
    _PROBED.clear()
    try:
        logits, unchanged = run_watched(model, lambda: model(input_ids=tokens, use_cache=False).logits)
        calls = sorted(_PROBED, key=lambda call: getattr(call.module, "layer_idx", -1))
    finally:
        _PROBED.clear()
    found = [getattr(call.module, "layer_idx", None) for call in calls]
    if not calls or found != list(range(layers)):
        raise LayersearchError(
            f"{kind}: {len(set(found))} of {layers} layers use transformers' attention interface, and all must; "
            "give another architecture"
        )
    if len({(call.heads, call.kv_heads, call.head_dim, call.softcap) for call in calls}) > 1:
        raise LayersearchError(
            f"{kind}: its layers differ in number or width of heads or in softcapping; give one whose layers are alike"
        )
    return calls, logits, unchanged


def _check_layer_types(config: Any, original: Schedule) -> None:
    """Refuse per-layer spans that the configuration names and the family ignores."""
    kinds, names = getattr(config, "layer_types", None), {"full": "full_attention", "window": "sliding_attention"}
    if kinds is None:
        return
    for layer, (kind, span) in enumerate(zip(kinds, original, strict=True)):
        if kind != names[span.kind]:
            raise LayersearchError(
                f"config.json: layer_types says {kind!r} for layer {layer}, but {config.model_type} runs it as "
                f"{span}; correct layer_types, or give the spans with --schedule"
            )
