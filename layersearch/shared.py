"""One network with shared weights: trained under many schedules at once, then asked for each one's loss.

Everything but attention runs on the whole batch; attention runs once for each distinct span, on the sequences whose
schedule has it. Scoring walks the schedules as a tree, depth first, so that what they have in common at the bottom is
computed once. What is trained and scored is said by `layersearch.screening.Screening`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from layersearch.attention import attend, kernel_for
from layersearch.data import Batch, Source
from layersearch.engine import Engine, RankGroup, can_compile, deepspeed_config, zero_stage
from layersearch.errors import UserError
from layersearch.model import Decoder
from layersearch.presets import all_full
from layersearch.recipe import ModelConfig, Recipe, deepspeed_file
from layersearch.record import TrialRecord
from layersearch.schedule import Schedule, Span
from layersearch.train import Trial, blank_record, by_rank, own_rows, sum_over_ranks, to_device, train_steps
from layersearch.usage import device_name, peak_memory, reset_peak_memory


class SharedDecoder(Decoder):
    """The proxy model with a schedule for each sequence of a batch. It starts from the numbers of any `Decoder`."""

    def __init__(self, config: ModelConfig, vocab_size: int, compiled: bool = False) -> None:
        """Build the model from the current random state; arguments as of `Decoder`."""
        super().__init__(config, vocab_size, all_full(config.n_layers), compiled)
        self._spans: list[dict[Span, Tensor]] = []
        self._back: list[Tensor] = []

    def follow(self, schedules: Sequence[Schedule]) -> None:
        """Let the sequences of the batches that come next follow these schedules.

        Args:
            schedules: one for each sequence, B of them.
        """
        device = self.embed_tokens.weight.device
        self._spans, self._back = [], []
        for index in range(self.config.n_layers):
            rows: dict[Span, list[int]] = {}
            for row, schedule in enumerate(schedules):
                rows.setdefault(schedule[index], []).append(row)
            self._spans.append({span: torch.tensor(held, device=device) for span, held in rows.items()})
            self._back.append(torch.cat(list(self._spans[-1].values())).argsort())

    def attend(self, index: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Return attention's output (B, H, T, D) in one layer, each sequence over its own schedule's span."""
        spans = self._spans[index]
        if len(spans) == 1:
            return attend(q, k, v, next(iter(spans)))
        parts = [attend(q[rows], k[rows], v[rows], span) for span, rows in spans.items()]
        return torch.cat(parts)[self._back[index]]

    def forward(
        self,
        tokens: Tensor,
        targets: Tensor,
        reduce: bool = True,
        schedules: Sequence[Schedule] | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Return the loss of the batch in nats, as `Decoder` does, or each schedule's.

        Args:
            tokens: (B, T) token ids.
            targets: (B, T) token ids to predict after each token.
            reduce: as of `Decoder`.
            schedules: S schedules, each of which the whole batch is to follow: their losses, (S,), are returned.
        """
        return super().forward(tokens, targets, reduce) if schedules is None else self.score(tokens, targets, schedules)

    def score(self, tokens: Tensor, targets: Tensor, schedules: Sequence[Schedule]) -> Tensor:
        """Return the batch's loss under each of S schedules in nats, (S,); shared beginnings are computed once."""
        before, after = self.regions()
        cos, sin = self.positions(tokens)
        losses = torch.empty(len(schedules), dtype=torch.float64, device=tokens.device)

        def descend(x: Tensor, depth: int, members: list[int]) -> None:
            if depth == self.config.n_layers:
                losses[members] = self.mean_loss(x, targets).detach().double()
                return
            branches: dict[Span, list[int]] = {}
            for member in members:
                branches.setdefault(schedules[member][depth], []).append(member)
            layer = self.layers[depth]
            q, k, v = before(layer, x, cos, sin)
            for span, rest in branches.items():
                descend(after(layer, x, attend(q, k, v, span)), depth + 1, rest)

        descend(self.embed_tokens(tokens), 0, list(range(len(schedules))))
        return losses


def run_screening(trial: Trial, recipe: Recipe, source: Source, group: RankGroup | None = None) -> TrialRecord:
    """Train one network under a trial's screening and score its schedules. Every rank of the group calls this alike.

    Sequence r of a step's batch of B follows the schedule r n / B of its n, on whichever rank it lies.

    Args:
        trial: with its screening; its seed is that of the weights and of the data order.
        recipe: the model, the data and the training.
        source: the opened data of the recipe.
        group: this process's place among the ranks; `layersearch.engine.join` must have been called.

    Returns:
        The record, state ``complete``; ``failed`` with the reason if a loss is not finite.

    Raises:
        UserError: under ZeRO 3.
    """
    screening, group = trial.screening, group or RankGroup()
    assert screening is not None
    began = time.perf_counter()
    reset_peak_memory(group.device)
    training, path = screening.training(recipe.training), deepspeed_file(recipe)
    refuse_sharded_weights(recipe)
    parsed = {text: Schedule.parse(text) for step in screening.steps for text in step}
    scored = [Schedule.parse(text) for text in screening.scored]
    for schedule in {*parsed.values(), *scored}:
        schedule.check(seq_len=training.seq_len, n_heads=recipe.model.n_heads)

    torch.manual_seed(trial.seed)
    compiled = training.compile and can_compile(group.device)
    model = SharedDecoder(recipe.model, source.vocab_size, compiled)
    engine = Engine(model, training, deepspeed_config(training, path), group)
    validation = source.validation(training.val_sequences)
    rows = training.batch_size // group.size

    def follow(step: int) -> None:
        drawn = screening.steps[step]
        each = training.batch_size // len(drawn)
        of_rows = [parsed[text] for text in drawn for _ in range(each)]
        model.follow(of_rows[group.rank * rows : (group.rank + 1) * rows])

    try:
        mark = time.perf_counter()
        follow(0)
        for step, _ in train_steps(engine, source, seed=trial.seed):
            if step < training.steps:
                follow(step)
        train_seconds = time.perf_counter() - mark
        mark = time.perf_counter()
        losses = _scores(engine.evaluate, validation, scored, training.batch_size, group)
        eval_seconds = time.perf_counter() - mark
        state_bytes = by_rank(engine.optimizer_state_bytes(), group)
    finally:
        engine.close()
    finite = all(map(math.isfinite, losses))
    spans = {span for schedule in {*parsed.values(), *scored} for span in schedule}
    return replace(
        blank_record(trial, recipe),
        state="complete" if finite else "failed",
        steps=training.steps,
        screened=tuple(zip(screening.scored, losses, strict=True)) if finite else (),
        seconds=time.perf_counter() - began,
        train_seconds=train_seconds,
        eval_seconds=eval_seconds,
        peak_memory_bytes=peak_memory(group.device),
        kernels=tuple(sorted({kernel_for(span, group.device) for span in spans})),
        device=device_name(group.device),
        precision=training.precision,
        compiled=compiled,
        zero_stage=zero_stage(path),
        optimizer_state_bytes=state_bytes,
        error=None if finite else "a loss under shared weights is not finite: lower training.learning_rate",
    )


def refuse_sharded_weights(recipe: Recipe) -> None:
    """Refuse a recipe under which no screening can be run.

    Raises:
        UserError: under ZeRO 3, whose gathers of the weights a walk through a tree of schedules would not meet.
    """
    if zero_stage(deepspeed_file(recipe)) == 3:
        raise UserError(
            f"training.deepspeed {recipe.training.deepspeed} cuts up the weights, which search.screening needs whole: "
            "use ZeRO 0-2, or set search.screening=0"
        )


def _scores(
    evaluate: Callable[..., Any], batch: Batch, schedules: Sequence[Schedule], at_once: int, group: RankGroup
) -> list[float]:
    """Return each schedule's validation loss: the mean over sequences, each rank having scored its share of them."""
    n_rows = len(batch.tokens)
    sums = torch.zeros(len(schedules), dtype=torch.float64)
    for rows in own_rows(n_rows, at_once, group):
        if rows.stop > rows.start:
            inputs = to_device(Batch(batch.tokens[rows], batch.targets[rows]), group)
            sums += evaluate(*inputs, schedules=schedules).cpu() * (rows.stop - rows.start)
    return (sum_over_ranks(sums, group) / n_rows).tolist()
