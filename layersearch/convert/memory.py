"""The memory of a conversion, known before a weight is loaded.

Shapes: P parameters of which S are trained, R ranks, T tokens, d hidden width, V vocabulary. By part, for one rank:

- weights, 4 P: float32, for bf16 is autocast; the original to distill from, 4 P. ZeRO-3 shards both.
- gradients, 4 S, sharded from stage 2. Optimizer state, 8 S for AdamW's moments, sharded from stage 1, where DeepSpeed
  adds a float32 master copy, 4 S (1910.02054, fig. 1). `layersearch.training.memory.model_bytes` counts alike.
- activations and logits: counted on fake tensors, by the very code that trains. Nothing is computed or allocated.
- buffers: what DeepSpeed allocates for its reductions, and the weights that ZeRO-3 gathers.

A step's peak is at the end of the forward pass, where activations are whole, or at the end of the backward pass, where
gradients are. In between both change about linearly. ZeRO-3 keeps a buffer for all gradients.
Saving loads the saved weights to compare logits.
"""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import torch
from torch import nn

from layersearch.config.loader import find_file
from layersearch.convert.config import ConvertRecipe, resolve_stages
from layersearch.convert.trainable import adapt
from layersearch.errors import ConfigError
from layersearch.model.hf_decoder import HFDecoder
from layersearch.model.pretrained import load_skeleton
from layersearch.schedule import Schedule
from layersearch.selection.memory import LIBRARIES
from layersearch.training.deepspeed_config import deepspeed_config
from layersearch.training.memory import LiveBytes

BUCKET = 500_000_000
"""DeepSpeed's default ``reduce_bucket_size``, numbers."""
LIVE = 1_000_000_000
"""DeepSpeed's default ``stage3_max_live_parameters``, numbers."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class MemoryEstimate:
    """Bytes of one rank, by part."""

    weights: int
    original: int
    """Weights of the original to distill from."""
    gradients: int
    optimizer: int
    """AdamW's moments and, from ZeRO-1 on, a master copy of the trained weights."""
    activations: int
    """What a forward pass keeps for the backward pass, without the head."""
    copies: int
    """Weights cast to bf16, kept for the backward pass; under ZeRO-3 those that are gathered."""
    logits: int
    """Logits of one piece of the text with their softmax, and the head's gradient; of the whole text for a family that
    changes logits after its head."""
    buffers: int
    """DeepSpeed's buffers."""
    whole: int
    """The saved weights, loaded to compare logits; under ZeRO-3 the gathered ones too."""
    zero_stage: int
    ranks: int
    on_gpu: bool

    def to_dict(self) -> dict[str, int | bool]:
        """Return the parts, with ``training`` and ``total``, as plain data."""
        return dataclasses.asdict(self) | {"training": self.training, "total": self.total}

    @property
    def training(self) -> int:
        """Peak of a training step, with `LIBRARIES`."""
        forward = self.activations + self.copies + self.logits
        kept = self.weights + self.original + self.optimizer + self.buffers
        if self.zero_stage == 3:  # DeepSpeed keeps one buffer for all gradients
            return LIBRARIES + kept + forward + self.gradients
        return LIBRARIES + kept + max(forward, self.gradients)

    @property
    def total(self) -> int:
        """Peak of one rank."""
        return max(self.training, LIBRARIES + self.weights + self.original + self.whole)


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepBytes:
    """What a forward pass keeps and needs, counted on fake tensors, bytes."""

    parameters: int
    """Numbers, not bytes, as ``trainable``."""
    trainable: int
    activations: int
    copies: int
    logits: int


