"""What needs two sections at once: which names exclude each other, what a trial may start from, what fits together."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from importlib.util import find_spec
from urllib.parse import parse_qsl, urlsplit

from automl.lora import TARGET_SETS
from automl.methods.registry import METHODS
from automl.metric import METRICS, is_own, margin_mistake
from automl.space import limits as hyper
from automl.space.constraints import Constraint, Kind, parse_constraint
from automl.space.defaults import auto_names, default_searched, resolve, with_own_rates
from automl.space.entries import EXECUTORS, PRUNERS, SAMPLERS, fits, for_objectives
from automl.space.exclusions import objections
from automl.space.extremes import choices, names_of, not_quantizable, setting_values
from automl.space.messages import Problems, nearest, shown, unknown
from automl.space.points import (
    MOST_CONFIGURATIONS,
    Values,
    contains,
    count_configurations,
    grid_values,
    values,
)
from automl.space.ranges import build_parameters, described
from automl.space.read import Sections
from automl.space.satisfiable import is_hopeless
from automl.space.schema import RunSection
from automl.space.schema_search import SearchSection
from automl.space.schema_task import KeepSection, OwnMetricSection, TableTask, TaskSection, metric_name
from automl.space.spec import CategoricalParameter, FloatParameter, Parameter, SearchSpace
from automl.space.yaml_nodes import KeyPath
from automl.trial import FORGETTING, Scalar

MAX_PATTERN_LENGTH = 200
MAX_REPEATS = 3
_SCHEMES = ("sqlite", "postgresql", "postgresql+psycopg")
_PLACES = ("s3", "gs", "az", "file", "memory")
_NO_KEEP = "'forgetting' is measured on the data of keep:, which is missing; write keep: {data: general.jsonl}"
_NUMBER: Kind = "number"
_SECRET_KEYS = {"password", "sslpassword", "token", "key", "passfile"}


def build_space(sections: Sections, problems: Problems) -> SearchSpace:
    """The search space, as far as its parts are valid; reports what does not fit together."""
    if isinstance(sections.task, TableTask):
        return SearchSpace(parameters=())
    fixed, known = sections.values, sections.known
    auto = sections.auto
    if sections.is_auto:
        taken = set(sections.names["fixed"]) | ({"alpha_ratio"} if "alpha" in sections.names["fixed"] else set())
        auto = [name for name in default_searched(known) if name not in taken]
    _check_names(sections, problems)
    absent = dict.fromkeys(auto, "has an automatic range") | dict.fromkeys(fixed, "is fixed")
    parameters = build_parameters(sections.ranges, absent, known, problems)
    space = SearchSpace(
        task=known.task,
        parameters=tuple(parameters),
        fixed=fixed,
        targets={name: tuple(patterns) for name, patterns in (sections.targets or {}).items()},
        auto=tuple(known.ordered(auto)),
    )
    _check_targets(sections, space, problems)
    _check_methods(sections, space, problems)
    enqueue = tuple(_entry(index, entry, space, problems) for index, entry in sections.enqueue.items())
    is_grid = sections.search is not None and sections.search.sampler.name == "grid"
    found = tuple(_constraints(sections.constraints or [], space, grid_values if is_grid else values, problems))
    if is_grid:
        _check_grid(space, problems)
    if sections.search and len(sections.enqueue) > (trials := planned_trials(sections.search, space)):
        problems.at_value(("enqueue",), f"has {len(sections.enqueue)} entries, more than trials {trials}")
    measured = tuple(each for each in found if FORGETTING in each.names)
    constraints = tuple(each for each in found if each not in measured)
    return replace(space, constraints=constraints, measured=measured, enqueue=enqueue)


def planned_trials(search: SearchSection, space: SearchSpace) -> int:
    """`trials`; where it is left out, 24, or all configurations of a grid, constraints aside."""
    if "trials" in search.model_fields_set or search.sampler.name != "grid" or not space.parameters + space.auto:
        return search.trials
    return count_configurations(without_auto(space), grid_values) or search.trials


def check_settings(sections: Sections, problems: Problems) -> None:
    """Report what is wrong across task, targets, search and storage."""
    task, search = sections.task, sections.search
    if isinstance(task, TableTask):
        _check_table(task, problems)
    elif isinstance(value := problems.document.value, Mapping) and value.get("model") is None:
        problems.at_value(("model",), "is missing; write a hub id, a folder or a .gguf file")
    if isinstance(task, TaskSection):
        _check_metrics(task, problems)
    if isinstance(task, TaskSection) and sections.verify is not None and sections.verify.margin is not None:
        _check_margin(sections.verify.margin, task, problems)
    for name, patterns in (sections.targets or {}).items():
        if name in TARGET_SETS:
            problems.at_key(("targets", name), f"is a built-in target set already ({TARGET_SETS[name]})")
        for index, pattern in enumerate(patterns):
            mistake = pattern_mistake(pattern)
            path: KeyPath = ("targets", name, index)
            if mistake:
                problems.at_value(path, mistake)
    if search:
        _check_trial(search, problems, is_table=isinstance(task, TableTask))
        if search.warm_start is not None and search.warm_start == sections.study:
            problems.at_value(("search", "warm_start"), f"{search.warm_start!r} is this study; name an earlier one")
        _check_checkpoint(search, problems, is_table=isinstance(task, TableTask))
        if search.also_minimize is not None:
            _check_two_objectives(search, problems, is_table=isinstance(task, TableTask))
        if search.also_minimize == FORGETTING and not _is_kept(problems):
            problems.at_value(("search", "also_minimize"), _NO_KEEP)
        missing = missing_package(search.sampler.name, lambda package: find_spec(package) is not None)
        if missing:
            problems.at_value(("search", "sampler"), missing)
    if sections.keep is not None:
        _check_keep(sections.keep, sections, problems)
    if sections.run and sections.run.shards > 1:
        _check_shards(sections.run, sections, problems)
    if sections.storage and sections.storage.url is not None:
        mistake = url_mistake(sections.storage.url)
        if mistake:
            problems.at_value(("storage", "url"), mistake)
    if sections.storage and sections.storage.artifacts is not None:
        mistake = place_mistake(sections.storage.artifacts)
        if mistake:
            problems.at_value(("storage", "artifacts"), mistake)


def _check_trial(search: SearchSection, problems: Problems, *, is_table: bool) -> None:
    """How long a trial is; what follows from the steps that a length means is checked when the data is known."""
    first, *others = [
        name for name in ("steps", "epochs", "examples", "tokens") if name in search.model_fields_set
    ] or ["steps"]
    for name in others:
        problems.at_key(("search", name), f"says again how long a trial is, as {first} does; keep one of the two")
    if search.length is not None:
        if is_table:
            problems.at_key(("search", search.length.unit), "is not known of a table of curves; write steps")
        return
    if search.evaluate_every is not None and search.evaluate_every > search.steps:
        message = f"{search.evaluate_every} is above steps {search.steps}, so no trial would be measured before its end"
        problems.at_value(("search", "evaluate_every"), message)
    if search.max_steps is not None and search.max_steps < search.steps:
        message = f"{search.max_steps} is less than the {search.steps} steps of one trial"
        problems.at_value(("search", "max_steps"), message)
    if (wrong := PRUNERS[search.pruner.name].check(search.pruner, search.steps)) is not None:
        problems.at_value(("search", "pruner", wrong[0]), wrong[1])


def _is_kept(problems: Problems) -> bool:
    """Whether the file has a section `keep:`, valid or not."""
    value = problems.document.value
    return isinstance(value, Mapping) and value.get("keep") is not None


def _check_keep(keep: KeepSection, sections: Sections, problems: Problems) -> None:
    if message := _metric_mistake(keep.metric, keep.type):
        problems.at_value(("keep", "metric"), message)
    if isinstance(sections.task, TableTask):
        problems.at_key(("keep",), "is not used by a task of type table, which trains nothing; remove it")
    if sections.run is not None and sections.run.shards > 1:
        problems.at_key(("keep",), f"is not known with shards: {sections.run.shards}; remove it")


def _check_shards(run: RunSection, sections: Sections, problems: Problems) -> None:
    """Trials that several processes hold together know less than others."""
    what = f"with shards: {run.shards}"
    if not EXECUTORS[run.executor].shards:
        able = " or ".join(name for name, entry in EXECUTORS.usable().items() if entry.shards)
        problems.at_value(("run", "executor"), f"{run.executor!r} is one process; {what} it must be {able}")
    if run.slots is not None and run.slots > 1:
        problems.at_value(("run", "slots"), f"{run.slots} trials cannot be packed {what}; leave it out or write 1")
    if run.precision == "bf16h":
        problems.at_value(("run", "precision"), f"'bf16h' is for packed trials, which are not known {what}; use bf16")
    if sections.model is not None and sections.model.quantization == "int8":
        problems.at_value(("model", "quantization"), f"'int8' is not known {what}; use nf4 or fp4")
    task = sections.task
    if isinstance(task, TableTask):
        problems.at_value(("run", "shards"), "a task of type table trains nothing; remove it")
    elif isinstance(task, TaskSection):
        for place, given in _named_metrics(task):
            if not isinstance(given, str):
                name = metric_name(given)
                problems.at_value(place, f"{name!r} is a metric of your own, which is not known {what}; use loss")


def _check_two_objectives(search: SearchSection, problems: Problems, *, is_table: bool) -> None:
    if search.pruner.name != "none":
        message = f"{search.pruner.name!r} judges by one objective; with also_minimize leave it out or write none"
        problems.at_value(("search", "pruner"), message)
    name = search.sampler.name
    if SAMPLERS[name].objectives < 2:
        message = f"{name!r} knows one objective only; with also_minimize use {', '.join(for_objectives(2))}"
        problems.at_value(("search", "sampler"), message)
    if is_table:
        problems.at_value(("search", "also_minimize"), "a table of curves tells neither parameters nor time")


def _check_checkpoint(search: SearchSection, problems: Problems, *, is_table: bool) -> None:
    if search.checkpoint == "last":
        if search.early_stopping:
            message = "a trial that ended itself would be worth its last, bad value; add checkpoint: best"
            problems.at_value(("search", "early_stopping"), message)
    elif search.also_minimize is not None:
        message = f"of two objectives (also_minimize: {search.also_minimize}) no checkpoint is the best; write last"
        problems.at_value(("search", "checkpoint"), message)
    elif is_table:
        problems.at_value(("search", "checkpoint"), "a table of curves has no checkpoints; remove it")


def missing_package(sampler: str, is_installed: Callable[[str], bool]) -> str:
    """The problem with a sampler whose packages are not all installed, or ''."""
    entry = SAMPLERS[sampler]
    missing = entry.missing(is_installed)
    return f"{sampler!r} needs the package {' and '.join(missing)}; pip install '{entry.extra}'" if missing else ""


def pattern_mistake(pattern: str) -> str:
    """What is wrong with a target pattern, or ''. Refuses those whose matching could take very long.

    No quantified group and few unbounded repeats: matching a path of n characters takes at most about n ** MAX_REPEATS.
    """
    if len(pattern) > MAX_PATTERN_LENGTH:
        return f"{shown(pattern)} is {len(pattern)} characters long; at most {MAX_PATTERN_LENGTH} are allowed"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # FutureWarning for sets such as '[[a]'
            re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        return f"{shown(pattern)} is not a regular expression: {' '.join(str(error).split())}"
    bare = re.sub(r"\[\^?\]?[^\]]*\]", "x", re.sub(r"\\[^1-9]", "x", pattern))
    if re.search(r"\)[*+{]|\(\?(?!:)|\\[1-9]", bare):
        return f"{shown(pattern)} repeats a group, looks around or refers back; write alternatives such as (q|v)_proj"
    if len(re.findall(r"[*+]|\{", bare)) > MAX_REPEATS:
        return f"{shown(pattern)} has more than {MAX_REPEATS} repeats (*, +, {{n}}); split it into several patterns"
    return ""


def url_mistake(url: str) -> str:
    """What is wrong with a database URL in a file, or ''. Never quotes a password."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return "is not a database URL, such as sqlite:///automl.db"
    if holds_password(url):
        return "holds a password; leave url out and put the whole URL into the environment variable AUTOML_DB_URL"
    if "://" not in url or parts.scheme not in _SCHEMES:
        scheme = parts.scheme if "://" in url else url
        return f"{shown(scheme)} is not known; {nearest(scheme, _SCHEMES)}, as in sqlite:///automl.db"
    return ""


