"""From options to a task."""

from __future__ import annotations

from typing import Any

from RLM_clean.config import Config
from RLM_clean.tasks.denoise import Denoise
from RLM_clean.tasks.masked import Masked
from RLM_clean.tasks.next_token import All, Last
from RLM_clean.tasks.root import Root
from RLM_clean.tasks.task import Task

TASKS: dict[str, type[Task]] = {task.name: task for task in (Last, All, Root, Masked, Denoise)}


def of(config: Config) -> Task:
    """The task of a run."""
    c = config
    given: dict[str, dict[str, Any]] = {
        'root': {'num_classes': c.num_classes},
        'masked': {'rate': c.mask_rate},
        'denoise': {'noise': c.noise},
    }
    return TASKS[c.objective](**given.get(c.objective, {}))


def make(objective: str | Task) -> Task:
    """A task by the name of its objective, with its defaults; a task as it is. Raises ValueError for other names."""
    if isinstance(objective, Task):
        return objective
    if objective not in TASKS:
        raise ValueError(f'objective={objective!r} is unknown: use {" or ".join(TASKS)}')
    return TASKS[objective]()
