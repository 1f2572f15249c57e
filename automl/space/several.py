"""A space file with `tasks:` says several studies at once: one for each task, on one backbone and in one space.

Each is a file of its own, in which the entry of its task stands where `task:` does and its name follows the study's.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from automl.space.messages import Problems, shown
from automl.space.yaml_nodes import AlreadyReported, Document, KeyPath

TASKS_KEY = "tasks"
MOST_TASKS = 100
LONGEST_NAME = 50
LONGEST_STUDY = 100

_NAME = re.compile(rf"[A-Za-z0-9][A-Za-z0-9._-]{{0,{LONGEST_NAME - 1}}}")
_MERGED = ("space", "fixed")
"""Sections whose entries a task may give in another way than the file."""


def is_several(document: Document) -> bool:
    """Whether the file has `tasks:`."""
    return isinstance(document.value, Mapping) and TASKS_KEY in document.value


def study_of(study: str, task: str) -> str:
    """Name of the study of a task."""
    return f"{study}-{task}"


def documents_of(document: Document, problems: Problems) -> list[Document]:
    """The files that the tasks stand for; none, with the problems, if the list itself is wrong."""
    given = document.value
    assert isinstance(given, Mapping)
    before = len(problems.found)
    if given.get("task") is not None:
        problems.at_key((TASKS_KEY,), "is given beside task:; write one of them")
    if _shards(given.get("run")) > 1:
        message = "trials of several tasks are not shared out over processes; leave it out, or write task:"
        problems.at_value(("run", "shards"), message)
    entries = given[TASKS_KEY]
    if isinstance(entries, AlreadyReported) or not _is_list(entries, problems):
        return []
    names = [_name(index, entry, problems) for index, entry in enumerate(entries)]
    _check_names(given.get("study"), names, problems)
    _check_kinds(entries, problems)
    if len(problems.found) > before:
        return []
    return [_document(document, index, str(name)) for index, name in enumerate(names)]


def with_tasks(schema: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON Schema of a file with `task:` as one that may have `tasks:` instead."""
    found: dict[str, Any] = {**schema, "properties": dict(schema["properties"]), "$defs": dict(schema["$defs"])}
    beside = {"name": {"type": "string", "pattern": f"^{_NAME.pattern}$"}}
    beside |= {name: schema["properties"][name] for name in _MERGED}
    forms = [_named(found["$defs"], form, beside) for form in schema["properties"]["task"]["anyOf"]]
    found["properties"][TASKS_KEY] = {
        "type": "array",
        "description": "Several tasks for one backbone, each a study of its own, in place of task.",
        "minItems": 2,
        "maxItems": MOST_TASKS,
        "items": {"anyOf": forms},
    }
    found["required"] = [name for name in schema["required"] if name != "task"]
    found["oneOf"] = [{"required": ["task"]}, {"required": [TASKS_KEY]}]
    return found


def _named(definitions: Mapping[str, Any], form: Mapping[str, Any], beside: Mapping[str, Any]) -> dict[str, Any]:
    """The form of a task's section with what an entry of the list has beside."""
    own = definitions[form["$ref"].rpartition("/")[2]] if "$ref" in form else form
    return {
        **own,
        "properties": {**own["properties"], **beside},
        "required": [*own.get("required", ()), "name"],
    }


def _shards(run: object) -> int:
    shards = run.get("shards") if isinstance(run, Mapping) else None
    return shards if isinstance(shards, int) else 1


def _is_list(entries: object, problems: Problems) -> bool:
    wrong = ""
    if entries is not None and not isinstance(entries, list):
        wrong = f"{shown(entries)} is not a list of tasks, such as [{{name: one, type: instruction, data: one.jsonl}}]"
    elif not entries:
        wrong = "is empty; write at least two tasks, or task: for one"
    elif len(entries) == 1:
        wrong = "has one entry; write it as task:"
    elif len(entries) > MOST_TASKS:
        wrong = f"has {len(entries):,} entries; at most {MOST_TASKS} are allowed"
    if wrong:
        problems.at_value((TASKS_KEY,), wrong)
    return not wrong


def _name(index: int, entry: object, problems: Problems) -> str | None:
    """The name of an entry; None with the problem if it has none."""
    path: KeyPath = (TASKS_KEY, index)
    if isinstance(entry, AlreadyReported):
        return None
    if not isinstance(entry, Mapping):
        problems.at_value(path, f"{shown(entry)} is not a mapping such as {{name: one, type: instruction, data: ...}}")
        return None
    name = entry.get("name")
    if isinstance(name, AlreadyReported):
        return None
    if name is None:
        problems.at_value(path, "name is missing; it ends the name of the task's study")
        return None
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        wanted = f"letters, digits, '.', '_', '-', starting with a letter or digit, at most {LONGEST_NAME}"
        problems.at_value((*path, "name"), f"{shown(name)} is not a name; use {wanted}")
        return None
    return name


def _check_names(study: object, names: Sequence[str | None], problems: Problems) -> None:
    """Names differ in more than capitals, which some disks do not tell apart, and make names of studies."""
    first: dict[str, int] = {}
    for index, name in enumerate(names):
        if name is None:
            continue
        path = (TASKS_KEY, index, "name")
        before = first.setdefault(name.casefold(), index)
        if before != index:
            line = problems.document.places[TASKS_KEY, before, "name"].line
            problems.at_value(path, f"{name!r} is the name of another task, in line {line}")
        if isinstance(study, str) and len(study_of(study, name)) > LONGEST_STUDY:
            problems.at_value(path, f"makes a study's name of more than {LONGEST_STUDY} characters with {shown(study)}")


def _check_kinds(entries: Sequence[object], problems: Problems) -> None:
    for index, entry in enumerate(entries):
        if not isinstance(entry, Mapping):
            continue
        if entry.get("type") == "table":
            problems.at_value((TASKS_KEY, index, "type"), "a table of curves has no backbone to share; write task:")
        for name in _MERGED:
            section = entry.get(name)
            if section is not None and not isinstance(section, Mapping | AlreadyReported):
                path = (TASKS_KEY, index, name)
                problems.at_value(path, f"{shown(section)} is not a mapping {{parameter: ...}} of what differs here")


def _document(document: Document, index: int, name: str) -> Document:
    """The file of one task, whose values know where they are written."""
    given: Any = document.value
    entry: Mapping[str, Any] = given[TASKS_KEY][index]
    own: KeyPath = (TASKS_KEY, index)
    task = {key: value for key, value in entry.items() if key not in ("name", *_MERGED)}
    value = {key: section for key, section in given.items() if key != TASKS_KEY}
    if isinstance(value.get("study"), str):  # anything else is told as what it is
        value |= {"study": study_of(value["study"], name)}
    value |= {"task": task}
    moved: dict[KeyPath, KeyPath] = {("task",): own}
    for section in _MERGED:
        if entry.get(section) is None:
            continue
        general = given.get(section)
        value[section] = {**(general if isinstance(general, Mapping) else {}), **entry[section]}
        moved |= {(section, key): (*own, section, key) for key in entry[section]}
    return replace(
        document,
        value=value,
        places={**document.places, **dict(_moved(document.places, moved))},
        key_places={**document.key_places, **dict(_moved(document.key_places, moved))},
        moved=moved,
    )


def _moved(places: Mapping[KeyPath, Any], moved: Mapping[KeyPath, KeyPath]) -> Iterator[tuple[KeyPath, Any]]:
    """Places of values under the paths that they have been moved to."""
    for path, origin in moved.items():
        for written, place in places.items():
            if written[: len(origin)] == origin:
                yield (*path, *written[len(origin) :]), place
