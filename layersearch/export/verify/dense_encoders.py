"""Encoders of transformers with layersearch's own dense mask in every layer: the same modules and weights.

The masks come from `Span.visible`. The library's own masks, chunks and blocks, and so its reading of a schedule, are
not used.

Shape legend: B batch, T tokens (with padding), n tokens of the text, C width, H heads, D head width.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from layersearch.export.encoders import EncoderFamily
from layersearch.schedule import Schedule, Span

_UNSEEN = torch.finfo(torch.float32).min


@contextmanager
def dense_layers(
    family: EncoderFamily, layers: nn.ModuleList, schedule: Schedule, tokens: int, *, bidirectional: bool = True
) -> Iterator[None]:
    """Make every layer attend as a schedule says, in texts of ``tokens`` tokens, until the context ends.

    ``bidirectional`` is False for the layers of T5Gemma's decoder.
    """
    undo: list[Callable[[], Any]] = []
    path = family.attention_of(layers[0])
    try:
        for layer, span in zip(layers, schedule, strict=True):
            attention = layer.get_submodule(path)
            if family.pads:
                undo.append(_replace(attention, _longformer(attention, span, tokens)))
            elif family.form == "one":
                undo.append(_replace(attention, _longt5(attention, layers[0].get_submodule(path), span)))
            else:
                undo.append(
                    attention.register_forward_pre_hook(_with_mask(span, bidirectional), with_kwargs=True).remove
                )
        yield
    finally:
        for restore in undo:
            restore()


def _replace(module: nn.Module, forward: Callable[..., Any]) -> Callable[[], None]:
    """Replace a module's forward pass; return what puts it back."""
    module.forward = forward

    def restore() -> None:
        del module.forward  # the class's own shows again

    return restore


def _visible(span: Span, tokens: int, bidirectional: bool = True) -> Tensor:
    """Return which keys each query sees, (n, n)."""
    at = torch.arange(tokens)
    seen: Tensor = span.visible(at[:, None], at[None, :], bidirectional=bidirectional)
    return seen


def _with_mask(span: Span, bidirectional: bool) -> Callable[..., Any]:
    """Return a forward pre-hook that puts a mask in the place of the library's."""

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        given = inspect.signature(module.forward).bind_partial(*args, **kwargs).arguments
        more = given.pop("kwargs", {})
        hidden = given["hidden_states"]
        hidden_pairs = ~_visible(span, hidden.shape[1], bidirectional)
        mask = torch.zeros(1, 1, *hidden_pairs.shape, dtype=hidden.dtype)
        given["attention_mask"] = mask.masked_fill(hidden_pairs, torch.finfo(hidden.dtype).min)
        return (), given | more

    return hook


def _longformer(attention: Any, span: Span, tokens: int) -> Callable[..., Any]:
    """Return Longformer's attention as one dense softmax; global tokens have queries, keys and values of their own."""

    def heads(name: str, hidden: Tensor) -> Tensor:  # (B, n, C) -> (B, H, n, D)
        return getattr(attention, name)(hidden).unflatten(-1, (attention.num_heads, -1)).transpose(1, 2)

    def forward(hidden_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor]:
        text = hidden_states[:, :tokens]
        scale = 1.0 / math.sqrt(attention.head_dim)
        scores = heads("query", text) @ heads("key", text).mT * scale
        is_global = kwargs["is_index_global_attn"][0, :tokens]
        visible = _visible(span.plain, tokens)
        if span.global_marked:
            visible = visible | is_global[:, None] | is_global[None, :]
        out = scores.masked_fill(~visible, _UNSEEN).softmax(-1) @ heads("value", text)
        if bool(is_global.any()):
            scores = heads("query_global", text)[:, :, is_global] @ heads("key_global", text).mT * scale
            out[:, :, is_global] = scores.softmax(-1) @ heads("value_global", text)
        joined = torch.zeros_like(hidden_states)  # padding attends to nothing
        joined[:, :tokens] = out.transpose(1, 2).flatten(2)
        return (joined,)

    return forward


def _longt5(attention: Any, first: Any, span: Span) -> Callable[..., Any]:
    """Return LongT5's attention as one dense softmax over tokens and summaries; layer 0 has the position biases."""

    def heads(name: str, hidden: Tensor) -> Tensor:  # (B, n, C) -> (B, H, n, D)
        return getattr(attention, name)(hidden).unflatten(-1, (attention.n_heads, -1)).transpose(1, 2)

    def bias(table: Any, distance: Tensor) -> Tensor:  # (n, m) -> (1, H, n, m)
        buckets = attention._relative_position_bucket(
            distance,
            num_buckets=attention.relative_attention_num_buckets,
            max_distance=attention.relative_attention_max_distance,
        )
        found: Tensor = table(buckets).permute(2, 0, 1)[None]
        return found

    def forward(hidden_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, None]:
        tokens = hidden_states.shape[1]
        at, count = torch.arange(tokens), span.summaries(tokens)
        k, v, seen = heads("k", hidden_states), heads("v", hidden_states), _visible(span, tokens)
        biases = bias(first.relative_attention_bias, at[None, :] - at[:, None])
        if count:
            block = (at // span.summary).clamp(max=count - 1)
            sums = torch.zeros_like(hidden_states[:, :count]).index_add(1, block, hidden_states)
            sums = attention.global_input_layer_norm(sums)
            k, v = torch.cat((k, heads("k", sums)), dim=2), torch.cat((v, heads("v", sums)), dim=2)
            side = bias(first.global_relative_attention_bias, torch.arange(count)[None, :] - block[:, None])
            biases = torch.cat((biases, side), dim=-1)
            summed = span.sees_summary(at[:, None], torch.arange(count)[None, :], bidirectional=True)
            seen = torch.cat((seen, summed), dim=-1)
        scores = (heads("q", hidden_states) @ k.mT + biases).masked_fill(~seen, _UNSEEN)
        return attention.o((scores.softmax(-1) @ v).transpose(1, 2).flatten(2)), None

    return forward
