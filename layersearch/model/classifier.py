"""A model that names the class of a whole sequence: the layers of `Decoder`, and a head on one vector.

Shape legend: B batch, T tokens, C model width, K classes.
"""

from __future__ import annotations

from torch import Tensor, nn

from layersearch.config.model import ModelConfig
from layersearch.model.decoder import Decoder, mean_over_scored, token_losses
from layersearch.schedule import Schedule

PADDING = 0
"""The token id that is no part of an example, see `layersearch.data.classes`."""


class Classifier(Decoder):
    """An encoder or decoder whose output layer scores classes.

    The class is read from the first token (Longformer, 2004.05150, section 3.1), which may be global, or from the mean
    over the tokens that are no padding.
    """

    def __init__(
        self, config: ModelConfig, vocab_size: int, schedule: Schedule, compiled: bool = False, *, classes: int
    ) -> None:
        super().__init__(config, vocab_size, schedule, compiled)
        self.pooling = config.pooling or ("first" if config.bidirectional else "mean")
        self.lm_head = nn.Linear(config.d_model, classes, bias=False)
        nn.init.normal_(self.lm_head.weight, std=self._init_std(self.lm_head))

    def scores(self, tokens: Tensor, marked: Tensor | None = None) -> Tensor:  # (B, T), (B, T) -> (B, 1, K)
        """Return the scores of the classes."""
        x = self.stream(tokens, marked)
        if self.pooling == "first":
            held = x[:, :1]
        else:
            real = (tokens != PADDING).unsqueeze(-1).to(x.dtype)
            held = (x * real).sum(1, keepdim=True) / real.sum(1, keepdim=True).clamp(min=1.0)
        return self.lm_head(self.norm(held))

    def forward(
        self, tokens: Tensor, targets: Tensor, reduce: bool = True, marked: Tensor | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Return the cross-entropy of the classes in nats, as `Decoder.forward`; ``targets`` are (B, 1)."""
        logits = self.scores(tokens, marked).float()
        losses = token_losses(logits, targets)
        if reduce:
            return mean_over_scored(losses, targets)
        return losses, logits.argmax(-1) == targets
