"""Texts generated past every span with and without a KV cache: tokens and logits must be the same."""

from dataclasses import dataclass
from typing import Any

import torch

from layersearch.errors import one_line
from layersearch.model.hf_decoder import quiet
from layersearch.schedule import Schedule

TOLERANCE = 1e-3  # largest difference of a logit over the logits' standard deviation, in float32
SHORT = 64
"""Texts up to this many tokens are generated from the start; longer ones a few tokens at each span's edge."""
_PROMPT, _FEW = 3, 8


@dataclass(frozen=True, kw_only=True)
class TextProof:
    """Result of ``generate`` with a cache, compared with the one without."""

    tokens: int
    equal: int
    """How many of them are the same with and without a cache."""
    difference: float
    """Largest difference of a logit over the logits' standard deviation, as long as the tokens agree."""
    longest: int
    """Length of the longest text in tokens, including the prompt."""
    error: str | None
    """The error that ended the generation; None: there was none."""

    @property
    def proven(self) -> bool:
        """True if the texts are the same."""
        return self.error is None and self.equal == self.tokens and self.difference < TOLERANCE


def prompts(schedule: Schedule, tokens: int, longest: int) -> list[tuple[int, int]]:
    """Return (prompt length, new tokens) of the texts: across the edge of every span, and after it.

    ``tokens`` is a length that shows every span; ``longest`` is the longest text that the model takes.
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
    """Generate greedily with and without a cache, and compare tokens and logits; arguments as `prompts`.

    In a short text no token repeats: with random weights greedy texts would repeat one token, and a wrong position
    would read the same value.
    """
    vocab = model.config.get_text_config(decoder=True).vocab_size
    total = equal = reached = 0
    difference, problem = 0.0, None
    for prompt, new in prompts(schedule, tokens, longest):
        ids = torch.randint(vocab, (1, prompt), generator=torch.Generator().manual_seed(3))
        total, reached = total + new, max(reached, prompt + new)
        found = []
        for cached in (False, True):
            try:
                with quiet():
                    found.append(_generate(model, ids, new, cached, no_repeat=prompt + new < vocab))
            except Exception as error:  # the library and the folder's own code raise many kinds
                how = "with" if cached else "without"
                problem = f"generate() {how} a cache raises {type(error).__name__}: {one_line(error)}"
                break
        if problem is not None:
            break
        (plain, plain_logits), (fast, fast_logits) = found
        same = [int(a == b) for a, b in zip(plain, fast, strict=True)]
        agree = same.index(0) + 1 if 0 in same else len(same)
        off = (plain_logits[:agree] - fast_logits[:agree]).abs().max() / plain_logits.std()
        equal, difference = equal + sum(same), max(difference, float(off))
    return TextProof(tokens=total, equal=equal, difference=difference, longest=reached, error=problem)


def _generate(model: Any, ids: torch.Tensor, new: int, cached: bool, no_repeat: bool) -> tuple[list[int], torch.Tensor]:
    """Return the new tokens and their logits (new, V)."""
    made = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        min_new_tokens=new,
        max_new_tokens=new,
        do_sample=False,
        use_cache=cached,
        no_repeat_ngram_size=1 if no_repeat else 0,
        output_logits=True,
        return_dict_in_generate=True,
    )
    return made.sequences[0, ids.shape[1] :].tolist(), torch.cat(made.logits).float()
