"""FLOPs and parameters of the proxy model, in closed form. One multiply-add counts as one FLOP."""

from layersearch.config.model import ModelConfig
from layersearch.config.recipe import Recipe
from layersearch.schedule import Schedule
from layersearch.schedule.cost import attention_flops
from layersearch.schedule.work import stacks


def model_flops(
    config: ModelConfig,
    vocab_size: int,
    schedule: Schedule,
    *,
    seq_len: int,
    target_len: int | None = None,
    classes: int | None = None,
) -> int:
    """Return the FLOPs of one sequence's forward pass: all matrix products, attention and the output layer included.

    ``target_len`` are the target's tokens of an encoder_decoder, whose source has ``seq_len``. ``classes`` is the
    number of classes of a classifier, which has no scores of tokens.
    """
    size = {"n_heads": config.n_heads, "head_dim": config.head_dim}
    if target_len is None:
        attention = attention_flops(schedule, seq_len=seq_len, **size, bidirectional=config.bidirectional)
        head = seq_len * vocab_size if classes is None else classes
        products = seq_len * num_matrix_parameters(config) + config.d_model * head
        return products + attention + _summary_flops(config, schedule, seq_len)
    parts = attention_parts(config, schedule, seq_len=seq_len, target_len=target_len)
    encoder, decoder = stacks(config, schedule)
    kv_width = 2 * config.d_model * config.n_kv_heads * config.head_dim
    per_layer, cross = _layer_parameters(config), _attention_parameters(config)
    products = len(encoder) * seq_len * per_layer + len(decoder) * target_len * per_layer
    # Keys and values of cross attention are made of the source, queries and outputs of the target.
    products += len(decoder) * (seq_len * kv_width + target_len * (cross - kv_width))
    summaries = _summary_flops(config, encoder, seq_len) + _summary_flops(config, decoder, target_len)
    return products + target_len * config.d_model * vocab_size + summaries + sum(parts.values())


def recipe_flops(recipe: Recipe, vocab_size: int, schedule: Schedule) -> int:
    """Return the `model_flops` of a recipe's trials; memories of segments are counted in one pass."""
    length = recipe.training.seq_len
    more = {"target_len": recipe.target_len, "classes": recipe.data.n_classes}
    return model_flops(recipe.model, vocab_size, schedule, seq_len=length, **more)


def attention_parts(config: ModelConfig, schedule: Schedule, *, seq_len: int, target_len: int) -> dict[str, int]:
    """Return the FLOPs of an encoder_decoder's attention by stack, and of the cross attention between them."""
    encoder, decoder = stacks(config, schedule)
    heads, width = config.n_heads, config.head_dim
    return {
        "encoder": attention_flops(encoder, seq_len=seq_len, n_heads=heads, head_dim=width, bidirectional=True),
        "decoder": attention_flops(decoder, seq_len=target_len, n_heads=heads, head_dim=width),
        "cross": 2 * len(decoder) * seq_len * target_len * heads * width,
    }


def _summary_flops(config: ModelConfig, schedule: Schedule, tokens: int) -> int:
    """Return the FLOPs of the keys and values of summaries."""
    kv_width = 2 * config.d_model * config.n_kv_heads * config.head_dim
    return sum(span.summaries(tokens) for span in schedule) * kv_width


def _attention_parameters(config: ModelConfig) -> int:
    """Return the parameters of an attention's matrices: q and o, k and v."""
    return 2 * config.d_model * (config.n_heads + config.n_kv_heads) * config.head_dim


def _layer_parameters(config: ModelConfig) -> int:
    """Return the parameters in the matrices of a layer, without cross attention."""
    return _attention_parameters(config) + 3 * config.d_model * config.d_ff


def num_matrix_parameters(config: ModelConfig) -> int:
    """Return the number of parameters in the layers' matrices."""
    if config.kind == "encoder_decoder":
        encoder, decoder = config.stack_layers
        return (encoder + decoder) * _layer_parameters(config) + decoder * _attention_parameters(config)
    return config.n_layers * _layer_parameters(config)


def num_parameters(config: ModelConfig, vocab_size: int, classes: int | None = None) -> int:
    """Return the number of parameters of the proxy model; ``classes`` as in `model_flops`."""
    norms = 2 * config.head_dim if config.qk_norm else 0
    outer = vocab_size * config.d_model * (1 if config.tie_embeddings else 2)
    if classes is not None:
        outer = (vocab_size + classes) * config.d_model
    if config.kind == "encoder_decoder":
        encoder, decoder = config.stack_layers
        gains = encoder * (2 * config.d_model + norms) + decoder * (3 * config.d_model + 2 * norms) + 2 * config.d_model
    else:
        gains = config.n_layers * (2 * config.d_model + norms) + config.d_model
    return num_matrix_parameters(config) + gains + outer
