"""The weights of a trial as a file: what one trial leaves and another goes on from."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from layersearch.errors import RunFolderError

_STEPS = "steps"


def save_weights(model: nn.Module, path: Path, steps: int) -> None:
    """Write a model's parameters as safetensors, whole or not at all.

    Args:
        model: the model.
        path: the file; its folder is made.
        steps: optimiser steps behind it, those of what it went on from included; kept in the file.

    Raises:
        OSError: if it cannot be written.
    """
    from safetensors.torch import save_model

    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    save_model(model, str(part), metadata={_STEPS: str(steps)})
    part.replace(path)


def load_weights(model: nn.Module, path: Path) -> int:
    """Read a model's parameters from safetensors; return the optimiser steps behind them, 0 where the file says none.

    Raises:
        RunFolderError: if the file is missing, is no such file, or holds another model's parameters.
    """
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import load_model

    try:
        load_model(model, str(path))
        with safe_open(str(path), framework="pt") as file:
            steps = (file.metadata() or {}).get(_STEPS, "0")
    except OSError as error:
        raise RunFolderError(
            f"training.start {path}: cannot be read ({error}); give the weights of a trained model"
        ) from None
    except (SafetensorError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:160]
        raise RunFolderError(
            f"training.start {path}: not this model's weights ({reason}); give those of a trial with the same model"
        ) from None
    return int(steps) if steps.isdecimal() else 0