def holds_password(url: str) -> bool:
    """Whether a database URL has a password in it: before the host, or among its options."""
    scheme, _, rest = url.partition("://")
    place, _, options = rest.partition("?")
    named = any(key.strip().lower() in _SECRET_KEYS for key, _ in parse_qsl(options, keep_blank_values=True))
    return named or (not scheme.startswith("sqlite") and ":" in place.rpartition("@")[0])


def place_mistake(url: str) -> str:
    """What is wrong with a URL for artifacts, or ''. Never quotes credentials."""
    if set(url) & set("@?#"):
        return "may hold a bucket and a prefix, no credentials and no options; those are found in the environment"
    scheme, _, rest = url.partition("://")
    if not rest:
        return f"{shown(url)} is not a URL, such as s3://bucket/prefix or file:///folder"
    if scheme not in _PLACES:
        return f"{shown(scheme)} is not known; {nearest(scheme, _PLACES)}, as in s3://bucket/prefix"
    if scheme == "file" and not rest.startswith("/"):
        return "is not absolute; write file:///folder"
    return ""


def _named_metrics(task: TaskSection) -> list[tuple[KeyPath, str | OwnMetricSection]]:
    """Every metric that the section names, and where."""
    named: list[tuple[KeyPath, str | OwnMetricSection | None]] = [(("task", "metric"), task.metric)]
    named += [(("task", "metrics", place), given) for place, given in enumerate(task.metrics)]
    return [(place, given) for place, given in named if given is not None]


