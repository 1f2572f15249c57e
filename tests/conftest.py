"""Settings every test shares: no network, quiet tokenizers, one torch thread, private caches."""

from __future__ import annotations

import logging
import os
import signal
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

_HERE = Path(__file__).parent

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.pop("AUTOML_DB_URL", None)
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # started in the background of a shell, where Ctrl-C is not heard
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_configure(config: pytest.Config) -> None:
    """Of a run that takes half an hour, what fails is known at once."""
    if config.getoption("dist", "no") != "no":
        config.pluginmanager.register(Failures(config))


class Failures:
    """Names a test when it has failed, not only at the end."""

    def __init__(self, config: pytest.Config) -> None:
        self._plugins = config.pluginmanager

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed and (terminal := self._plugins.get_plugin("terminalreporter")):
            terminal.write_line(f"\nFAILED {report.nodeid} ({report.when})")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Where several files run at once, first what holds the whole code to its rules, which breaks most often.

    Then files with long tests, so that no process is left with one of them at the end.
    """
    if config.getoption("dist", "no") != "no" or hasattr(config, "workerinput"):
        long = {item.path for item in items if item.get_closest_marker("slow")}
        items.sort(key=lambda item: (item.path.parent != _HERE, item.path not in long))


def pytest_sessionfinish() -> None:
    """End servers with the session: the process of one of several sessions is killed two seconds after it."""
    from tests.databases import at_end

    at_end.close()


@pytest.hookimpl(optionalhook=True)
def pytest_handlecrashitem(crashitem: str) -> None:
    """A test that ended the process it ran in ends the run: the files of that process would be left out."""
    pytest.exit(f"the process that ran {crashitem} has ended", returncode=3)


@pytest.fixture(scope="session")
def shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Cache folder for models and data, shared by the whole test run."""
    return tmp_path_factory.mktemp("automl-cache")


@contextmanager
def _logging_as_before() -> Iterator[None]:
    """Put handlers, levels and the hook for warnings back."""
    root = logging.getLogger()
    handlers, show = root.handlers[:], warnings.showwarning
    levels = {each: each.level for each in _loggers()}
    yield
    logging.captureWarnings(False)
    warnings.showwarning = show
    root.handlers[:] = handlers
    for each in _loggers():
        if each.level != (before := levels.get(each, logging.NOTSET)):
            each.setLevel(before)  # goes through all loggers, to empty their caches


def _loggers() -> list[logging.Logger]:
    root = logging.getLogger()
    return [root, *(each for each in root.manager.loggerDict.values() if isinstance(each, logging.Logger))]


@pytest.fixture(autouse=True, scope="module")
def logging_as_before_the_module() -> Iterator[None]:
    """Commands set up the process's logging, also in fixtures of a module; other tests must not see it."""
    with _logging_as_before():
        yield


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    """The same for each test."""
    with _logging_as_before():
        yield
