"""Tasks: data, how a model reads it, loss and metrics. `automl.space.entries.TASKS` lists them by name."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from automl.errors import ConfigError, Problem
from automl.space.entries import TASKS
from automl.space.spec import TaskSettings

if TYPE_CHECKING:
    from automl.tasks.base import Task


def make_task(settings: TaskSettings) -> Task:
    """The task these settings describe; raises ConfigError for an unknown type."""
    if settings.type not in TASKS:
        raise ConfigError([Problem("task", 0, 0, "type", TASKS.unknown(settings.type))])
    module, _, name = TASKS[settings.type].implementation.partition(":")
    task: Task = getattr(importlib.import_module(module), name)(settings)
    return task


__all__ = ["make_task"]
