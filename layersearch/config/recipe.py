"""A recipe: the model, the data and the training of one trial, and the search. Read from ``trials/*.yaml``."""

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import InitVar, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from layersearch.config.corruption import corruption
from layersearch.config.loader import Strict, build, find_file, override, read_yaml
from layersearch.config.selection import SelectionConfig
from layersearch.config.stages import StageConfig
from layersearch.errors import require

AtLeast2 = Annotated[int, Field(ge=2)]
# Larger sizes are a typing error, and would be found out only after minutes, when the memory is full.
Layers = Annotated[int, Field(ge=1, le=10_000)]
Width = Annotated[int, Field(ge=1, le=10_000_000)]
Tokens = Annotated[int, Field(ge=2, le=100_000_000)]
Vocabulary = Annotated[int, Field(ge=2, le=100_000_000)]
Count = Annotated[int, Field(ge=1, le=1_000_000_000)]
Processes = Annotated[int, Field(ge=1, le=10_000)]
MOST_TOKENS = 10_000_000_000
"""Most tokens of a batch or of the validation set."""
Beta = Annotated[float, Field(ge=0, lt=1)]
Share = Annotated[float, Field(gt=0, lt=1)]


@dataclass(frozen=True, kw_only=True)
class ModelConfig(Strict):
    """The proxy model: a Llama-shaped decoder or encoder (RMSNorm, RoPE, SwiGLU)."""

    kind: Literal["decoder", "encoder", "encoder_decoder"] = "decoder"
    """``decoder``: no token sees a later one, and each predicts the next. ``encoder``: bidirectional, trained by masked
    language modeling (BERT). ``encoder_decoder``: two stacks, trained to write spans that the source lost (T5). The
    last two need ``data.mask_share``."""
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


TaskKind = Literal["recall", "hops", "listops", "local"]
ClassKind = Literal["lra_listops", "pathfinder", "text_classes", "retrieval", "digits", "arrays"]
Elsewhere = Literal["imdb", "aan", "cifar10"]
"""Sources of the Long Range Arena that a user must have: nothing is downloaded for them."""
SourceKind = Literal[TaskKind, ClassKind, Elsewhere, "stdlib", "files", "text", "json", "parquet", "hub", "mix"]
_WHERE = {
    "imdb": "put its positive and its negative reviews in two folders, and give data.source text_classes with both as "
    "data.files",
    "aan": "save its pairs as two arrays (data.source arrays), or give your own documents with data.source retrieval",
    "cifar10": "save its pictures, gray and row by row, as two arrays (data.source arrays, training.seq_len 1025)",
}


