"""The door of the package: a space file becomes a SweepSpec, or a ConfigError that holds all its problems."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path

from automl.errors import ConfigError, Problem
from automl.space.checks import build_space, check_settings, planned_trials, without_auto
from automl.space.entries import head_of
from automl.space.exclusions import implied_constraints
from automl.space.messages import Problems, shown
from automl.space.options import TaskOptions
from automl.space.read import Sections, read_sections
from automl.space.schema import RunSection, SpaceFile
from automl.space.schema_data import DataSection, PartSection, PlaceSection
from automl.space.schema_search import BudgetSection, SearchSection, parse_seconds
from automl.space.schema_space import FixedSection
from automl.space.schema_task import (
    KeepSection,
    ModelSection,
    OwnMetricSection,
    TableTask,
    TaskSection,
    metric_name,
)
from automl.space.several import TASKS_KEY, documents_of, is_several, with_tasks
from automl.space.spec import (
    EVALUATE_EVERY,
    BudgetSettings,
    CostSettings,
    DataPart,
    DataSettings,
    HarnessTask,
    ModelSettings,
    OwnMetric,
    Quantization,
    RunSettings,
    SearchSettings,
    SearchSpace,
    SweepSpec,
    TaskSettings,
    VerifySettings,
)
from automl.space.write import yaml_of
from automl.space.yaml_nodes import Document, read_document, read_text

DATABASE_VARIABLE = "AUTOML_DB_URL"
DEFAULT_STORAGE_URL = "sqlite:///automl.db"

_LISTED = 8
"""Studies that a message names."""

_TASK_SETTINGS = {field.name for field in fields(TaskSettings)}


def load_space(path: str | Path) -> SweepSpec:
    """Read a space file; relative paths in it are resolved against its folder.

    Raises ConfigError with all problems, and if the file has several `tasks:` (`load_spaces`).
    """
    path = Path(path)
    return parse_space(read_text(path), str(path), path.absolute().parent, is_users=True)


def load_spaces(path: str | Path) -> tuple[SweepSpec, ...]:
    """The studies that a space file says, as `load_space` reads them: one for each of its tasks."""
    path = Path(path)
    return parse_spaces(read_text(path), str(path), path.absolute().parent, is_users=True)


def parse_space(text: str, source: str, folder: Path, *, is_users: bool = False) -> SweepSpec:
    """Read a space file's text. `source` names it in problems, `folder` is what its relative paths start from.

    is_users: it is what the user has just given, and not out of a database or from the network. Only then are functions
    and programs kept that it names as metrics (docs/adr/0037).
    Raises ConfigError with all problems. The environment variable AUTOML_DB_URL stands in for a missing storage.url.
    """
    specs = parse_spaces(text, source, folder, is_users=is_users)
    if len(specs) > 1:
        message = f"says {len(specs)} studies where one is wanted; choose one by name: {_listed(specs)}"
        raise ConfigError([Problem(source, 0, 0, TASKS_KEY, message)])
    return specs[0]


def parse_spaces(text: str, source: str, folder: Path, *, is_users: bool = False) -> tuple[SweepSpec, ...]:
    """The studies that a space file's text says, as `parse_space` reads them: one for each of its tasks."""
    document = read_document(text, source)
    if not is_several(document):
        return (_spec(document, text, source, folder, is_users=is_users),)
    problems = Problems(source, document)
    specs = []
    for own in documents_of(document, problems):
        try:
            specs.append(_spec(own, _text(own), source, folder, is_users=is_users))
        except ConfigError as error:
            problems.found.extend(error.problems)
    problems.raise_if_any()
    _check_one_kind(specs, problems)
    problems.raise_if_any()
    return tuple(specs)


def _check_one_kind(specs: Sequence[SweepSpec], problems: Problems) -> None:
    """Report the first task that needs another kind of model than the one that all share."""
    kinds = [head_of(spec.task.type) for spec in specs]
    other = next((index for index, kind in enumerate(kinds) if kind != kinds[0]), None)
    if other is not None:
        needed = f"needs a {kinds[other]} model and the first task a {kinds[0]} one"
        problems.at_value((TASKS_KEY, other, "type"), f"{needed}; put tasks of another kind into a file of their own")


def _listed(specs: Sequence[SweepSpec]) -> str:
    """The names of studies, as far as they fit into a message."""
    some = [spec.study for spec in specs[:_LISTED]]
    return ", ".join(some) + (f" and {len(specs) - _LISTED} more" if len(specs) > _LISTED else "")


def _text(document: Document) -> str:
    """The values of a file as a text; empty if some are mistakes, since nothing comes of it then."""
    return yaml_of(document.value) if isinstance(document.value, Mapping) and not document.mistakes else ""


def _spec(document: Document, text: str, source: str, folder: Path, *, is_users: bool) -> SweepSpec:
    """One study. text: the file that says it and nothing else."""
    problems = Problems(source, document)
    sections = read_sections(document.value, folder, problems)
    check_settings(sections, problems)
    space = build_space(sections, problems)
    problems.raise_if_any()
    spec = _sweep_spec(sections, space, text=text, source=source, folder=folder)
    return spec if is_users else replace(spec, task=replace(spec.task, own_metrics={}))