def _check_metrics(task: TaskSection, problems: Problems) -> None:
    for place, given in _named_metrics(task):
        message = _metric_mistake(given, task.type) if isinstance(given, str) else _own_mistake(given, task.type)
        if message:
            problems.at_value(place, message)
    names = [metric_name(given) for given in task.metrics]
    for number, name in enumerate(names):
        if name in names[:number]:
            problems.at_value(("task", "metrics", number), f"{name!r} is in the list already; remove it")


def _own_mistake(metric: OwnMetricSection, task: str) -> str:
    """What is wrong with a metric of the user's own in a task of this type, or ''."""
    if metric.lm_eval is not None:
        is_able = task in ("completion", "instruction")
        return "" if is_able else f"lm-eval judges models of completion, instruction tasks, not of a {task} task"
    writers = ["completion", "instruction", "seq2seq"]
    able = writers if metric.command else ["classification", *writers]
    what = "a command" if metric.command else "a function"
    return "" if task in able else f"{what} judges answers of {', '.join(able)} tasks, not of a {task} task"


def _metric_mistake(metric: str, task: str) -> str:
    """What is wrong with the name of a metric of a task of this type, or ''."""
    if is_own(metric):
        ways = "{python: …}, {command: […]} or {lm_eval: …}"
        return f"{metric!r} is how one of your own is called; write what it is: {ways}"
    if metric in METRICS and fits(metric, task):
        missing = METRICS[metric].missing(lambda package: find_spec(package) is not None)
        return f"{metric!r} {missing}" if missing else ""
    fitting = [name for name in METRICS.usable() if fits(name, task)]
    if metric not in METRICS:
        return unknown("metric", metric, fitting)
    return f"{metric!r} does not fit a {task} task; {nearest(metric, fitting)}"


