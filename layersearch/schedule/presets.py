"""Schedules of the literature, by name and size.

Layers are counted from 0 at the bottom. Where a paper's attention is not one of our spans, the docstring says what
stands in for it. A window counts the token itself.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from layersearch.errors import UserError, did_you_mean
from layersearch.schedule import Schedule, Span

FULL = Span(kind="full")


def _span(span: Span | str) -> Span:
    return Span.parse(span) if isinstance(span, str) else span


def _window(size: int) -> Span:
    return Span(kind="window", size=size)


def _at_least(value: int, least: int, name: str) -> None:
    if value < least:
        raise UserError(f"{name} must be at least {least}, not {value}")


def _place(n_layers: int, full_layers: set[int], span: Span | str) -> Schedule:
    _at_least(n_layers, 1, "n_layers")
    sparse = _span(span)
    return Schedule(tuple(FULL if layer in full_layers else sparse for layer in range(n_layers)))


def _count(n_layers: int, l: int) -> None:  # noqa: E741 - l is the literature's own letter
    _at_least(n_layers, 1, "n_layers")
    if not 0 <= l <= n_layers:
        raise UserError(f"l must lie between 0 and n_layers ({n_layers}), not {l}")


def all_full(n_layers: int) -> Schedule:
    """Full causal attention in every layer (Transformer, 1706.03762, sec. 3.2.3: the decoder's masking)."""
    _at_least(n_layers, 1, "n_layers")
    return _place(n_layers, set(range(n_layers)), FULL)


def all_sparse(n_layers: int, span: Span | str) -> Schedule:
    """One sparse span in every layer, as Mistral 7B (2310.06825, sec. 2) does with windows of 4096."""
    return _place(n_layers, set(), span)


def bottom(n_layers: int, l: int, span: Span | str) -> Schedule:  # noqa: E741
    """Full attention in layers 0 ... l-1, ``span`` above (MASFormer's placement, 2310.12442)."""
    _count(n_layers, l)
    return _place(n_layers, set(range(l)), span)


def top(n_layers: int, l: int, span: Span | str) -> Schedule:  # noqa: E741
    """Full attention in the last l layers, the placement that Rae & Razavi (2007.03356) found to suffice."""
    _count(n_layers, l)
    return _place(n_layers, set(range(n_layers - l, n_layers)), span)


def middle(n_layers: int, l: int, span: Span | str) -> Schedule:  # noqa: E741
    """Full attention in l neighbouring layers from layer floor((n_layers - l) / 2).

    Middle layers are those to which MoA (2406.14909) gives its longest spans.
    """
    _count(n_layers, l)
    first = (n_layers - l) // 2
    return _place(n_layers, set(range(first, first + l)), span)


def interleaved(n_layers: int, l: int, span: Span | str) -> Schedule:  # noqa: E741
    """Full attention in l evenly spaced layers (Rae & Razavi, 2007.03356).

    The layers are floor((2k + 1) * n_layers / (2l)) for k = 0 ... l-1: the centres of l equal parts of the depth, so
    that neither end is preferred. The rule is ours; the paper says "spaced equally".
    """
    _count(n_layers, l)
    return _place(n_layers, {(2 * k + 1) * n_layers // (2 * l) for k in range(l)}, span)


def masformer(l: int, n_layers: int = 24, block: int = 1024) -> Schedule:  # noqa: E741
    """MASFormer (2310.12442): full attention in the bottom l layers, blocks in the others.

    The 24 layers and blocks of 1024 are those at which l = 4 costs the paper's 27% at 8192 tokens.
    """
    return bottom(n_layers, l, Span(kind="block", size=block))


def zebra(n_layers: int, block: int, group: int = 4) -> Schedule:
    """Zebra (2312.08618): full attention where layer % group = 0, local attention in between.

    Zebra's local attention sees its own block and the one before: between block + 1 and 2 * block keys. No span of
    ours has a width that changes with the position, so ``window:(block + block // 2 + 1)`` stands in: of all windows it
    differs from the paper's mask in the fewest (query, key) pairs.
    """
    _at_least(group, 1, "group")
    _at_least(block, 1, "block")
    return _place(n_layers, set(range(0, n_layers, group)), _window(block + block // 2 + 1))


def gemma3(n_layers: int, window: int = 1024) -> Schedule:
    """Gemma 3 (2503.19786, sec. 2): five local layers, then a global one; layers 5, 11, 17, ... are full."""
    return _place(n_layers, set(range(5, n_layers, 6)), _window(window))


def longformer_increasing(n_layers: int, smallest: int, largest: int, dilated_heads: int = 0) -> Schedule:
    """Longformer's causal model (2004.05150, sec. 4.1): windows that grow with depth, dilation on a few heads.

    Windows grow geometrically from ``smallest`` in layer 0 to ``largest`` in the last layer, rounded to whole tokens;
    the paper gives the two ends (32 and 512 in its ablation), not the sizes between. With ``dilated_heads`` = 2, as in
    the paper, the first half of the layers has no dilation and the thirds of the second half keep every 2nd, 3rd and
    4th key on those heads. The paper writes these dilations 1, 2 and 3, with 0 for none.
    """
    _at_least(n_layers, 1, "n_layers")
    _at_least(smallest, 1, "smallest")
    _at_least(dilated_heads, 0, "dilated_heads")
    if largest < smallest:
        raise UserError(f"largest must be at least smallest ({smallest}), not {largest}; windows grow with depth")
    spans = []
    half = (n_layers + 1) // 2
    for layer in range(n_layers):
        share = layer / max(n_layers - 1, 1)
        size = round(smallest * (largest / smallest) ** share)
        if dilated_heads and layer >= half:
            dilation = 2 + 3 * (layer - half) // (n_layers - half)
            spans.append(Span(kind="window", size=size, dilation=dilation, dilated_heads=dilated_heads))
        else:
            spans.append(_window(size))
    return Schedule(tuple(spans))


def qwen2(n_layers: int, max_window_layers: int, window: int) -> Schedule:
    """Qwen2 (2407.10671; ``max_window_layers`` of its configuration): the first so many layers are full."""
    if not 0 <= max_window_layers <= n_layers:
        raise UserError(f"max_window_layers must lie between 0 and n_layers ({n_layers}), not {max_window_layers}")
    return bottom(n_layers, max_window_layers, _window(window))


def gpt_neo(n_layers: int, window: int = 256) -> Schedule:
    """GPT-Neo (10.5281/zenodo.5297715): global and local layers alternate, layer 0 is global."""
    return _place(n_layers, set(range(0, n_layers, 2)), _window(window))


def gpt_oss(n_layers: int, window: int = 128) -> Schedule:
    """gpt-oss (2508.10925): banded and full layers alternate, layer 0 is banded."""
    return _place(n_layers, set(range(1, n_layers, 2)), _window(window))


def cohere2(n_layers: int, window: int = 4096) -> Schedule:
    """Command A (2504.00698): three windowed layers, then a full one; layers 3, 7, 11, ... are full."""
    return _place(n_layers, set(range(3, n_layers, 4)), _window(window))


def llama4(n_layers: int, chunk: int = 8192) -> Schedule:
    """Llama 4 (its released configuration): three chunked layers, then a full one; layers 3, 7, 11, ... are full.

    The model drops rotary positions in its full layers; a schedule says nothing of positions.
    """
    return _place(n_layers, set(range(3, n_layers, 4)), Span(kind="block", size=chunk))


def nanochat(n_layers: int, window: int) -> Schedule:
    """nanochat (github.com/karpathy/nanochat): short, short, short, long; the last layer is always long."""
    return _place(n_layers, set(range(3, n_layers, 4)) | {n_layers - 1}, _window(window))


JET_NEMOTRON: dict[str, tuple[int, tuple[int, ...], tuple[int, ...]]] = {
    "2b": (28, (14, 19), (20, 21)),
    "4b": (36, (17, 20, 32), ()),
}
"""Layers, full layers and layers with a window of 1152, per model (2508.15884)."""


def jet_nemotron(model: str, rest: Span | str) -> Schedule:
    """Jet-Nemotron (2508.15884): the full layers that PostNAS found, and the 2B model's two windows of 1152.

    The remaining layers are linear attention, which no span expresses: ``rest`` stands in for it.
    """
    if model not in JET_NEMOTRON:
        raise UserError(f"no Jet-Nemotron model {model!r}{did_you_mean(model, JET_NEMOTRON)}")
    n_layers, full_layers, windowed = JET_NEMOTRON[model]
    spans = list(_place(n_layers, set(full_layers), rest))
    for layer in windowed:
        spans[layer] = _window(1152)
    return Schedule(tuple(spans))


KL_GUIDED: dict[str, tuple[int, tuple[int, ...]]] = {
    "qwen2.5-1.5b": (28, (14, 19, 20, 23, 24, 26, 27)),
    "llama-3.2-3b": (28, (5, 8, 12, 14)),
}
"""Layers and full layers, per model (2512.20569)."""


def kl_guided(model: str, rest: Span | str) -> Schedule:
    """KL-guided layer selection (2512.20569): the layers of a pre-trained model that keep softmax attention.

    The remaining layers are linear attention, which no span expresses: ``rest`` stands in for it.
    """
    if model not in KL_GUIDED:
        raise UserError(f"no KL-guided selection for {model!r}{did_you_mean(model, KL_GUIDED)}")
    n_layers, full_layers = KL_GUIDED[model]
    return _place(n_layers, set(full_layers), rest)


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A schedule of the literature as a list shows it."""

    function: Callable[..., Schedule]
    summary: str
    """One line."""
    source: str
    """Where it was published: an arXiv id, a DOI or a repository."""

    @property
    def parameters(self) -> dict[str, int | str | None]:
        """The parameters in order, with their defaults; None: must be given."""
        signature = inspect.signature(self.function)
        return {
            name: None if parameter.default is inspect.Parameter.empty else parameter.default
            for name, parameter in signature.parameters.items()
        }


PRESETS: dict[str, Preset] = {
    function.__name__: Preset(function=function, summary=summary, source=source)
    for function, summary, source in (
        (all_full, "full attention everywhere", "arXiv:1706.03762"),
        (all_sparse, "one sparse span everywhere", "arXiv:2310.06825"),
        (bottom, "full attention in the first l layers", "arXiv:2310.12442"),
        (top, "full attention in the last l layers", "arXiv:2007.03356"),
        (middle, "full attention in the l middle layers", "arXiv:2406.14909"),
        (interleaved, "full attention in l evenly spaced layers", "arXiv:2007.03356"),
        (masformer, "MASFormer: full in the first l layers, blocks above", "arXiv:2310.12442"),
        (zebra, "Zebra: full in every group's first layer, local between", "arXiv:2312.08618"),
        (gemma3, "Gemma 3: five windows, then full", "arXiv:2503.19786"),
        (longformer_increasing, "Longformer: windows that grow with depth", "arXiv:2004.05150"),
        (qwen2, "Qwen2: full in the first max_window_layers, windows above", "arXiv:2407.10671"),
        (gpt_neo, "GPT-Neo: full and window alternate, full first", "doi:10.5281/zenodo.5297715"),
        (gpt_oss, "gpt-oss: window and full alternate, window first", "arXiv:2508.10925"),
        (cohere2, "Command A: three windows, then full", "arXiv:2504.00698"),
        (llama4, "Llama 4: three chunked layers, then full", "github.com/meta-llama/llama-models"),
        (nanochat, "nanochat: three windows, then full; the last layer full", "github.com/karpathy/nanochat"),
        (jet_nemotron, "Jet-Nemotron: the layers PostNAS found (2b, 4b)", "arXiv:2508.15884"),
        (kl_guided, "KL-guided selection (qwen2.5-1.5b, llama-3.2-3b)", "arXiv:2512.20569"),
    )
}
"""Every preset by name."""


def make_preset(name: str, parameters: Mapping[str, Any]) -> Schedule:
    """Build a preset from what a user typed.

    Args:
        name: a key of `PRESETS`.
        parameters: values by parameter name; numbers and spans may be text.

    Raises:
        UserError: for a name or parameter that is not known, is missing, or has a wrong value.
    """
    if name not in PRESETS:
        raise UserError(f"no preset {name!r}{did_you_mean(name, PRESETS)}")
    known = PRESETS[name].parameters
    for key in parameters:
        if key not in known:
            raise UserError(f"preset {name} has no parameter {key!r}{did_you_mean(str(key), known)}")
    missing = [key for key, default in known.items() if default is None and key not in parameters]
    if missing:
        raise UserError(f"preset {name} needs {', '.join(missing)}; give {missing[0]}=...")
    values = {key: _value(name, key, value) for key, value in parameters.items()}
    try:
        return PRESETS[name].function(**values)
    except UserError as error:
        raise UserError(f"preset {name}: {error}") from None


def _value(preset: str, key: str, value: Any) -> Any:
    if key in ("span", "rest"):
        if not isinstance(value, Span | str):
            raise UserError(f"preset {preset}: {key} must be a span such as window:512, not {value!r}")
        return value
    if key == "model":
        return str(value)
    try:
        if isinstance(value, bool | float):
            raise ValueError
        return int(value)
    except (ValueError, TypeError):
        raise UserError(f"preset {preset}: {key} must be a whole number, not {value!r}") from None
