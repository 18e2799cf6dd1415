"""MLX-LM: the folder as ``mlx_lm.utils.load_model`` loads it, with the cache of ``make_prompt_cache``."""

from importlib import metadata
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from engine_clock import now, seconds
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.utils import load_model

_CHUNK = 512


def version() -> str:
    """Return the releases that ran."""
    return f"mlx-lm {metadata.version('mlx-lm')} (mlx {metadata.version('mlx')}, {mx.default_device()})"


def _logprobs(logits: Any) -> Any:
    logits = np.array(logits.astype(mx.float32))[0].astype(np.float64)
    logits -= logits.max(-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


class Model:
    """One loaded folder."""

    def __init__(self, path: str, longest: int, options: dict[str, Any]) -> None:
        self._model, _ = load_model(Path(path), lazy=False, strict=True)

    def logprobs(self, ids: list[int]) -> list[float]:
        """Return the log-probability of each token but the first, without a cache."""
        found = _logprobs(self._model(mx.array([ids])))
        return found[np.arange(len(ids) - 1), ids[1:]].tolist()

    def _prefill(self, ids: list[int]) -> tuple[Any, Any]:
        """Return the last token's logits and the cache, filled in chunks as ``mlx_lm.generate`` does."""
        cache = make_prompt_cache(self._model)
        for first in range(0, len(ids) - 1, _CHUNK):
            self._model(mx.array([ids[first : min(first + _CHUNK, len(ids) - 1)]]), cache=cache)
            mx.eval([layer.state for layer in cache])
        logits = self._model(mx.array([ids[-1:]]), cache=cache)
        mx.eval(logits)
        return logits, cache

    def generate(self, ids: list[int], new: int) -> tuple[list[int], list[float]]:
        """Return greedy tokens and their log-probabilities, token by token with the cache."""
        logits, cache = self._prefill(ids)
        tokens: list[int] = []
        logprobs: list[float] = []
        for _ in range(new):
            best = _logprobs(logits)[-1]
            tokens.append(int(best.argmax()))
            logprobs.append(float(best.max()))
            logits = self._model(mx.array([tokens[-1:]]), cache=cache)
        return tokens, logprobs

    def bench(self, ids: list[int], new: int) -> dict[str, Any]:
        """Return seconds of prefill and decoding, and the bytes of keys and values that the cache holds."""
        marks = [now()]
        logits, cache = self._prefill(ids)
        marks.append(now())
        for _ in range(new):
            logits = self._model(mx.argmax(logits[:, -1:], axis=-1), cache=cache)
            mx.eval(logits)
        marks.append(now())
        held = sum(layer.nbytes for layer in cache)
        value = cache[0].state[0].dtype.size
        return {
            **seconds(*marks),
            "kv_bytes": held,
            "kv_value_bytes": value,
        }