@dataclass(frozen=True, kw_only=True)
class DataConfig(Strict):
    """The training data. See `layersearch.data`."""

    source: SourceKind
    """``stdlib``: the source files of Python's standard library. ``files``: local files, each read by its own format.
    ``text``, ``json`` (lines), ``parquet``: local files, all of this format. ``hub``: a data set of the Hugging Face
    hub. ``mix``: ``stdlib`` and ``recall`` in one batch. Sources with classes are ``lra_listops``, ``pathfinder``,
    ``text_classes``, ``retrieval``, ``digits`` and ``arrays``, see `layersearch.data.classes`. The others are
    generated, see `layersearch.data.tasks`."""
    files: tuple[str, ...] = ()
    """Paths, folders or glob patterns (files, text, json, parquet)."""
    dataset: str | None = None
    """The hub id, for example ``allenai/c4``."""
    subset: str | None = None
    """The hub data set's configuration name."""
    column: str = "text"
    """The column that holds the text (JSON, Parquet, hub)."""
    streaming: bool = False
    """Read the hub data set as a stream, up to max_tokens."""
    max_tokens: PositiveInt = 20_000_000
    """Largest number of tokens that are read."""
    tokenizer: str | None = None
    """A ``tokenizer.json``, a folder that holds one, a GGUF file or a hub id. None: train a BPE on the text."""
    vocab_size: Vocabulary = 1024
    """Vocabulary size of the BPE, or of the generated task."""
    mask_share: Share | None = None
    """Encoders: share of the tokens of a sequence that are masked and predicted (BERT: 0.15). encoder_decoder: share of
    the tokens of a text that the source loses, in spans of 3 tokens on average (T5: 0.15). None: each token predicts
    the next one."""
    pairs: PositiveInt = 8
    """recall, mix: key-value pairs in a sequence; hops: chains."""
    queries: PositiveInt = 4
    """recall, mix: queried pairs in a sequence; hops: queried chains."""
    distance: PositiveInt = 64
    """recall, mix, hops: least distance in tokens between a query and its pair, and between the links of a chain."""
    fillers: PositiveInt | None = None
    """recall, mix, hops: number of distinct filler tokens. None: an eighth of the vocabulary."""
    hops: PositiveInt = 2
    """hops: links of a chain, k."""
    depth: InitVar[float] = 0.5  # retired: accepted and dropped, so that recipes of older run folders load
    list_depth: PositiveInt = 10
    """listops, lra_listops: levels of nesting; the innermost digits count as one (Long Range Arena: 10)."""
    list_args: AtLeast2 = 10
    """listops, lra_listops: most arguments of one operator (Long Range Arena: 10)."""
    list_min: NonNegativeInt = 500
    """lra_listops: an expression has more tokens (Long Range Arena: 500)."""
    list_max: Tokens = 2000
    """lra_listops: an expression has fewer tokens (Long Range Arena: 2000)."""
    contour_length: AtLeast2 = 14
    """pathfinder: dashes of each of the two paths (Long Range Arena: 14, its easier ones 9 and 6)."""
    examples: Count | None = None
    """Sources with classes: training examples, drawn once; a tenth as many, at most 2,000, are held back. None: 96,000
    for lra_listops, as published, all of arrays, and up to 20,000 else."""
    classes: Count | None = None
    """arrays: number of classes."""
    reach: PositiveInt = 8
    """local: distance in tokens to the farthest token on which the next one depends."""
    recall_share: Share = 0.5
    """mix: share of recall sequences."""
    recall_vocab: AtLeast2 = 64
    """mix: vocabulary size of the recall sequences; their token ids follow those of the text."""

    def __post_init__(self, depth: float) -> None:
        local = self.source in ("files", "text", "json", "parquet", "text_classes", "retrieval", "arrays")
        kind = f"{self.source} " if self.source in ("text", "json", "parquet") else ""
        require(self.files or not local, f"data.files is empty: name the {kind}files to read")
        missing = self.source == "hub" and not self.dataset
        require(not missing, "data.dataset is missing: name the hub id, for example allenai/c4")
        text = self.mask_share is None or self.source in ("stdlib", "hub", "files", "text", "json", "parquet")
        require(text, f"mask_share masks text, and source is {self.source}; name a text, or drop mask_share")
        where = _WHERE.get(self.source)
        require(where is None, f"data.source {self.source} is not made here and nothing is downloaded: {where}")
        named = self.source != "arrays" or self.classes is not None
        require(named, "data.source arrays: name the number of classes (data.classes)")
        require(self.queries <= self.pairs, f"queries {self.queries} must not exceed pairs {self.pairs}")

    @property
    def n_classes(self) -> int | None:
        """Number of classes of the source; None: its targets are tokens."""
        if self.source not in get_args(ClassKind):
            return None
        if self.source == "text_classes":
            return len(self.files)
        return self.classes if self.source == "arrays" else {"lra_listops": 10, "digits": 10}.get(self.source, 2)


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


Pruner = Literal["expected_gain", "successive_halving", "none"]


def default_pruner(sampler: str, rungs: Sequence[float]) -> Pruner:
    """Return the pruner of a recipe that names none."""
    if not rungs:
        return "none"
    return "expected_gain" if sampler == "gain" else "successive_halving"


