"""Each layer's effective mask, by experiment: change one token of the layer's input, and see which outputs change.

One forward pass tests all layers: `docs/methods/export-proof.md` says how.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from layersearch.errors import ExportError, one_line
from layersearch.schedule import Schedule, Span

EVERY_PAIR = 256
"""Inputs up to this many tokens are tested for every pair; in longer ones some keys are tested for all queries."""
MIN_TOKENS = 32  # shortest input in tokens
MIN_LONG_TOKENS = 128
"""Shortest input of a model with as many positions: limits that the configuration does not name may show."""
MAX_TOKENS = 20_000  # spans that need a longer input are not tested
_THRESHOLD = 2e-6  # smallest change of an output, over the outputs' standard deviation, that counts
_SCORE_BYTES = 2**29  # most bytes of attention scores in one pass
_RANDOM_KEYS = 8
_PROJECTIONS = ("o_proj", "out_proj", "c_proj", "dense", "wo", "Wo")


@dataclass(frozen=True, kw_only=True)
class LayerProof:
    """One layer's effective mask, compared with its span."""

    layer: int
    span: str
    pairs: int
    """(query, key) pairs tested."""
    seen: int
    """Pairs in which the key changes the query's output."""
    too_many: int
    """Pairs seen that the span hides."""
    too_few: int
    """Pairs not seen that the span shows."""
    by_head: bool
    """Whether the mask of each head was compared too."""
    wrong_heads: int
    """(head, query, key) triples that differ from the span."""
    example: str | None
    """The first difference, in words."""

    @property
    def proven(self) -> bool:
        """True if every tested pair agrees."""
        return not (self.too_many or self.too_few or self.wrong_heads)