def json_schema() -> dict[str, object]:
    """JSON Schema (draft 2020-12) of a space file, for editors."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **with_tasks(SpaceFile.model_json_schema())}


def with_overrides(spec: SweepSpec, *, trials: int | None = None, time: str | None = None) -> SweepSpec:
    """The sweep with another budget; `time` as in the file: '2h', '30m', or seconds. Raises ConfigError."""
    search = spec.search
    if trials is not None:
        search = replace(search, trials=trials)
    if time is not None:
        try:
            search = replace(search, max_seconds=parse_seconds(float(time) if time.isdecimal() else time))
        except ValueError as error:
            raise ConfigError([Problem("", 0, 0, "--time", f"{shown(time)} {error}")]) from None
    return replace(spec, search=search)


def _sweep_spec(sections: Sections, space: SearchSpace, *, text: str, source: str, folder: Path) -> SweepSpec:
    study, model, task, fixed = sections.study, sections.model, sections.task, sections.fixed
    search, run, storage, verify = sections.search, sections.run, sections.storage, sections.verify
    if not (
        study and (model or isinstance(task, TableTask)) and task and fixed and search and run and storage and verify
    ):
        raise AssertionError("a section without a value is a problem that was reported")
    return SweepSpec(
        study=study,
        model=_model(model, folder),
        task=_task(task, folder, max_length=fixed.max_length),
        space=replace(space, constraints=(*space.constraints, *implied_constraints(without_auto(space)))),
        search=_search(search, space, is_table=isinstance(task, TableTask)),
        run=_run(run),
        verify=VerifySettings(**verify.model_dump()),
        keep=_keep(sections.keep, task, folder, max_length=fixed.max_length),
        storage_url=storage.url or os.environ.get(DATABASE_VARIABLE) or DEFAULT_STORAGE_URL,
        storage_grace_seconds=storage.grace,
        artifacts=storage.artifacts,
        source=source,
        text=text,
        sha256=_fingerprint(study, model, task, fixed, search, space=space),
    )


def _model(section: ModelSection | None, folder: Path) -> ModelSettings:
    if section is None:
        return ModelSettings(kind="none", location="")
    adapter = "" if section.adapter is None else _resolved(section.adapter, folder)
    return replace(_place(section, folder), quantization=_quantization(section), adapter=adapter)


def _place(section: ModelSection, folder: Path) -> ModelSettings:
    if section.hub is not None:
        return ModelSettings(kind="hub", location=section.hub, revision=section.revision)
    if section.folder is not None:
        return ModelSettings(kind="folder", location=_resolved(section.folder, folder))
    if section.gguf is not None:
        return ModelSettings(kind="gguf", location=_resolved(section.gguf, folder))
    return ModelSettings(kind="package", location=section.package or "", path=section.path or "")


def _quantization(section: ModelSection) -> Quantization | None:
    kind = section.quantization
    return None if kind is None or kind == "none" else Quantization(kind=kind, double=bool(section.double_quant))


def _data(section: DataSection | list[PartSection], folder: Path) -> DataSettings:
    if not isinstance(section, list):
        return _place_of(section, folder)
    total = math.fsum(part.weight for part in section)
    parts = (DataPart(data=_place_of(part, folder), weight=part.weight / total) for part in section)
    return DataSettings(kind="mixture", parts=tuple(parts))


def _place_of(section: PlaceSection, folder: Path) -> DataSettings:
    columns: dict[str, str] = {ours: theirs for ours, theirs in section.columns.items()}  # noqa: C416  # widens Literal
    found = _source(section, folder)
    return replace(found, columns=columns, ignore=tuple(section.ignore))


def _source(section: PlaceSection, folder: Path) -> DataSettings:
    if section.package is not None:
        path = section.folder or section.file or ""
        return DataSettings(kind="package", location=section.package, path=path)
    if section.hub is not None:
        return DataSettings(kind="hub", location=section.hub, path=section.name or "")
    if section.folder is not None:
        return DataSettings(kind="folder", location=_resolved(section.folder, folder))
    files = section.files if isinstance(section, DataSection) else None
    written = files.model_dump(exclude_none=True) if files else {"train": section.file}
    return DataSettings(kind="files", files={split: _resolved(str(path), folder) for split, path in written.items()})


def _table(section: TableTask, folder: Path) -> TaskSettings:
    arrays: dict[str, str] = section.arrays.model_dump(exclude_none=True)
    data = DataSettings(kind="files", files={"table": _resolved(section.file, folder)}, columns=arrays)
    log = None if section.log == "all" else tuple(section.log)
    return TaskSettings(type="table", data=data, metric=section.metric or "loss", log=log)


def _task(section: TaskOptions, folder: Path, *, max_length: int) -> TaskSettings:
    if isinstance(section, TableTask):
        return _table(section, folder)
    assert isinstance(section, TaskSection), "every other task has rows to train on"
    given = {name: value for name, value in section if value is not None}
    data, metric, metrics, split = (given.pop(name, None) for name in ("data", "metric", "metrics", "split"))
    known = {name: value for name, value in given.items() if name in _TASK_SETTINGS}
    return TaskSettings(
        data=_data(data, folder),
        metric=metric_name(metric or section.default_metric),
        metrics=tuple(map(metric_name, metrics)),
        own_metrics={
            own.label: _own_metric(own, folder) for own in (metric, *metrics) if isinstance(own, OwnMetricSection)
        },
        test_share=split.test,
        validation_share=split.validation,
        max_length=max_length,
        own={name: value for name, value in given.items() if name not in known},
        **known,
    )


def _keep(section: KeepSection | None, task: TaskOptions, folder: Path, *, max_length: int) -> TaskSettings | None:
    """All rows judge, in the order and up to the length that the task's have."""
    if section is None or not isinstance(task, TaskSection):
        return None
    return TaskSettings(
        type=section.type,
        data=_data(section.data, folder),
        metric=section.metric,
        validation_share=1.0,
        seed=task.seed,
        max_length=max_length,
        evaluate_rows=section.rows,
        bad_rows=section.bad_rows,
    )


