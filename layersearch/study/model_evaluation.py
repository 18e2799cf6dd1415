"""Measures schedules of a pre-trained model on held-out documents: loss by position and the retrieval tasks.

The documents are those that a selection with the same text, length and seed holds back for its confirmation, so a
schedule is never measured on what it was chosen by. Every difference is paired by document.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from layersearch.config.recipe import Recipe
from layersearch.data.tokenizer import open_tokenizer
from layersearch.errors import ConfigError
from layersearch.model.pretrained import load_pretrained, load_skeleton
from layersearch.results.retrieval_cells import RetrievalCell, Shares, first_example, retrieval_cells
from layersearch.results.stats import Interval, mean_interval
from layersearch.schedule import Schedule
from layersearch.schedule.cost import budget_ratio
from layersearch.schedule.files import plain
from layersearch.selection.layerwise import Layerwise
from layersearch.selection.measure import Measurement, Scorer, by_task, position_edges
from layersearch.selection.memory import LIBRARIES, MARGIN, memory_bound
from layersearch.study.lm_eval_tasks import HarnessTasks, run_tasks
from layersearch.study.plan import Stage
from layersearch.study.retrieval_lengths import shares_of, shorter_examples
from layersearch.study.selection_plan import device_of, weights_type
from layersearch.study.selection_units import make_units, units_without_facts
from layersearch.training.memory import device_name, free_memory

CHANCE_EXAMPLES = 4
"""Sequences without facts from which the chance level of the retrieval tasks is measured."""


@dataclass(frozen=True, kw_only=True)
class ScheduleEvaluation:
    """One schedule over the held-out documents."""

    schedule: Schedule
    own: bool
    """Whether it is the model's own schedule."""
    n_full: int
    cost: float
    """Attention FLOPs as a share of all-full's."""
    text_loss: Interval
    """Mean cross-entropy of the text's tokens over documents, nats."""
    text_loss_to_own: Interval | None
    """That minus the model's own schedule's, paired by document; None for that schedule itself."""
    loss_by_position: tuple[Interval, ...]
    """Mean cross-entropy in bins of token position, nats."""
    accuracy: Interval | None
    """Share of the answers' digits that the model predicts, mean over tasks; None without retrieval tasks."""
    accuracy_to_own: Interval | None
    by_task: dict[str, Interval]
    """That share of each task."""
    retrieval: tuple[RetrievalCell, ...]
    """That share by length of the text and depth of the fact: the own length, and a half and a quarter of it."""
    lm_eval: dict[str, dict[str, float]]
    """Metrics and standard errors of lm-eval's tasks, by task; empty if none was asked for."""


