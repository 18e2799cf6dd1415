"""The training engine: one model under DeepSpeed, with one rank or several, on CPU or GPU."""

import contextlib
import gc
import importlib
import importlib.util
import logging
import os
import shutil
import socket
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import torch
import torch.distributed
from torch import Tensor
from torch._C._distributed_c10d import FileStore, HashStore, Store, TCPStore

from layersearch.config.training import TrainingConfig
from layersearch.errors import ConfigError, RunFolderError, one_line
from layersearch.training.deepspeed_config import check_with_deepspeed
from layersearch.training.learning_rate import learning_rate_factor as learning_rate_factor  # also for importers
from layersearch.training.optimizer import make_optimizer
from layersearch.training.stages import staged_factor


@dataclass(frozen=True, kw_only=True)
class RankGroup:
    """This process's place among the ranks that train one model together (data parallel)."""

    rank: int = 0
    size: int = 1  # Number of ranks
    device: str = "cpu"  # `cpu` or `cuda:N`


def join(group: RankGroup, rendezvous: str, listening: int | None = None) -> None:
    """Initialize torch's process group once per process; later trials reuse it.

    Ranks of one machine meet at a file: it needs no port, so parallel trials cannot clash. Ranks of several machines
    meet at ``tcp://ADDRESS:PORT`` of rank 0; ``listening`` is the file descriptor of its socket, of that address only.
    """
    on_cpu = group.device == "cpu"
    address = urlsplit(rendezvous)  # a path has neither host nor port
    os.environ.setdefault("DS_ACCELERATOR", "cpu" if on_cpu else "cuda")
    os.environ.setdefault("GLOO_SOCKET_IFNAME", _interface(address.hostname or "127.0.0.1"))
    # DeepSpeed uses the GPU with this number; on the CPU it ignores the number.
    local = group.device.removeprefix("cuda:") if not on_cpu else str(group.rank)
    os.environ.update(RANK=str(group.rank), LOCAL_RANK=local, WORLD_SIZE=str(group.size))
    if not on_cpu:
        torch.cuda.set_device(group.device)
    store: Store
    if address.hostname and address.port:
        master = group.rank == 0
        store = TCPStore(address.hostname, address.port, group.size, is_master=master, master_listen_fd=listening)
    elif group.size == 1:
        store = HashStore()  # a file would stay behind after a kill
    else:
        store = FileStore(rendezvous, group.size)
    backend = "gloo" if on_cpu else "nccl"
    torch.distributed.init_process_group(backend, store=store, rank=group.rank, world_size=group.size)
    _deepspeed().init_distributed(dist_backend=backend, auto_mpi_discovery=False, verbose=False)
    # A process's first optimizer imports torch's compiler, which takes a second or more: here, not in a trial's time.
    importlib.import_module("torch._dynamo")


def leave() -> None:
    """Destroy the process group that `join` made, so that a later `join` in this process makes another one.

    NCCL warns at a program's end of a group that is still there, since ranks could wait for it forever.
    """
    from deepspeed import comm
    from deepspeed.utils import groups

    comm.destroy_process_group()
    groups._WORLD_GROUP = None  # DeepSpeed 0.19.0 keeps its copy of the group, and would use it in the next one


def _interface(host: str) -> str:
    """Return the network interface by which this machine reaches a host."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((host, 9))  # a datagram socket sends nothing, but the kernel picks the interface
        own = probe.getsockname()[0]
    return next(name for name, held in psutil.net_if_addrs().items() if any(part.address == own for part in held))


def _deepspeed() -> Any:
    """Import DeepSpeed quietly."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import deepspeed
        import deepspeed.ops
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    # DeepSpeed would compile a C++ shared-memory all-reduce at first use, which takes half a minute and a compiler.
    # gloo is enough for the few ranks of one CPU.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


