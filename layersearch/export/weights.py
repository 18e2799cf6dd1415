"""Weights and tokenizers of an exported folder: written beside the target first, then renamed."""

from __future__ import annotations

import contextlib
import filecmp
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from layersearch.config.model import ModelConfig
from layersearch.errors import ExportError, one_line
from layersearch.export.families import FAMILIES, Family

if TYPE_CHECKING:
    from torch import Tensor

SHARD = "5GB"
"""Largest weight file."""


def save_weights(state: Mapping[str, Tensor], family: str, *, model: ModelConfig, out: Path) -> Path:
    """Write a trained `Decoder`'s state dict as ``model.safetensors`` beside the family's ``config.json``.

    A family with weights that the decoder lacks (granite_swa's sinks) gets them at a value that changes no logits.

    Raises:
        ExportError: if the family has other weights than this decoder, or the file exists or cannot be written.
    """
    fitting = [name for name, other in FAMILIES.items() if other.decoder_weights and other.qk_norm == model.qk_norm]
    if family not in fitting:
        weights = f"weights with qk_norm={model.qk_norm}"
        weights = weights if FAMILIES[family].decoder_weights else "the decoder's weights"
        raise ExportError(f"{weights} do not load into family {family}; give --family {fitting[0]}")
    path = out / "model.safetensors"
    if path.exists():
        raise ExportError(f"{path} exists; give --out another folder or remove it")
    tensors = decoder_tensors(state, model) | inert_tensors(FAMILIES[family], model.n_layers, model.n_heads, state)
    with new_files(out) as part:
        save_tensors(tensors, part)
    return path


def decoder_tensors(state: Mapping[str, Tensor], model: ModelConfig) -> dict[str, Tensor]:
    """Return a `Decoder`'s weights under the names of transformers' Llama; a tied head is left out."""
    return {
        name if name.startswith("lm_head.") else f"model.{name}": tensor.detach().cpu().contiguous()
        for name, tensor in state.items()
        # Tied weights are one tensor under two names; only the embedding is saved.
        if not (model.tie_embeddings and name == "lm_head.weight")
    }


def inert_tensors(family: Family, n_layers: int, n_heads: int, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights that a family has beyond a Llama's, at the values at which they change no logits.

    Each is (n_heads,) and has the type of the weights in ``like``.
    """
    import torch

    dtype = next(iter(like.values())).dtype
    return {
        f"model.layers.{layer}.{name}": torch.full((n_heads,), value, dtype=dtype)
        for layer in range(n_layers)
        for name, value in family.inert_weights.items()
    }


def save_tensors(tensors: Mapping[str, Tensor], folder: Path) -> None:
    """Write ``model.safetensors``, or shards of at most `SHARD` with their index, as transformers names them."""
    from huggingface_hub import save_torch_state_dict

    save_torch_state_dict(dict(tensors), folder, max_shard_size=SHARD)


def copy_tokenizer(source: Path, folder: Path) -> bool:
    """Copy a model folder's tokenizer, or write that of a GGUF file as transformers reads it; False: there is none."""
    from layersearch.data.gguf_file import is_gguf, save_tokenizer

    if is_gguf(str(source)):
        save_tokenizer("--model", source, folder)
        return True
    if not (source / "tokenizer.json").is_file() and not (source / "tokenizer.model").is_file():
        return False
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copy(source / name, folder / name)
    return True


TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "vocab.json",
    "merges.txt",
)
"""Files that together are a tokenizer."""


@contextmanager
def new_files(out: Path) -> Iterator[Path]:
    """Yield an empty folder in ``out`` for large files; they move to ``out`` when all of them are complete.

    Files with the same content may stand there already.

    Raises:
        ExportError: one stands there with other content (then none moves), or one cannot be written.
    """
    from safetensors import SafetensorError

    part, made = out, [folder for folder in (out, *out.parents) if not folder.exists()]
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".part-", dir=out) as name:
            part = Path(name)
            yield part
            files = sorted(part.iterdir())
            for file in files:
                target = out / file.name
                if target.exists() and not (target.is_file() and filecmp.cmp(file, target, shallow=False)):
                    raise ExportError(f"{target} exists and differs; give --out another folder or remove it")
            mask = os.umask(0)
            os.umask(mask)
            for file in files:
                file.chmod(0o666 & ~mask)  # safetensors lets the owner alone read its files
                os.replace(file, out / file.name)
        made = []
    except ExportError as error:
        error.args = (str(error).replace(str(part), str(out)),)
        raise
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or one_line(error)
        raise ExportError(f"{out} cannot be written ({reason}); give --out a folder that can") from None
    finally:
        for folder in made:  # a refusal leaves nothing behind
            with contextlib.suppress(OSError):
                folder.rmdir()