@dataclass(frozen=True, kw_only=True)
class SearchConfig(Strict):
    """The search: how many schedules are trained, and which of them go on."""

    trials: Count = 24
    """Distinct schedules trained, baselines included."""
    sampler: Literal["gain", "gp", "tpe", "nsga2", "random"] = "gain"
    """Sampler: ``gain`` is the project's own (`layersearch.surrogate.sampler`); the others are Optuna's."""
    pruner: Pruner | None = None
    """Rule that stops trials at the rungs. ``expected_gain``: a trial goes on while its expected gain is worth the rest
    of its training. ``successive_halving``: the best 1/reduction of the trials of equal or lower cost go on. ``none``:
    every trial runs to the end. None: ``expected_gain`` with the sampler ``gain``, ``successive_halving`` with any
    other, ``none`` without rungs."""
    rungs: tuple[Share, ...] = (0.25, 0.5)
    """Shares of the steps at which a trial is validated and may be stopped; rising."""
    reduction: AtLeast2 | None = None
    """Reduction factor of ``successive_halving``; no other pruner has one. None: 2."""
    finalists: Count = 3
    """Number of schedules within the budget that are confirmed beside the baselines."""
    kept_trials: NonNegativeInt = 6
    """Proposals that run to the end whatever their early loss, evenly spread over the search, at most a third of all.
    Without them the rank correlation of early losses comes from survivors alone and reads too low."""
    confirm_seeds: Annotated[int, Field(ge=2, le=100_000)] = 3
    """Number of fresh seeds for every finalist and baseline; the search's own seed is not among them."""
    second_round_seeds: NonNegativeInt = 0
    """Further fresh seeds for all_full and the two candidates that decide, after all have ``confirm_seeds``. 0: one
    round."""
    tolerance: NonNegativeFloat = 0.0
    """Tolerance in nats: a cheaper schedule wins only if it is shown to lie within it of the lowest loss."""
    workers: Processes = 2
    """Number of trials that are trained at the same time."""

    def __post_init__(self) -> None:
        # The run folder records the pruner that ran, so the defaults are settled here.
        if self.pruner is None:
            object.__setattr__(self, "pruner", default_pruner(self.sampler, self.rungs))
        require(
            self.pruner == "none" or self.rungs,
            f"pruner {self.pruner} has no effect without rungs; name some, such as rungs=[0.5], or set pruner=none",
        )
        if self.reduction is None and self.pruner == "successive_halving":
            object.__setattr__(self, "reduction", 2)
        require(
            self.reduction is None or self.pruner == "successive_halving",
            f"reduction has no effect with pruner {self.pruner}; drop it, or set pruner=successive_halving",
        )
        rising = sorted(set(self.rungs))
        require(list(self.rungs) == rising, f"rungs must be rising, such as {rising}, not {list(self.rungs)}")

    @property
    def first_round(self) -> int:
        """Number of fresh seeds of the first of two rounds of confirmation; 0: there is one round."""
        return self.confirm_seeds if self.second_round_seeds else 0


