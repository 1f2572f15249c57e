"""Tasks: data, how a model reads it, loss and metrics. To add one, write a module and add a line to TASKS."""

from __future__ import annotations

import difflib

from automl.errors import ConfigError, Problem
from automl.space.spec import TaskSettings
from automl.tasks.base import Task
from automl.tasks.classification import Classification
from automl.tasks.completion import Completion
from automl.tasks.instruction import Instruction

TASKS: dict[str, type[Task]] = {
    "classification": Classification,
    "completion": Completion,
    "instruction": Instruction,
}
"""Every task by its `task.type` in space.yaml."""


def make_task(settings: TaskSettings) -> Task:
    """The task these settings describe; raises ConfigError for an unknown type."""
    task = TASKS.get(settings.type)
    if task is None:
        close = difflib.get_close_matches(settings.type, TASKS, n=1)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        message = f"unknown task {settings.type!r}; known: {', '.join(TASKS)}{hint}"
        raise ConfigError([Problem("task", 0, 0, "type", message)])
    return task(settings)


__all__ = ["TASKS", "make_task"]
