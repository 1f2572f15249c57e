"""From the arguments of `automl.search` to a space file: the same text, the same checks, problems named by argument."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from automl.errors import ConfigError, Problem
from automl.library.parameters import Categorical, Float, Int, section
from automl.space.load import parse_space
from automl.space.schema_data import source_of_data
from automl.space.spec import SweepSpec
from automl.space.write import yaml_of

SEARCH = (
    *("sampler", "pruner", "trials", "steps", "epochs", "examples", "tokens"),
    *("evaluate_every", "seed", "time", "max_steps", "budget", "max_failed_trials"),
    *("keep", "importance", "squeeze", "warm_start", "learn_from", "patience", "also_minimize"),
    *("checkpoint", "early_stopping"),
)
"""Arguments that are entries of `search:`."""
_SOURCE = "automl.search"
_WHOLE = ("study", "model", "targets", "space", "fixed", "enqueue", "constraints")
"""Arguments that are whole sections, by the same name."""
_SHORT = {"task": "type", "run": "executor", "storage": "url"}
"""Sections of which a text alone means this entry."""


def document_of(arguments: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """What a space file would hold, from arguments that are given; `data` and `model` as a file has them.

    folder: where relative paths begin. Raises ConfigError for what no file could hold.
    """
    given = {name: plain(value, name) for name, value in arguments.items()}
    task, run, storage = (_mapping(given.get(name, {}), entry) for name, entry in _SHORT.items())
    task |= {name: given[name] for name in ("metric", "data") if name in given}
    if "columns" in given and "data" in task:
        task["data"] = with_columns(task["data"], given["columns"], folder)
    verify = given.get("verify", False)
    if isinstance(space := given.get("space"), dict):
        given["space"] = {name: _choices(parameter) for name, parameter in space.items()}
    sections: dict[str, Any] = {name: given[name] for name in _WHOLE if name in given} | {
        "task": task,
        "keep": given.get("keep_data", {}),
        "search": {name: given[name] for name in SEARCH if name in given},
        "verify": {"automatic": verify} if isinstance(verify, bool) else _mapping(verify, "automatic"),
        "run": run,
        "storage": storage,
    }
    return {"version": 1, **{name: value for name, value in sections.items() if value != {}}}


def read(document: Mapping[str, Any], folder: Path) -> SweepSpec:
    """What the document means, read from its text as a space file's is. Raises ConfigError that names arguments."""
    try:
        return parse_space(yaml_of(document), _SOURCE, folder, is_users=True)
    except ConfigError as error:
        raise ConfigError(map(_by_argument, error.problems)) from None


def named(document: Mapping[str, Any], stem: str, folder: Path) -> dict[str, Any]:
    """The document with a study's name: the same call goes on with its study, another search begins one of its own.

    A name that is missing is `stem` and the beginning of the digest over all that gives a study its meaning.
    """
    if "study" in document:
        return dict(document)
    meaning = read({"study": stem, **document}, folder).sha256
    return {"version": 1, "study": f"{stem[:80]}-{meaning[:8]}", **document}


def plain(value: object, argument: str) -> Any:
    """The value as JSON has it; numbers of numpy, paths and ranges become what a file would say. None is left out.

    Raises ConfigError naming the argument if a file cannot say it.
    """
    if isinstance(value, Float | Int | Categorical):
        value = section(value)
    elif isinstance(value, Path):
        value = _path(value)
    elif not isinstance(value, bool | int | float | str) and getattr(value, "shape", None) == ():
        value = value.item()  # type: ignore[attr-defined]  # a number of numpy or torch
    if value is None or isinstance(value, bool):
        return value
    for kind in (int, float, str):
        if isinstance(value, kind):
            return kind(value)
    if isinstance(value, Mapping):
        return dict(_entries(value, argument))
    if isinstance(value, list):
        return [plain(item, f"{argument}[{index}]") for index, item in enumerate(value)]
    raise mistake(argument, _refusal(value))


def _choices(parameter: Any) -> Any:
    """A plain list is one of its values; a file has to say so, for its readers."""
    return section(Categorical(parameter)) if isinstance(parameter, list) else parameter


def _entries(mapping: Mapping[Any, Any], argument: str) -> Iterator[tuple[str, Any]]:
    for name, item in mapping.items():
        if not isinstance(name, str):
            raise mistake(argument, f"{name!r} is no name; keys are texts such as 'rank'")
        if item is not None:
            yield name, plain(item, f"{argument}.{name}")


def _refusal(value: object) -> str:
    if isinstance(value, tuple):
        return "a tuple says neither range nor choice; write automl.Int(low, high), automl.Float(low, high) or a list"
    return f"a {type(value).__name__} is neither a number, a text, a list nor a mapping"


def _path(path: Path) -> str:
    """A path is never taken for the id of a model or data set on the hub."""
    text = str(path)
    return text if text.startswith((".", "/", "~")) else f"./{text}"


def _mapping(value: Any, entry: str) -> dict[str, Any]:
    return dict(value) if isinstance(value, Mapping) else {entry: value}


def with_columns(data: Any, columns: Any, folder: Path) -> Any:
    if isinstance(data, list):
        return [_part_with_columns(part, columns) for part in data]
    source = source_of_data(data, folder) if isinstance(data, str) else data
    return {**source, "columns": columns} if isinstance(source, Mapping) else source


def _part_with_columns(part: Any, columns: Any) -> Any:
    """The part of a mixture with what all parts are told, unless it says otherwise itself."""
    if not isinstance(part, Mapping):
        return part
    own = part.get("columns", {})
    is_told = isinstance(columns, Mapping) and isinstance(own, Mapping)
    return {**part, "columns": {**columns, **own} if is_told else own or columns}


_ARGUMENTS = {"keep": "keep_data", "search.": "", "task.data.columns": "columns", "task.data": "data"}
"""What a key begins with in a file -> and as an argument."""


def _by_argument(problem: Problem) -> Problem:
    """The problem at the argument that holds the key: `search.trials` is `trials=`, `task.data` is `data=`."""
    key = problem.key
    for prefix, ours in _ARGUMENTS.items():
        if key.startswith(prefix):
            key = ours + key.removeprefix(prefix)
            break
    key = {"task.metric": "metric", "task.type": "task"}.get(key, key)
    return replace(problem, file=_SOURCE, line=0, column=0, key=key)


def mistake(argument: str, message: str) -> ConfigError:
    return ConfigError([Problem(_SOURCE, 0, 0, argument, message)])
