"""Published schedules, by name and size.

Layers are counted from 0 at the bottom. A window counts the token itself. Each docstring begins with the preset's
summary and, in parentheses, its source. It says what stands in for attention that no span expresses.

Example:
    >>> from layersearch import presets
    >>> str(presets.masformer(l=4))
    'full*4 block:1024*20'
"""

import inspect
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any

from layersearch.errors import ConfigError, located, require
from layersearch.schedule.schedule import Schedule
from layersearch.schedule.span import FULL as FULL
from layersearch.schedule.span import Span


def _window(size: int) -> Span:
    return Span(kind="window", size=size)


def _at_least(least: int, **values: int) -> None:
    for name, value in values.items():
        require(value >= least, f"{name} must be at least {least}, not {value}")


def place(n_layers: int, full_layers: Collection[int], span: Span | str) -> Schedule:
    """Return the schedule with full attention in these layers, counted from 0, and ``span`` in the others."""
    _at_least(1, n_layers=n_layers)
    sparse = Span.parse(span) if isinstance(span, str) else span
    return Schedule(tuple(FULL if layer in full_layers else sparse for layer in range(n_layers)))


def _check_count(n_layers: int, l: int, name: str = "l") -> None:  # noqa: E741 - l is the literature's own letter
    _at_least(1, n_layers=n_layers)
    require(0 <= l <= n_layers, f"{name} must lie between 0 and n_layers ({n_layers}), not {l}")


def all_full(n_layers: int) -> Schedule:
    """Full attention everywhere (arXiv:1706.03762, sec. 3.2.3)."""
    return place(n_layers, range(n_layers), FULL)


def all_sparse(n_layers: int, span: Span | str) -> Schedule:
    """One sparse span everywhere (arXiv:2310.06825, sec. 2: Mistral 7B with windows of 4096)."""
    return place(n_layers, (), span)


def bottom(n_layers: int, l: int, span: Span | str) -> Schedule:  # noqa: E741
    """Full attention in the first l layers (arXiv:2310.12442)."""
    _check_count(n_layers, l)
    return place(n_layers, range(l), span)


def top(n_layers: int, l: int, span: Span | str) -> Schedule:  # noqa: E741
    """Full attention in the last l layers (arXiv:2007.03356: the placement that sufficed)."""
    _check_count(n_layers, l)
    return place(n_layers, range(n_layers - l, n_layers), span)


def middle(n_layers: int, l: int, span: Span | str) -> Schedule:  # noqa: E741
    """Full attention in the l middle layers (arXiv:2406.14909: MoA gives them its longest spans).

    The first of them is layer floor((n_layers - l) / 2).
    """
    _check_count(n_layers, l)
    first = (n_layers - l) // 2
    return place(n_layers, range(first, first + l), span)


