"""One rank of a conversion: evaluate, switch the schedule, train, evaluate again, save."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import logging
import math
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from layersearch.config.loader import find_file
from layersearch.convert.config import ConvertRecipe, Stage, resolve_stages
from layersearch.convert.retrieval import Retrieval
from layersearch.convert.run_folder import ConvertFolder, Evaluation, Moment
from layersearch.convert.save import probe_logits, round_weights, save_model
from layersearch.convert.trainable import adapt, merge
from layersearch.data import open_source
from layersearch.data.source import Source
from layersearch.data.tokenizer import tokenizer_file
from layersearch.errors import ConfigError, LayersearchError, RunFolderError, one_line
from layersearch.files import write_sealed
from layersearch.model.hf_decoder import HFDecoder
from layersearch.model.pretrained import load_config, load_pretrained, load_sharded
from layersearch.model.stored_dtype import stored_dtype
from layersearch.schedule import Schedule
from layersearch.training.checkpoint import check_archive, load_state, previous, save_state
from layersearch.training.deepspeed_config import deepspeed_config, zero_stage
from layersearch.training.engine import Engine, RankGroup, gathering, learning_rate_factor, whole_weights
from layersearch.training.evaluate import named_metrics, sum_over_ranks, validate
from layersearch.training.memory import peak_memory
from layersearch.training.trial import train_steps

_LOG = logging.getLogger(__name__)


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


Listener = Callable[[Step], None]


@dataclass(frozen=True, kw_only=True)
class Job:
    """A conversion that was checked, as every rank does it."""

    model: str
    schedule: str
    recipe: ConvertRecipe
    seed: int
    family: str
    """As `layersearch.convert.save.target_family` returns it."""
    trust_remote_code: bool
    cache: Path | None
    out: Path

    @property
    def deepspeed(self) -> Path:
        """The DeepSpeed JSON."""
        return find_file(self.recipe.training.deepspeed, "trials/deepspeed", ".json")

    @property
    def rope(self) -> dict[str, Any] | None:
        """RoPE scaling, as `load_pretrained` takes it."""
        return None if self.recipe.rope is None else dataclasses.asdict(self.recipe.rope)


def open_retrieval(recipe: ConvertRecipe) -> Retrieval | None:
    """Return the recipe's retrieval examples; None: it has no tasks."""
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


def convert_here(
    job: Job,
    folder: ConvertFolder,
    group: RankGroup,
    listener: Listener,
    decoder: HFDecoder | None = None,
    *,
    beat: Callable[[], None] = lambda: None,
) -> None:
    """Do the rest of a conversion, as one rank. Every rank calls this after `layersearch.training.engine.join`.

    Args:
        job: the conversion.
        folder: its folder; rank 0 alone writes there, but for the shards of a checkpoint.
        group: this rank.
        listener: called after each step and evaluation.
        decoder: the model, if it is loaded.
        beat: called after each training step and each piece of an evaluation.
    """
    _Converter(job, folder, group, listener, beat).run(decoder)


