"""The ``training`` section of a recipe."""

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat

from layersearch.config.loader import Strict
from layersearch.config.sizes import MOST_TOKENS, Beta, Count, Processes, Tokens
from layersearch.config.stages import StageConfig
from layersearch.errors import require


@dataclass(frozen=True, kw_only=True)
class TrainingConfig(Strict):
    """Training of one trial."""

    seq_len: Tokens
    """Tokens in a sequence."""
    segments: Annotated[int, Field(ge=2)] | None = None
    """Transformer-XL's recurrence: each sequence runs in so many segments of equal length, one after another. A layer
    of ``memory:M/S`` also sees the M tokens before the segment, with stopped gradients. A row of the batch goes on with
    its text from step to step. None: sequences are drawn anywhere and run whole."""
    warm_tokens: NonNegativeInt | None = None
    """With ``segments``: tokens before each validation sequence, which fill the memories and are not scored. None:
    n_layers times the longest memory, which is all that a token can know of."""
    batch_size: Count
    """Sequences in an optimizer step, over all ranks."""
    steps: Count
    """Optimizer steps of a full trial."""
    learning_rate: PositiveFloat
    """Peak learning rate of AdamW."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """``muon``: Muon for the layers' matrices, AdamW for embeddings, output and gains. It needs ZeRO 0, which leaves
    matrices whole."""
    muon_learning_rate: PositiveFloat = 0.02
    """Peak learning rate of Muon, in units of a matrix's spectral norm."""
    warmup_steps: NonNegativeInt = 0
    """Optimizer steps of linear warm-up; at most ``steps``."""
    final_lr_ratio: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Final learning rate of the cosine schedule, as a share of the peak."""
    weight_decay: NonNegativeFloat = 0.1
    """Weight decay of AdamW; matrices only."""
    betas: tuple[Beta, Beta] = (0.9, 0.95)
    """Betas of AdamW."""
    grad_clip: PositiveFloat = 1.0
    """Largest global gradient norm; longer gradients are scaled down."""
    precision: Literal["bf16", "float32"] = "bf16"
    """``bf16``: autocast of matrix products; weights and optimizer stay in float32."""
    compile: bool = True
    """Use torch.compile for the code between attention calls. Ignored under ZeRO-3 or without a C++ compiler."""
    val_sequences: Count = 64
    """Sequences of the validation set."""
    ranks: Processes = 1
    """DeepSpeed ranks of one trial; a divisor of batch_size."""
    threads: Processes = 1
    """CPU threads of one rank."""
    gpus: Annotated[int, Field(ge=0, le=1)] = 0
    """GPUs of one rank: 0 (CPU) or 1."""
    deepspeed: str = "zero0"
    """A DeepSpeed JSON: a path, or the name of one in trials/deepspeed/."""
    checkpoint_seconds: NonNegativeFloat = 60.0
    """Least seconds between two checkpoints of a trial. A trial whose worker was lost goes on from the last one. There
    are at most seven, and one at each rung. A conversion has ``checkpoint_steps`` instead."""
    hang_seconds: PositiveFloat = 600.0
    """Least seconds without progress after which a worker counts as hung: it is killed, and its trial is tried once
    more. A worker's first start, up to its first step, may take an hour."""
    hang_factor: PositiveFloat = 30.0
    """The same limit as a multiple of the slowest step so far, or of the slowest start; the larger limit holds."""
    start: str | None = None
    """Initial weights: a safetensors file that a trial of the same model wrote (see `Trial.save`). ``{seed}`` in its
    name stands for the trial's seed. The data continue where that trial ended. None: random weights."""
    stages: tuple[StageConfig, ...] = ()
    """Stages with lengths, rates and windows of their own, as Longformer was trained (2004.05150, section 4.2.2). Each
    has its share of ``steps`` and of ``warmup_steps``. The last one has this section's ``seq_len`` and
    ``learning_rate`` and whole windows. Empty: one stage."""

    def __post_init__(self) -> None:
        steps, warmup, ranks, batch = self.steps, self.warmup_steps, self.ranks, self.batch_size
        require(warmup <= steps, f"warmup_steps must lie between 0 and steps ({steps}), not {warmup}")
        require(ranks > 0, "ranks must be greater than 0")
        require(batch % ranks == 0, f"ranks {ranks} must divide batch_size {batch} evenly")
        segments = self.segments or 1
        require(
            self.seq_len % segments == 0,
            f"segments {segments} must divide seq_len {self.seq_len} evenly: one is longer than the text's rest",
        )
        require(segments == 1 or ranks == 1, "segments keep memories by row of a batch, which need ranks 1")
        require(self.segments or self.warm_tokens is None, "warm_tokens fill the memories of segments; set segments")
        warm = self.warm_tokens or 0
        require(
            warm % (self.seq_len // segments) == 0,
            f"warm_tokens {warm} must be whole segments, of {self.seq_len // segments} tokens",
        )
        if self.stages:
            self._check_stages()
        for key, rows in (("batch_size", batch), ("val_sequences", self.val_sequences)):
            held = rows * self.seq_len
            require(
                held <= MOST_TOKENS, f"{key} {rows} of seq_len {self.seq_len} are over {MOST_TOKENS} tokens; lower one"
            )

    def _check_stages(self) -> None:
        last = self.stages[-1]
        whole = (last.seq_len, last.learning_rate, last.window) == (self.seq_len, self.learning_rate, 1.0)
        require(
            whole,
            f"the last of stages must have training.seq_len ({self.seq_len}), training.learning_rate "
            f"({self.learning_rate:g}) and window 1, not {last.seq_len}, {last.learning_rate:g} and {last.window:g}",
        )
        require(
            len(self.stages) <= self.steps, f"steps {self.steps} are fewer than the {len(self.stages)} stages; raise it"
        )
        longest = max(stage.seq_len for stage in self.stages)
        require(
            longest == self.seq_len, f"a stage of {longest} tokens is longer than seq_len {self.seq_len}; shorten it"
        )
        require(self.start is None, "start goes on from a training, and stages begin one; give one of them")
