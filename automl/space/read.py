"""Reads a document section by section, parameter by parameter, so that one mistake hides no other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from pydantic import TypeAdapter, ValidationError

from automl.errors import PluginError
from automl.lora import Hyperparameters
from automl.methods.peft_tuners import objection
from automl.methods.registry import METHODS
from automl.methods.settings import Setting
from automl.space.entries import TASKS
from automl.space.limits import RATE, Names, adapter_of, bringing, own_rate, tasks_bringing
from automl.space.messages import Problems, nearest, shown
from automl.space.options import TaskOptions
from automl.space.ranges import RangeSection
from automl.space.schema import RunSection, SpaceFile, StorageSection, VerifySection
from automl.space.schema_base import unknown_key_message
from automl.space.schema_search import SearchSection
from automl.space.schema_space import Assignment, AutoSection, FixedSection, ParameterSection, SpaceSection
from automl.space.schema_task import KeepSection, ModelSection
from automl.space.yaml_nodes import AlreadyReported, KeyPath
from automl.trial import Scalar

MAX_ENQUEUED = 1000

_METHOD = Hyperparameters().method
_Given = TypeVar("_Given", bound=Assignment)

_HINTS = {
    "version": "; write 'version: 1'",
    "study": "; write a name under which the results are kept",
    "model": "; write a hub id, a folder or a .gguf file",
    "task": "; write {type: classification, data: ...}",
}


@dataclass(slots=True, kw_only=True)
class Sections:
    """The sections that are valid on their own; None stands for one with a problem, which has been reported.

    ranges, auto: what `space:` gives for each name. names: everything the file mentions under `space:` or `fixed:`,
    valid or not. known: what it may mention. values: of `fixed:`. enqueue: index in the file -> values.
    """

    known: Names = field(default_factory=lambda: Names([_METHOD]))

    study: str | None = None
    model: ModelSection | None = None
    task: TaskOptions | None = None
    keep: KeepSection | None = None
    targets: Mapping[str, list[str]] | None = None
    ranges: dict[str, RangeSection] = field(default_factory=dict)
    auto: list[str] = field(default_factory=list)
    is_auto: bool = False
    names: dict[str, list[str]] = field(default_factory=lambda: {"space": [], "fixed": []})
    fixed: FixedSection | None = None
    values: Mapping[str, Scalar] = field(default_factory=dict)
    enqueue: Mapping[int, Mapping[str, Scalar]] = field(default_factory=dict)
    constraints: list[str] | None = None
    search: SearchSection | None = None
    verify: VerifySection | None = None
    run: RunSection | None = None
    storage: StorageSection | None = None


def read_sections(value: object, folder: Path, problems: Problems) -> Sections:
    """Validate a document's top level; every problem goes to `problems`. `folder`: where relative paths start."""
    if isinstance(value, AlreadyReported):
        return Sections()
    if not isinstance(value, Mapping):
        problems.at_value((), f"{shown(value)} is not a mapping of sections such as study:, model:, task:, space:")
        return Sections()
    for key in value:
        if key not in SpaceFile.model_fields:
            problems.at_key((key,), unknown_key_message(key, list(SpaceFile.model_fields)))
    given = {key: item for key, item in value.items() if item is not None}  # 'fixed:' with all lines commented out
    reader = _Reader(given, folder, _known(given, problems), problems)
    reader.section("version")
    fixed, values = reader.fixed()
    sections = Sections(
        known=reader.known,
        study=reader.section("study"),
        model=reader.section("model"),
        task=reader.section("task"),
        keep=reader.section("keep"),
        targets=reader.section("targets"),
        names={name: _keys(given.get(name)) for name in ("space", "fixed")},
        is_auto=given.get("space", "auto") == "auto",
        fixed=fixed,
        values=values,
        enqueue=reader.enqueue(),
        constraints=reader.section("constraints"),
        search=reader.section("search"),
        verify=reader.section("verify"),
        run=reader.section("run"),
        storage=reader.section("storage"),
    )
    reader.space(sections)
    return sections


