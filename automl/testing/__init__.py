"""Contracts of the seams as suites for pytest: derive a class, name the entry, and its tests are yours.

    from automl.testing import MethodContract

    class TestMine(MethodContract):
        method = "mine"

Needs pytest. Each suite trains models of two layers on a CPU at most. docs/extending.md says what a contract asks for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from automl.testing.executor import ExecutorContract, ProcessExecutorContract
    from automl.testing.method import MethodContract
    from automl.testing.metric import MetricContract
    from automl.testing.search import PrunerContract, SamplerContract
    from automl.testing.store import StoreContract
    from automl.testing.task import TaskContract

__all__ = [
    "ExecutorContract",
    "MethodContract",
    "MetricContract",
    "ProcessExecutorContract",
    "PrunerContract",
    "SamplerContract",
    "StoreContract",
    "TaskContract",
]

_MODULES = {"ProcessExecutorContract": "executor", "PrunerContract": "search", "SamplerContract": "search"}


def __getattr__(name: str) -> object:
    """Load a suite when it is first used: workers that train by `formula` have no use for them."""
    if name not in __all__:
        raise AttributeError(f"module 'automl.testing' has no attribute {name!r}; it has {', '.join(__all__)}")
    module = _MODULES.get(name, name.removesuffix("Contract").lower())
    return getattr(import_module(f"{__name__}.{module}"), name)
