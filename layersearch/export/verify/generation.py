"""Texts generated past every span, with and without a KV cache: the same tokens, from the same logits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from layersearch.export.verify.loading import quiet
from layersearch.schedule import Schedule

TOLERANCE = 1e-3
"""Largest difference of a logit, as a share of the logits' spread, in float32."""
SHORT = 64
"""A text of so many tokens is generated from its first on; of a longer one a few tokens at each span's edge."""
_PROMPT, _FEW = 3, 8


@dataclass(frozen=True, kw_only=True)
class TextProof:
    """What `generate` made with a cache, against what it made without."""

    tokens: int
    """Tokens generated."""
    equal: int
    """Of which so many are the same with and without a cache."""
    difference: float
    """Largest difference of a logit over the spread of the logits, as long as the tokens agree."""
    longest: int
    """Length of the longest text, the prompt included."""
    error: str | None
    """What was raised in its place; None: nothing."""

    @property
    def proven(self) -> bool:
        """Tell whether the texts are the same."""
        return self.error is None and self.equal == self.tokens and self.difference < TOLERANCE


def prompts(schedule: Schedule, tokens: int, longest: int) -> list[tuple[int, int]]:
    """Return (prompt, new tokens) of the texts: over the edge of every span, and on from beyond it.

    Args:
        schedule: one span per layer.
        tokens: a length that shows every span.
        longest: the longest text that the model takes.
    """
    tokens = min(tokens, longest)
    if tokens <= SHORT:
        return [(_PROMPT, tokens - _PROMPT)]
    edges = {(span.reach() or 0) + 1 for span in schedule if span.kind == "window"}
    edges |= {times * (span.size or 0) for span in schedule if span.kind == "block" for times in (1, 2)}
    starts = {max(1, start) for edge in edges for start in (edge - _PROMPT, edge + _FEW)} or {tokens - _FEW}
    return [(start, _FEW) for start in sorted(starts) if start + _FEW <= longest]


@torch.no_grad()
def compare_texts(model: Any, schedule: Schedule, *, tokens: int, longest: int) -> TextProof:
    """Generate greedily with and without a cache, and compare tokens and logits.

    A token stands in a short text once: greedy texts of random weights would repeat one token, whose value is the same
    wherever it is read.
    """
    vocab = model.config.get_text_config(decoder=True).vocab_size
    total = equal = reached = 0
    difference = 0.0
    for prompt, new in prompts(schedule, tokens, longest):
        ids = torch.randint(vocab, (1, prompt), generator=torch.Generator().manual_seed(3))
        found = []
        for cached in (False, True):
            try:
                with quiet():
                    found.append(_generated(model, ids, new, cached, once=prompt + new < vocab))
            except Exception as error:  # whatever the library or the folder's own code makes of it
                how = "with" if cached else "without"
                words = f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
                return TextProof(
                    tokens=total + new,
                    equal=equal,
                    difference=difference,
                    longest=prompt + new,
                    error=f"generate() {how} a cache raises {words}",
                )
        (plain, plain_logits), (fast, fast_logits) = found
        same = [int(a == b) for a, b in zip(plain, fast, strict=True)]
        agree = same.index(0) + 1 if 0 in same else len(same)
        off = (plain_logits[:agree] - fast_logits[:agree]).abs().max() / plain_logits.std()
        total, equal, reached = total + new, equal + sum(same), max(reached, prompt + new)
        difference = max(difference, float(off))
    return TextProof(tokens=total, equal=equal, difference=difference, longest=reached, error=None)


def _generated(model: Any, ids: torch.Tensor, new: int, cached: bool, once: bool) -> tuple[list[int], torch.Tensor]:
    """Return the new tokens and their logits (new, V)."""
    made = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        min_new_tokens=new,
        max_new_tokens=new,
        do_sample=False,
        use_cache=cached,
        no_repeat_ngram_size=1 if once else 0,
        output_logits=True,
        return_dict_in_generate=True,
    )
    return made.sequences[0, ids.shape[1] :].tolist(), torch.cat(made.logits).float()
