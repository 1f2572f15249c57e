"""From a finished trial, or an adapter made elsewhere, to the curve of its sizes and a smaller adapter on disk."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from automl import progress
from automl.errors import ConfigError, InterruptedSearch, Problem, StorageError, StudyBusyError
from automl.execution.stop import StopRequest
from automl.metric import METRICS, practical_margin
from automl.results.artifacts import adapter_digest, adapter_of, complete_trial
from automl.results.folders import cache_folder
from automl.results.recorded import GROUND
from automl.setup.setup import for_one_trial, set_up
from automl.setup.starter import starting_space
from automl.space.load import parse_space
from automl.space.spec import SweepSpec
from automl.squeeze.curve import Cut, Wanted, descending, is_not_worse, knee, measured, planned
from automl.squeeze.found import Squeezed
from automl.squeeze.origin import about_adapter
from automl.squeeze.recover import check_steps, recover_cuts
from automl.squeeze.trainings import Ground
from automl.storage.lease import held
from automl.storage.sql import Database
from automl.storage.squeezes import ModuleRow, store_squeeze
from automl.tasks.batches import some_of
from automl.tasks.reference import untouched
from automl.training.cut import TurnedAdapter, check_cuttable, cut_hyperparameters, read_config
from automl.training.runtime import HostSettings, Runtime, load_runtime

ROWS = 256
"""Training rows on which is seen what the modules' inputs are."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """How much is measured. seen: training rows by which directions are ranked. rows: of validation, None = as in the
    search. is_brief: the knee is looked for by bisection over global cuts. recovery_steps: for which each of these is
    trained afterwards, slots of them at once; None = as many as there is room for."""

    seen: int = ROWS
    rows: int | None = None
    is_brief: bool = False
    recovery_steps: int = 0
    slots: int | None = None


def squeeze_trial(
    database: Database,
    spec: SweepSpec,
    trial: int | None,
    wanted: Wanted,
    output: Path | None,
    *,
    recover: int | None = None,
    stop: StopRequest,
) -> Squeezed:
    """Squeeze the adapter of a complete trial (None: the best), on the validation rows of its search, and record it.

    recover: steps for which every global cut is trained afterwards. Raises SearchError if there is no such trial,
    ConfigError for a size it cannot be cut to, InterruptedSearch.
    """
    effort = replace(_effort(wanted, output, recover), slots=spec.run.slots)
    row = complete_trial(database, spec, trial)
    with adapter_of(database, spec, row) as folder:
        recorded = database.store(spec.study).last_event(GROUND)
        setup = set_up(for_one_trial(spec), cache_folder(), recorded, is_thorough=False)
        settings, model = setup.worker_settings(), setup.inputs.model
        source = f"trial {row.number} of {spec.study}"
        found = squeeze_adapter(folder, settings, model, wanted, output, stop, source=source, effort=effort)
    _record(database, spec.study, row.number, found)
    return found


def squeeze_folder(
    folder: Path,
    model: str,
    data: str,
    task: str | None,
    wanted: Wanted,
    output: Path | None,
    *,
    recover: int | None = None,
    stop: StopRequest,
) -> Squeezed:
    """Squeeze an adapter that plain PEFT has saved, with a model and data as `automl init` takes them.

    task: its type; None reads it off the data. Raises ModelError if it is of another model or cannot be cut, DataError
    for the data, ConfigError for a size it cannot be cut to, InterruptedSearch.
    """
    effort = _effort(wanted, output, recover)
    read_config(folder)
    start = starting_space(model, data, task_type=task, study="squeeze")
    spec = for_one_trial(parse_space(start.text, "command line", Path.cwd()))
    setup = set_up(spec, cache_folder(), is_thorough=False)
    return squeeze_adapter(
        folder, setup.worker_settings(), setup.inputs.model, wanted, output, stop, source=str(folder), effort=effort
    )


def squeeze_adapter(
    folder: Path,
    settings: HostSettings,
    model: nn.Module,
    wanted: Wanted,
    output: Path | None,
    stop: StopRequest,
    *,
    source: str,
    effort: Effort = Effort(),
) -> Squeezed:
    """Squeeze the adapter in `folder` on model and data of `settings`. model: the same, its weights are not needed.

    Raises as `squeeze_folder` does.
    """
    began = time.monotonic()
    about = about_adapter(folder, settings)
    check_cuttable(folder, model)
    with progress.telling(lambda: "looking at the adapter's directions"):
        runtime = load_runtime(settings)
        runtime = replace(runtime, evaluation_rows=some_of(runtime.evaluation_rows, effort.rows))
        rows = some_of(runtime.train_rows, effort.seen)
        plain = untouched(runtime.model) if effort.recovery_steps else runtime.model
        adapter = TurnedAdapter(folder, runtime, rows)
    budget = wanted.parameters(adapter)
    metric = settings.task.metric
    cuts = tuple(_brief(adapter, runtime, metric, stop) if effort.is_brief else _curve(adapter, runtime, budget, stop))
    ground = Ground(settings=settings, plain=plain, source=folder, slots=effort.slots)
    running = partial(_check_running, stop)
    cuts, trained, rate = recover_cuts(adapter, runtime, cuts, about, effort.recovery_steps, running, ground)
    whole, found = cuts[0], knee(cuts, metric)
    chosen = cuts[-1] if budget is not None else found
    ranks = {path: rank for path, rank in zip(adapter.paths, chosen.ranks, strict=True) if rank}
    if output is not None:
        better = trained.get(chosen.ranks) if chosen.is_better_recovered(metric) else None
        adapter.write(chosen.ranks, output, _described(about, folder, ranks, chosen, adapter, metric), better)
    return Squeezed(
        source=source,
        metric=metric,
        margin=practical_margin(metric, whole.metrics[metric]),
        rows=len(runtime.evaluation_rows),
        seen=len(rows),
        cuts=cuts,
        whole=whole,
        knee=found,
        chosen=chosen,
        modules=tuple(_modules(adapter, found)),
        ranks=ranks,
        recovery_steps=effort.recovery_steps,
        recovery_rate=rate,
        seconds=time.monotonic() - began,
        output=None if output is None else str(output),
        base=settings.backbone.path,
        notes=tuple(_notes(whole, settings)),
    )


def _record(database: Database, study: str, trial: int, found: Squeezed) -> None:
    """Store what was found, unless somebody drives the study meanwhile or the database cannot be written."""
    try:
        with held(database, study) as guard:
            row = found.as_row(trial, adapter_digest(database, study, trial))
            store_squeeze(database, study, row, guard=guard)
    except (StudyBusyError, StorageError) as error:
        logger.warning("what was found is not recorded with the study: %s", error)


def _effort(wanted: Wanted, output: Path | None, recover: int | None) -> Effort:
    """What is to be done; raise ConfigError in a line for what cannot be."""
    wanted.check()
    if recover is not None:
        check_steps(recover)
    if output is not None and output.exists():
        raise ConfigError([Problem(str(output), 0, 0, "--output", "exists already; choose a new folder")])
    return Effort(recovery_steps=recover or 0)


def _modules(adapter: TurnedAdapter, knee: Cut) -> Iterator[ModuleRow]:
    parts = zip(adapter.paths, adapter.shapes, adapter.strengths, knee.ranks, strict=True)
    for path, (in_features, out_features), strengths, kept in parts:
        yield ModuleRow(
            module=path,
            in_features=in_features,
            out_features=out_features,
            rank=len(strengths),
            knee_rank=kept,
            strengths=strengths,
        )


def _curve(adapter: TurnedAdapter, runtime: Runtime, budget: int | None, stop: StopRequest) -> Iterator[Cut]:
    plan = planned(adapter, budget)
    for number, (kind, ranks) in enumerate(plan, start=1):
        _check_running(stop)
        with progress.telling(lambda number=number: f"measuring size {number} of {len(plan)}"):  # type: ignore[misc]
            yield measured(adapter, runtime, kind, ranks)


def _brief(adapter: TurnedAdapter, runtime: Runtime, metric: str, stop: StopRequest) -> Iterator[Cut]:
    """The whole, and global cuts by bisection between sizes that are worse and sizes that are not."""
    (kind, ranks), *sizes = descending(adapter)
    whole = measured(adapter, runtime, kind, ranks)
    yield whole
    low, high = 0, len(sizes)  # sizes[:low] are not worse, sizes[high:] are
    while low < high:
        _check_running(stop)
        middle = (low + high) // 2
        cut = measured(adapter, runtime, *sizes[middle])
        yield cut
        if is_not_worse(cut, whole, metric):
            low = middle + 1
        else:
            high = middle


def _check_running(stop: StopRequest) -> None:
    if stop.reason:
        raise InterruptedSearch(f"stopped ({stop.reason}); nothing was written, the same command starts again")


def _described(
    about: Mapping[str, Any], folder: Path, ranks: Mapping[str, int], cut: Cut, adapter: TurnedAdapter, metric: str
) -> dict[str, Any]:
    """The manifest's words on the cut adapter."""
    hyper = cut_hyperparameters(read_config(folder), ranks)
    names = ("method", "rank", "alpha", "use_rslora", "rank_pattern")
    changed = {name: value for name, value in asdict(hyper).items() if name in names}
    recovery = {"recovered": True} if cut.is_better_recovered(metric) else {}
    return {
        **about,
        "metric": {"name": metric, "value": cut.best_metrics(metric)[metric]},
        "metrics": dict(cut.best_metrics(metric)),
        "hyperparameters": {**about["hyperparameters"], **changed},
        "squeezed": {"parameters": cut.parameters, "of": adapter.parameters, "kept": cut.kept, **recovery},
    }


def _notes(whole: Cut, settings: HostSettings) -> Iterator[str]:
    metric = settings.task.metric
    least = settings.prepared.baseline.get(metric)
    if least is not None and METRICS[metric].gain(whole.metrics[metric], over=least) <= 0:
        order = ", ".join(settings.prepared.labels)
        yield (
            f"the whole adapter is no better than the most frequent class ({metric} {least:.4f}); was it trained for"
            f" this data, with its classes in the order {order}?"
        )
