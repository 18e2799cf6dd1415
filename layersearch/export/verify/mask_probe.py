"""Each layer's effective mask, by experiment: change one token before the layer, see which outputs move.

One forward pass tests all layers: before each of them the stream is replaced by the same noise, in which row k of the
batch has its token j_k changed. The pass is made once more without changes; what is not seen is then the same to the
bit, whatever kernel ran. Moves are read after the layer, and by head before the layer's output projection.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from layersearch.errors import UserError
from layersearch.schedule import Schedule, Span

EVERY_PAIR = 256
"""Texts up to this many tokens are tested pair by pair; of longer ones some keys against all queries."""
LEAST_TOKENS = 32
"""No text is shorter, however short the spans."""
LEAST_OF_LONG = 128
"""Nor than this where the model is made for as many: a limit that nobody names may show."""
MOST_TOKENS = 20_000
"""Spans that need a longer text to be seen are not tested."""
_THRESHOLD = 2e-6
"""A move of an output by more than this share of the stream's spread is one."""
_SCORE_BYTES = 2**29
"""Attention scores of one pass, at most."""
_RANDOM_KEYS = 8
_MARGIN = (4, 64)
"""A text is longer than the span by half of it, at least and at most so many tokens."""
_PROJECTIONS = ("o_proj", "out_proj", "c_proj", "dense", "wo", "Wo")


@dataclass(frozen=True, kw_only=True)
class LayerProof:
    """What one layer was seen to do, against its span."""

    layer: int
    """Counted from 0."""
    span: str
    pairs: int
    """(query, key) pairs tested."""
    seen: int
    """Pairs of which the key moves the query."""
    too_many: int
    """Pairs seen that the span does not let see."""
    too_few: int
    """Pairs not seen that the span lets see."""
    by_head: bool
    """Whether each head's own mask was compared, too."""
    wrong_heads: int
    """Pairs, counted head by head, that differ from the span."""
    example: str | None
    """The first pair that differs, in words."""

    @property
    def proven(self) -> bool:
        """Tell whether every tested pair agrees."""
        return not (self.too_many or self.too_few or self.wrong_heads)


def text_length(schedule: Schedule, sizes: Sequence[int], longest: int | None) -> int:
    """Return how many tokens show every span of a schedule, and every window that a configuration holds.

    Args:
        schedule: one span per layer.
        sizes: windows and chunks that stand in the configuration, in tokens, used by the schedule or not: a layer that
            should be full is told from one of that window by a longer text only.
        longest: positions of the model; beyond them a window is as good as full. None: not known.

    Raises:
        UserError: if that is too long to test.
    """
    needed = [_needed(span) for span in schedule]
    needed += [_beyond(min(size, longest or size)) for size in sizes if size > 0]
    tokens = max(LEAST_TOKENS, min(longest or 0, LEAST_OF_LONG), *needed)
    if tokens > MOST_TOKENS:
        raise UserError(f"the spans show in a text of {tokens} tokens only; more than {MOST_TOKENS} are not tested")
    return tokens


def _needed(span: Span) -> int:
    if span.size is None:
        return span.pool + 1
    if span.kind == "block":
        return _beyond(2 * span.size + span.sink + span.pool)
    return _beyond((span.reach() or 0) + 1 + span.sink + span.dilation)