def can_compile(device: str) -> bool:
    """Return whether torch.compile works for a device: the CPU needs a C++ compiler, CUDA needs Triton."""
    if device != "cpu":
        return importlib.util.find_spec("triton") is not None
    from torch._inductor import config

    names = config.cpp.cxx
    return any(shutil.which(name) for name in ((names,) if isinstance(names, str) else names) if name)


class Engine:
    """A model, its optimizer and its learning-rate schedule under DeepSpeed.

    Every rank builds one with the same model, after `join`. Call `close` when the trial ends. The model is called with
    (tokens, targets), and with ``reduce=False`` for losses by token. ``config`` is that of `deepspeed_config`.

    Raises:
        ConfigError: if DeepSpeed refuses the configuration.
    """

    def __init__(self, model: torch.nn.Module, training: TrainingConfig, config: dict[str, Any], group: RankGroup):
        self.group, self.training = group, training
        check_with_deepspeed(config, training)
        config = dict(config)
        if config.pop("activation_checkpointing", None) is not None:
            _recompute(model, training)
        model.to(group.device)
        optimizer = make_optimizer(model, training)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._engine, *_ = _deepspeed().initialize(
                model=model,
                optimizer=optimizer,
                config=config,
                dist_init_required=False,
                lr_scheduler=lambda base: torch.optim.lr_scheduler.LambdaLR(
                    base, lambda step: staged_factor(step, training)
                ),
            )
        self.module: torch.nn.Module = self._engine.module  # The model itself
        if group.size == 1 and config.get("zero_optimization", {}).get("stage", 0) == 0:
            # One rank has nothing to reduce, but DeepSpeed would copy all gradients into a buffer and back.
            self._engine.enable_backward_allreduce = False

    def step(self, tokens: Tensor, targets: Tensor, marked: Tensor | None = None) -> Tensor:
        """Take one optimizer step on this rank's rows, (B/ranks, T) each; return their mean loss, ().

        The rows are cut into as many parts as gradients are accumulated over. DeepSpeed steps after the last one.
        """
        parts = self._engine.gradient_accumulation_steps()
        marks = [None] * parts if marked is None else marked.chunk(parts)
        losses = []
        for some, wanted, own in zip(tokens.chunk(parts), targets.chunk(parts), marks, strict=True):
            loss = self._engine(some, wanted, **_marks(own))
            self._engine.backward(loss)
            self._engine.step()
            losses.append(loss.detach())
        return losses[0] if parts == 1 else torch.stack(losses).mean()

    def token_losses(self, tokens: Tensor, targets: Tensor, marked: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return each target's loss in nats, and whether the top prediction was right, both (B, T)."""
        self._engine.eval()
        try:
            # Keep gradients on for compiled regions: compiling them again without gradients costs more than it saves.
            with torch.set_grad_enabled(getattr(self.module, "compiled", False)):
                losses, predicted = self._engine(tokens, targets, reduce=False, **_marks(marked))
            return losses.detach(), predicted
        finally:
            self._engine.train()

    def optimizer_state_bytes(self) -> int:
        """Return the bytes of the optimizer's moments on this rank; 0 before the first step."""
        # Under ZeRO, DeepSpeed's optimizer wraps torch's, whose parameters are this rank's flat partitions.
        optimizer = self._engine.optimizer
        state = getattr(optimizer, "optimizer", optimizer).state
        names = ("exp_avg", "exp_avg_sq", "momentum_buffer")
        return sum(values[name].nbytes for values in state.values() for name in names if name in values)

    def weight_bytes(self) -> int:
        """Return the bytes of the weights on this rank: its shards under ZeRO-3, else all."""
        return sum(getattr(value, "ds_tensor", value).nbytes for value in self.module.parameters())

    def save_shards(self, folder: Path, tag: str) -> None:
        """Write what every rank needs to resume, at any ZeRO stage, below ``folder/tag``. Every rank must call this."""
        self._engine.save_checkpoint(str(folder), tag=tag)

    def load_shards(self, folder: Path, tag: str) -> None:
        """Load what `save_shards` of as many ranks wrote; raise RunFolderError if that fails."""
        try:
            self._engine.load_checkpoint(str(folder), tag=tag)
        except Exception as error:  # DeepSpeed's, torch's and pickle's kinds
            raise RunFolderError(
                f"{folder / tag}: no checkpoint ({one_line(error)}); remove the folder's checkpoint.pt to train again"
            ) from None

    def state(self) -> dict[str, Any]:
        """Return the state to resume from at ZeRO 0: trained weights, moments and learning rate."""
        weights = {name: value.detach() for name, value in self.module.named_parameters() if value.requires_grad}
        return {
            "weights": weights,
            "optimizer": self._engine.optimizer.state_dict(),
            "lr_scheduler": self._engine.lr_scheduler.state_dict(),
        } | ({"memories": self.module.states} if getattr(self.module, "states", None) else {})

    def load_state(self, state: dict[str, Any]) -> None:
        """Load a `state` into an engine of the same model and recipe."""
        named = dict(self.module.named_parameters())
        with torch.no_grad():
            for name, value in state["weights"].items():
                named[name].copy_(value)
        if "memories" in state:
            self.module.states = state["memories"]
        self._engine.optimizer.load_state_dict(state["optimizer"])
        self._engine.lr_scheduler.load_state_dict(state["lr_scheduler"])

    def close(self) -> None:
        """Release DeepSpeed's hooks and buffers."""
        self._engine.destroy()
        if self.group.device != "cpu":
            # The engine and its optimizer refer to each other. Until they are collected the next model has less memory.
            del self._engine
            gc.collect()
        for parameter in self.module.parameters():
            # DeepSpeed marks weights to be gathered in bf16 under autocast; left there, it would round what is saved.
            if hasattr(parameter, "comm_dtype"):
                del parameter.comm_dtype


def _recompute(model: torch.nn.Module, training: TrainingConfig) -> None:
    """Let a model keep the inputs of its layers only, and compute the rest again in the backward pass."""
    stock: Any = getattr(model, "model", None)
    # transformers names it anew; the older name is what its oldest tested version has.
    for name in ("activation_checkpointing_enable", "gradient_checkpointing_enable"):
        if not hasattr(stock, name):
            continue
        getattr(stock, name)({"use_reentrant": False})
        model.train()  # transformers loads models for evaluation, where its layers recompute nothing
        return
    if not hasattr(model, "recomputes"):
        raise ConfigError(
            f"training.deepspeed {training.deepspeed}: activation_checkpointing is not for models with memories; "
            "remove it"
        )
    own: Any = model
    own.recomputes = True


def _marks(marked: Tensor | None) -> dict[str, Tensor]:
    """Return the argument of a model for the tokens that the task marks, (B, T)."""
    return {} if marked is None else {"marked": marked}


@contextlib.contextmanager
def gathering(model: torch.nn.Module, config: dict[str, Any]) -> Iterator[None]:
    """Shard a model's weights at ZeRO-3, if they are whole, and gather each layer's while the model runs, untrained.

    Every rank must enter this. ``config`` is that of `deepspeed_config`, of ZeRO stage 3.
    """
    keys = ("train_batch_size", "train_micro_batch_size_per_gpu", "zero_optimization")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        engine, *_ = _deepspeed().initialize(
            model=model, config={key: config[key] for key in keys if key in config}, dist_init_required=False
        )
    try:
        yield
    finally:
        engine.destroy()


def whole_weights(model: torch.nn.Module) -> dict[str, Tensor]:
    """Return a copy on the CPU of a sharded model's weights, all on rank 0, none elsewhere. Every rank calls this."""
    import deepspeed

    first = torch.distributed.get_rank() == 0
    found: dict[str, Tensor] = {}
    for name, value in model.named_parameters():
        with deepspeed.zero.GatheredParameters([value]):
            if first:
                found[name] = value.detach().cpu().clone()
    return found
