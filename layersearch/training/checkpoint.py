"""Model weights of a trial as a safetensors file, which another trial may start from."""

from pathlib import Path

from torch import nn

from layersearch.errors import RunFolderError, one_line


def save_weights(model: nn.Module, path: Path, steps: int) -> None:
    """Write a model's parameters whole or not at all. Makes the folder; raises OSError if the file cannot be written.

    The file also holds ``steps``, all optimizer steps behind the weights, including those of the weights it started
    from.
    """
    from safetensors.torch import save_model

    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    save_model(model, str(part), metadata={"steps": str(steps)})
    part.replace(path)


def load_weights(model: nn.Module, path: Path) -> int:
    """Read a model's parameters; return the optimizer steps behind them, 0 if the file does not say.

    Raises:
        RunFolderError: if the file is missing, is not safetensors, or holds another model's parameters.
    """
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import load_model

    try:
        load_model(model, str(path))
        with safe_open(str(path), framework="pt") as file:
            steps = (file.metadata() or {}).get("steps", "0")
    except OSError as error:
        raise RunFolderError(f"training.start {path}: cannot be read ({error}); give a model's weights") from None
    except (SafetensorError, RuntimeError) as error:
        wrong = f"training.start {path}: not this model's weights ({one_line(error)})"
        raise RunFolderError(f"{wrong}; give those of a trial with the same model") from None
    return int(steps) if steps.isdecimal() else 0
