"""Proof of an export by experiment: does transformers do with the folder what its schedule says?

The model that `transformers.AutoModelForCausalLM` builds passes three experiments: on its masks, its logits, and its
texts with and without a KV cache. `docs/methods/export-proof.md` describes them. An encoder has an `EncoderProof`.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from layersearch.errors import ExportError
from layersearch.export.encoders import is_encoder_file
from layersearch.export.encoders.remote import MODEL_TYPE as REMOTE_ENCODER
from layersearch.export.verify.encoder_proof import EncoderProof
from layersearch.export.verify.loading import (
    MAX_WEIGHT_BYTES,
    decoder_layers,
    load_model,
    random_model,
    read_config,
    read_folder,
)
from layersearch.export.verify.mask_probe import LayerProof, changed_keys, prove_masks, text_length
from layersearch.export.verify.outputs import LogitsProof, TextProof, compare_logits, compare_texts
from layersearch.export.verify.remote_encoders import verify_remote_encoder
from layersearch.export.verify.stacks import verify_stacks
from layersearch.schedule import Schedule

__all__ = ["EncoderProof", "LayerProof", "LogitsProof", "Proof", "TextProof", "verify"]

_SIZE_FIELDS = ("sliding_window", "attention_chunk_size", "window_size")


@dataclass(frozen=True, kw_only=True)
class Proof:
    """Result of all experiments on an exported folder."""

    architecture: str
    """The class that transformers built."""
    schedule: str
    """Text form of the expected schedule."""
    tokens: int
    """Length of the input of the mask experiment."""
    keys: int
    """How many of its tokens were changed; each is compared with all queries."""
    shrunk: bool
    """Whether the model was made narrower for the mask experiment."""
    weights: str
    """Weights for logits and texts: ``random``, or ``the folder's own``."""
    layers: tuple[LayerProof, ...]
    logits: LogitsProof | None
    """None: not compared."""
    logits_reason: str | None
    """Why the logits were not compared."""
    texts: TextProof

    @property
    def problem(self) -> str | None:
        """The first difference, in one line; None if everything agrees."""
        wrong = [layer for layer in self.layers if not layer.proven]
        if wrong:
            others = f" (and layers {', '.join(str(layer.layer) for layer in wrong[1:])})" if wrong[1:] else ""
            return f"{wrong[0].example}{others}"
        if self.logits is not None and not self.logits.proven:
            return (
                f"logits differ from layersearch.model.decoder.Decoder's by {self.logits.difference:.2g} of their norm"
            )
        if self.texts.error is not None or self.texts.proven:
            return self.texts.error
        return (
            f"with a cache {self.texts.equal} of {self.texts.tokens} tokens equal those without, "
            f"logits differ by {self.texts.difference:.2g}"
        )

    @property
    def proven(self) -> bool:
        """True if everything that was compared agrees."""
        return self.problem is None

    def to_dict(self) -> dict[str, Any]:
        """Return plain data, as ``--json`` prints it."""
        return dataclasses.asdict(self) | {"proven": self.proven, "problem": self.problem}


def verify(
    folder: Path,
    *,
    schedule: Schedule | None = None,
    trust_remote_code: bool = False,
    attention: str | None = None,
    seed: int = 0,
) -> Proof | EncoderProof:
    """Compare the model that transformers makes of an exported folder with the schedule.

    Args:
        folder: with ``config.json`` and ``schedule.yaml``.
        schedule: the expected schedule; None: the one in ``schedule.yaml``.
        trust_remote_code: run code in the folder.
        attention: transformers' name of an attention implementation, such as ``eager``; None: its default.
        seed: of random weights.

    Raises:
        LayersearchError: if the folder cannot be loaded. A model that differs from the schedule is no error: its
            `Proof` is not ``proven``.
    """
    import torch

    found = read_folder(folder, schedule, trust_remote_code=trust_remote_code)
    if found.config.get("model_type") == REMOTE_ENCODER and found.remote:
        if attention is not None:
            raise ExportError("--attention has no meaning for code of the folder's own; drop it")
        return verify_remote_encoder(found, seed=seed)
    if is_encoder_file(found.config) and not found.remote:
        return verify_stacks(found, attention=attention, seed=seed)
    config = read_config(found)
    text = config.get_text_config(decoder=True)
    longest = getattr(text, "max_position_embeddings", None)
    sizes = [value for name in _SIZE_FIELDS if isinstance(value := getattr(text, name, None), int)]
    tokens = text_length(found.schedule, sizes, longest)
    model, shrunk = random_model(found, config, tokens, seed, attention)
    n_heads = model.config.get_text_config(decoder=True).num_attention_heads
    found.schedule.check(seq_len=max(tokens, longest or 0), n_heads=n_heads)
    layers = decoder_layers(model, len(found.schedule))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        masks = prove_masks(model, layers, found.schedule, tokens=tokens, n_heads=n_heads)
        weights, limit = "random", tokens
        if found.weights and found.weight_bytes <= MAX_WEIGHT_BYTES:
            model, weights, limit = load_model(found, attention), "the folder's own", longest or tokens
        logits = compare_logits(model, found.schedule, min(tokens, limit))
        texts = compare_texts(model, found.schedule, tokens=tokens, longest=limit)
    return Proof(
        architecture=type(model).__name__,
        schedule=str(found.schedule),
        tokens=tokens,
        keys=len(changed_keys(found.schedule, tokens)),
        shrunk=shrunk,
        weights=weights,
        layers=tuple(masks),
        logits=None if isinstance(logits, str) else logits,
        logits_reason=logits if isinstance(logits, str) else None,
        texts=texts,
    )
