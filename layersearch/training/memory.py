"""Memory of a trial: computed before it runs, and the peak while it runs."""

import contextlib
import ctypes
import sys
import weakref
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from layersearch.config.recipe import Recipe, deepspeed_file
from layersearch.errors import ConfigError
from layersearch.model.build import new_model
from layersearch.model.flops import num_matrix_parameters, num_parameters
from layersearch.schedule import Schedule
from layersearch.training.deepspeed_config import zero_stage


def model_bytes(recipe: Recipe, vocab_size: int) -> int:
    """Return the bytes of weights, gradients and optimizer state on one rank.

    All are float32, because bf16 is autocast: per parameter 4 for weights, 4 for gradients and 8 for AdamW's two
    moments. Muon keeps one moment of a layer's matrix. ZeRO shards moments from stage 1, gradients from stage 2 and
    weights at stage 3 (1910.02054, fig. 1). At each stage DeepSpeed keeps a further float32 master shard of the
    weights. Stage 1 holds whole gradients until they are reduced, so they are counted whole.
    """
    count, ranks = num_parameters(recipe.model, vocab_size, recipe.data.n_classes), recipe.training.ranks
    stage = zero_stage(deepspeed_file(recipe))
    weights = 4 * count / (ranks if stage == 3 else 1)
    master = 4 * count / ranks if stage else 0
    gradients = 4 * count / (ranks if stage >= 2 else 1)
    single = num_matrix_parameters(recipe.model) if recipe.training.optimizer == "muon" else 0
    moments = (8 * count - 4 * single) / (ranks if stage >= 1 else 1)
    return round(weights + master + gradients + moments)


def activation_bytes(recipe: Recipe, vocab_size: int, schedule: Schedule) -> int:
    """Return the bytes that autograd saves in one rank's forward pass, counted on fake tensors.

    Weights and their gathered copies under ZeRO-3 are not counted; their bf16 copies are.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    training = recipe.training
    rows = training.batch_size // training.ranks
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage.nbytes()
        return tensor

    with FakeTensorMode():
        model = new_model(recipe, vocab_size, schedule)
        weights = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
        tokens = torch.zeros(rows, training.seq_len, dtype=torch.int64)
        targets = torch.zeros(rows, recipe.n_targets, dtype=torch.int64)
        with (
            torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
            torch.autocast("cpu", torch.bfloat16, enabled=training.precision == "bf16"),
        ):
            loss = model(tokens, targets)  # held until the sum: the address of a freed storage may be reused
        count = sum(size for address, size in kept.items() if address not in weights)
    del loss
    return count


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follow the storages that operators make within this context, on fake tensors too.

    Args:
        given: tensors that are not counted.
    """

    def __init__(self, given: Iterable[torch.Tensor] = ()) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.alive = 0
        """Bytes that live now."""
        self.peak = 0
        """Most bytes that lived at once."""
        self.copies = 0
        """The part of ``alive`` that are given tensors in another type."""
        self._given = {tensor.untyped_storage()._cdata for tensor in given}
        self._seen = set(self._given)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        cast = func is torch.ops.aten._to_copy.default and args[0].untyped_storage()._cdata in self._given
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, torch.Tensor):
                self._note(tensor.untyped_storage(), cast)
        return out

    def _note(self, storage: torch.UntypedStorage, cast: bool) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._seen:
            return
        self._seen.add(key)
        self._change(size, cast)
        self.peak = max(self.peak, self.alive)
        weakref.finalize(storage, self._free, key, size, cast)

    def _free(self, key: int, size: int, cast: bool) -> None:
        self._seen.discard(key)
        self._change(-size, cast)

    def _change(self, size: int, cast: bool) -> None:
        self.alive += size
        self.copies += size if cast else 0


def device_name(device: str) -> str:
    """Return a device as records name it: ``cpu``, or for example ``cuda:0: NVIDIA H200``."""
    return device if device == "cpu" else f"{device}: {torch.cuda.get_device_name(device)}"


def free_memory(device: str) -> int:
    """Return the bytes that are free in this machine's memory, or in that of a GPU.

    Raises:
        ConfigError: if a GPU is asked for and there is none.
    """
    import psutil

    if device == "cpu":
        return int(psutil.virtual_memory().available)
    if not torch.cuda.is_available():
        raise ConfigError("training.gpus is 1 and this machine has no GPU: set training.gpus=0 to run on the CPU")
    return int(torch.cuda.mem_get_info(device)[0])


def reset_peak_memory(device: str) -> None:
    """Start a new measurement of `peak_memory`."""
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats(device)
        return
    # An earlier trial's freed pages would count as this one's. glibc only; elsewhere nothing changes.
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # Linux: restart the high-water mark of resident memory


def peak_memory(device: str) -> int:
    """Return the peak resident (CPU) or allocated (GPU) bytes since `reset_peak_memory`; of the process if not
    Linux."""
    if device != "cpu":
        return int(torch.cuda.max_memory_allocated(device))
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