def _check_margin(margin: float, task: TaskSection, problems: Problems) -> None:
    metric = metric_name(task.metric or task.default_metric)
    if metric in METRICS and (mistake := margin_mistake(margin, metric)):
        problems.at_value(("verify", "margin"), mistake)


def _check_table(task: TableTask, problems: Problems) -> None:
    """A table brings its own space and needs nothing to train with."""
    for name in ("model", "space", "fixed", "targets", "enqueue", "constraints"):
        if problems.is_given((name,)):
            problems.at_key((name,), "is not used by a task of type table, whose columns are searched; remove it")
    if problems.is_given(("search", "budget")):
        problems.at_key(("search", "budget"), "is not used by a task of type table, which trains nothing; remove it")
    if task.metric is not None and (task.metric not in METRICS or is_own(task.metric)):
        problems.at_value(("task", "metric"), unknown("metric", task.metric, METRICS))


def _check_names(sections: Sections, problems: Problems) -> None:
    in_space, in_fixed = sections.names["space"], sections.names["fixed"]
    for name in in_space:
        if name in in_fixed:
            problems.at_key(("fixed", name), "is in space: as well; remove one of the two")
    given = dict.fromkeys(in_space, "space") | dict.fromkeys(in_fixed, "fixed")
    if "alpha" in given and "alpha_ratio" in given:
        problems.at_key((given["alpha_ratio"], "alpha_ratio"), "excludes alpha; keep one of the two")
    automatic = auto_names(sections.known)
    for name in sections.auto:
        if hyper.plain(name) not in automatic:
            problems.at_value(
                ("space", name), f"{name} has no automatic range; auto is known for {', '.join(automatic)}"
            )
    if hyper.RATE in in_space and not sections.known.without_own_rates(in_space):
        problems.at_key(("space", hyper.RATE), "is of no method: each has its own; remove it")
    for name, section in given.items():
        if name in hyper.NAMES and not sections.known.methods_with(name):
            methods = " or ".join(sections.known.methods)
            problems.at_key((section, name), f"is not used by method {methods}; remove it")
        elif idle := sections.known.idle(name):
            problems.at_key((section, name), f"is not used by {idle}; remove it")


