"""Generated tasks with a planted truth."""

from layersearch.data.tasks.recall import Recall
from layersearch.data.tasks.task import Task

TASKS: dict[str, type[Task]] = {Recall.name: Recall}
"""Every task by the name that ``data.source`` gives it."""

__all__ = ["TASKS", "Recall", "Task"]
