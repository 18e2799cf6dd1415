"""Proof of an export: what the real library makes of the folder, against the schedule, by experiment.

The folder holds ``config.json`` and ``schedule.yaml``; ``model.safetensors`` and code of its own may be there. A model
that `transformers.AutoModelForCausalLM` builds is proven if

- every layer, fed noise in which one token changes, moves exactly the outputs that `Span.moves` says (random weights:
  masks do not depend on them), and every head of it where the layer's output projection is found;
- its logits are those of `layersearch.model.decoder.Decoder`, where the weights are the same by name and shape;
- `generate` past every span makes the same text with a KV cache as without.

Code of the folder's own must keep its decoder layers in one ``ModuleList`` of the schedule's length, give each the
stream as its first argument or as ``hidden_states``, and have the layer return it, alone or first in a tuple.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from layersearch.export.verify.folder import MOST_WEIGHT_BYTES, read_folder
from layersearch.export.verify.generation import TextProof, compare_texts
from layersearch.export.verify.loading import decoder_layers, loaded_model, random_model, read_config
from layersearch.export.verify.logits import LogitsProof, compare_logits
from layersearch.export.verify.mask_probe import EVERY_PAIR, LayerProof, changed_keys, prove_masks, text_length
from layersearch.schedule import Schedule

__all__ = ["EVERY_PAIR", "LayerProof", "LogitsProof", "Proof", "TextProof", "verify"]

OWN = "the folder's own"
_SIZE_FIELDS = ("sliding_window", "attention_chunk_size", "window_size")


@dataclass(frozen=True, kw_only=True)
class Proof:
    """What the library was seen to do with an exported folder."""

    architecture: str
    """The class that transformers built."""
    schedule: str
    """Text form of what it should do."""
    tokens: int
    """Length of the text of the experiment."""
    keys: int
    """Tokens that were changed in it, each against all queries."""
    shrunk: bool
    """Whether the model's widths were shrunk for the experiment on masks."""
    weights: str
    """Which weights gave the logits and texts: ``random``, or ``the folder's own``."""
    layers: tuple[LayerProof, ...]
    logits: LogitsProof | None
    """None: not compared."""
    logits_reason: str | None
    """Why not."""
    texts: TextProof

    @property
    def problem(self) -> str | None:
        """Return what differs first, in one line; None if everything agrees."""
        wrong = [layer for layer in self.layers if not layer.proven]
        if wrong:
            others = f" (and layers {', '.join(str(layer.layer) for layer in wrong[1:])})" if wrong[1:] else ""
            return f"{wrong[0].example}{others}"
        if self.logits is not None and not self.logits.proven:
            return (
                f"logits differ from layersearch.model.decoder.Decoder's by {self.logits.difference:.2g} of their norm"
            )
        if self.texts.error is not None:
            return self.texts.error
        if not self.texts.proven:
            return (
                f"with a cache {self.texts.equal} of {self.texts.tokens} tokens are those made without, "
                f"logits differ by {self.texts.difference:.2g}"
            )
        return None

    @property
    def proven(self) -> bool:
        """Tell whether everything that was compared agrees."""
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
) -> Proof:
    """Find out what transformers makes of an exported folder, and compare it with the schedule.

    Args:
        folder: ``config.json``, ``schedule.yaml`` and what else there is.
        schedule: what the folder should hold; None: what its ``schedule.yaml`` says.
        trust_remote_code: run code of the folder's own.
        attention: transformers' name of an attention implementation, such as ``eager``; None: its default.
        seed: of random weights.

    Raises:
        UserError: if the folder cannot be loaded for a reason of its own; a model that does another thing than the
            schedule is no error but a `Proof` that is not ``proven``.
    """
    import torch

    found = read_folder(folder, schedule, trust_remote_code=trust_remote_code)
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
        weights = "random"
        most = tokens
        if found.weights and found.weight_bytes <= MOST_WEIGHT_BYTES:
            model, weights, most = loaded_model(found, attention), OWN, longest or tokens
        logits = compare_logits(model, found.schedule, min(tokens, most))
        texts = compare_texts(model, found.schedule, tokens=tokens, longest=most)
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
