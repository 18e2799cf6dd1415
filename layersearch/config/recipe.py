"""A recipe: what one trial runs. Read from ``trials/*.yaml``."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from layersearch.config.loader import build, find_file, override, read_yaml
from layersearch.errors import UserError


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise UserError(message)


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The proxy model: a Llama-shaped decoder (RMSNorm, RoPE, SwiGLU)."""

    __pydantic_config__ = {"extra": "forbid", "allow_inf_nan": False}

    n_layers: int
    """Layers L."""
    d_model: int
    """Width of the residual stream."""
    n_heads: int
    """Query heads."""
    n_kv_heads: int
    """Key and value heads; a divisor of n_heads."""
    d_ff: int
    """Inner width of the SwiGLU."""
    rope_theta: float = 10000.0
    """Base of the rotary frequencies."""
    qk_norm: bool = False
    """RMSNorm on queries and keys, as in Qwen3."""
    tie_embeddings: bool = True
    """One matrix for the embedding and the output."""
    init: Literal["gpt2", "width"] = "gpt2"
    """Standard deviation of the initial weights. ``gpt2``: 0.02 at any width; ``width``: 1/sqrt(fan-in), embeddings 1,
    which small models learn from much sooner; untie the embeddings then."""
    head_width: int | None = None
    """Width of one head where it is not d_model / n_heads, as in Gemma and some Qwen3."""

    def __post_init__(self) -> None:
        for name in ("n_layers", "d_model", "n_heads", "n_kv_heads", "d_ff"):
            _require(getattr(self, name) >= 1, f"{name} must be at least 1, not {getattr(self, name)}")
        _require(
            self.head_width is None or self.head_width >= 1, f"head_width must be at least 1, not {self.head_width}"
        )
        _require(
            self.head_width is not None or self.d_model % self.n_heads == 0,
            f"d_model {self.d_model} is no multiple of n_heads {self.n_heads}",
        )
        _require(self.head_dim % 2 == 0, f"RoPE needs an even head dimension, not {self.head_dim}; change n_heads")
        _require(
            self.n_heads % self.n_kv_heads == 0, f"n_kv_heads {self.n_kv_heads} must divide n_heads {self.n_heads}"
        )
        _require(self.rope_theta > 0, f"rope_theta must be positive, not {self.rope_theta}")

    @property
    def head_dim(self) -> int:
        """Width of one head."""
        return self.head_width or self.d_model // self.n_heads


