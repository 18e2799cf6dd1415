"""FLOPs and parameters of a whole model, in closed form. One multiply-add counts as one FLOP."""

from __future__ import annotations

from layersearch.config.recipe import ModelConfig
from layersearch.schedule import Schedule
from layersearch.schedule.cost import (
    attention_flops,
)


def model_flops(config: ModelConfig, vocab_size: int, schedule: Schedule, *, seq_len: int) -> int:
    """Return the FLOPs of one sequence's forward pass: matrix products, the output layer, and attention.

    One multiply-add = one FLOP.

    Args:
        config: the proxy model.
        vocab_size: width of the output layer.
        schedule: one span per layer.
        seq_len: tokens in the sequence.
    """
    heads, kv_heads = config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim
    projections = config.d_model * (2 * heads + 2 * kv_heads)  # q and o, k and v
    per_token = config.n_layers * (projections + 3 * config.d_model * config.d_ff) + config.d_model * vocab_size
    attention = attention_flops(schedule, seq_len=seq_len, n_heads=config.n_heads, head_dim=config.head_dim)
    return seq_len * per_token + attention


def matrices(config: ModelConfig) -> int:
    """Return the number of parameters in the layers' matrices."""
    attention = 2 * config.d_model * (config.n_heads + config.n_kv_heads) * config.head_dim
    return config.n_layers * (attention + 3 * config.d_model * config.d_ff)


def parameters(config: ModelConfig, vocab_size: int) -> int:
    """Return the number of parameters of the proxy model."""
    gains = config.n_layers * (2 * config.d_model + (2 * config.head_dim if config.qk_norm else 0)) + config.d_model
    outer = vocab_size * config.d_model * (1 if config.tie_embeddings else 2)
    return matrices(config) + gains + outer
