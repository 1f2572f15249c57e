"""What the packages of this folder would have in their own tests: each derives the suite of its seam."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import ClassVar

from automl.testing import MethodContract, MetricContract, SamplerContract, TaskContract
from automl.trial import Scalar


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