TaskKind = Literal["recall", "hops", "listops", "local"]
SourceKind = Literal[TaskKind, "stdlib", "text", "json", "parquet", "hub", "mix"]


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """What the trial reads. See `layersearch.data`."""

    __pydantic_config__ = {"extra": "forbid", "allow_inf_nan": False}

    source: SourceKind
    """``stdlib``: the Python library's own source files; ``text``, ``json`` (lines), ``parquet``: local files; ``hub``:
    a data set id; ``mix``: ``stdlib`` and ``recall`` in one stream; the others are generated, see
    `layersearch.data.tasks`."""
    files: tuple[str, ...] = ()
    """Paths or glob patterns (text, json, parquet)."""
    dataset: str | None = None
    """The hub id, for example ``allenai/c4``."""
    subset: str | None = None
    """The hub data set's configuration name."""
    column: str = "text"
    """The column that holds the text (json, parquet, hub)."""
    streaming: bool = False
    """Read the hub data set as a stream, up to max_tokens."""
    max_tokens: int = 20_000_000
    """Read at most so many tokens of text."""
    tokenizer: str | None = None
    """A ``tokenizer.json``, a folder that holds one, or a hub id; None: train a byte-level BPE on the text."""
    vocab_size: int = 1024
    """Tokens of the BPE, or of the generated task."""
    pairs: int = 8
    """recall, mix: key-value pairs in a sequence; hops: chains."""
    queries: int = 4
    """recall, mix: queried pairs in a sequence; hops: queried chains."""
    distance: int = 64
    """recall, mix, hops: the least distance in tokens over which a query must look back."""
    fillers: int | None = None
    """Kinds of filler token of a generated task; None: an eighth of the vocabulary."""
    hops: int = 2
    """hops: links of a chain, k."""
    depth: float = 0.5
    """Read by no source any more; kept so that recipes in older run folders still load."""
    list_depth: int = 10
    """listops: levels of nesting, the innermost numbers counted as one (Long Range Arena: 10)."""
    list_args: int = 10
    """listops: most arguments of one operator (Long Range Arena: 10)."""
    reach: int = 8
    """local: the farthest token back, in tokens, that the next one depends on."""
    recall_share: float = 0.5
    """mix: share of the sequences that are recall."""
    recall_vocab: int = 64
    """mix: tokens of the recall sequences, numbered above the text's."""

    def __post_init__(self) -> None:
        if self.source in ("text", "json", "parquet"):
            _require(bool(self.files), f"data.files is empty: name the {self.source} files to read")
        if self.source == "hub":
            _require(bool(self.dataset), "data.dataset is missing: name the hub id, for example allenai/c4")
        _require(self.vocab_size >= 2, f"vocab_size must be at least 2, not {self.vocab_size}")
        _require(self.max_tokens >= 1, f"max_tokens must be at least 1, not {self.max_tokens}")
        for name in ("pairs", "queries", "distance", "hops", "reach", "list_depth"):
            _require(getattr(self, name) >= 1, f"{name} must be at least 1, not {getattr(self, name)}")
        for name in ("list_args", "recall_vocab"):
            _require(getattr(self, name) >= 2, f"{name} must be at least 2, not {getattr(self, name)}")
        _require(self.fillers is None or self.fillers >= 1, f"fillers must be at least 1, not {self.fillers}")
        _require(0 <= self.depth <= 1, f"depth must lie in [0, 1], not {self.depth}")
        _require(0 < self.recall_share < 1, f"recall_share must lie between 0 and 1, not {self.recall_share}")
        _require(self.queries <= self.pairs, f"queries {self.queries} must not exceed pairs {self.pairs}")


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How one trial trains."""

    __pydantic_config__ = {"extra": "forbid", "allow_inf_nan": False}

    seq_len: int
    """Tokens in a sequence."""
    batch_size: int
    """Sequences in an optimiser step, over all ranks."""
    steps: int
    """Optimiser steps of a full trial."""
    learning_rate: float
    """Peak learning rate of AdamW."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """``muon``: Muon for the layers' matrices, AdamW for embeddings, output and gains; at ZeRO 0 only, which leaves
    matrices whole."""
    muon_learning_rate: float = 0.02
    """Peak learning rate of Muon, in units of a matrix's spectral norm."""
    warmup_steps: int = 0
    """Linear warm-up."""
    final_lr_ratio: float = 0.1
    """The cosine ends at this share of the peak."""
    weight_decay: float = 0.1
    """On matrices only."""
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW's."""
    grad_clip: float = 1.0
    """Largest global gradient norm."""
    precision: Literal["bf16", "float32"] = "bf16"
    """bf16: autocast of matrix products, float32 weights and optimiser."""
    compile: bool = True
    """torch.compile of what lies between attention calls; not under ZeRO-3, nor where no C++ compiler is found."""
    val_sequences: int = 64
    """Sequences of the validation set."""
    ranks: int = 1
    """DeepSpeed ranks of one trial; must divide batch_size."""
    threads: int = 1
    """CPU threads of one rank."""
    gpus: int = 0
    """GPUs of one rank: 0 (CPU) or 1."""
    deepspeed: str = "zero0"
    """An ordinary DeepSpeed JSON: a path, or the name of one in trials/deepspeed/."""
    start: str | None = None
    """Weights to go on from in place of random ones: a safetensors file that a trial of the same model left (see
    `Trial.save`); ``{seed}`` in it stands for the trial's seed. The data go on where that trial ended."""

    def __post_init__(self) -> None:
        for name in ("seq_len", "batch_size", "steps", "val_sequences", "ranks", "threads"):
            _require(getattr(self, name) >= 1, f"{name} must be at least 1, not {getattr(self, name)}")
        _require(self.seq_len >= 2, f"seq_len must be at least 2 tokens, not {self.seq_len}")
        for name in ("learning_rate", "muon_learning_rate"):
            _require(getattr(self, name) > 0, f"{name} must be positive, not {getattr(self, name)}")
        _require(
            0 <= self.warmup_steps <= self.steps,
            f"warmup_steps must lie between 0 and steps ({self.steps}), not {self.warmup_steps}",
        )
        _require(0 <= self.final_lr_ratio <= 1, f"final_lr_ratio must lie in [0, 1], not {self.final_lr_ratio}")
        _require(self.weight_decay >= 0, f"weight_decay must not be negative, not {self.weight_decay}")
        _require(all(0 <= beta < 1 for beta in self.betas), f"betas must lie in [0, 1), not {self.betas}")
        _require(self.grad_clip > 0, f"grad_clip must be positive, not {self.grad_clip}")
        _require(self.gpus in (0, 1), f"gpus must be 0 or 1 a rank, not {self.gpus}")
        _require(
            self.batch_size % self.ranks == 0, f"ranks {self.ranks} must divide batch_size {self.batch_size} evenly"
        )


Pruner = Literal["expected_gain", "successive_halving", "none"]


def default_pruner(sampler: str, rungs: Sequence[float]) -> Pruner:
    """Return the pruner of a recipe that names none."""
    if not rungs:
        return "none"
    return "expected_gain" if sampler == "gain" else "successive_halving"