@dataclass(frozen=True, kw_only=True)
class Recipe(Strict):
    """A recipe: the model, the data and the training of one trial, and the search.

    Example:
        >>> from layersearch import Recipe, load_recipe
        >>> recipe = load_recipe("smoke")
        >>> isinstance(recipe, Recipe), recipe.model.n_layers
        (True, 2)
    """

    name: str
    """Name of the recipe, and of the run folder."""
    model: ModelConfig
    data: DataConfig
    training: TrainingConfig
    search: SearchConfig = field(default_factory=SearchConfig)
    space: str | None = None
    """Name of the search space. None: the name of the recipe."""
    pretrained: str | None = None
    """A Hugging Face model folder or hub id: every trial starts from its weights. ``model`` must give its sizes;
    ``layersearch run --model`` fills them in. None: random weights."""
    selection: SelectionConfig | None = None
    """With a pre-trained model: measure schedules without training its weights. None: every trial trains."""

    def __post_init__(self) -> None:
        for key in (
            "model",
            "data",
            "training",
            "search",
            *(["selection"] if self.selection else []),
        ):  # Python code may have built them without a check of ranges
            section = getattr(self, key)
            build(type(section), dataclasses.asdict(section), key)
        kind, masked = self.model.kind, self.data.mask_share is not None
        encoder, classes = kind != "decoder", self.data.n_classes is not None
        learns = masked or not encoder or (classes and kind == "encoder")
        require(learns, f"model.kind {kind} learns from masked text: set data.mask_share, such as 0.15")
        require(classes or self.model.pooling is None, "model.pooling is for sources with classes; drop it")
        require(
            self.model.pooling != "first" or encoder,
            "model.pooling first reads the first token, which sees nothing in a decoder; give mean",
        )
        require(encoder or not masked, "data.mask_share is for encoders: set model.kind=encoder, or drop it")
        if self.pretrained is not None:
            require(not encoder, f"model.kind {kind} trains from scratch; a pre-trained model is a decoder")
            require(not classes, f"data.source {self.data.source} has classes, and a pre-trained model predicts tokens")
            require(
                self.training.start is None,
                "pretrained and training.start both name weights to start from; give one of them",
            )
            require(
                self.training.optimizer == "adamw",
                "training.optimizer muon trains from scratch; set training.optimizer=adamw with a pre-trained model",
            )
        staged = self.training.stages and (self.training.segments or classes or kind == "encoder_decoder")
        require(
            not staged, "training.stages are of lengths of a text: drop it, or segments, classes and encoder_decoder"
        )
        self._check_segments()
        one = not self.training.stages or self.model.kind != "encoder_decoder"
        require(one, "training.stages are for one stack; drop them, or take model.kind decoder or encoder")
        good = re.fullmatch(r"[\w.-]+", self.name)
        require(good, f"name must be letters, digits, '-', '_' or '.', not {self.name!r}")

    @property
    def source_and_target(self) -> tuple[int, int]:
        """Tokens of an encoder_decoder's source and target."""
        assert self.data.mask_share is not None
        found = corruption(self.training.seq_len, self.data.mask_share)
        return found.source, found.target

    @property
    def target_len(self) -> int | None:
        """Tokens of an encoder_decoder's target; None: another kind of model."""
        return self.source_and_target[1] if self.model.kind == "encoder_decoder" else None

    @property
    def n_targets(self) -> int:
        """Targets of a sequence: its tokens, those of an encoder_decoder's target, or one class."""
        return 1 if self.data.n_classes is not None else self.target_len or self.training.seq_len

    @property
    def schedule_tokens(self) -> int:
        """Tokens that the layers read that schedules speak of."""
        if self.model.kind == "encoder_decoder" and self.model.searched == "decoder":
            return self.source_and_target[1]
        return self.training.seq_len

    def _check_segments(self) -> None:
        training = self.training
        if training.segments is None:
            return
        others = (*get_args(TaskKind), *get_args(ClassKind), "mix")
        text = self.data.source not in others and self.data.mask_share is None
        require(text, f"training.segments read on in a text, and data.source is {self.data.source}; name a text")
        require(
            self.model.kind == "decoder", "training.segments are for model.kind decoder: a segment sees what is past"
        )
        require(self.pretrained is None, "training.segments train from scratch; drop it, or the pre-trained model")
        if training.warm_tokens is None:  # settled here, so that the run folder records it
            longest = training.seq_len - training.seq_len // training.segments
            warm = dataclasses.replace(training, warm_tokens=self.model.n_layers * longest)
            object.__setattr__(self, "training", warm)

    @property
    def default_space(self) -> str:
        """Name of the search space of a command that names none."""
        return self.space or self.name

    def to_dict(self) -> dict[str, Any]:
        """Return the recipe as nested plain mappings."""
        return dataclasses.asdict(self)


def load_recipe(name: str, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe from a path, or by the name of one that ships.

    Args:
        name: a path, or a name such as ``laptop``.
        overrides: dotted assignments such as ``training.steps=200``.

    Raises:
        ConfigError: names the file, the wrong key and the remedy.

    Example:
        >>> from layersearch import load_recipe
        >>> load_recipe("smoke", ["training.steps=200"]).training.steps
        200
    """
    path = find_file(name, "trials")
    mapping = read_yaml(path)
    for assignment in overrides:
        override(mapping, assignment)
    return build(Recipe, mapping, path.name)


def deepspeed_file(recipe: Recipe) -> Path:
    """Return the path of the recipe's DeepSpeed JSON."""
    return find_file(recipe.training.deepspeed, "trials/deepspeed", ".json")