def text_length(schedule: Schedule, sizes: Sequence[int], longest: int | None) -> int:
    """Return how many tokens show every span of a schedule and every window of a configuration.

    ``sizes`` are the windows and chunks in the configuration, in tokens, used or not: only a longer input tells a full
    layer from one with that window. ``longest`` is the model's positions: a longer window is as good as full.

    Raises:
        ExportError: if that is too long to test.
    """
    needed = [span.pool + 1 for span in schedule if span.is_full]
    edges = [min(size, longest or size) for size in sizes if size > 0]
    for span in schedule:
        if span.kind == "block":
            edges.append(2 * (span.size or 0) + span.sink + span.pool)
        elif span.kind == "window":
            edges.append((replace(span, summary=0).reach() or 0) + 1 + span.sink + span.dilation)
        elif span.is_union:  # enough blocks or strides to tell what lies behind the near keys
            edges.append(span.memory + (span.random_blocks + 4) * (span.size or 0))
        if span.summary:
            edges.append(3 * span.summary)
    needed += [edge + max(4, min(64, edge // 2)) for edge in edges]
    tokens = max(MIN_TOKENS, min(longest or 0, MIN_LONG_TOKENS), *needed)
    if tokens > MAX_TOKENS:
        raise ExportError(f"the spans need an input of {tokens} tokens; more than {MAX_TOKENS} are not tested")
    return tokens


def changed_keys(schedule: Schedule, tokens: int) -> list[int]:
    """Return the tokens to change: all of a short input; of a long one those at the spans' edges and a few others."""
    if tokens <= EVERY_PAIR:
        return list(range(tokens))
    keys = {0, 1, 2, tokens // 2, tokens - 2, tokens - 1}
    for span in set(schedule):
        if span.size is None:
            continue
        keys |= {span.sink - 1, span.sink, span.global_first - 1, span.global_first}
        if span.summary:
            keys |= {times * span.summary + off for times in (1, 2) for off in (-1, 0)}
        if span.is_union:
            edges = {times * span.size + off for times in range(1, 5) for off in (-1, 0)}
            keys |= (
                edges | {edge - span.columns - span.memory for edge in edges} | {tokens - 1 - edge for edge in edges}
            )
        elif span.kind == "block":
            keys |= {times * span.size - span.offset + off for times in (1, 2) for off in (-1, 0)}
        else:
            reach = replace(span, summary=0).reach() or 0
            keys |= {reach, tokens - 1 - reach, tokens - 2 - reach, (tokens - 1 - reach) // 2}
    generator = torch.Generator().manual_seed(0)
    keys |= set(torch.randint(tokens, (_RANDOM_KEYS,), generator=generator).tolist())
    return sorted(key for key in keys if 0 <= key < tokens)


@torch.no_grad()
def prove_masks(
    model: Any,
    layers: nn.ModuleList,
    schedule: Schedule,
    *,
    tokens: int,
    n_heads: int,
    padded: int | None = None,
    call: Callable[[int], Any] | None = None,
    joins: str | None = None,
    bidirectional: bool = False,
    marked: Tensor | None = None,
) -> list[LayerProof]:
    """Compare each layer's effective mask with its span, pair by pair, for an input of ``tokens`` tokens.

    Args:
        model: transformers' model.
        layers: its layers.
        schedule: what it should do.
        tokens: tokens of the input.
        n_heads: query heads of a layer.
        padded: the tokens that the model makes of them; None: as many.
        call: runs the model on a batch of so many rows; None: with token ids and without a cache.
        joins: where a layer keeps the projection that joins the heads; None: under a usual name.
        bidirectional: whether the model is an encoder.
        marked: (tokens,) boolean, the tokens that ``call`` marks for spans of ``+global:mask``; None: the first ones.
    """
    keys = changed_keys(schedule, tokens)
    rows = max(1, min(len(keys), _SCORE_BYTES // (4 * n_heads * (padded or tokens) ** 2)))
    probe = _Probe(model, layers, tokens, rows, n_heads, call, joins)
    reference = probe.run([None] * rows)
    moved: list[list[Tensor]] = [[] for _ in layers]
    by_head: list[list[Tensor]] = [[] for _ in layers]
    for first in range(0, len(keys), rows):
        some = keys[first : first + rows]
        outputs = probe.run([*some, *[None] * (rows - len(some))])
        for layer, ((hidden, heads), (hidden_before, heads_before)) in enumerate(zip(outputs, reference, strict=True)):
            moved[layer].append(_changed(hidden, hidden_before)[: len(some)])
            if heads is not None and heads_before is not None:
                by_head[layer].append(_changed(heads, heads_before)[: len(some)])
    proofs = []
    for layer, span in enumerate(schedule):
        seen = torch.cat(moved[layer]).T  # (tokens, keys)
        seen_by_head = torch.cat(by_head[layer]).permute(2, 1, 0) if by_head[layer] else None  # (heads, tokens, keys)
        queries, columns = torch.arange(len(seen)), torch.tensor(keys)
        place = queries[None, :, None], columns[None, None, :], torch.arange(n_heads)[:, None, None]
        named = span if marked is None else replace(span, global_marked=0)
        shown: Tensor = named.moves(*place, bidirectional=bidirectional, tokens=tokens)
        if marked is not None and span.global_marked:
            shown = shown | marked[place[0]] | marked[place[1]]
        proofs.append(_compare(layer, span, seen, seen_by_head, keys, shown.expand(n_heads, len(seen), len(keys))))
    return proofs


def _changed(now: Tensor, before: Tensor) -> Tensor:
    return ((now - before).abs().amax(-1) > _THRESHOLD * before.std()).cpu()


def _compare(layer: int, span: Span, seen: Tensor, heads: Tensor | None, keys: list[int], each: Tensor) -> LayerProof:
    """Compare what is seen (tokens, keys), and by head, with what each head should see (heads, tokens, keys)."""
    wanted = each.any(0)
    wrong = (seen != wanted).nonzero()
    wrong_heads = (heads != each).nonzero() if heads is not None else torch.empty(0, 3, dtype=torch.long)
    example = None
    if len(wrong) or len(wrong_heads):
        *which, i, at = (wrong if len(wrong) else wrong_heads)[0].tolist()
        # A pair that is wrong differs from the span, so the span tells what was seen.
        expected = each[which[0], i, at] if which else wanted[i, at]
        where = f"layer {layer}, head {which[0]}" if which else f"layer {layer}"
        example = f"{where}: token {i} {'does not see' if expected else 'sees'} token {keys[at]}, unlike {span}"
    return LayerProof(
        layer=layer,
        span=str(span),
        pairs=seen.numel(),
        seen=int(seen.sum()),
        too_many=int((seen & ~wanted).sum()),
        too_few=int((wanted & ~seen).sum()),
        by_head=heads is not None,
        wrong_heads=len(wrong_heads),
        example=example,
    )


class _Probe:
    """A model whose layers get noise instead of their inputs."""

    def __init__(
        self,
        model: Any,
        layers: nn.ModuleList,
        tokens: int,
        rows: int,
        n_heads: int,
        call: Callable[[int], Any] | None,
        joins: str | None,
    ) -> None:
        self._model, self._layers, self._rows, self._tokens, self._n_heads = model, layers, rows, tokens, n_heads
        self._call, self._joins = call or self._run_ids, joins
        self._noise: Tensor | None = None
        self._keys: Sequence[int | None] = ()
        self._hidden: dict[int, Tensor] = {}
        self._heads: dict[int, Tensor] = {}

    def run(self, keys: Sequence[int | None]) -> list[tuple[Tensor, Tensor | None]]:
        """Return the outputs of every layer, where row k of the batch has token ``keys[k]`` changed, or none.

        Returns:
            Hidden states (rows, tokens, width), and the heads' outputs (rows, tokens, heads, head width) if found.
        """
        self._keys, self._hidden, self._heads = keys, {}, {}
        hooks: list[Any] = []
        for layer, module in enumerate(self._layers):
            hooks.append(module.register_forward_pre_hook(self._replace_input, with_kwargs=True))
            hooks.append(module.register_forward_hook(functools.partial(self._read_hidden, layer)))
            projection = _projection(module) if self._joins is None else module.get_submodule(self._joins)
            if projection is not None:
                hooks.append(projection.register_forward_pre_hook(functools.partial(self._read_heads, layer)))
        try:
            self._call(self._rows)
        except (ValueError, TypeError, RuntimeError, KeyError, IndexError, AttributeError) as error:
            name = type(self._model).__name__
            raise ExportError(
                f"{name} does not run with this config.json ({type(error).__name__}: {one_line(error)})"
            ) from None
        finally:
            for hook in hooks:
                hook.remove()
        for layer in range(len(self._layers)):
            if layer not in self._hidden:
                raise ExportError(f"layer {layer} of {type(self._model).__name__} is never called")
        return [(self._hidden[layer], self._heads.get(layer)) for layer in range(len(self._layers))]

    def _run_ids(self, rows: int) -> None:
        self._model(torch.zeros(rows, self._tokens, dtype=torch.long), use_cache=False)

    def _replace_input(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        hidden = args[0] if args else kwargs["hidden_states"]
        if self._noise is None:
            generator = torch.Generator().manual_seed(1)
            self._noise = torch.randn(2, *hidden.shape[1:], generator=generator).to(hidden)
        noise = self._noise[:1].repeat(self._rows, 1, 1)
        for row, key in enumerate(self._keys):
            if key is not None:
                noise[row, key] = self._noise[1, key]
        return ((noise, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": noise})

    def _read_hidden(self, layer: int, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        hidden = output[0] if isinstance(output, tuple) else output
        self._hidden[layer] = hidden[:, : self._tokens]  # some models pad the text

    def _read_heads(self, layer: int, module: nn.Module, args: tuple[Any, ...]) -> None:
        held = args[0]
        if held.ndim == 3 and held.shape[0] == self._rows:
            held = held[:, : self._tokens]
        joined = held.reshape(self._rows, self._tokens, -1)
        if joined.shape[-1] % self._n_heads == 0:
            self._heads[layer] = joined.unflatten(-1, (self._n_heads, -1))


def _projection(layer: nn.Module) -> nn.Module | None:
    """Return the module that joins the heads of a layer's attention; None if no module has a usual name."""
    for name, module in layer.named_modules():
        path = name.split(".")
        if path[-1] in _PROJECTIONS and any("attn" in part or "attention" in part for part in path[:-1]):
            return module
    return None