def _check_targets(sections: Sections, space: SearchSpace, problems: Problems) -> None:
    known = [*TARGET_SETS, *(sections.targets or {})]
    for parameter in space.parameters:
        if parameter.name == "target" and isinstance(parameter, CategoricalParameter):
            for index, choice in enumerate(parameter.choices):
                _check_target(choice, known, ("space", "target", "choices", index), problems)
    if "target" in space.fixed:
        _check_target(space.fixed["target"], known, ("fixed", "target"), problems)
    for index, entry in sections.enqueue.items():
        if "target" in entry and "target" in space.auto:
            _check_target(entry["target"], known, ("enqueue", index, "target"), problems)


def _check_methods(sections: Sections, space: SearchSpace, problems: Problems) -> None:
    """Methods and settings that exclude each other, a quantised model, a precision, or several processes per trial."""
    settled = without_auto(space)
    for name, message in objections(settled):
        problems.at_value(("fixed" if name in space.fixed else "space", name), message)
    names: KeyPath = ("space",) if sections.ranges.get("method") else ("fixed",)
    if sections.model is not None and sections.model.quantization is not None:
        for name, message in not_quantizable(space):
            place = "fixed" if name in space.fixed else "space"
            problems.at_value((place, name), f"{message}{'; remove one of them' * (name == 'method')}")
    if sections.run is not None and sections.run.precision in ("bf16", "bf16h"):
        for method in (name for name in sections.known.methods if not METHODS[name].halvable):
            message = f"{sections.run.precision!r} leaves no whole weights for method {method} to train; use fp32"
            problems.at_value(("run", "precision"), message)
    if sections.run is None or sections.run.shards == 1:
        return
    shards = f"is not known with shards: {sections.run.shards}"
    if sections.task is not None and not sections.task.shardable:
        problems.at_value(("task", "type"), f"{sections.task.type!r} {shards}")
    for method in (undivided := [name for name in sections.known.methods if not METHODS[name].shardable]):
        problems.at_value((*names, "method"), f"{method!r} {shards}; use lora")
    if any(choices(settled, "neftune_alpha")):
        place = "fixed" if "neftune_alpha" in space.fixed else "space"
        problems.at_value((place, "neftune_alpha"), shards)
    told = {setting.name for method in undivided for setting in METHODS[method].settings}
    for name, setting in sections.known.own.items():
        if name not in told and (given := setting.undivided(setting_values(settled, setting))):
            problems.at_value(("fixed" if name in space.fixed else "space", name), f"{shown(given[0])} {shards}")


def _check_target(target: Scalar, known: list[str], path: KeyPath, problems: Problems) -> None:
    if target not in known:
        problems.at_value(path, f"{unknown('target set', str(target), known)}; add it under targets:")


