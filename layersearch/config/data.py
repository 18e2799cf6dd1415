"""The ``data`` section of a recipe."""

from dataclasses import InitVar, dataclass
from typing import Literal, get_args

from pydantic import NonNegativeInt, PositiveInt

from layersearch.config.loader import Strict
from layersearch.config.sizes import AtLeast2, Count, Share, Tokens, Vocabulary
from layersearch.errors import require

TaskKind = Literal["recall", "hops", "coreference", "listops", "local"]
ClassKind = Literal["lra_listops", "pathfinder", "text_classes", "retrieval", "digits", "arrays"]
ENCODERS_READ: dict[str, tuple[TaskKind, ...]] = {
    "encoder": ("recall", "hops", "coreference"),
    "encoder_decoder": ("recall",),
}
"""Generated tasks that models with an encoder learn without ``mask_share``: their answers are hidden."""
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
    """recall, mix: key-value pairs in a sequence; hops: chains; coreference: entities."""
    queries: PositiveInt = 4
    """recall, mix: queried pairs in a sequence; hops: queried chains; coreference: queried aliases."""
    distance: PositiveInt = 64
    """recall, mix, hops, coreference: least distance in tokens between a query and its pair, between the links of a
    chain, and between documents."""
    asked_in: Literal["source", "target", "names"] = "source"
    """recall in an encoder_decoder: where queries stand. ``source``: in the encoder's text. ``target``: the decoder is
    given each key and writes its value; filler stands in the encoder's text instead. ``names``: the encoder's text has
    another key there as a name, and the queried key behind it; the decoder is given the name, so that it takes two hops
    to the value. Training asks half of them by their key instead, which then has no name."""
    fillers: PositiveInt | None = None
    """recall, mix, hops, coreference: number of distinct filler tokens. None: an eighth of the vocabulary."""
    hops: PositiveInt = 2
    """hops: links of a chain, k."""
    documents: AtLeast2 = 2
    """coreference: documents in a sequence."""
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
        asks, asked = self.asked_in == "source" or self.source == "recall", f"data.asked_in {self.asked_in}"
        require(asks, f"{asked} is for data.source recall, not {self.source}; take recall, or drop asked_in")
        require(self.queries <= self.pairs, f"queries {self.queries} must not exceed pairs {self.pairs}")

    @property
    def n_classes(self) -> int | None:
        """Number of classes of the source; None: its targets are tokens."""
        if self.source not in get_args(ClassKind):
            return None
        if self.source == "text_classes":
            return len(self.files)
        return self.classes if self.source == "arrays" else {"lra_listops": 10, "digits": 10}.get(self.source, 2)
