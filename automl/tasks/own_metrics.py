"""Metrics of the user's own, by what the space file names (docs/adr/0037, 0042)."""

from __future__ import annotations

import importlib
import math
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from automl.errors import ConfigError, MetricError, Problem
from automl.metric import is_own
from automl.space.spec import OwnMetric, TaskSettings
from automl.tasks.command import judge

_TRIED = {"prompt": "2 + 2 =", "response": "4", "prediction": "4", "row": 0}
"""A row that a program is tried with before anything is trained."""


def own_scores(
    prompts: Sequence[str], references: Sequence[str], predictions: Sequence[str], settings: TaskSettings
) -> dict[str, float]:
    """What the user's metrics of generated texts say of them, by name. Raises MetricError."""
    rows = [
        {"prompt": prompt, "response": right, "prediction": said, "row": number}
        for number, (prompt, right, said) in enumerate(zip(prompts, references, predictions, strict=True))
    ]
    return {
        name: judge(own, rows) if own.command else python_score(own, references, predictions)
        for name, own in settings.own_metrics.items()
        if name in settings.measured and own.lm_eval is None
    }


def python_score(own: OwnMetric, truth: Sequence[Any], predicted: Sequence[Any]) -> float:
    """What the user's function makes of these. Raises MetricError, and whatever the function raises."""
    try:
        value = float(_function(own)(truth, predicted))
    except SystemExit as error:
        raise MetricError(f"metric {own.name}: {own.python} ended the program ({error})") from None
    if not math.isfinite(value):
        raise MetricError(f"metric {own.name}: {own.python} answered {value}, which is no finite number")
    return value


def check_own_metrics(settings: TaskSettings, source: str) -> None:
    """Try what is of the user's own before anything is trained. Raises ConfigError, one line for each that is amiss."""
    problems = [Problem(source, 0, 0, "task.metric", message) for message in _mistakes(settings)]
    if problems:
        raise ConfigError(problems)


def _mistakes(settings: TaskSettings) -> Iterator[str]:
    for name in settings.measured:
        own = settings.own_metrics.get(name)
        if own is None:
            if is_own(name):
                yield (
                    f"{name!r} is a program or function of a space file, and none is taken out of a database; name"
                    " the space file instead of the study"
                )
        elif message := _mistake(own):
            yield message


def _mistake(own: OwnMetric) -> str:
    if own.lm_eval is not None:
        from automl.tasks.harness import harness_mistake  # it needs torch, and entries of metrics are cheap to import

        return harness_mistake(own)
    return _command_mistake(own) if own.command else _python_mistake(own)


def _command_mistake(own: OwnMetric) -> str:
    program = own.command[0]
    place = str(Path(own.folder) / program) if "/" in program else program
    if shutil.which(place) is None:
        return f"{program!r} is no program that can be run" + (f" in {own.folder}" if "/" in program else "")
    try:
        judge(own, [_TRIED, {**_TRIED, "row": 1}])
    except MetricError as error:
        return f"tried with two rows, {error}"
    return ""


def _python_mistake(own: OwnMetric) -> str:
    try:
        function = _function(own)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever the user's module does
        return f"{own.python!r} cannot be used: {type(error).__name__}: {' '.join(str(error).split())}"
    return "" if callable(function) else f"{own.python!r} is no function but {function!r}"


def _function(own: OwnMetric) -> Callable[[Sequence[Any], Sequence[Any]], float]:
    """The function, from an installed package or from beside the space file: what is installed comes first."""
    if own.folder not in sys.path:
        sys.path.append(own.folder)
    module, _, attributes = own.python.partition(":")
    found: Any = importlib.import_module(module)
    for attribute in attributes.split("."):
        found = getattr(found, attribute)
    return found  # type: ignore[no-any-return]  # whatever it is; asked before training


def own_class_scores(truth: Sequence[int], predicted: Sequence[int], settings: TaskSettings) -> Mapping[str, float]:
    """What the user's functions say of class ids, by name."""
    wanted = {name: own for name, own in settings.own_metrics.items() if name in settings.measured}
    return {name: python_score(own, truth, predicted) for name, own in wanted.items()}
