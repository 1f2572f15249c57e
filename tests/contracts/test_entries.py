"""The contracts that are open to others, over everything that is built in."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from typing import Any, ClassVar

import pytest

from automl.lora import Hyperparameters
from automl.metric import METRICS, Metric
from automl.space.entries import PRUNERS, SAMPLERS
from automl.space.spec import CategoricalParameter, SearchSpace
from automl.testing import MethodContract, MetricContract, PrunerContract, SamplerContract, TaskContract
from automl.testing.metric import WORDS
from automl.trial import Scalar

CHOICES = SearchSpace(
    parameters=(
        CategoricalParameter(name="learning_rate", choices=(1e-4, 1e-3, 1e-2)),
        CategoricalParameter(name="rank", choices=(1, 2, 4, 8, 16)),
    )
)

JSON_TEXTS = ['{"a": [1, 2]}', "3", '"text"', "null"]
PHRASES = ["one two", "three four five."]  # a text without words, or with one alone, shares none with itself
RIGHT_TEXTS = {"json_valid": JSON_TEXTS, "json_match": JSON_TEXTS, "rouge_1": PHRASES, "rouge_2": PHRASES}


def test_every_entry_is_cheap_to_import() -> None:
    script = """
import sys
from automl.metric import METRICS, Metric
from automl.methods.registry import METHODS
from automl.space.entries import EXECUTORS, PRUNERS, SAMPLERS, TASKS
entries = [registry[name] for registry in (SAMPLERS, PRUNERS, TASKS, EXECUTORS, METRICS, METHODS) for name in registry]
heavy = ("optuna", "torch", "peft", "transformers", "datasets", "ray")
print(len(entries), [name for name in heavy if name in sys.modules])
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout == "67 []\n"


class TestLora(MethodContract):
    method = "lora"
    test_its_file_is_cheap_to_import = None  # type: ignore[assignment]  # see above, here and below


class TestAdaLora(MethodContract):
    method = "adalora"
    ends_smaller = True
    test_its_file_is_cheap_to_import = None  # type: ignore[assignment]


class TestPrompt(MethodContract):
    method = "prompt"
    test_its_file_is_cheap_to_import = None  # type: ignore[assignment]


class TestPTuning(MethodContract):
    method = "p-tuning"
    hyper = Hyperparameters(learning_rate=1e-3)
    test_its_file_is_cheap_to_import = None  # type: ignore[assignment]


class TestPrefix(MethodContract):
    method = "prefix"
    models = ("decoder",)
    test_its_file_is_cheap_to_import = None  # type: ignore[assignment]


class TestAdapter(MethodContract):
    method = "adapter"
    hyper: ClassVar[Hyperparameters] = Hyperparameters(method="adapter", own=(("adapter_size", 6),), learning_rate=0.02)
    test_its_file_is_cheap_to_import = None  # type: ignore[assignment]


class TestLlamaPro(MethodContract):
    method = "llama-pro"
    is_drawn = False
    models = ("decoder",)
    hyper: ClassVar[Hyperparameters] = Hyperparameters(method="llama-pro", learning_rate=0.02)
    test_its_file_is_cheap_to_import = None  # type: ignore[assignment]


class TestIA3(MethodContract):
    method = "ia3"
    is_drawn = False
    test_its_file_is_cheap_to_import = None  # type: ignore[assignment]


class TestBitFit(MethodContract):
    method = "bitfit"
    is_drawn = False
    hyper = Hyperparameters(learning_rate=0.02, own=(("bitfit_norms", True),))  # Llama has no biases
    test_its_file_is_cheap_to_import = None  # type: ignore[assignment]


class TestFull(MethodContract):
    method = "full"
    is_drawn = False
    hyper = Hyperparameters(learning_rate=0.01)
    test_its_file_is_cheap_to_import = None  # type: ignore[assignment]


class TestMetrics(MetricContract):
    @pytest.fixture(params=[name for name in METRICS.built_in if METRICS[name].score])
    def name(self, request: pytest.FixtureRequest) -> str:
        return str(request.param)

    @pytest.fixture
    def right(self, name: str, facts: Metric) -> list[Any]:
        texts = RIGHT_TEXTS.get(name, list(WORDS))
        return texts if facts.generates else list(range(4))


class TestSamplers(SamplerContract):
    @pytest.fixture(params=[name for name in SAMPLERS.built_in if name not in ("gp", "grid")])
    def name(self, request: pytest.FixtureRequest) -> str:
        """`gp` takes seconds; tests/study has it."""
        return str(request.param)

    test_its_file_is_cheap_to_import = None  # type: ignore[assignment]


class TestGrid(SamplerContract):
    sampler = "grid"
    spaces = (CHOICES,)


class TestPruners(PrunerContract):
    @pytest.fixture(params=[name for name in PRUNERS.built_in if name not in ("halving", "threshold")])
    def name(self, request: pytest.FixtureRequest) -> str:
        """`halving` parks, which Optuna's own loop cannot."""
        return str(request.param)

    test_its_file_is_cheap_to_import = None  # type: ignore[assignment]


class TestThreshold(PrunerContract):
    pruner = "threshold"
    options: ClassVar[Mapping[str, Scalar]] = {"upper": 4.0, "lower": -4.0}


def lines(*columns: str) -> str:
    """Eighty rows of short texts."""
    return "".join(
        json.dumps({name: f"word{number % 7} and word{number} {name}{number % 3}" for name in columns}) + "\n"
        for number in range(80)
    )


class TestClassification(TaskContract):
    task = "{type: classification, data: data.jsonl, metric: macro_f1}"
    rows = "".join(json.dumps({"text": f"word{n % 7} and word{n}", "label": "abc"[n % 3]}) + "\n" for n in range(80))


class TestMultiLabel(TaskContract):
    task = "{type: multi_label, data: data.jsonl}"
    rows = "".join(
        json.dumps({"text": f"word{n % 7} and word{n}", "labels": list("abc")[: n % 4]}) + "\n" for n in range(80)
    )


class TestTokenClassification(TaskContract):
    task = "{type: token_classification, data: data.jsonl}"
    rows = "".join(
        json.dumps({"words": [f"word{n % 7}", f"word{n}", "x"], "tags": ["O", "B-A" if n % 2 else "O", "I-A"]}) + "\n"
        for n in range(80)
    )


class TestRegression(TaskContract):
    task = "{type: regression, data: data.jsonl, metric: spearman}"
    rows = "".join(json.dumps({"text": f"word{n % 7} and word{n}", "label": n % 7 + 0.5}) + "\n" for n in range(80))


class TestCompletion(TaskContract):
    task = "{type: completion, data: data.jsonl, metric: perplexity}"
    rows = lines("prompt", "response")


class TestSeq2Seq(TaskContract):
    task = "{type: seq2seq, data: data.jsonl, metric: perplexity}"
    rows = lines("source", "target")


class TestPreference(TaskContract):
    task = "{type: preference, data: data.jsonl}"
    rows = lines("prompt", "chosen", "rejected")


class TestSingleLabels(TaskContract):
    """The contract's sum over micro-batches does not hold for KTO, whose reference point is the micro-batch's."""

    task = "{type: preference, data: data.jsonl}"
    rows = "".join(
        json.dumps({"prompt": f"word{n % 7} and {n}", "completion": f"word{n % 5}", "label": n % 3 > 0}) + "\n"
        for n in range(80)
    )
    test_its_loss_adds_up_over_micro_batches = None  # type: ignore[assignment]


class TestInstruction(TaskContract):
    task = "{type: instruction, data: data.jsonl}"
    rows = lines("instruction", "output")