@dataclass(frozen=True, kw_only=True)
class ModelEvaluation:
    """Schedules of one model, the model's own first."""

    model: str
    seq_len: int
    documents: int
    data: dict[str, Any]
    """Where the text came from."""
    device: str
    precision: str
    position_edges: tuple[int, ...]
    """Right edges of the bins of ``loss_by_position``, in tokens."""
    chance: dict[str, float]
    """Accuracy of the model's own schedule on sequences that do not hold the facts, by task."""
    schedules: tuple[ScheduleEvaluation, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return plain data, as ``--json`` prints it."""
        found: dict[str, Any] = plain(self)
        return found


def evaluate_model(
    recipe: Recipe,
    schedules: Sequence[Schedule] = (),
    *,
    seed: int = 0,
    cache: Path | None = None,
    harness: HarnessTasks | None = None,
    listener: Callable[[Stage], None] = lambda stage: None,
) -> ModelEvaluation:
    """Measure the model's own schedule and the given ones.

    Args:
        recipe: as `layersearch.model.pretrained_recipe.recipe_for` returns it, with a section ``selection``; its tasks,
            its ``confirm_units`` and ``training.seq_len`` count.
        schedules: schedules to compare with the model's own.
        seed: of the documents' order and the retrieval examples.
        cache: folder of prepared text; None: the default one.
        harness: tasks of lm-evaluation-harness to run as well.
        listener: called with the progress.

    Raises:
        LayersearchError: a schedule does not fit the model, there are too few documents or too little memory.
    """
    config, seq_len, name = recipe.selection, recipe.training.seq_len, str(recipe.pretrained)
    if config is None:
        raise ConfigError(f"recipe {recipe.name} has no section selection; add 'selection: {{}}'")
    device = device_of(recipe)
    free = free_memory(device)
    skeleton = load_skeleton(name, tokens=seq_len)
    asked = list(dict.fromkeys([skeleton.original, *schedules]))
    for schedule in asked:
        if len(schedule) != len(skeleton.attention):
            raise ConfigError(
                f"--schedule '{schedule}' has {len(schedule)} layers and the model {len(skeleton.attention)}; give one "
                "span per layer"
            )
        if schedule != skeleton.original:
            schedule.check(seq_len=seq_len, n_heads=recipe.model.n_heads)
    dtype = weights_type(config.precision, device)
    _check_memory(recipe, sum(p.numel() for p in skeleton.parameters()), skeleton.num_embeddings, dtype, free)
    units, data = make_units(recipe, skeleton.num_embeddings, seed, cache)
    held = units["confirmation"]
    listener(Stage(phase="loading", done=0, planned=1, note=f"reading {Path(name).name}"))
    decoder = load_pretrained(name, tokens=seq_len, dtype=dtype)
    model, tasks = Layerwise(decoder.to(device)), config.used_tasks
    scorer = Scorer(model, held, tasks, config.retrieval_weight)
    measured: dict[Schedule, list[Measurement]] = {}
    for schedule in asked:
        measured[schedule] = []
        for number in range(len(held)):
            measured[schedule].append(scorer.measure(schedule, number))
            done = sum(map(len, measured.values()))
            listener(Stage(phase="confirm", done=done, planned=len(asked) * len(held), note=str(schedule)))
    first = first_example(recipe)
    tokenizer, end = open_tokenizer(str(recipe.data.tokenizer))
    numbers = range(first, first + len(held))
    shorter = shorter_examples(tokenizer, tasks, seq_len=seq_len, numbers=numbers, seed=seed) if tasks else {}
    cells: dict[Schedule, list[RetrievalCell]] = {}
    for schedule, found in measured.items():
        shares: dict[int, Shares] = {
            seq_len: {number: one.accuracy for number, one in zip(numbers, found, strict=True)}
        }
        for length, examples in shorter.items():
            note = f"{length:,} tokens ({schedule})"
            listener(Stage(phase="retrieval", done=len(cells), planned=len(asked), note=note))
            shares[length] = shares_of(scorer, schedule, examples)
        cells[schedule] = retrieval_cells(shares, tasks)
    further: dict[Schedule, dict[str, dict[str, float]]] = {}
    if harness is not None:
        for schedule in asked:
            listener(Stage(phase="lm-eval", done=len(further), planned=len(asked), note=str(schedule)))
            further[schedule] = run_tasks(harness, model, schedule, tokenizer, end=end, most=seq_len)
    own = measured[skeleton.original]
    return ModelEvaluation(
        model=name,
        seq_len=seq_len,
        documents=len(held),
        data={key: data[key] for key in ("source", "tokenizer", "fingerprint")} | {"seed": seed},
        device=device_name(device),
        precision=f"{dtype} weights",
        position_edges=position_edges(seq_len),
        chance=_chance(recipe, model, skeleton.original, seed) if tasks else {},
        schedules=tuple(
            _summary(schedule, found, own, recipe, cells[schedule], further.get(schedule, {}))
            for schedule, found in measured.items()
        ),
    )


def _check_memory(recipe: Recipe, parameters: int, rows: int, dtype: str, free: int) -> None:
    """Raise ConfigError if the weights and the logits of a few positions take more than the free bytes."""
    assert recipe.selection is not None
    bound = memory_bound(
        recipe.model,
        recipe.selection,
        parameters=parameters,
        vocab_size=rows,
        seq_len=recipe.training.seq_len,
        choices=1,
        wide=dtype == "float32",
    )
    need = LIBRARIES + math.ceil(MARGIN * (bound.weights + bound.block + bound.logits))
    if need > free:
        raise ConfigError(
            f"{recipe.pretrained}: an evaluation needs {need / 2**30:.1f} GiB, and {free / 2**30:.1f} GiB are free; "
            "lower training.seq_len, set selection.precision=bf16, or give a smaller model"
        )


def _chance(recipe: Recipe, model: Layerwise, schedule: Schedule, seed: int) -> dict[str, float]:
    """Return the accuracy of each task where the facts are not in the text: what can be guessed."""
    assert recipe.selection is not None
    tasks = recipe.selection.used_tasks
    units = units_without_facts(recipe, tasks, CHANCE_EXAMPLES, seed)
    return by_task(Scorer(model, units, tasks, 0.5).measure_all(schedule))


def _summary(
    schedule: Schedule,
    found: Sequence[Measurement],
    own: Sequence[Measurement],
    recipe: Recipe,
    cells: Sequence[RetrievalCell],
    lm_eval: dict[str, dict[str, float]],
) -> ScheduleEvaluation:
    def accuracy(one: Measurement) -> float:
        return fmean(one.accuracy.values())

    pairs, mine = [*zip(found, own, strict=True)], found is own
    asked = bool(found[0].accuracy)
    bins = zip(*(one.by_position for one in found), strict=True)
    return ScheduleEvaluation(
        schedule=schedule,
        own=mine,
        n_full=schedule.n_full,
        cost=budget_ratio(schedule, seq_len=recipe.training.seq_len, n_heads=recipe.model.n_heads),
        text_loss=mean_interval(one.text_loss for one in found),
        text_loss_to_own=None if mine else mean_interval(a.text_loss - b.text_loss for a, b in pairs),
        loss_by_position=tuple(map(mean_interval, bins)),
        accuracy=mean_interval(map(accuracy, found)) if asked else None,
        accuracy_to_own=mean_interval(accuracy(a) - accuracy(b) for a, b in pairs) if asked and not mine else None,
        by_task={task: mean_interval(one.accuracy[task] for one in found) for task in found[0].accuracy},
        retrieval=tuple(cells),
        lm_eval=lm_eval,
    )
