"""Tasks of lm-evaluation-harness on a model with a schedule: those that score given texts. The extra is ``lm-eval``.

The harness asks for log-likelihoods. `layersearch.selection.layerwise` makes them for a few positions at a time.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from layersearch.errors import ConfigError, one_line
from layersearch.schedule import Schedule
from layersearch.selection.layerwise import Layerwise


@dataclass(frozen=True, kw_only=True)
class HarnessTasks:
    """Which tasks are run.

    Raises:
        ConfigError: the extra is missing, or a task is not known.
    """

    names: tuple[str, ...]
    folder: Path | None = None
    """Holds YAML files of the user's own tasks."""
    limit: int | None = None
    """Most examples of a task; None: all."""

    def __post_init__(self) -> None:
        if importlib.util.find_spec("lm_eval") is None:
            raise ConfigError("--lm-eval needs its extra: pip install 'layersearch[lm-eval]'")
        if self.folder is not None and not self.folder.is_dir():
            raise ConfigError(
                f"--lm-eval-folder {self.folder}: no such folder; name the one that holds the tasks' YAML"
            )
        for name in self.names:
            if name not in self.manager.all_tasks:
                raise ConfigError(f"--lm-eval {name}: lm-eval has no such task; 'lm-eval ls tasks' lists them")

    @cached_property
    def manager(self) -> Any:
        """lm-eval's list of tasks: those of the folder if they suffice, else its own too, whose index takes seconds."""
        from lm_eval.tasks import TaskManager

        folder = None if self.folder is None else str(self.folder)
        if folder is not None:
            found = TaskManager(include_path=folder, include_defaults=False)
            if set(self.names) <= set(found.all_subtasks):  # a group may name lm-eval's own tasks
                return found
        return TaskManager(include_path=folder)


def run_tasks(
    tasks: HarnessTasks, model: Layerwise, schedule: Schedule, tokenizer: Tokenizer, *, end: int, most: int
) -> dict[str, dict[str, float]]:
    """Return each task's metrics and their standard errors, by the names that lm-eval gives them.

    Args:
        tasks: what is run.
        model: the model.
        schedule: one span per layer.
        tokenizer: the model's own.
        end: the token that begins a text where there is no context.
        most: tokens of a text; of a longer one the end counts.

    Raises:
        ConfigError: the data of a task is not there and cannot be fetched, or a task generates text.
    """
    from lm_eval.evaluator import simple_evaluate

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    asked = language_model(model, schedule, tokenizer, end, most)
    try:
        found = simple_evaluate(
            model=asked, tasks=list(tasks.names), task_manager=tasks.manager, limit=tasks.limit, log_samples=False
        )
    except ConfigError:
        raise
    except Exception as error:  # of a data set that is not there, a hub that is not reached, a task's own code
        said = one_line(error)
        raise ConfigError(f"--lm-eval {' '.join(tasks.names)}: lm-eval failed ({said}); see its task's data") from None
    assert found is not None
    return {
        name: {key.removesuffix(",none"): value for key, value in values.items() if isinstance(value, int | float)}
        for name, values in found["results"].items()
    }


def language_model(model: Layerwise, schedule: Schedule, tokenizer: Tokenizer, end: int, most: int) -> Any:
    """Return the model as lm-eval asks it; the arguments are those of `run_tasks`."""
    from lm_eval.api.model import TemplateLM
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

    class ScheduledModel(TemplateLM):  # type: ignore[misc]
        @property
        def eot_token_id(self) -> int:
            return end

        def tok_encode(self, string: str, add_special_tokens: bool | None = None, **more: Any) -> list[int]:
            return list(tokenizer.encode(string, add_special_tokens=bool(add_special_tokens)).ids)

        def _loglikelihood_tokens(self, requests: Sequence[Any], **more: Any) -> list[tuple[float, bool]]:
            return [self._score(context, wanted) for _, context, wanted in requests]

        def _score(self, context: Sequence[int], wanted: Sequence[int]) -> tuple[float, bool]:
            whole = torch.tensor([*context, *wanted][-(most + 1) :])
            count = min(len(wanted), len(whole) - 1)
            hidden = model.run(whole[:-1], schedule).last[-count:]
            losses, right = model.losses(hidden, whole[-count:])
            return -float(losses.double().sum()), bool(right.all())

        def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
            sums = []
            for request in requests:
                tokens = self.tok_encode(request.args[0])
                windows = get_rolling_token_windows(tokens, end, max_seq_len=most, context_len=1)
                sums.append(sum(self._score(*make_disjoint_window(window))[0] for window in windows))
            return sums

        def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
            raise ConfigError("--lm-eval: this task generates text, which is not measured; name tasks that score texts")

    return ScheduledModel()
