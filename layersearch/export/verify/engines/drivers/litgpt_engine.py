"""LitGPT on a CPU: its own GPT with ``model_config.yaml`` and ``lit_model.pth``."""

from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from engine_clock import now, seconds
from litgpt.config import Config
from litgpt.model import GPT


def version() -> str:
    """Return the releases that ran."""
    return f"litgpt {metadata.version('litgpt')} (torch {torch.__version__})"


class Model:
    """One checkpoint."""

    def __init__(self, path: str, longest: int, options: dict[str, Any]) -> None:
        config = Config.from_file(Path(path) / "model_config.yaml")
        state = torch.load(Path(path) / "lit_model.pth", weights_only=True)
        self._model = GPT(config).float().eval()
        self._model.load_state_dict(state, strict=True)
        self._first = config.sliding_window_size or config.block_size

    @torch.no_grad()
    def logprobs(self, ids: list[int]) -> list[float]:
        """Return the log-probability of each token but the first, without a cache."""
        rows = self._model(torch.tensor([ids]))[0].double().log_softmax(-1)
        return rows[torch.arange(len(ids) - 1), torch.tensor(ids[1:])].tolist()

    @torch.no_grad()
    def _prefill(self, ids: list[int], new: int) -> Any:
        """Return the last token's logits. LitGPT's cache takes at most a window at once, and single tokens past it."""
        self._model.clear_kv_cache()
        self._model.max_seq_length = len(ids) + new
        self._model.set_kv_cache(batch_size=1)
        parts = [ids[: self._first], *([token] for token in ids[self._first :])]
        at = 0
        for part in parts:
            logits = self._model(torch.tensor([part]), torch.arange(at, at + len(part)))
            at += len(part)
        return logits[0, -1]

    @torch.no_grad()
    def _next(self, token: int, at: int) -> Any:
        return self._model(torch.tensor([[token]]), torch.tensor([at]))[0, -1]

    def generate(self, ids: list[int], new: int) -> tuple[list[int], list[float]]:
        """Return greedy tokens and their log-probabilities, token by token with the cache."""
        best = self._prefill(ids, new)
        tokens: list[int] = []
        logprobs: list[float] = []
        for step in range(new):
            row = best.double().log_softmax(-1)
            tokens.append(int(row.argmax()))
            logprobs.append(float(row.max()))
            best = self._next(tokens[-1], len(ids) + step)
        return tokens, logprobs

    def bench(self, ids: list[int], new: int) -> dict[str, Any]:
        """Return seconds of prefill and decoding, and the bytes of keys and values that the cache holds."""
        marks = [now()]
        best = self._prefill(ids, new)
        marks.append(now())
        for step in range(new):
            best = self._next(int(best.argmax()), len(ids) + step)
        marks.append(now())
        caches = [block.attn.kv_cache for block in self._model.transformer.h]
        held = sum(part.numel() * part.element_size() for cache in caches for part in (cache.k, cache.v))
        return {**seconds(*marks), "kv_bytes": held, "kv_value_bytes": caches[0].k.element_size()}
