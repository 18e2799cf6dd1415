"""transformers: the folder as ``AutoModelForCausalLM`` loads it, with its own masks and its own cache."""

import os
from typing import Any

import torch
import transformers
from engine_clock import now, seconds


def version() -> str:
    """Return the releases that ran."""
    return f"transformers {transformers.__version__}"


class Model:
    """One loaded folder."""

    def __init__(self, path: str, longest: int, options: dict[str, Any]) -> None:
        torch.set_num_threads(options.get("threads", 1))
        logging: Any = transformers.logging
        logging.set_verbosity_error()
        logging.disable_progress_bar()
        os.environ["HF_HUB_OFFLINE"] = "1"
        factory: Any = transformers.AutoModelForCausalLM
        self._model = factory.from_pretrained(path, dtype=torch.float32).eval()

    @torch.no_grad()
    def logprobs(self, ids: list[int]) -> list[float]:
        """Return the log-probability of each token but the first."""
        tokens = torch.tensor([ids])
        found = self._model(tokens, use_cache=False).logits[0].float().log_softmax(-1)
        return found[:-1].gather(1, tokens[0, 1:, None])[:, 0].tolist()

    @torch.no_grad()
    def generate(self, ids: list[int], new: int) -> tuple[list[int], list[float]]:
        """Return greedy tokens and their log-probabilities, token by token with the cache."""
        state, cache = torch.tensor([ids]), None
        tokens: list[int] = []
        logprobs: list[float] = []
        for _ in range(new):
            out = self._model(state, past_key_values=cache, use_cache=True)
            cache, best = out.past_key_values, out.logits[0, -1].float().log_softmax(-1)
            tokens.append(int(best.argmax()))
            logprobs.append(float(best.max()))
            state = torch.tensor([tokens[-1:]])
        return tokens, logprobs

    @torch.no_grad()
    def bench(self, ids: list[int], new: int) -> dict[str, Any]:
        """Return seconds of prefill and decoding, and the bytes of keys and values that the cache holds."""
        cache: Any = None
        marks = [now()]
        for first in range(0, len(ids), 512):
            chunk = torch.tensor([ids[first : first + 512]])
            out = self._model(chunk, past_key_values=cache, use_cache=True, logits_to_keep=1)
            cache = out.past_key_values
        marks.append(now())
        for _ in range(new):
            token = out.logits[:, -1:].argmax(-1)
            out = self._model(token, past_key_values=cache, use_cache=True, logits_to_keep=1)
        marks.append(now())
        held = sum(part.untyped_storage().nbytes() for layer in cache.layers for part in (layer.keys, layer.values))
        return {
            **seconds(*marks),
            "kv_bytes": held,
            "kv_value_bytes": 4,
        }