def interleaved(n_layers: int, l: int, span: Span | str) -> Schedule:  # noqa: E741
    """Full attention in l evenly spaced layers (arXiv:2007.03356).

    The layers are floor((2k + 1) * n_layers / (2l)) for k = 0 ... l-1, the centers of l equal parts of the depth. So
    neither end is preferred. The rule is ours; the paper says "spaced equally".
    """
    _check_count(n_layers, l)
    return place(n_layers, {(2 * k + 1) * n_layers // (2 * l) for k in range(l)}, span)


def masformer(l: int, n_layers: int = 24, block: int = 1024) -> Schedule:  # noqa: E741
    """MASFormer: full in the first l layers, blocks above (arXiv:2310.12442).

    With the default sizes, l = 4 costs the paper's 27% at 8192 tokens.
    """
    return bottom(n_layers, l, Span(kind="block", size=block))


def zebra(n_layers: int, block: int, group: int = 4) -> Schedule:
    """Zebra: full in every group's first layer, local between (arXiv:2312.08618).

    Zebra's local attention sees its own block and the one before: between block + 1 and 2 * block keys. No span has a
    width that changes with the position. ``window:(block + block // 2 + 1)`` stands in: among all windows it differs
    from the paper's mask in the fewest (query, key) pairs.
    """
    _at_least(1, group=group, block=block)
    return place(n_layers, range(0, n_layers, group), _window(block + block // 2 + 1))


def gemma3(n_layers: int, window: int = 1024) -> Schedule:
    """Gemma 3: five windows, then full (arXiv:2503.19786, sec. 2)."""
    return place(n_layers, range(5, n_layers, 6), _window(window))


def longformer_increasing(n_layers: int, smallest: int, largest: int, dilated_heads: int = 0) -> Schedule:
    """Longformer: windows that grow with depth (arXiv:2004.05150, sec. 4.1).

    Windows grow geometrically from ``smallest`` in layer 0 to ``largest`` in the last layer, rounded to whole tokens.
    The paper gives only the two ends (32 and 512 in its ablation). With ``dilated_heads`` (2 in the paper) the first
    half of the layers has no dilation. The thirds of the second half keep every 2nd, 3rd and 4th key on those heads.
    The paper writes these dilations 1, 2 and 3, with 0 for none.
    """
    _at_least(1, n_layers=n_layers, smallest=smallest)
    _at_least(0, dilated_heads=dilated_heads)
    if largest < smallest:
        raise ConfigError(f"largest must be at least smallest ({smallest}), not {largest}; windows grow with depth")
    spans, half = [], (n_layers + 1) // 2
    for layer in range(n_layers):
        window = _window(round(smallest * (largest / smallest) ** (layer / max(n_layers - 1, 1))))
        if dilated_heads and layer >= half:
            dilation = 2 + 3 * (layer - half) // (n_layers - half)
            window = Span(kind="window", size=window.size, dilation=dilation, dilated_heads=dilated_heads)
        spans.append(window)
    return Schedule(tuple(spans))


def qwen2(n_layers: int, max_window_layers: int, window: int) -> Schedule:
    """Qwen2: full in the first max_window_layers, windows above (arXiv:2407.10671)."""
    _check_count(n_layers, max_window_layers, "max_window_layers")
    return bottom(n_layers, max_window_layers, _window(window))


def gpt_neo(n_layers: int, window: int = 256) -> Schedule:
    """GPT-Neo: full and window alternate, full first (doi:10.5281/zenodo.5297715)."""
    return place(n_layers, range(0, n_layers, 2), _window(window))


def gpt_oss(n_layers: int, window: int = 128) -> Schedule:
    """gpt-oss: window and full alternate, window first (arXiv:2508.10925)."""
    return place(n_layers, range(1, n_layers, 2), _window(window))


def cohere2(n_layers: int, window: int = 4096) -> Schedule:
    """Command A: three windows, then full (arXiv:2504.00698)."""
    return place(n_layers, range(3, n_layers, 4), _window(window))


def llama4(n_layers: int, chunk: int = 8192) -> Schedule:
    """Llama 4: three chunked layers, then full (github.com/meta-llama/llama-models).

    The model drops rotary positions in its full layers; a schedule does not describe positions.
    """
    return place(n_layers, range(3, n_layers, 4), Span(kind="block", size=chunk))


def nanochat(n_layers: int, window: int) -> Schedule:
    """nanochat: three windows, then full; the last layer full (github.com/karpathy/nanochat)."""
    return place(n_layers, {*range(3, n_layers, 4), n_layers - 1}, _window(window))


_Selection = tuple[int, tuple[int, ...], tuple[int, ...]]
JET_NEMOTRON: dict[str, _Selection] = {"2b": (28, (14, 19), (20, 21)), "4b": (36, (17, 20, 32), ())}
KL_GUIDED: dict[str, _Selection] = {
    "qwen2.5-1.5b": (28, (14, 19, 20, 23, 24, 26, 27), ()),
    "llama-3.2-3b": (28, (5, 8, 12, 14), ()),
}
"""Per model: the number of layers, the full layers, and the layers with a window of 1152 tokens."""


def _selection(published: Mapping[str, _Selection], model: str, rest: Span | str) -> Schedule:
    require(model in published, f"no model {model!r} is published", model, published)
    n_layers, full, windowed = published[model]
    schedule = place(n_layers, full, rest)
    return Schedule(tuple(_window(1152) if layer in windowed else span for layer, span in enumerate(schedule)))


def jet_nemotron(model: str, rest: Span | str) -> Schedule:
    """Jet-Nemotron: the layers PostNAS found, 2b or 4b (arXiv:2508.15884).

    The other layers are linear attention, which no span expresses: ``rest`` stands in for it.
    """
    return _selection(JET_NEMOTRON, model, rest)


def kl_guided(model: str, rest: Span | str) -> Schedule:
    """KL-guided selection, qwen2.5-1.5b or llama-3.2-3b (arXiv:2512.20569).

    The other layers are linear attention, which no span expresses: ``rest`` stands in for it.
    """
    return _selection(KL_GUIDED, model, rest)


class Preset:
    """A published schedule as a list shows it; the source is an arXiv id, a DOI or a repository."""

    def __init__(self, function: Callable[..., Schedule]) -> None:
        match = re.match(r"(.*) \(([^\s,)]*[^\s,):])", function.__doc__ or "")
        assert match, f"{function.__name__}: its docstring names no source"
        self.function, self.summary, self.source = function, match[1], match[2]
        signature = inspect.signature(function).parameters.values()
        # In order, with their defaults; None marks a required one.
        self.parameters = {each.name: None if each.default is each.empty else each.default for each in signature}


PRESETS: dict[str, Preset] = {  # every preset by name
    function.__name__: Preset(function)
    for function in (
        *(all_full, all_sparse, bottom, top, middle, interleaved, masformer, zebra, gemma3, longformer_increasing),
        *(qwen2, gpt_neo, gpt_oss, cohere2, llama4, nanochat, jet_nemotron, kl_guided),
    )
}


def make_preset(name: str, parameters: Mapping[str, Any]) -> Schedule:
    """Build a preset, by its key in `PRESETS`, from what a user typed: numbers and spans may be text.

    Raises:
        ConfigError: a name or parameter is unknown, missing or out of range.
    """
    require(name in PRESETS, f"no preset {name!r}", name, PRESETS)
    known = PRESETS[name].parameters
    for key in parameters:
        require(key in known, f"preset {name} has no parameter {key!r}", key, known)
    missing = [key for key, default in known.items() if default is None and key not in parameters]
    if missing:
        raise ConfigError(f"preset {name} needs {', '.join(missing)}; give {missing[0]}=...")
    with located(f"preset {name}"):
        return PRESETS[name].function(**{key: _value(key, value) for key, value in parameters.items()})


def _value(key: str, value: Any) -> Any:
    if key in ("span", "rest"):
        require(isinstance(value, Span | str), f"{key} must be a span such as window:512, not {value!r}")
        return value
    if key == "model":
        return str(value)
    try:
        if isinstance(value, bool | float):
            raise ValueError
        return int(value)
    except (ValueError, TypeError):
        raise ConfigError(f"{key} must be a whole number, not {value!r}") from None