def _beyond(edge: int) -> int:
    least, most = _MARGIN
    return edge + max(least, min(most, edge // 2))


def changed_keys(schedule: Schedule, tokens: int) -> list[int]:
    """Return the keys that are changed: every one of a short text; of a long one those at the spans' edges and some."""
    if tokens <= EVERY_PAIR:
        return list(range(tokens))
    keys = {0, 1, 2, tokens // 2, tokens - 2, tokens - 1}
    for span in set(schedule):
        if span.size is None:
            continue
        keys |= {span.sink - 1, span.sink}
        if span.kind == "block":
            keys |= {times * span.size + off for times in (1, 2) for off in (-1, 0)}
        else:
            reach = span.reach() or 0
            keys |= {reach, tokens - 1 - reach, tokens - 2 - reach, (tokens - 1 - reach) // 2}
    generator = torch.Generator().manual_seed(0)
    keys |= set(torch.randint(tokens, (_RANDOM_KEYS,), generator=generator).tolist())
    return sorted(key for key in keys if 0 <= key < tokens)


@torch.no_grad()
def prove_masks(
    model: Any, layers: nn.ModuleList, schedule: Schedule, *, tokens: int, n_heads: int
) -> list[LayerProof]:
    """Find each layer's effective mask and compare it with its span, pair by pair.

    Args:
        model: a causal language model of transformers, in evaluation.
        layers: its decoder layers, each called with the stream first and giving it back (first).
        schedule: one span per layer.
        tokens: length of the text.
        n_heads: query heads.
    """
    keys = changed_keys(schedule, tokens)
    rows = max(1, min(len(keys), _SCORE_BYTES // (4 * n_heads * tokens * tokens)))
    probe = _Probe(model, layers, tokens, rows, n_heads)
    quiet = probe.run([None] * rows)
    moved: list[list[Tensor]] = [[] for _ in layers]
    by_head: list[list[Tensor]] = [[] for _ in layers]
    for first in range(0, len(keys), rows):
        some = keys[first : first + rows]
        loud = probe.run([*some, *[None] * (rows - len(some))])
        for layer, (now, before) in enumerate(zip(loud, quiet, strict=True)):
            change = (now.stream - before.stream).abs().amax(-1)[: len(some)]  # (keys, tokens)
            moved[layer].append((change > _THRESHOLD * before.stream.std()).cpu())
            if now.heads is not None and before.heads is not None:
                change = (now.heads - before.heads).abs().amax(-1)[: len(some)]  # (keys, tokens, heads)
                by_head[layer].append((change > _THRESHOLD * before.heads.std()).cpu())
    proofs = []
    for layer, span in enumerate(schedule):
        whole = torch.cat(moved[layer]).T  # (tokens, keys)
        heads = torch.cat(by_head[layer]).permute(2, 1, 0) if by_head[layer] else None  # (heads, tokens, keys)
        proofs.append(_compare(layer, span, whole, heads, keys, n_heads))
    return proofs


def _compare(layer: int, span: Span, seen: Tensor, heads: Tensor | None, keys: list[int], n_heads: int) -> LayerProof:
    queries, columns = torch.arange(len(seen)), torch.tensor(keys)
    head = torch.arange(n_heads)[:, None, None]
    each = span.moves(queries[None, :, None], columns[None, None, :], head).expand(n_heads, len(seen), len(keys))
    wanted = each.any(0)
    wrong = (seen != wanted).nonzero()
    wrong_heads = (heads != each).nonzero() if heads is not None else torch.empty(0, 3, dtype=torch.long)
    example = None
    if len(wrong):
        i, at = wrong[0].tolist()
        sees = "sees" if seen[i, at] else "does not see"
        example = f"layer {layer}: token {i} {sees} token {keys[at]}, unlike {span}"
    elif len(wrong_heads) and heads is not None:
        h, i, at = wrong_heads[0].tolist()
        sees = "sees" if heads[h, i, at] else "does not see"
        example = f"layer {layer}, head {h}: token {i} {sees} token {keys[at]}, unlike {span}"
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


@dataclass(frozen=True)
class _Outputs:
    stream: Tensor  # (rows, tokens, width)
    heads: Tensor | None  # (rows, tokens, heads, head width)


class _Probe:
    """A model whose layers are fed noise instead of the stream."""

    def __init__(self, model: Any, layers: nn.ModuleList, tokens: int, rows: int, n_heads: int) -> None:
        self._model, self._layers, self._rows, self._tokens, self._n_heads = model, layers, rows, tokens, n_heads
        self._noise: Tensor | None = None
        self._keys: Sequence[int | None] = ()
        self._streams: dict[int, Tensor] = {}
        self._heads: dict[int, Tensor] = {}

    def run(self, keys: Sequence[int | None]) -> list[_Outputs]:
        """Return every layer's outputs where row k of the batch has token ``keys[k]`` changed, or none."""
        self._keys, self._streams, self._heads = keys, {}, {}
        hooks: list[Any] = []
        for layer, module in enumerate(self._layers):
            hooks.append(module.register_forward_pre_hook(self._before(layer), with_kwargs=True))
            hooks.append(module.register_forward_hook(self._after(layer)))
            projection = _projection(module)
            if projection is not None:
                hooks.append(projection.register_forward_pre_hook(self._read_heads(layer)))
        try:
            self._model(torch.zeros(self._rows, self._tokens, dtype=torch.long), use_cache=False)
        except (ValueError, TypeError, RuntimeError, KeyError, IndexError, AttributeError) as error:
            words = " ".join(str(error).split())[:200]
            name = type(self._model).__name__
            raise UserError(f"{name} does not run as config.json has it ({type(error).__name__}: {words})") from None
        finally:
            for hook in hooks:
                hook.remove()
        unseen = [layer for layer in range(len(self._layers)) if layer not in self._streams]
        if unseen:
            raise UserError(f"layer {unseen[0]} of {type(self._model).__name__} is never called")
        return [_Outputs(self._streams[layer], self._heads.get(layer)) for layer in range(len(self._layers))]

    def _fed(self, stream: Tensor) -> Tensor:
        if self._noise is None:
            generator = torch.Generator().manual_seed(1)
            drawn = torch.randn(2, *stream.shape[1:], generator=generator)
            self._noise = drawn.to(stream)
        fed = self._noise[:1].repeat(self._rows, 1, 1)
        for row, key in enumerate(self._keys):
            if key is not None:
                fed[row, key] = self._noise[1, key]
        return fed

    def _before(self, layer: int) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if args:
                return (self._fed(args[0]), *args[1:]), kwargs
            return args, kwargs | {"hidden_states": self._fed(kwargs["hidden_states"])}

        return hook

    def _after(self, layer: int) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            self._streams[layer] = output[0] if isinstance(output, tuple) else output

        return hook

    def _read_heads(self, layer: int) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
            joined = args[0].reshape(self._rows, self._tokens, -1)
            if joined.shape[-1] % self._n_heads == 0:
                self._heads[layer] = joined.unflatten(-1, (self._n_heads, -1))

        return hook


def _projection(layer: nn.Module) -> nn.Module | None:
    """Return the module that joins the heads of a layer's attention, None where there is none by a usual name."""
    for name, module in layer.named_modules():
        path = name.split(".")
        if path[-1] in _PROJECTIONS and any("attn" in part or "attention" in part for part in path[:-1]):
            return module
    return None
