"""What the packages of this folder would have in their own tests: each derives the suite of its seam."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import ClassVar

import pytest

from automl.execution import make_executor
from automl.execution.base import Executor
from automl.testing import (
    ExecutorContract,
    MethodContract,
    MetricContract,
    PrunerContract,
    SamplerContract,
    TaskContract,
)
from automl.trial import Scalar


class TestAside(ExecutorContract):
    @pytest.fixture
    def executor(self) -> Executor:
        return make_executor("aside")


class TestRising(PrunerContract):
    pruner = "rising"
    options: ClassVar[Mapping[str, Scalar]] = {"by": 0.1}


class TestHadamard(MethodContract):
    method = "hadamard"


class TestBalancedAccuracy(MetricContract):
    metric = "balanced_accuracy"


class TestTempering(SamplerContract):
    sampler = "tempering"
    options: ClassVar[Mapping[str, Scalar]] = {"cooling": 0.5}


class TestRated(TaskContract):
    task = "{type: rated, data: data.jsonl, classes: 4, metric: balanced_accuracy}"
    rows = "".join(
        json.dumps({"text": f"word{number % 7} and word{number}", "rating": number % 10 / 9}) + "\n"
        for number in range(80)
    )