class _Converter:
    def __init__(
        self, job: Job, folder: ConvertFolder, group: RankGroup, listener: Listener, beat: Callable[[], None]
    ) -> None:
        self.beat = beat
        self.job, self.recipe, self.folder, self.group, self.listener = job, job.recipe, folder, group, listener
        self.schedule = Schedule.parse(job.schedule)
        self.stages: list[Stage] = resolve_stages(self.recipe, self.schedule)
        self.sources: list[Source] = [
            open_source(self.recipe.data, stage.training.seq_len, job.cache) for stage in self.stages
        ]
        self.retrieval = open_retrieval(self.recipe)
        self.zero = zero_stage(job.deepspeed)
        config = load_config(job.model, trust_remote_code=job.trust_remote_code)
        self.dtype = stored_dtype(job.model, config)  # trained in float32, saved as it was
        self.steps, parts = self.recipe.training.steps, self.recipe.evaluations + 1
        self.eval_steps = {round(self.steps * part / parts) for part in range(1, parts)}
        self.first = group.rank == 0
        self.began = time.perf_counter()
        self._kept: str | None = None  # the shards of the last checkpoint
        self.evaluated: set[int] = set()  # steps of evaluations that an earlier process made

    def load(self, rope: dict[str, Any] | None) -> HFDecoder:
        """Return the model on this rank's device: sharded under ZeRO-3 on several ranks."""
        job, tokens = self.job, self.recipe.training.seq_len
        if self.zero == 3 and self.group.size > 1:
            return load_sharded(
                job.model, self.config(), trust_remote_code=job.trust_remote_code, rope=rope, tokens=tokens
            )
        # The process that started this one compared the logits, or this one did at its first load.
        decoder = load_pretrained(
            job.model, trust_remote_code=job.trust_remote_code, rope=rope, tokens=tokens, check=False
        )
        return decoder.to(self.group.device)

    def config(self) -> dict[str, Any]:
        """Return the DeepSpeed configuration of the last stage."""
        return deepspeed_config(self.recipe.training, self.job.deepspeed)

    def running(self, decoder: HFDecoder) -> contextlib.AbstractContextManager[None]:
        """Return what an untrained model needs around it to run: under ZeRO-3 its weights are gathered by layers."""
        return gathering(decoder, self.config()) if self.zero == 3 else contextlib.nullcontext()

    def run(self, decoder: HFDecoder | None) -> None:
        """Do the rest of the conversion; ``decoder`` is the model with the recipe's RoPE, if it is loaded."""
        held = self.folder.evaluations()
        done, self.evaluated = {found.moment for found in held}, {found.step for found in held if found.step}
        if "converted" in done and self.folder.model.is_dir():
            return  # `convert` checked its weights
        decoder = self.load(self.job.rope) if decoder is None else decoder.to(self.group.device)
        if "original" not in done:
            # The original is evaluated at the new length without RoPE scaling.
            original = decoder if self.job.rope is None else self.load({"rope_type": "default"})
            with self.running(original):
                self.evaluate(original, "original", 0)
            del original
        with contextlib.ExitStack() as stack:
            if self.recipe.distil:
                teacher = self.load(self.job.rope) if self.zero == 3 else copy.deepcopy(decoder)
                stack.enter_context(self.running(teacher))
                decoder.distil_from(teacher, self.recipe.distil)
            decoder.set_schedule(self.schedule)
            if "switched" not in done:
                with self.running(decoder):
                    self.evaluate(decoder, "switched", 0)
            adapt(decoder, only_attention=self.recipe.only_attention, lora=self.recipe.lora, seed=self.job.seed)
            self._train(decoder)
        merge(decoder)
        if self.dtype != torch.float32:
            round_weights(decoder.model, self.dtype)
        decoder.set_schedule(self.schedule)
        with self.running(decoder):
            self.evaluate(decoder, "converted", self.steps)
            logits = probe_logits(decoder)
        weights = whole_weights(decoder.model) if self.zero == 3 else None
        if self.first:
            self._save(decoder, logits, weights)

    def _save(self, decoder: HFDecoder, logits: Tensor, weights: dict[str, Tensor] | None) -> None:
        losses = {found.moment: found.loss for found in self.folder.evaluations() if found.moment != "training"}
        part, named = self.folder.path / "model.part", self.recipe.data.tokenizer
        try:
            save_model(
                decoder,
                self.job.family,
                part,
                evidence={"validation_loss": losses},
                tokenizer=None if named is None else tokenizer_file(named),
                weights=weights,
                logits=logits,
                dtype=self.dtype,
            )
        except SafetensorError as error:
            raise OSError(None, f"no room for the weights: {one_line(error)}") from None
        shutil.rmtree(self.folder.model, ignore_errors=True)
        part.rename(self.folder.model)
        self.folder.checkpoint.unlink(missing_ok=True)
        previous(self.folder.checkpoint).unlink(missing_ok=True)
        shutil.rmtree(self.folder.shards, ignore_errors=True)

    def _train(self, decoder: HFDecoder) -> None:
        checkpoint = self._load_checkpoint()
        step = 0 if checkpoint is None else int(checkpoint["step"])
        if self.first:
            self.folder.rewind(step)
            for gone in sorted(at for at in self.eval_steps - self.evaluated if at < step):
                _LOG.warning(
                    "%s: the evaluation of step %s is lost, and its weights are gone; the model is not changed by it",
                    self.folder.path / "evaluations.jsonl",
                    gone,
                )
        for number, stage in enumerate(self.stages):
            end = stage.first + stage.training.steps
            # A stage that had just ended only gives its weights back.
            if step < end or (checkpoint is not None and step == end):
                decoder.set_schedule(stage.schedule)
                self._train_stage(decoder, number, checkpoint)
                checkpoint, step = None, end

    def _train_stage(self, decoder: HFDecoder, number: int, checkpoint: dict[str, Any] | None) -> None:
        stage, source = self.stages[number], self.sources[number]
        training = stage.training
        engine = Engine(decoder, training, deepspeed_config(training, self.job.deepspeed), self.group)
        first = 0
        try:
            if checkpoint is not None:
                first = int(checkpoint["step"]) - stage.first
                if "shards" in checkpoint:
                    engine.load_shards(self.folder.shards, checkpoint["shards"])
                else:
                    engine.load_state(checkpoint["engine"])
                at = stage.first + first
                if at in self.eval_steps - self.evaluated and at < self.steps:  # lost since this checkpoint
                    self._evaluate_stage(decoder, stage, at)
            mark = time.perf_counter()
            # Each stage has its own seed, so it reads other texts.
            for inner, own in train_steps(engine, source, seed=self.job.seed + (number << 32), first=first):
                step, loss = stage.first + inner, self._mean(own)
                self.beat()
                seconds = time.perf_counter() - mark
                if not math.isfinite(loss):
                    raise ConfigError(
                        f"the loss is not finite at step {step}: lower training.learning_rate, and name another --out"
                    )
                if self.first:
                    rate = training.learning_rate * learning_rate_factor(inner - 1, training)
                    self.folder.add_step(
                        step=step, loss=loss, learning_rate=rate, seq_len=training.seq_len, seconds=seconds
                    )
                if step in self.eval_steps and step < self.steps:
                    self._evaluate_stage(decoder, stage, step)
                if step % self.recipe.checkpoint_steps == 0 or inner == training.steps:
                    self._save_checkpoint(step, engine)
                self.listener(Step(step=step, steps=self.steps, loss=loss))
                mark = time.perf_counter()
            self._note_memory(engine)
        finally:
            engine.close()

    def _evaluate_stage(self, decoder: HFDecoder, stage: Stage, step: int) -> None:
        """Evaluate under the whole schedule in the middle of the training."""
        decoder.set_schedule(self.schedule)
        self.evaluate(decoder, "training", step)
        decoder.set_schedule(stage.schedule)

    def _mean(self, loss: Tensor) -> float:
        """Return the mean of a loss over ranks."""
        return float(loss) if self.group.size == 1 else float(self._by_rank(float(loss)).mean())

    def _by_rank(self, value: float) -> Tensor:
        """Return a value of every rank, rank 0 first."""
        values = torch.zeros(self.group.size, dtype=torch.float64)
        values[self.group.rank] = value
        return sum_over_ranks(values, self.group)

    def _note_memory(self, engine: Engine) -> None:
        """Write the bytes of each rank to ``memory.json``."""
        facts = {
            "weights": engine.weight_bytes(),
            "optimizer_state": engine.optimizer_state_bytes(),
            "peak": peak_memory(self.group.device),
        }
        found = {name: [int(value) for value in self._by_rank(count)] for name, count in facts.items()}
        if self.first:
            write_sealed(self.folder.path / "memory.json", found, indent=None)

    def evaluate(self, decoder: HFDecoder, moment: Moment, step: int) -> None:
        """Evaluate at the full length; log and report it."""
        source, training = self.sources[-1], self.recipe.training
        batch = source.validation(training.val_sequences)

        @torch.no_grad()
        def token_losses(tokens: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
            with torch.autocast(tokens.device.type, torch.bfloat16, enabled=training.precision == "bf16"):
                losses, predicted = decoder(tokens, targets, reduce=False)
            self.beat()
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
            schedule=str(decoder.schedule),
            seq_len=source.seq_len,
            loss=found.loss,
            loss_by_position=found.by_position,
            position_edges=found.edges,
            metrics=tuple(sorted(metrics.items())),
            seconds=time.perf_counter() - self.began,
        )
        if self.first:
            self.folder.add_evaluation(evaluation)
        self.listener(Step(step=step, steps=self.steps, loss=found.loss, evaluation=evaluation))

    def _save_checkpoint(self, step: int, engine: Engine) -> None:
        """Write the state: of rank 0 at ZeRO 0, where all are alike; else each rank's shards, which a file names."""
        state: dict[str, Any] = {"step": step}
        try:
            if self.zero:
                state["shards"] = f"step-{step}"
                engine.save_shards(self.folder.shards, state["shards"])
                torch.distributed.barrier()
            elif self.first:
                state["engine"] = engine.state()
        except RuntimeError as error:  # torch's error for a failed write
            raise OSError(None, f"no room for the checkpoint: {one_line(error)}") from None
        if not self.first:
            return
        save_state(self.folder.checkpoint, state)
        # The shards before are of the checkpoint before.
        for old in self.folder.shards.glob("step-*"):
            if old.name not in (state.get("shards"), self._kept):
                shutil.rmtree(old)
        self._kept = state.get("shards")

    def _load_checkpoint(self) -> dict[str, Any] | None:
        found, problem = load_state(self.folder.checkpoint, self.group.device, self._check_shards)
        if found is not None:
            self._kept = found.get("shards")
            if problem and self.first and self.folder.checkpoint.exists():
                aside = self.folder.checkpoint.with_name("checkpoint-damaged.pt")
                self.folder.checkpoint.replace(aside)  # else the next checkpoint would take the good one's place
                _LOG.warning(
                    "%s: training goes on from the checkpoint before, of step %s; the damaged one is %s",
                    problem,
                    found["step"],
                    aside.name,
                )
        return found

    def _check_shards(self, state: dict[str, Any]) -> None:
        if "shards" in state:
            files = sorted((self.folder.shards / state["shards"]).glob("*.pt"))
            if not files:
                raise RunFolderError(f"{self.folder.shards / state['shards']}: the checkpoint's shards are missing")
            for file in files:
                check_archive(file)
