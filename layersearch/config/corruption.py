"""Span corruption (T5, 1910.10683, section 3.1.4): how long a text, its source and its target are."""

from __future__ import annotations

from dataclasses import dataclass

from layersearch.errors import require

MEAN_SPAN = 3
"""Mean length in tokens of a span that is left out, as in T5."""


@dataclass(frozen=True)
class Corruption:
    """The lengths of a text that loses spans: each leaves one sentinel in the source, and both go to the target."""

    text: int
    """Tokens of the text."""
    lost: int
    """Tokens that are left out of the source."""
    spans: int
    """Spans that they form."""

    @property
    def source(self) -> int:
        """Tokens that the encoder reads."""
        return self.text - self.lost + self.spans

    @property
    def target(self) -> int:
        """Tokens that the decoder writes."""
        return self.lost + self.spans


def corruption(seq_len: int, share: float) -> Corruption:
    """Return the lengths of a text of which ``share`` is left out so that its source has ``seq_len`` tokens.

    Raises:
        ConfigError: there is no such text.

    Example:
        >>> from layersearch.config.corruption import corruption
        >>> corruption(512, 0.15), corruption(512, 0.15).target
        (Corruption(text=569, lost=85, spans=28), 113)
    """
    text = seq_len
    while True:
        lost = max(1, round(share * text))
        found = Corruption(text, lost, max(1, round(lost / MEAN_SPAN)))
        if found.source >= seq_len:
            break
        text += 1
    fits = found.source == seq_len and found.spans <= found.text - found.lost
    require(fits, f"data.mask_share {share:g} leaves too little of a text for training.seq_len {seq_len}; lower it")
    return found
