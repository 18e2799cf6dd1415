"""The conversion: checked, then run in this process or on several ranks; a killed one resumes."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.distributed

from layersearch.config.loader import build, find_file
from layersearch.convert.config import ConvertRecipe, resolve_stages
from layersearch.convert.converter import Job, Listener, Step, convert_here, open_retrieval
from layersearch.convert.memory import check_free_memory, plan_memory
from layersearch.convert.ranks import run_ranks
from layersearch.convert.run_folder import ConvertFolder, Evaluation, Moment
from layersearch.convert.save import target_family
from layersearch.data import describe
from layersearch.errors import ConfigError
from layersearch.files import unwritable
from layersearch.model.pretrained import fingerprint, load_pretrained, load_skeleton
from layersearch.model.pretrained_recipe import with_tokenizer
from layersearch.model.weight_checksums import check_weights
from layersearch.schedule import Schedule
from layersearch.schedule.cost import budget_ratio
from layersearch.study.prepare import open_data
from layersearch.training.deepspeed_config import zero_stage
from layersearch.training.engine import RankGroup, join, leave


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """A finished conversion."""

    evaluations: tuple[Evaluation, ...]
    """All evaluations in order."""
    model: Path
    """The folder of the converted model."""
    family: str
    """The family that the model is saved as, or ``hf-remote``."""
    cost: float
    """The schedule's attention FLOPs over those of all-full."""

    def at(self, moment: Moment) -> Evaluation:
        """Return the evaluation of ``original``, ``switched`` or ``converted``."""
        return next(found for found in self.evaluations if found.moment == moment)

    @property
    def gap(self) -> float:
        """Increase of the loss by the switch, before training, in nats."""
        return self.at("switched").loss - self.at("original").loss

    @property
    def recovered(self) -> float | None:
        """The share of the gap that training recovered; None if there was no gap."""
        return (self.at("switched").loss - self.at("converted").loss) / self.gap if self.gap > 0 else None


def convert(
    recipe: ConvertRecipe,
    model: str,
    schedule: Schedule,
    out: Path | str,
    *,
    seed: int = 0,
    family: str | None = None,
    trust_remote_code: bool = False,
    cache: Path | None = None,
    listener: Listener = lambda step: None,
) -> Conversion:
    """Convert a pre-trained model, or resume its conversion.

    Args:
        recipe: how the model is trained.
        model: a Hugging Face folder or hub id.
        schedule: one span per layer.
        out: the folder; if it holds this conversion, training resumes at its last checkpoint.
        seed: seed of the data order.
        family: the family to save as, see `layersearch.convert.save.target_family`.
        trust_remote_code: run the modeling file in the model's folder.
        cache: folder of prepared data; None: the default one.
        listener: called after each step and evaluation.

    Raises:
        LayersearchError: names the error and the remedy; the last checkpoint is kept.
    """
    out = Path(out)
    recipe = replace(recipe, data=with_tokenizer(recipe.data, model))
    stages = resolve_stages(recipe, schedule)
    deepspeed = find_file(recipe.training.deepspeed, "trials/deepspeed", ".json")
    if recipe.lora is not None and zero_stage(deepspeed) == 3:
        raise ConfigError("lora is merged into whole weights, and ZeRO-3 shards them: set training.deepspeed=zero2")
    group = RankGroup(device=_device(recipe))
    # Transformers imports DeepSpeed, which then looks for its accelerator.
    os.environ.setdefault("DS_ACCELERATOR", "cpu" if group.device == "cpu" else "cuda")
    alone = recipe.training.ranks == 1
    if not (Path(out) / "model").is_dir():
        memory = plan_memory(recipe, model, schedule, trust_remote_code=trust_remote_code)
        if memory is not None:
            check_free_memory(memory, model)
    decoder = (load_pretrained if alone else load_skeleton)(
        model,
        trust_remote_code=trust_remote_code,
        tokens=recipe.training.seq_len,
        rope=None if recipe.rope is None else dataclasses.asdict(recipe.rope),
    )
    if len(schedule) != len(decoder.attention):
        decoder.set_schedule(schedule)  # refuses
    family = target_family(decoder.model, schedule, family)
    schedule.check(seq_len=recipe.training.seq_len, n_heads=decoder.n_heads)
    sources = [
        open_data(recipe.data, stage.training, deepspeed, rows=decoder.num_embeddings, cache=cache) for stage in stages
    ]
    open_retrieval(recipe)  # refuses
    request = {
        "model": model,
        "schedule": str(schedule),
        "recipe": dataclasses.asdict(recipe),
        "seed": seed,
        "data": describe(sources[-1]),
        "family": family,
        "model_fingerprint": fingerprint(model),
    }
    job = Job(
        model=model,
        schedule=str(schedule),
        recipe=recipe,
        seed=seed,
        family=family,
        trust_remote_code=trust_remote_code,
        cache=cache,
        out=out,
    )
    n_heads = decoder.n_heads
    folder = ConvertFolder(out, request)
    try:
        check_weights(
            folder.model, f"restore it, or remove {folder.model} and run the same command: it converts the model again"
        )
        if alone:
            with _process_group(group):
                convert_here(job, folder, group, listener, decoder)
        elif not _is_done(folder):
            del decoder
            run_ranks(job, out / "logs", lambda message: listener(build(Step, message["step"], "step")))
    except OSError as error:
        raise unwritable(out, error) from None
    finally:
        folder.release()
    return Conversion(
        evaluations=tuple(folder.evaluations()),
        model=folder.model,
        family=family,
        cost=budget_ratio(schedule, seq_len=recipe.training.seq_len, n_heads=n_heads),
    )


def _is_done(folder: ConvertFolder) -> bool:
    return folder.model.is_dir() and any(found.moment == "converted" for found in folder.evaluations())


def _device(recipe: ConvertRecipe) -> str:
    if not recipe.training.gpus:
        return "cpu"
    found, wanted = torch.cuda.device_count(), recipe.training.ranks
    if found < wanted:
        raise ConfigError(
            f"the recipe asks for {wanted} GPUs (training.ranks) and this machine has {found}: set training.gpus=0 to "
            "train on the CPU"
        )
    return "cuda:0"


@contextlib.contextmanager
def _process_group(group: RankGroup) -> Iterator[None]:
    """Be in a process group of one, unless this process is in a group already."""
    if torch.distributed.is_initialized():
        yield
        return
    with warnings.catch_warnings():
        # DeepSpeed calls collectives by deprecated names.
        warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")
        join(group, "alone")
        try:
            yield
        finally:
            leave()