def step_bytes(skeleton: HFDecoder, recipe: ConvertRecipe, schedule: Schedule) -> StepBytes:
    """Count one rank's forward pass on tensors without storage.

    Args:
        skeleton: a decoder whose weights are on torch's meta device; it is not changed.
        recipe: how it is trained; its longest stage is counted.
        schedule: one span per layer.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    stage = max(resolve_stages(recipe, schedule), key=lambda found: found.training.seq_len)
    training = stage.training
    student, teacher = copy.deepcopy(skeleton), copy.deepcopy(skeleton)
    student.set_schedule(stage.schedule)
    adapt(student, only_attention=recipe.only_attention, lora=recipe.lora)
    with FakeTensorMode():
        _make_fake(student)
        if recipe.distil:
            _make_fake(teacher)
            student.distil_from(teacher, recipe.distil)
        tokens = torch.zeros(training.batch_size // training.ranks, training.seq_len, dtype=torch.int64)
        with LiveBytes((*student.parameters(), *student.buffers(), *teacher.parameters(), tokens)) as live:
            # The activations are all there before the head makes the first logits.
            before: list[tuple[int, int]] = []
            head = student.model.get_output_embeddings()
            hook = head.register_forward_pre_hook(lambda *_: before.append((live.alive, live.copies)))
            with torch.autocast("cpu", torch.bfloat16, enabled=training.precision == "bf16"):
                loss = student(tokens, tokens)
            hook.remove()
        del loss
    ((alive, copies),) = before
    parameters = list(student.parameters())
    return StepBytes(
        parameters=sum(value.numel() for value in parameters),
        trainable=sum(value.numel() for value in parameters if value.requires_grad),
        activations=alive - copies,
        copies=copies,
        logits=live.peak - alive,
    )


def estimate_memory(counted: StepBytes, recipe: ConvertRecipe, deepspeed: dict[str, Any]) -> MemoryEstimate:
    """Return the memory of one rank.

    Args:
        counted: as `step_bytes` returns it.
        recipe: how the model is trained.
        deepspeed: DeepSpeed's configuration, of which the section ``zero_optimization`` is read.
    """
    training, zero = recipe.training, deepspeed.get("zero_optimization", {})
    stage, ranks, on_gpu = zero.get("stage", 0), training.ranks, training.gpus > 0
    held = 4 * counted.parameters // (ranks if stage == 3 else 1)
    moments = 8 * counted.trainable // (ranks if stage else 1)
    master = 4 * counted.trainable // ranks if stage else 0
    buffers, copies, low = 0, counted.copies, training.precision == "bf16"
    if stage:
        bucket = zero.get("reduce_bucket_size", BUCKET)
        # One buffer for each type that is communicated: bf16 for linear layers under autocast, float32 for the others.
        kinds = (2 if stage == 3 else 4, 4) if low else (4,)
        # On a CPU, pages that hold nothing yet take no memory, and a buffer holds at most the gradients.
        numbers = bucket if on_gpu else min(bucket, counted.trainable)
        buffers = sum(kinds) * numbers if on_gpu else max(kinds) * numbers
    if stage == 3:
        gathered = (2 if low else 4) * min(counted.parameters, zero.get("stage3_max_live_parameters", LIVE))
        copies = gathered * (2 if recipe.distil else 1)
    return MemoryEstimate(
        weights=held,
        original=held if recipe.distil else 0,
        gradients=4 * counted.trainable // (ranks if stage >= 2 else 1),
        optimizer=moments + master,
        activations=counted.activations,
        copies=copies,
        logits=counted.logits,
        buffers=buffers,
        whole=(8 if stage == 3 else 4) * counted.parameters,
        zero_stage=stage,
        ranks=ranks,
        on_gpu=on_gpu,
    )


def plan_memory(
    recipe: ConvertRecipe, model: str, schedule: Schedule, *, trust_remote_code: bool = False
) -> MemoryEstimate | None:
    """Return the memory of a conversion's rank, from the model's configuration alone.

    Arguments and errors are as of `layersearch.convert.run.convert`. None: the model's code branches on values, so it
    cannot run without them.
    """
    from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException

    rope = None if recipe.rope is None else dataclasses.asdict(recipe.rope)
    skeleton = load_skeleton(model, trust_remote_code=trust_remote_code, rope=rope, tokens=recipe.training.seq_len)
    path = find_file(recipe.training.deepspeed, "trials/deepspeed", ".json")
    deepspeed = deepspeed_config(recipe.training, path)
    try:
        return estimate_memory(step_bytes(skeleton, recipe, schedule), recipe, deepspeed)
    except (DataDependentOutputException, DynamicOutputShapeException):
        return None


def check_free_memory(found: MemoryEstimate, model: str) -> None:
    """Raise ConfigError if a conversion needs more memory than is free on this machine or its GPUs.

    GPUs that are not there are not asked.
    """
    if found.on_gpu:
        if torch.cuda.device_count() < found.ranks:
            return
        free = min(torch.cuda.mem_get_info(index)[0] for index in range(found.ranks))
        needed, where = found.training, "are free on a GPU"
    else:
        import psutil

        # Rank 0 alone saves the model, and the others still hold theirs.
        saving = found.ranks * (LIBRARIES + found.weights + found.original) + found.whole
        free, needed = psutil.virtual_memory().available, max(found.ranks * found.training, saving)
        where = "are free"
    if needed <= free:
        return
    weights, activations, needed_gib, free_gib = (
        value / 2**30 for value in (found.ranks * found.weights, found.ranks * found.activations, needed, free)
    )
    raise ConfigError(
        f"--model {model}: the conversion needs {needed_gib:.1f} GiB (weights {weights:.1f}, activations "
        f"{activations:.1f}), and {free_gib:.1f} GiB {where}; lower training.seq_len or training.batch_size, set lora "
        "or only_attention, or give a smaller model"
    )


def _make_fake(decoder: HFDecoder) -> None:
    """Give a decoder of meta tensors fake ones on the CPU, where autocast is known. Tied weights stay tied."""
    made: dict[int, nn.Parameter] = {}
    for module in decoder.modules():
        for name, value in module._parameters.items():
            if value is not None:
                fake = nn.Parameter(torch.empty(value.shape, dtype=value.dtype), requires_grad=value.requires_grad)
                module._parameters[name] = made.setdefault(id(value), fake)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype)