def _entry(index: int, values: Mapping[str, Scalar], space: SearchSpace, problems: Problems) -> Mapping[str, Scalar]:
    """One enqueued configuration, checked to lie in the space."""
    parameters = {parameter.name: parameter for parameter in space.parameters}
    routed = with_own_rates(values, {*parameters, *space.auto})
    for name, value in routed.items():
        path: KeyPath = ("enqueue", index, hyper.plain(name))
        if name in space.auto:
            continue
        if name in space.fixed:
            problems.at_key(path, f"is fixed at {shown(space.fixed[name])}; remove it here")
        elif name in parameters:
            _check_enqueued(parameters[name], value, values, path, problems)
        elif name == hyper.RATE and any(name == hyper.plain(each) for each in (*parameters, *space.auto)):
            problems.at_key(path, "differs by method here; say the method beside it")
        elif not problems.is_given(("space", name)):
            problems.at_key(path, f"is not in space:; {nearest(name, [*parameters, *space.auto])}")
    if not values:
        problems.at_value(("enqueue", index), "is empty; give at least one parameter")
    return routed


def _check_enqueued(
    parameter: Parameter, value: Scalar, values: Mapping[str, Scalar], path: KeyPath, problems: Problems
) -> None:
    when = parameter.when
    if not contains(parameter, value):
        problems.at_value(path, f"{shown(value)} is outside the space; {parameter.name} {described(parameter)}")
    elif when and when.parameter in values and values[when.parameter] not in when.values:
        active = " or ".join(shown(item) for item in when.values)
        problems.at_key(path, f"is active only when {when.parameter} is {active}; remove it here")


def _constraints(texts: list[str], space: SearchSpace, of: Values, problems: Problems) -> Iterator[Constraint]:
    """The constraints that can be read; reports those, and their conjunction, that no configuration satisfies.

    of: the values of each parameter that the sampler chooses from.
    """
    sound: list[Constraint] = []
    kinds = names_of(space).kinds | ({FORGETTING: _NUMBER} if _is_kept(problems) else {})
    for index, text in enumerate(texts):
        path: KeyPath = ("constraints", index)
        try:
            constraint = parse_constraint(text)
        except ValueError as error:
            problems.at_value(path, str(error))
            continue
        if FORGETTING in constraint.names and not _is_kept(problems):
            problems.at_value(path, _NO_KEEP)
            continue
        strange = sorted(constraint.names - kinds.keys())
        if strange:
            problems.at_value(path, unknown("name", strange[0], kinds))
            continue
        try:
            constraint.check_kinds(kinds)
        except ValueError as error:
            problems.at_value(path, str(error))
            continue
        if FORGETTING in constraint.names:
            yield constraint
            continue
        if is_hopeless([constraint], space, of):
            problems.at_value(path, f"{text!r} is never satisfied, whatever is sampled")
        else:
            sound.append(constraint)
        yield constraint
    if len(sound) > 1 and is_hopeless(sound, space, of):
        problems.at_value(("constraints",), "no configuration of the space satisfies all of them")


def _check_grid(space: SearchSpace, problems: Problems) -> None:
    hint = "which the sampler grid cannot enumerate; use a step, choices, or another sampler"
    if "learning_rate" in space.auto:
        place: KeyPath = ("space", "learning_rate")
        problems.at_value(place if problems.is_given(place) else ("search", "sampler"), f"auto is a range, {hint}")
    for parameter in space.parameters:
        if isinstance(parameter, FloatParameter) and parameter.step is None:
            problems.at_value(("space", parameter.name), f"is a continuous range, {hint}")
    count = count_configurations(without_auto(space), grid_values)
    if count is not None and count > MOST_CONFIGURATIONS:
        message = f"grid has {count:,} configurations, more than {MOST_CONFIGURATIONS:,}; use fewer values, or another"
        problems.at_value(("search", "sampler"), f"{message} sampler")


def without_auto(space: SearchSpace) -> SearchSpace:
    """The space with automatic ranges; how many values they have does not depend on the model's size."""
    automatic = auto_names(names_of(space))
    known = tuple(name for name in space.auto if name in automatic)
    return resolve(replace(space, auto=known), model_parameters=0, steps=1)