@dataclass(frozen=True, slots=True)
class _Reader:
    given: Mapping[str, Any]
    folder: Path
    known: Names
    problems: Problems

    def section(self, name: str) -> Any:
        """The section of that name, its default if it is not given, None if it has a problem."""
        if name in self.given:
            return self._valid(_adapter(SpaceFile, name), self.given[name], (name,))
        info = SpaceFile.model_fields[name]
        if info.is_required():
            self.problems.at_value((name,), "is missing" + _HINTS[name])
            return None
        return info.get_default(call_default_factory=True)

    def space(self, sections: Sections) -> None:
        """Fill in ranges and auto, each parameter on its own."""
        value = self.given.get("space", "auto")
        if value == "auto" or isinstance(value, AlreadyReported):
            return
        if not isinstance(value, Mapping):
            self.problems.at_value(("space",), f"{shown(value)} is neither auto nor a mapping {{parameter: range}}")
            return
        for name, item in value.items():
            path = ("space", name)
            if name not in self.known and not self.known.owner(name):
                hint = "belongs under fixed:" if name == "max_length" else self._not_owned(name)
                self.problems.at_key(path, hint or self._unknown(name, list(SpaceSection.model_fields)))
                continue
            parameter = self._valid(_adapter(SpaceSection, name), item, path)
            if isinstance(parameter, AutoSection):
                sections.auto.append(name)
            elif parameter is not None:
                sections.ranges[name] = parameter

    def fixed(self) -> tuple[FixedSection | None, dict[str, Scalar]]:
        """The section, as `section` returns it, and the values that it gives."""
        value = self.given.get("fixed", {})
        return self._assigned(FixedSection, value, ("fixed",))

    def enqueue(self) -> dict[int, dict[str, Scalar]]:
        """What the valid entries of `enqueue:` give, by their index."""
        value = self.given.get("enqueue", [])
        if not isinstance(value, list):
            if not isinstance(value, AlreadyReported):
                self.problems.at_value(("enqueue",), f"{shown(value)} is not a list of mappings, such as [{{rank: 8}}]")
            return {}
        if len(value) > MAX_ENQUEUED:
            self.problems.at_value(("enqueue",), f"has {len(value)} entries; at most {MAX_ENQUEUED} are allowed")
        entries = {index: self._assigned(Assignment, item, ("enqueue", index)) for index, item in enumerate(value)}
        return {index: values for index, (entry, values) in entries.items() if entry is not None}

    def _assigned(self, section: type[_Given], value: object, path: KeyPath) -> tuple[_Given | None, dict[str, Scalar]]:
        """A section of values, and the values: everybody's, and those of settings that methods and task bring."""
        if not isinstance(value, Mapping):
            return self._valid(TypeAdapter(section), value, path), {}
        fields = section.model_fields
        strange = [key for key in value if key not in fields and key not in self.known]
        for key in strange:
            self.problems.at_key((*path, key), self._unknown(key, list(fields)))
        own = {key: self._setting(key, value[key], (*path, key)) for key in value if key in self.known.own}
        found = self._valid(TypeAdapter(section), {key: value[key] for key in value if key in fields}, path)
        given = {key: item for key, item in own.items() if item is not None}
        return (None if strange else found), {**(found.values() if found else {}), **given}

    def _setting(self, name: str, value: object, path: KeyPath) -> Scalar | None:
        if value is None or isinstance(value, AlreadyReported):
            return None
        found: Scalar | None = self._valid(adapter_of(self.known.own[name]), value, path)
        return found

    def _not_owned(self, name: str) -> str:
        """What to say of learning rates of no method of the file's; empty if it is something else."""
        if not isinstance(name, str) or not name.startswith(own_rate("")):
            return ""
        methods = self.known.methods
        if len(methods) == 1:
            return f"this space has no method to choose but {methods[0]}; write {RATE}"
        return f"is of no method of this space; {nearest(name, map(own_rate, methods))}"

    def _unknown(self, name: str, general: list[str]) -> str:
        """What to say of a name that neither the task nor a method brings that the file can choose."""
        if tasks := tasks_bringing(name):
            return f"is of task {' and '.join(tasks)}"
        if others := bringing(str(name)):
            return f"is of method {' and '.join(others)}; this space chooses {' or '.join(self.known.methods)}"
        if reason := objection(str(name)):
            return reason
        return unknown_key_message(name, [*general, *self.known.own])

    def _valid(self, adapter: TypeAdapter[Any], value: object, path: KeyPath) -> Any:
        try:
            return adapter.validate_python(value, strict=True, context={"folder": self.folder})
        except ValidationError as error:
            self.problems.from_pydantic(error, path)
            return None


def _known(given: Mapping[str, Any], problems: Problems) -> Names:
    """What may be named with the methods that the file can choose; with all there are if one of them has a problem."""
    methods, task = _methods(given), _task(given)
    if not all(map(_is_usable, methods)):
        return Names(filter(_is_usable, METHODS), task)
    names = Names(methods, task, lambda setting: _values(given, setting))
    if names.clash:
        problems.at_value(("space", "method"), f"{names.clash}; search them in studies of their own")
    return names


def _task(given: Mapping[str, Any]) -> str:
    """The type of the task if it brings settings."""
    section = given.get("task")
    name = section.get("type") if isinstance(section, Mapping) else None
    try:
        return name if isinstance(name, str) and TASKS[name].settings else ""
    except (KeyError, PluginError):
        return ""


def _values(given: Mapping[str, Any], setting: Setting) -> list[Scalar]:
    """Values of a setting that the file can choose, as it says; what is no value of it is reported elsewhere."""
    found = [value for value in _written(given, setting.name) or [setting.default] if setting.admits(value)]
    return found or [setting.default]


def _written(given: Mapping[str, Any], name: str) -> list[Any]:
    """What the file fixes a name at, or lists for it; empty if it does neither."""
    fixed, space = (given.get(section) for section in ("fixed", "space"))
    if isinstance(fixed, Mapping) and fixed.get(name) is not None:
        return [fixed[name]]
    searched = space.get(name) if isinstance(space, Mapping) else None
    choices = searched.get("choices") if isinstance(searched, Mapping) else None
    return choices if isinstance(choices, list) else []


def _methods(given: Mapping[str, Any]) -> list[Any]:
    fixed = given.get("fixed")
    if isinstance(fixed, Mapping) and fixed.get("method") is not None:
        return [fixed["method"]]
    return list(dict.fromkeys(map(str, _written(given, "method")))) or [_METHOD]


def _is_usable(name: object) -> bool:
    try:
        return isinstance(name, str) and METHODS[name] is not None
    except (KeyError, PluginError):
        return False


@lru_cache(maxsize=64)
def _adapter(section: type[SpaceFile] | type[SpaceSection], name: str) -> TypeAdapter[Any]:
    kind: Any = ParameterSection if section is SpaceSection else get_type_hints(section, include_extras=True)[name]
    return TypeAdapter(kind)


def _keys(value: object) -> list[str]:
    return list(value) if isinstance(value, Mapping) else []
