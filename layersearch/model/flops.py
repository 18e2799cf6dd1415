"""FLOPs and parameters of the proxy model, in closed form. One multiply-add counts as one FLOP."""

from layersearch.config.recipe import ModelConfig
from layersearch.schedule import Schedule
from layersearch.schedule.cost import attention_flops


def model_flops(config: ModelConfig, vocab_size: int, schedule: Schedule, *, seq_len: int) -> int:
    """Return the FLOPs of one sequence's forward pass: all matrix products, attention and the output layer included."""
    size = {"seq_len": seq_len, "n_heads": config.n_heads, "head_dim": config.head_dim}
    attention = attention_flops(schedule, **size, bidirectional=config.bidirectional)
    kv_width = 2 * config.d_model * config.n_kv_heads * config.head_dim
    summaries = sum(span.summaries(seq_len) for span in schedule) * kv_width
    return seq_len * (num_matrix_parameters(config) + config.d_model * vocab_size) + attention + summaries


def num_matrix_parameters(config: ModelConfig) -> int:
    """Return the number of parameters in the layers' matrices."""
    attention = 2 * config.d_model * (config.n_heads + config.n_kv_heads) * config.head_dim  # q and o, k and v
    return config.n_layers * (attention + 3 * config.d_model * config.d_ff)


def num_parameters(config: ModelConfig, vocab_size: int) -> int:
    """Return the number of parameters of the proxy model."""
    gains = config.n_layers * (2 * config.d_model + (2 * config.head_dim if config.qk_norm else 0)) + config.d_model
    outer = vocab_size * config.d_model * (1 if config.tie_embeddings else 2)
    return num_matrix_parameters(config) + gains + outer
