"""The conversion itself: measure, switch, train on, measure again, save; taken up where it stopped."""

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
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from safetensors import SafetensorError
from torch import Tensor

from layersearch.config.loader import find_file
from layersearch.convert.config import ConvertRecipe, Stage, resolve_stages
from layersearch.convert.run_folder import ConvertFolder, Evaluation, Moment
from layersearch.convert.save import save_model, target_family
from layersearch.convert.trainable import adapt, merge
from layersearch.data import describe, hub
from layersearch.data.source import Source
from layersearch.errors import UserError
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
    """How far a conversion is."""

    step: int
    """Optimiser steps done."""
    steps: int
    """In all."""
    loss: float
    """Of the last step, on its training batch."""
    evaluation: Evaluation | None = None
    """What was measured after it."""


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """What came out."""

    evaluations: tuple[Evaluation, ...]
    """In their order."""
    model: Path
    """The folder of the converted model."""
    family: str
    """As which it is saved."""
    cost: float
    """The schedule's attention FLOPs over those of all-full."""

    def at(self, moment: Moment) -> Evaluation:
        """Return the evaluation of ``original``, ``switched`` or ``converted``."""
        return next(found for found in self.evaluations if found.moment == moment)

    @property
    def gap(self) -> float:
        """What the switch cost before training, in nats."""
        return self.at("switched").loss - self.at("original").loss

    @property
    def recovered(self) -> float | None:
        """The share of the gap that training won back; None where there was none."""
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
    """Convert a pre-trained model, or go on with a conversion that was begun.

    Args:
        recipe: how it is trained on.
        model: a Hugging Face folder or hub id.
        schedule: one span per layer.
        out: the folder; if it holds this very conversion, it is taken up at its last checkpoint.
        seed: of the data order.
        family: as which the result is saved, see `layersearch.convert.save.target_family`.
        trust_remote_code: run the modelling file that the model brings.
        cache: folder of prepared data; None: the default one.
        listener: called after each step and evaluation.

    Raises:
        UserError: names what is wrong and the remedy; the last checkpoint is kept.
    """
    out = Path(out)
    recipe = replace(recipe, data=with_tokenizer(recipe.data, model))
    stages = resolve_stages(recipe, schedule)
    file = find_file(recipe.training.deepspeed, "trials/deepspeed", ".json")
    if zero_stage(file):
        raise UserError(f"training.deepspeed {recipe.training.deepspeed}: a conversion runs in one process, at ZeRO 0")
    group = RankGroup(device=_device(recipe))
    # Transformers imports DeepSpeed, which looks for its accelerator then.
    os.environ.setdefault("DS_ACCELERATOR", "cpu" if group.device == "cpu" else "cuda")
    load = functools.partial(
        load_pretrained, model, trust_remote_code=trust_remote_code, tokens=recipe.training.seq_len
    )
    rope = None if recipe.rope is None else dataclasses.asdict(recipe.rope)
    routed = load(rope=rope)
    if len(schedule) != len(routed.attention):
        routed.set_schedule(schedule)  # refuses
    kind = target_family(routed.model, schedule, family)
    schedule.check(seq_len=recipe.training.seq_len, n_heads=routed.n_heads)
    sources = [
        open_data(recipe.data, stage.training, file, rows=routed.num_embeddings, cache=cache) for stage in stages
    ]
    asked = {
        "model": model,
        "schedule": str(schedule),
        "recipe": recipe.to_dict(),
        "seed": seed,
        "data": describe(sources[-1]),
        "family": kind,
        "model_fingerprint": fingerprint(model),
    }
    folder = ConvertFolder(out, asked)
    try:
        with _group(group):
            run = _Run(recipe, schedule, stages, sources, folder, group, deepspeed=file, seed=seed, listener=listener)
            original = None
            if rope is not None and not folder.evaluations():
                # Unscaled, the original is asked for what it does at the new length.
                original = load(rope={"rope_type": "default"}, check=False)
            run.go(routed, original or routed, kind)
    except OSError as error:
        raise unwritable(out, error) from None
    finally:
        folder.release()
    return Conversion(
        evaluations=tuple(folder.evaluations()),
        model=folder.model,
        family=kind,
        cost=budget_ratio(schedule, seq_len=recipe.training.seq_len, n_heads=routed.n_heads),
    )