@dataclass(frozen=True, kw_only=True)
class SearchConfig:
    """How many schedules are tried and how they compete."""

    __pydantic_config__ = {"extra": "forbid", "allow_inf_nan": False}

    trials: int = 24
    """Distinct schedules trained, baselines included."""
    sampler: Literal["gain", "gp", "tpe", "nsga2", "random"] = "gain"
    """Proposes schedules: ``gain``, the project's own (`layersearch.surrogate.sampler`), or one of Optuna's."""
    pruner: Pruner | None = None
    """Stops trials at the rungs. ``expected_gain``: a trial goes on while its end is expected to be worth the training
    that is left. ``successive_halving``: the best 1/reduction of the trials of equal or lower cost go on. ``none``:
    every trial runs to the end. None: ``expected_gain`` with the sampler ``gain``, ``successive_halving`` with any
    other, ``none`` without rungs."""
    rungs: tuple[float, ...] = (0.25, 0.5)
    """Shares of the steps at which a trial is validated and may be stopped."""
    reduction: int | None = None
    """Reduction factor of ``successive_halving``, and refused with any other pruner. None: 2."""
    finalists: int = 3
    """Schedules within the budget that are confirmed beside the baselines."""
    confirm_seeds: int = 3
    """Fresh seeds for every finalist and baseline; the search's own seed is not among them."""
    tolerance: float = 0.0
    """Nats above the lowest loss that are worth a cheaper schedule: the winner is the cheapest within them."""
    workers: int = 2
    """Trials trained side by side."""

    def __post_init__(self) -> None:
        for name in ("trials", "finalists", "workers"):
            _require(getattr(self, name) >= 1, f"{name} must be at least 1, not {getattr(self, name)}")
        _require(self.tolerance >= 0, f"tolerance must not be negative, not {self.tolerance}")
        # The run folder says which pruner ran, so what was left open is settled here.
        if self.pruner is None:
            object.__setattr__(self, "pruner", default_pruner(self.sampler, self.rungs))
        _require(
            self.pruner == "none" or bool(self.rungs),
            f"pruner {self.pruner} has no effect without rungs; name some, such as rungs=[0.5], or set pruner=none",
        )
        if self.reduction is None and self.pruner == "successive_halving":
            object.__setattr__(self, "reduction", 2)
        _require(
            self.reduction is None or self.pruner == "successive_halving",
            f"reduction has no effect with pruner {self.pruner}; drop it, or set pruner=successive_halving",
        )
        _require(self.reduction is None or self.reduction >= 2, f"reduction must be at least 2, not {self.reduction}")
        _require(self.confirm_seeds >= 2, f"confirm_seeds must be at least 2 for an interval, not {self.confirm_seeds}")
        _require(
            all(0 < rung < 1 for rung in self.rungs) and list(self.rungs) == sorted(set(self.rungs)),
            f"rungs must be shares of the steps in (0, 1), rising, not {list(self.rungs)}",
        )


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What one trial runs, and how a search over it is run by default."""

    __pydantic_config__ = {"extra": "forbid", "allow_inf_nan": False}

    name: str
    """Names the run folder."""
    model: ModelConfig
    data: DataConfig
    training: TrainingConfig
    search: SearchConfig = field(default_factory=SearchConfig)
    space: str | None = None
    """The search space that goes with it; None: the one of the recipe's name."""
    pretrained: str | None = None
    """A Hugging Face model folder or hub id: every trial starts from its weights, and ``model`` must say its sizes, as
    ``layersearch run --model`` does. None: from random weights."""

    def __post_init__(self) -> None:
        _require(
            self.pretrained is None or self.training.start is None,
            "pretrained and training.start both name weights to start from; give one of them",
        )
        _require(
            self.pretrained is None or self.training.optimizer == "adamw",
            "training.optimizer muon trains from scratch; set training.optimizer=adamw with a pre-trained model",
        )
        _require(
            bool(self.name) and all(letter.isalnum() or letter in "-_." for letter in self.name),
            f"name must be letters, digits, '-', '_' or '.', not {self.name!r}",
        )

    @property
    def default_space(self) -> str:
        """The search space that is searched if none is named."""
        return self.space or self.name

    def to_dict(self) -> dict[str, Any]:
        """Return nested plain mappings, as YAML and JSON hold them."""
        return dataclasses.asdict(self)


def load_recipe(name: str, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe by path or by the name of one that ships.

    Args:
        name: a path, or a name such as ``laptop``.
        overrides: dotted assignments such as ``training.steps=200``.

    Raises:
        UserError: names the file, the wrong key and the remedy.
    """
    path = find_file(name, "trials")
    mapping = read_yaml(path)
    for assignment in overrides:
        override(mapping, assignment)
    return build(Recipe, mapping, path.name if path.is_file() else str(path))


def deepspeed_file(recipe: Recipe) -> Path:
    """Return the path of the recipe's DeepSpeed JSON."""
    return find_file(recipe.training.deepspeed, "trials/deepspeed", ".json")
