"""The ``model`` section of a recipe."""

from dataclasses import dataclass
from typing import Literal

from pydantic import PositiveFloat

from layersearch.config.loader import Strict
from layersearch.config.sizes import Layers, Width
from layersearch.errors import require


@dataclass(frozen=True, kw_only=True)
class ModelConfig(Strict):
    """The proxy model: a Llama-shaped decoder or encoder (RMSNorm, RoPE, SwiGLU)."""

    kind: Literal["decoder", "encoder", "encoder_decoder"] = "decoder"
    """``decoder``: no token sees a later one, and each predicts the next. ``encoder``: bidirectional, trained by masked
    language modeling (BERT). ``encoder_decoder``: two stacks, trained to write spans that the source lost (T5). The
    last two need ``data.mask_share``, or a generated task whose answers are hidden: recall, and in an encoder hops and
    coreference. An encoder also reads sources with classes."""
    n_layers: Layers
    """Number of layers, L; of the stack that schedules speak of."""
    searched: Literal["encoder", "decoder"] | None = None
    """encoder_decoder: the stack that schedules, l and budgets speak of. None: the encoder."""
    other_layers: Layers | None = None
    """encoder_decoder: number of layers of the other stack. None: n_layers."""
    other_schedule: str | None = None
    """encoder_decoder: schedule of the other stack, for example ``full*2 window:64*4``. None: full attention."""
    d_model: Width
    """Width of the residual stream."""
    n_heads: Width
    """Number of query heads."""
    n_kv_heads: Width
    """Number of key and value heads; a divisor of n_heads."""
    d_ff: Width
    """Inner width of the SwiGLU."""
    rope_theta: PositiveFloat = 10000.0
    """Base of the rotary frequencies."""
    qk_norm: bool = False
    """RMSNorm on queries and keys, as in Qwen3."""
    pooling: Literal["first", "mean"] | None = None
    """Sources with classes: what the class is read from. ``first``: the stream of the first token, which an encoder's
    global tokens may be. ``mean``: the mean over the example's tokens. None: ``first`` in an encoder, else ``mean``."""
    tie_embeddings: bool = True
    """One matrix for the embedding and the output."""
    init: Literal["gpt2", "width"] = "gpt2"
    """Standard deviation of the initial weights. ``gpt2``: 0.02 at any width. ``width``: 1/sqrt(fan-in), and 1 for the
    embeddings; small models learn much sooner from it, with untied embeddings."""
    head_width: Width | None = None
    """Width of one head, as in Gemma and some Qwen3. None: d_model / n_heads."""

    def __post_init__(self) -> None:
        require(min(self.n_heads, self.n_kv_heads) > 0, "n_heads and n_kv_heads must be greater than 0")
        width, heads, head_dim = self.d_model, self.n_heads, self.head_dim
        require(self.head_width or width % heads == 0, f"d_model {width} is no multiple of n_heads {heads}")
        require(head_dim % 2 == 0, f"RoPE needs an even head dimension, not {head_dim}; change n_heads")
        require(heads % self.n_kv_heads == 0, f"n_kv_heads {self.n_kv_heads} must divide n_heads {heads}")
        two = self.kind == "encoder_decoder"
        for key in ("searched", "other_layers", "other_schedule"):
            require(two or getattr(self, key) is None, f"{key} is for kind encoder_decoder, not {self.kind}; drop it")

    @property
    def bidirectional(self) -> bool:
        """Whether the tokens of the layers that schedules speak of see later ones."""
        return self.kind == "encoder" or (self.kind == "encoder_decoder" and self.searched != "decoder")

    @property
    def stack_layers(self) -> tuple[int, int]:
        """Layers of an encoder_decoder's encoder and decoder."""
        own, other = self.n_layers, self.other_layers or self.n_layers
        return (other, own) if self.searched == "decoder" else (own, other)

    @property
    def head_dim(self) -> int:
        """Width of one head."""
        return self.head_width or self.d_model // self.n_heads