class _Run:
    """One process's part of a conversion."""

    def __init__(
        self,
        recipe: ConvertRecipe,
        schedule: Schedule,
        stages: list[Stage],
        sources: list[Source],
        folder: ConvertFolder,
        group: RankGroup,
        *,
        deepspeed: Path,
        seed: int,
        listener: Listener,
    ) -> None:
        self.recipe, self.schedule, self.stages, self.sources = recipe, schedule, stages, sources
        self.folder, self.group, self.deepspeed = folder, group, deepspeed
        self.seed, self.listener = seed, listener
        self.steps = recipe.training.steps
        # Between the first evaluations and the last: at even distances.
        self.marks = {round(self.steps * k / (recipe.evaluations + 1)) for k in range(1, recipe.evaluations + 1)}
        self.began = time.perf_counter()

    def go(self, routed: HFDecoder, original: HFDecoder, family: str) -> None:
        """Do what is left of it."""
        done = {found.moment for found in self.folder.evaluations()}
        if "converted" in done and self.folder.model.is_dir():
            return
        routed.to(self.group.device)
        if "original" not in done:
            self.measure(original.to(self.group.device), "original", 0)
        if original is not routed:
            del original
        if self.recipe.distil:
            teacher = copy.deepcopy(routed)  # before anything is trained or put in
            routed.distil_from(teacher, self.recipe.distil)
        routed.set_schedule(self.schedule)
        if "switched" not in done:
            self.measure(routed, "switched", 0)
        adapt(routed, only_attention=self.recipe.only_attention, lora=self.recipe.lora)
        place = self._checkpoint()
        step = 0 if place is None else int(place["step"])
        self.folder.rewind(step)
        for number, (stage, source) in enumerate(zip(self.stages, self.sources, strict=True)):
            if step < stage.first + stage.training.steps:
                routed.set_schedule(stage.schedule)
                self._stage(routed, number, stage, source, place if step else None)
                place = None
                step = stage.first + stage.training.steps
        if place is not None:  # all steps were done when the process died
            _restore(routed, place)
        merge(routed)
        routed.set_schedule(self.schedule)
        self.measure(routed, "converted", self.steps)
        evidence = {
            moment: next(found.loss for found in self.folder.evaluations() if found.moment == moment)
            for moment in ("original", "switched", "converted")
        }
        part = self.folder.path / "model.part"
        tokenizer = self.sources[-1].tokenizer_file
        try:
            save_model(routed, family, part, evidence={"validation_loss": evidence}, tokenizer=tokenizer)
        except SafetensorError as error:
            raise OSError(None, f"no room for the weights: {hub.one_line(error)}") from None
        shutil.rmtree(self.folder.model, ignore_errors=True)
        part.rename(self.folder.model)
        self.folder.checkpoint.unlink(missing_ok=True)

    def _stage(
        self, routed: HFDecoder, number: int, stage: Stage, source: Source, place: dict[str, Any] | None
    ) -> None:
        training = stage.training
        engine = Engine(routed, training, deepspeed_config(training, self.deepspeed), self.group)
        first = 0
        try:
            if place is not None and int(place["step"]) > stage.first:
                engine.load_state(place["engine"])
                first = int(place["step"]) - stage.first
            elif place is not None:
                _restore(routed, place)  # the stage before ended there; this one starts afresh
            mark = time.perf_counter()
            # Each stage reads its texts from elsewhere.
            for inner, loss in train_steps(engine, source, seed=self.seed + (number << 32), first=first):
                step, value = stage.first + inner, float(loss)
                now = time.perf_counter()
                if not math.isfinite(value):
                    raise UserError(
                        f"the loss is not finite at step {step}: lower training.learning_rate, and name another --out"
                    )
                rate = training.learning_rate * learning_rate_factor(inner - 1, training)
                self.folder.add_step(
                    step=step, loss=value, learning_rate=rate, seq_len=training.seq_len, seconds=now - mark
                )
                evaluation = None
                if step in self.marks and step < self.steps:
                    routed.set_schedule(self.schedule)
                    evaluation = self.measure(routed, "training", step, tell=False)
                    routed.set_schedule(stage.schedule)
                if step % self.recipe.checkpoint_steps == 0 or inner == training.steps:
                    self._save(step, engine)
                self.listener(Step(step=step, steps=self.steps, loss=value, evaluation=evaluation))
                mark = time.perf_counter()
        finally:
            engine.close()

    def measure(self, routed: HFDecoder, moment: Moment, step: int, tell: bool = True) -> Evaluation:
        """Evaluate at the full length and write it down."""
        source, training = self.sources[-1], self.recipe.training
        batch = source.validation(training.val_sequences)

        @torch.no_grad()
        def token_losses(tokens: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
            with torch.autocast(tokens.device.type, torch.bfloat16, enabled=training.precision == "bf16"):
                losses, predicted = routed(tokens, targets, reduce=False)
            return losses, predicted

        found = validate(token_losses, batch, training.batch_size, self.group)
        if not math.isfinite(found.loss):
            raise UserError(f"the validation loss is not finite ({moment}): give a sound model, or training.precision")
        evaluation = Evaluation(
            moment=moment,
            step=step,
            schedule=str(routed.schedule),
            seq_len=source.seq_len,
            loss=found.loss,
            loss_by_position=found.by_position,
            position_edges=found.edges,
            metrics=tuple(sorted(named_metrics(source, batch, found).items())),
            seconds=time.perf_counter() - self.began,
        )
        self.folder.add_evaluation(evaluation)
        if tell:
            self.listener(Step(step=step, steps=self.steps, loss=found.loss, evaluation=evaluation))
        return evaluation

    def _save(self, step: int, engine: Engine) -> None:
        part = self.folder.checkpoint.with_suffix(".part")
        try:
            torch.save({"step": step, "engine": engine.state()}, part)
        except RuntimeError as error:  # torch's own word for a write that failed
            raise OSError(None, f"no room for the checkpoint: {hub.one_line(error)}") from None
        with part.open("rb") as file:
            os.fsync(file.fileno())
        part.replace(self.folder.checkpoint)

    def _checkpoint(self) -> dict[str, Any] | None:
        path = self.folder.checkpoint
        if not path.is_file():
            return None
        try:
            found: dict[str, Any] = torch.load(path, map_location=self.group.device, weights_only=True)
        except Exception as error:  # torch's own kinds, and pickle's refusals
            raise UserError(
                f"{path}: no checkpoint ({type(error).__name__}); remove it to start training anew"
            ) from None
        return found


def _restore(routed: HFDecoder, place: dict[str, Any]) -> None:
    named = dict(routed.named_parameters())
    with torch.no_grad():
        for name, value in place["engine"]["weights"].items():
            named[name].copy_(value)


def _device(recipe: ConvertRecipe) -> str:
    if not recipe.training.gpus:
        return "cpu"
    if not torch.cuda.is_available():
        raise UserError("the recipe asks for a GPU and none is here: set training.gpus=0 to train on the CPU")
    return "cuda:0"


@contextlib.contextmanager
def _group(group: RankGroup) -> Iterator[None]:
    """Be in a process group: a new one, unless this process is in one already."""
    if torch.distributed.is_initialized():
        yield
        return
    with tempfile.TemporaryDirectory() as place:
        join(group, str(Path(place) / "meet"))
        yield
