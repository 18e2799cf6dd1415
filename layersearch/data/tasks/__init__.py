"""Generated tasks with a known answer."""

from layersearch.data.tasks.base import Task
from layersearch.data.tasks.coreference import Coreference
from layersearch.data.tasks.hops import Hops
from layersearch.data.tasks.listops import ListOps
from layersearch.data.tasks.local import Local
from layersearch.data.tasks.recall import Recall

TASKS: dict[str, type[Task]] = {task.name: task for task in (Recall, Hops, Coreference, ListOps, Local)}
"""Every task by the name that ``data.source`` gives it."""

__all__ = ["TASKS", "Task"]
