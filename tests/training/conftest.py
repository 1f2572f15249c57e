from __future__ import annotations

from pathlib import Path

import pytest

from automl.training.runtime import HostSettings, Runtime
from tests.training.training_cases import host_settings, runtime_with


@pytest.fixture(scope="session")
def bert(tmp_path_factory: pytest.TempPathFactory) -> HostSettings:
    """A tiny BERT classifier and its data; tests give it an output folder of their own."""
    return host_settings(tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> HostSettings:
    """A tiny Llama for completion."""
    return host_settings(tmp_path_factory.mktemp("llama"), architecture="llama", kind="causal-lm")


@pytest.fixture(scope="session")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> HostSettings:
    """A tiny GPT-2 classifier (Conv1D layers)."""
    return host_settings(tmp_path_factory.mktemp("gpt2"), architecture="gpt2")


@pytest.fixture(params=["bert", "gpt2", "llama"])
def any_settings(request: pytest.FixtureRequest) -> HostSettings:
    """Each of the tiny cases in turn."""
    settings: HostSettings = request.getfixturevalue(request.param)
    return settings


@pytest.fixture
def runtime(bert: HostSettings) -> Runtime:
    """The tiny BERT, freshly loaded."""
    return runtime_with(bert)


@pytest.fixture
def output(tmp_path: Path) -> str:
    return str(tmp_path / "out")