def _own_metric(section: OwnMetricSection, folder: Path) -> OwnMetric:
    return OwnMetric(
        name=section.label,
        python=section.python or "",
        command=tuple(section.command or ()),
        lm_eval=None if section.lm_eval is None else HarnessTask(**dict(section.lm_eval)),
        folder=str(folder),
        timeout=section.timeout,
    )


def _search(section: SearchSection, space: SearchSpace, *, is_table: bool) -> SearchSettings:
    return SearchSettings(
        sampler=section.sampler.name,
        sampler_options=section.sampler.given(),
        pruner=section.pruner.name,
        pruner_options=section.pruner.given(),
        trials=planned_trials(section, space),
        steps=section.steps,
        length=section.length,
        evaluate_every=section.evaluate_every or (EVALUATE_EVERY if is_table else section.steps // 12 or 1),
        evaluations=None if section.evaluate_every is None and not is_table else (),
        seed=section.seed,
        max_seconds=section.time,
        max_steps=section.max_steps,
        budget=_budget(section.budget),
        max_failed_trials=section.max_failed_trials,
        keep=section.keep,
        importance=section.importance,
        squeeze=section.squeeze,
        warm_start=section.warm_start,
        learn_from=None if section.learn_from == "auto" and not is_table else (),
        patience=section.patience,
        also_minimize=section.also_minimize,
        checkpoint=section.checkpoint,
        early_stopping=_stops_early(section),
    )


def _stops_early(section: SearchSection) -> bool:
    return section.checkpoint == "best" and section.early_stopping is not False


def _budget(section: BudgetSection | None) -> BudgetSettings:
    if section is None:
        return BudgetSettings()
    cost = None if section.cost is None else CostSettings(**dict(section.cost))
    return BudgetSettings(**{**dict(section), "cost": cost})


def _run(section: RunSection) -> RunSettings:
    return RunSettings(**{**section.model_dump(), "output": Path(section.output)})


def _resolved(path: str, folder: Path) -> str:
    written = Path(path)
    if path.startswith("~"):
        try:
            written = written.expanduser()
        except RuntimeError:  # '~name' of a user there is not: a file of that name
            written = Path(path)
    return os.path.normpath(folder.absolute() / written)


def _fingerprint(
    study: str,
    model: ModelSection | None,
    task: TaskOptions,
    fixed: FixedSection,
    search: SearchSection,
    *,
    space: SearchSpace,
) -> str:
    """sha256 over all that gives a study its meaning; paths as written, so that the files may move together."""
    parts = asdict(replace(space, constraints=(), measured=()))
    for parameter in parts["parameters"]:
        if parameter.get("at_alpha", 0.0) is None:  # as versions before it have it
            del parameter["at_alpha"]
    meaning: dict[str, object] = {
        "study": study,
        "model": model.model_dump(exclude_none=True) if model else None,
        "task": task.model_dump(exclude_none=True),
        "space": {name: value for name, value in parts.items() if name not in ("columns", "measured", "task")},
        "constraints": [constraint.expression for constraint in (*space.constraints, *space.measured)],
        "max_length": fixed.max_length,
        "sampler": {"name": search.sampler.name, **search.sampler.given()},
        "pruner": {"name": search.pruner.name, **search.pruner.given()},
        **({"steps": search.steps} if search.length is None else {"length": asdict(search.length)}),
        "evaluate_every": search.evaluate_every or EVALUATE_EVERY,
        "seed": search.seed,
    }
    if search.also_minimize is not None:
        meaning["also_minimize"] = search.also_minimize
    if search.checkpoint != "last":
        meaning |= {"checkpoint": search.checkpoint, "early_stopping": _stops_early(search)}
    return hashlib.sha256(json.dumps(meaning, sort_keys=True).encode()).hexdigest()
