"""What a space file can name beside metrics and methods, one line each. Packages add theirs as entry points.

An entry is light: it says what a space file may hold. What is heavy, Optuna or Ray or torch, is imported when it is
built. Metrics are listed in `automl.metric`, methods in `automl.methods.registry`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from automl.head import Kind
from automl.metric import METRICS
from automl.registry import Registry, instance_of
from automl.space.options import Options, TaskOptions, merged
from automl.space.spec import SearchSettings
from automl.trial import Scalar

EXTRA = "automl-lora[samplers]"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampler:
    """A way to propose configurations.

    options: class of its section.
    build: from a `SamplerContext` (automl.study.sampling) and the options in use to Optuna's `BaseSampler`; ValueError
        and TypeError are said of the options.
    packages: import names of what it needs beyond Optuna.
    extra: what to install to get them.
    proposals: tries it has per trial to satisfy the constraints before configurations are drawn at random.
    from_complete: it learns from COMPLETE trials only, so it is shown unfinished ones as such.
    objectives: most it knows.
    """

    options: type[Options]
    build: Callable[[Any, Mapping[str, Any]], Any]
    packages: tuple[str, ...] = ()
    extra: str = EXTRA
    proposals: int = 20
    from_complete: bool = False
    objectives: int = 2

    def missing(self, is_installed: Callable[[str], bool]) -> list[str]:
        """The packages it needs that are not installed."""
        return [package for package in self.packages if not is_installed(package)]


class Survival(NamedTuple):
    """How many trials are to go on from each rung: the best one in `factor`, at least `least`."""

    rungs: tuple[int, ...]
    factor: float
    least: int

    def of(self, trials: float) -> float:
        """How many of so many go on, on average."""
        return min(trials, max(trials / self.factor, self.least))


def _nothing(settings: SearchSettings) -> Mapping[str, Scalar | None]:
    return {}


def _untold(settings: Any, options: Any) -> None:
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Pruner:
    """A way to pause or stop weak trials. Steps are optimizer steps on the evaluation grid.

    options: class of its section.
    build: from the settings and the options in use to Optuna's `BasePruner`; ValueError and TypeError are said of the
        options.
    by_grid: defaults of options that depend on the settings.
    check: what is wrong with a section where a trial has so many steps, as (option, message).
    first_step: where it may act for the first time, None if steps alone do not tell.
    survival: how many trials it keeps, None if that cannot be said beforehand.
    wrappable: `patient` may ask it.
    """

    options: type[Options]
    build: Callable[[SearchSettings, Mapping[str, Any]], Any]
    by_grid: Callable[[SearchSettings], Mapping[str, Scalar | None]] = _nothing
    check: Callable[[Any, int], tuple[str, str] | None] = _untold
    first_step: Callable[[SearchSettings, Mapping[str, Any]], int | None] = _untold
    survival: Callable[[SearchSettings, Mapping[str, Any]], Survival | None] = _untold
    wrappable: bool = True

    def defaults(self, settings: SearchSettings) -> dict[str, Scalar | None]:
        """Every option with its default on this grid; None: no value unless given."""
        return {**self.options.defaults(), **self.by_grid(settings)}

    def in_use(self, settings: SearchSettings) -> dict[str, Any]:
        """Its options as a search with these settings has them."""
        return merged(self.defaults(settings), settings.pruner_options)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecutorKind:
    """A place where trials run.

    build: from workers, threads, gpus_per_worker, shards, address and folder, by keyword, to an
    `automl.execution.base.Executor`; docs/extending.md says what they are. shards: it can let several processes hold
    one trial together.
    """

    build: Callable[..., Any]
    shards: bool = False


def _task(found: object) -> type[TaskOptions]:
    if isinstance(found, type) and issubclass(found, TaskOptions):
        return found
    raise TypeError(f"{found!r} is not a class derived from automl.space.schema_task.TaskSection")


SAMPLERS: Registry[Sampler] = Registry(
    "sampler",
    {
        "tpe": "automl.study.samplers.tpe:TPE",
        "gp": "automl.study.samplers.gp:GP",
        "cmaes": "automl.study.samplers.cmaes:CMAES",
        "qmc": "automl.study.samplers.qmc:QMC",
        "random": "automl.study.samplers.random:RANDOM",
        "grid": "automl.study.samplers.grid:GRID",
        "nsga2": "automl.study.samplers.nsga2:NSGA2",
    },
    instance_of(Sampler),
)
"""Every sampler `search.sampler` may name."""

PRUNERS: Registry[Pruner] = Registry(
    "pruner",
    {
        "halving": "automl.study.pruners.halving:HALVING",
        "peer": "automl.study.pruners.peer:PEER",
        "median": "automl.study.pruners.percentile:MEDIAN",
        "percentile": "automl.study.pruners.percentile:PERCENTILE",
        "successive-halving": "automl.study.pruners.successive_halving:SUCCESSIVE_HALVING",
        "hyperband": "automl.study.pruners.hyperband:HYPERBAND",
        "patient": "automl.study.pruners.patient:PATIENT",
        "threshold": "automl.study.pruners.threshold:THRESHOLD",
        "none": "automl.study.pruners.nothing:NONE",
    },
    instance_of(Pruner),
)
"""Every pruner `search.pruner` may name."""


TASKS: Registry[type[TaskOptions]] = Registry(
    "task",
    {
        "classification": "automl.space.schema_task:ClassificationTask",
        "completion": "automl.space.schema_task:CompletionTask",
        "instruction": "automl.space.schema_task:InstructionTask",
        "multi_label": "automl.space.schema_judged:MultiLabelTask",
        "token_classification": "automl.space.schema_judged:TokenClassificationTask",
        "regression": "automl.space.schema_judged:RegressionTask",
        "seq2seq": "automl.space.schema_seq2seq:Seq2SeqTask",
        "preference": "automl.space.schema_preference:PreferenceTask",
        "table": "automl.space.schema_task:TableTask",
    },
    _task,
)
"""Every task `task.type` may name, as the class of its section."""

EXECUTORS: Registry[ExecutorKind] = Registry(
    "executor", {"ray": "automl.execution:RAY", "inline": "automl.execution:INLINE"}, instance_of(ExecutorKind)
)
"""Every executor `run.executor` may name."""


def fits(metric: str, task: str) -> bool:
    """Whether a task of this type reports this metric."""
    tasks = METRICS[metric].tasks
    return not tasks or any(is_like(each, task) for each in tasks)


def is_like(known: str, task: str) -> bool:
    """Whether a task of this type is the known one, or says that it is like it."""
    return known in (task, TASKS[task].like)


def head_of(task: str) -> Kind:
    """The kind of head that a task of this type trains, by its section or that of the task that it is like."""
    entry = TASKS[task]
    return (entry if entry.head or not entry.like else TASKS[entry.like]).head or "causal-lm"


def for_objectives(count: int) -> list[str]:
    """Samplers that know so many objectives."""
    return [name for name, entry in SAMPLERS.usable().items() if entry.objectives >= count]
