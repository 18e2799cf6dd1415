"""The conversion: evaluate, switch the schedule, train, evaluate again, save; a killed conversion resumes."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import math
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from safetensors import SafetensorError
from torch import Tensor

from layersearch.config.loader import find_file
from layersearch.convert.config import ConvertRecipe, Stage, resolve_stages
from layersearch.convert.retrieval import Retrieval
from layersearch.convert.run_folder import ConvertFolder, Evaluation, Moment
from layersearch.convert.save import save_model, target_family
from layersearch.convert.trainable import adapt, merge
from layersearch.data import describe
from layersearch.data.source import Source
from layersearch.data.tokenizer import tokenizer_file
from layersearch.errors import ConfigError, LayersearchError, RunFolderError, one_line
from layersearch.files import unwritable
from layersearch.model.hf_decoder import HFDecoder
from layersearch.model.pretrained import fingerprint, load_pretrained, with_tokenizer
from layersearch.schedule import Schedule
from layersearch.schedule.cost import budget_ratio
from layersearch.study.prepare import open_data
from layersearch.training.deepspeed_config import deepspeed_config, zero_stage
from layersearch.training.engine import Engine, RankGroup, join, learning_rate_factor
from layersearch.training.evaluate import named_metrics, validate
from layersearch.training.trial import train_steps


@dataclass(frozen=True, kw_only=True)
class Step:
    """The progress of a conversion."""

    step: int
    """Optimizer steps done."""
    steps: int
    """Optimizer steps in all."""
    loss: float
    """Loss of the step on its training batch, or of the evaluation; nats."""
    evaluation: Evaluation | None = None
    """The evaluation that is reported; None for a training step."""


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


Listener = Callable[[Step], None]


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
    if zero_stage(deepspeed):
        raise ConfigError(f"training.deepspeed {recipe.training.deepspeed}: a conversion is one process; use ZeRO 0")
    group = RankGroup(device=_device(recipe))
    # Transformers imports DeepSpeed, which then looks for its accelerator.
    os.environ.setdefault("DS_ACCELERATOR", "cpu" if group.device == "cpu" else "cuda")
    load = functools.partial(
        load_pretrained, model, trust_remote_code=trust_remote_code, tokens=recipe.training.seq_len
    )
    rope = None if recipe.rope is None else dataclasses.asdict(recipe.rope)
    routed = load(rope=rope)
    if len(schedule) != len(routed.attention):
        routed.set_schedule(schedule)  # refuses
    family = target_family(routed.model, schedule, family)
    schedule.check(seq_len=recipe.training.seq_len, n_heads=routed.n_heads)
    sources = [
        open_data(recipe.data, stage.training, deepspeed, rows=routed.num_embeddings, cache=cache) for stage in stages
    ]
    retrieval = _retrieval(recipe)
    request = {
        "model": model,
        "schedule": str(schedule),
        "recipe": dataclasses.asdict(recipe),
        "seed": seed,
        "data": describe(sources[-1]),
        "family": family,
        "model_fingerprint": fingerprint(model),
    }
    folder = ConvertFolder(out, request)
    try:
        with _process_group(group):
            original = routed
            if rope is not None and not folder.evaluations():
                # The original is evaluated at the new length without RoPE scaling.
                original = load(rope={"rope_type": "default"}, check=False)
            converter = _Converter(
                recipe, schedule, stages, sources, folder, group, deepspeed, retrieval, seed, listener
            )
            converter.run(routed, original, family)
    except OSError as error:
        raise unwritable(out, error) from None
    finally:
        folder.release()
    return Conversion(
        evaluations=tuple(folder.evaluations()),
        model=folder.model,
        family=family,
        cost=budget_ratio(schedule, seq_len=recipe.training.seq_len, n_heads=routed.n_heads),
    )


@dataclass
class _Converter:
    """Trains and evaluates in this process."""

    recipe: ConvertRecipe
    schedule: Schedule
    stages: list[Stage]
    sources: list[Source]
    folder: ConvertFolder
    group: RankGroup
    deepspeed: Path
    retrieval: Retrieval | None
    seed: int
    listener: Listener
    began: float = field(default_factory=time.perf_counter)

    def __post_init__(self) -> None:
        self.steps, parts = self.recipe.training.steps, self.recipe.evaluations + 1
        self.eval_steps = {round(self.steps * part / parts) for part in range(1, parts)}

    def run(self, routed: HFDecoder, original: HFDecoder, family: str) -> None:
        """Do the rest of the conversion.

        Args:
            routed: the model to convert.
            original: the model to compare with: the same, or one without RoPE scaling.
            family: as `target_family` returns it.
        """
        done = {found.moment for found in self.folder.evaluations()}
        if "converted" in done and self.folder.model.is_dir():
            return
        routed.to(self.group.device)
        if "original" not in done:
            self.evaluate(original.to(self.group.device), "original", 0)
        del original
        if self.recipe.distil:
            routed.distil_from(copy.deepcopy(routed), self.recipe.distil)
        routed.set_schedule(self.schedule)
        if "switched" not in done:
            self.evaluate(routed, "switched", 0)
        adapt(routed, only_attention=self.recipe.only_attention, lora=self.recipe.lora)
        checkpoint = self._load_checkpoint()
        step = 0 if checkpoint is None else int(checkpoint["step"])
        self.folder.rewind(step)
        for number, (stage, source) in enumerate(zip(self.stages, self.sources, strict=True)):
            if step < stage.first + stage.training.steps:
                routed.set_schedule(stage.schedule)
                self._train_stage(routed, number, stage, source, checkpoint if step else None)
                checkpoint = None
                step = stage.first + stage.training.steps
        if checkpoint is not None:  # an earlier process died after the last step
            _load_weights(routed, checkpoint)
        merge(routed)
        routed.set_schedule(self.schedule)
        self.evaluate(routed, "converted", self.steps)
        losses = {found.moment: found.loss for found in self.folder.evaluations() if found.moment != "training"}
        part = self.folder.path / "model.part"
        named = self.recipe.data.tokenizer
        tokenizer = None if named is None else tokenizer_file(named)
        try:
            save_model(routed, family, part, evidence={"validation_loss": losses}, tokenizer=tokenizer)
        except SafetensorError as error:
            raise OSError(None, f"no room for the weights: {one_line(error)}") from None
        shutil.rmtree(self.folder.model, ignore_errors=True)
        part.rename(self.folder.model)
        self.folder.checkpoint.unlink(missing_ok=True)

    def _train_stage(
        self, routed: HFDecoder, number: int, stage: Stage, source: Source, checkpoint: dict[str, Any] | None
    ) -> None:
        training = stage.training
        engine = Engine(routed, training, deepspeed_config(training, self.deepspeed), self.group)
        first = 0 if checkpoint is None else int(checkpoint["step"]) - stage.first
        try:
            if checkpoint is not None and first:
                engine.load_state(checkpoint["engine"])
            elif checkpoint is not None:
                _load_weights(routed, checkpoint)  # of the stage before; this one begins with a new optimizer state
            mark = time.perf_counter()
            # Each stage has its own seed, so it reads other texts.
            for inner, batch_loss in train_steps(engine, source, seed=self.seed + (number << 32), first=first):
                step, loss = stage.first + inner, float(batch_loss)
                seconds = time.perf_counter() - mark
                if not math.isfinite(loss):
                    raise ConfigError(
                        f"the loss is not finite at step {step}: lower training.learning_rate, and name another --out"
                    )
                rate = training.learning_rate * learning_rate_factor(inner - 1, training)
                self.folder.add_step(
                    step=step, loss=loss, learning_rate=rate, seq_len=training.seq_len, seconds=seconds
                )
                if step in self.eval_steps and step < self.steps:
                    routed.set_schedule(self.schedule)
                    self.evaluate(routed, "training", step)
                    routed.set_schedule(stage.schedule)
                if step % self.recipe.checkpoint_steps == 0 or inner == training.steps:
                    self._save_checkpoint(step, engine)
                self.listener(Step(step=step, steps=self.steps, loss=loss))
                mark = time.perf_counter()
        finally:
            engine.close()

    def evaluate(self, routed: HFDecoder, moment: Moment, step: int) -> None:
        """Evaluate at the full length; log and report it."""
        source, training = self.sources[-1], self.recipe.training
        batch = source.validation(training.val_sequences)

        @torch.no_grad()
        def token_losses(tokens: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
            with torch.autocast(tokens.device.type, torch.bfloat16, enabled=training.precision == "bf16"):
                losses, predicted = routed(tokens, targets, reduce=False)
            return losses, predicted

        found = validate(token_losses, batch, training.batch_size, self.group)
        if not math.isfinite(found.loss):
            raise LayersearchError(
                f"the validation loss is not finite ({moment}): check the model's weights, or set training.precision"
            )
        metrics = named_metrics(source, batch, found)
        if self.retrieval is not None:
            metrics |= self.retrieval.measure(token_losses, training.batch_size, self.group)
        evaluation = Evaluation(
            moment=moment,
            step=step,
            schedule=str(routed.schedule),
            seq_len=source.seq_len,
            loss=found.loss,
            loss_by_position=found.by_position,
            position_edges=found.edges,
            metrics=tuple(sorted(metrics.items())),
            seconds=time.perf_counter() - self.began,
        )
        self.folder.add_evaluation(evaluation)
        self.listener(Step(step=step, steps=self.steps, loss=found.loss, evaluation=evaluation))

    def _save_checkpoint(self, step: int, engine: Engine) -> None:
        part = self.folder.checkpoint.with_suffix(".part")
        try:
            torch.save({"step": step, "engine": engine.state()}, part)
        except RuntimeError as error:  # torch's error for a failed write
            raise OSError(None, f"no room for the checkpoint: {one_line(error)}") from None
        with part.open("rb") as file:
            os.fsync(file.fileno())
        part.replace(self.folder.checkpoint)

    def _load_checkpoint(self) -> dict[str, Any] | None:
        path = self.folder.checkpoint
        if not path.is_file():
            return None
        try:
            found: dict[str, Any] = torch.load(path, map_location=self.group.device, weights_only=True)
        except Exception as error:  # torch's own kinds, and pickle's refusals
            raise RunFolderError(f"{path}: no checkpoint ({type(error).__name__}); remove it to train again") from None
        return found


def _load_weights(routed: HFDecoder, checkpoint: dict[str, Any]) -> None:
    named = dict(routed.named_parameters())
    with torch.no_grad():
        for name, value in checkpoint["engine"]["weights"].items():
            named[name].copy_(value)


def _retrieval(recipe: ConvertRecipe) -> Retrieval | None:
    if not recipe.retrieval_tasks:
        return None
    if recipe.data.tokenizer is None:
        raise ConfigError(f"retrieval_tasks need text, and data.source is {recipe.data.source}; leave them out")
    return Retrieval(
        recipe.data.tokenizer,
        recipe.retrieval_tasks,
        seq_len=recipe.training.seq_len,
        count=recipe.retrieval_examples,
    )


def _device(recipe: ConvertRecipe) -> str:
    if not recipe.training.gpus:
        return "cpu"
    if not torch.cuda.is_available():
        raise ConfigError("the recipe asks for a GPU and there is none: set training.gpus=0 to train on the CPU")
    return "cuda:0"


@contextlib.contextmanager
def _process_group(group: RankGroup) -> Iterator[None]:
    """Join a process group of one, unless this process is in a group already."""
    if torch.distributed.is_initialized():
        yield
        return
    with tempfile.TemporaryDirectory() as folder:
        join(group, str(Path(folder) / "meet"))
        yield
