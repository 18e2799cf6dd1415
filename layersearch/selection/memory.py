"""The memory and the work of a selection, known before a weight is loaded.

Memory is bounded by the libraries, the frozen weights, the kept activations of the units that a search compares, one
block's graph of the gates, and the logits of a few positions. Nothing else grows with the text or the vocabulary.
"""

import math
from dataclasses import dataclass

from layersearch.config.model import ModelConfig
from layersearch.config.selection import SHORTER, SelectionConfig
from layersearch.selection.layerwise import PIECE

LIBRARIES = 1 << 30  # Python, torch, transformers and a tokenizer, bytes; measured, rounded up
MARGIN = 1.25  # allocator and copies, on all but the libraries; measured on SmolLM2-135M, see analysis/smollm2
LEAST_KEPT = 1 << 30  # activations may take this much, or as much as the weights
COMPARED = 3  # schedules that are measured at shorter lengths too


@dataclass(frozen=True, kw_only=True)
class MemoryBound:
    """Most bytes that a selection takes, by part."""

    weights: int
    kept: int
    """Inputs of every ``stride``-th layer, and last states, of the text and the retrieval example of each unit."""
    stride: int
    block: int
    """Graph of one block under all choices, and the inputs of all blocks: the gates' backward pass."""
    logits: int
    """Logits of `PIECE` positions in float32, with their softmax and gradient."""

    @property
    def total(self) -> int:
        """Sum with `LIBRARIES` and `MARGIN`."""
        return LIBRARIES + math.ceil(MARGIN * (self.weights + self.kept + self.block + self.logits))


def memory_bound(
    model: ModelConfig,
    config: SelectionConfig,
    *,
    parameters: int,
    vocab_size: int,
    seq_len: int,
    choices: int,
    wide: bool,
) -> MemoryBound:
    """Return the bound of a selection.

    Args:
        model: sizes.
        config: its units are counted.
        parameters: of the whole model.
        vocab_size: rows of the embedding.
        seq_len: tokens of a sequence.
        choices: spans of a layer.
        wide: weights are float32, else bf16.
    """
    number = 4 if wide else 2
    weights = number * parameters
    state = number * seq_len * model.d_model
    sequences = 2 * config.selection_units if config.retrieval_weight else config.selection_units
    limit = max(LEAST_KEPT, weights)
    stride = next(
        s
        for s in range(1, model.n_layers + 1)
        if s == model.n_layers or sequences * state * (math.ceil(model.n_layers / s) + 1) <= limit
    )
    heads = model.n_heads * model.head_dim
    graph = number * seq_len * (4 * heads * choices + 8 * model.d_model + 4 * model.d_ff)
    return MemoryBound(
        weights=weights,
        kept=sequences * state * (math.ceil(model.n_layers / stride) + 1),
        stride=stride,
        block=graph + model.n_layers * state,
        logits=4 * 4 * PIECE * vocab_size,
    )


def forward_passes(config: SelectionConfig, confirmed: int) -> float:
    """Return the forward passes of one sequence through the whole depth that a selection makes, about.

    A step of the gates takes two forward passes (a block runs again for its gradient) and a backward pass of the
    activations, with all choices side by side: about 6. A candidate runs half of the depth and half of the units.
    """
    sequences = 2 if config.retrieval_weight else 1
    gates = 6.0 * config.gate_steps
    search = config.candidates * config.selection_units / 4 + 4 * config.selection_units
    shorter = COMPARED * config.confirm_units * sum(1 / part for part in SHORTER) if config.retrieval_weight else 0
    return sequences * (gates + search + confirmed * config.confirm_units) + shorter + 4 * config.calibration_units
