"""Memory that a process frees and soon wants again."""

from __future__ import annotations

import contextlib
import ctypes
import sys
from pathlib import Path

import torch
import torch.distributed

from layersearch.config.recipe import Recipe, deepspeed_file
from layersearch.model.decoder import Decoder
from layersearch.model.flops import num_matrix_parameters, num_parameters
from layersearch.schedule import Schedule
from layersearch.training.deepspeed_config import zero_stage

# glibc's mallopt parameters, malloc.h.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
LARGEST = 1 << 30


def keep_freed_memory() -> bool:
    """Tell the C allocator to keep freed memory rather than give it back to the system after every step.

    Tensors of megabytes are otherwise unmapped when freed and mapped anew, page by page, at the next step; on virtual
    machines those page faults can cost more than the arithmetic. Peak memory is unchanged.

    Returns:
        False where the C library has no such setting (anything but glibc); nothing changes there.
    """
    if sys.platform != "linux":
        return False
    library = ctypes.CDLL(None)
    if not hasattr(library, "mallopt"):
        return False
    return bool(library.mallopt(M_TRIM_THRESHOLD, LARGEST)) and bool(library.mallopt(M_MMAP_THRESHOLD, LARGEST))


def give_back_freed_memory() -> bool:
    """Hand the pages of freed memory back to the system once, so that resident memory is what is in use.

    Returns:
        False where the C library has no such call (anything but glibc); nothing changes there.
    """
    library = ctypes.CDLL(None) if sys.platform == "linux" else None
    trim = getattr(library, "malloc_trim", None)
    if trim is None:
        return False
    trim(0)
    return True


def model_bytes(recipe: Recipe, vocab_size: int) -> int:
    """Return the bytes of weights, gradients and optimiser state on one rank.

    Float32 throughout, as the engine trains (bf16 is autocast): 4 for weights, 4 for gradients and 8 for AdamW's two
    moments per parameter; Muon keeps one moment of a layer's matrix. ZeRO shards the moments from stage 1 on,
    gradients from stage 2 on and weights at stage 3 (1910.02054, fig. 1); DeepSpeed keeps a further float32 master
    shard of the weights at each of them. Gradients of stage 1 are whole until they are reduced, and counted so.
    """
    count, ranks = num_parameters(recipe.model, vocab_size), recipe.training.ranks
    stage = zero_stage(deepspeed_file(recipe))
    weights = 4 * count / (ranks if stage == 3 else 1)
    master = 4 * count / ranks if stage else 0
    gradients = 4 * count / (ranks if stage >= 2 else 1)
    single = num_matrix_parameters(recipe.model) if recipe.training.optimizer == "muon" else 0
    moments = (8 * count - 4 * single) / (ranks if stage >= 1 else 1)
    return round(weights + master + gradients + moments)


def activation_bytes(recipe: Recipe, vocab_size: int, schedule: Schedule) -> int:
    """Return the bytes that autograd keeps of one rank's forward pass, counted on tensors without storage.

    Weights are not counted, their copies in bf16 are. Weights gathered under ZeRO-3 come and go and are not counted.
    """
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    training = recipe.training
    rows = training.batch_size // training.ranks
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage.nbytes()
        return tensor

    with FakeTensorMode():
        model = Decoder(recipe.model, vocab_size, schedule)
        weights = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
        tokens = torch.zeros(rows, training.seq_len, dtype=torch.int64)
        with (
            torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
            torch.autocast("cpu", torch.bfloat16, enabled=training.precision == "bf16"),
        ):
            loss = model(tokens, tokens)  # held until the sum is taken: a freed storage's address may serve again
        count = sum(size for address, size in kept.items() if address not in weights)
    del loss
    return count


def reset_peak_memory(device: str) -> None:
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats(device)
        return
    give_back_freed_memory()  # else an earlier trial's freed pages would count as this one's
    with contextlib.suppress(OSError):  # elsewhere the mark is that of the process's life, see peak_memory
        Path("/proc/self/clear_refs").write_text("5")  # Linux: restart the high-water mark of resident memory


def peak_memory(device: str) -> int:
    """Return the largest resident bytes since the trial began (Linux), or since the process began (elsewhere)."""
    if device != "cpu":
        return int(torch.cuda.max_memory_allocated(device))
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    import resource
    import sys

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
