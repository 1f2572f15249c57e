"""Contracts of the seams as suites for pytest: derive a class, name the entry, and its tests are yours.

    from automl.testing import MethodContract

    class TestMine(MethodContract):
        method = "mine"

Needs pytest. Each suite trains models of two layers on a CPU at most. docs/extending.md says what a contract asks for.
"""

from automl.testing.method import MethodContract
from automl.testing.metric import MetricContract
from automl.testing.search import PrunerContract, SamplerContract
from automl.testing.store import StoreContract
from automl.testing.task import TaskContract

__all__ = [
    "MethodContract",
    "MetricContract",
    "PrunerContract",
    "SamplerContract",
    "StoreContract",
    "TaskContract",
]
