"""From a finished trial to something a person can use: a PEFT folder or a merged model, proved to be the same."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from automl import durable
from automl.errors import CheckpointError, ConfigError, Problem
from automl.head import HEADS, kind_of
from automl.metric import is_own
from automl.report.recipe import recipe
from automl.results.artifacts import adapter_of, complete_trial
from automl.results.folders import cache_folder
from automl.results.recorded import GROUND
from automl.space.spec import SweepSpec
from automl.storage.sql import Database
from automl.storage.trials import TrialRow
from automl.trial import Metrics

if TYPE_CHECKING:  # a copy loads neither torch nor the model
    from automl.training.reload import Reloaded
    from automl.training.runtime import HostSettings

_SAME = 1e-6
_SAME_HELD = 1e-5  # of a quantised backbone, whose products are made in other ways packed and by bitsandbytes
_SAME_MERGED = 1e-4
_SAME_BF16H = 2e-2  # the adapter is measured with plain PEFT in fp32; see docs/adr/0007-packed-training.md


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """What was written, and the metric it was recorded and (if checked) measured with. lines: Python that loads it.

    unquantised: the metric of an adapter of a quantised backbone on the backbone as it is stored. merging: what merging
    into a quantised one has added to the loss.
    """

    trial: int
    folder: str
    merged: bool
    metric: str
    recorded: float
    measured: float | None
    base: str
    lines: tuple[str, ...]
    unquantised: float | None = None
    merging: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    def how_to_load(self) -> Iterator[str]:
        """A few lines of Python that load it: those by which it was loaded when it was checked."""
        yield "load it with:"
        yield from (f"  {line}".rstrip() for line in self.lines)


def export_trial(
    database: Database, spec: SweepSpec, output: Path, trial: int | None, *, merged: bool, check: bool
) -> Exported:
    """Copy (or merge) a complete trial's adapter to `output` and, if asked, measure it again on validation rows.

    It is measured in a fresh process that loads it as the user is told to; what does not pass is not left behind. An
    adapter that is not on this machine is fetched from where the study stores its artifacts. Raises SearchError if
    there is no such trial or its adapter is not to be found; CheckpointError if its files are damaged or do not
    reproduce the recorded metric (1e-6 relative; 1e-5 on a quantised backbone; 1e-4 for a merged model). Merging into a
    quantised backbone rounds: how much is measured, whatever it is.
    """
    if output.exists():
        raise ConfigError([Problem(str(output), 0, 0, "--output", "exists already; choose a new folder")])
    row = complete_trial(database, spec, trial)
    with adapter_of(database, spec, row) as adapter:
        return _export(database, spec, row, adapter, output, merged=merged, check=check)


def load_trial(database: Database, spec: SweepSpec, trial: int | None) -> tuple[Any, Any]:
    """The model of a complete trial (None: the best) with its adapter, and its tokenizer, as `load_adapter` gives them.

    Raises SearchError if there is no such trial or its adapter is not to be found, CheckpointError if it is damaged.
    """
    from automl.training.beginning import resolve_start
    from automl.training.export import load_adapter

    row = complete_trial(database, spec, trial)
    with adapter_of(database, spec, row) as adapter:
        return load_adapter(adapter, resolve_start(spec.model, cache_folder()))


def load_trials(database: Database, spec: SweepSpec, adapters: Iterable[int | str | Path]) -> tuple[Any, Any]:
    """One model with the adapters of complete trials, and of folders, by name: `trial-3`, or the folder's own.

    Raises ConfigError for names, ModelError if they do not go together, SearchError and CheckpointError as
    `load_trial` does.
    """
    from automl.training.beginning import resolve_start
    from automl.training.export import load_adapters

    named = {}
    for each in adapters:
        name = f"trial-{each}" if isinstance(each, int) else Path(each).name
        if name in named:
            raise ConfigError([Problem("", 0, 0, "adapters", f"{name!r} is there twice; names must differ")])
        named[name] = each
    if not named:
        raise ConfigError([Problem("", 0, 0, "adapters", "none is given; numbers of trials, or folders")])
    with ExitStack() as stack:
        folders = {name: _folder_of(database, spec, each, stack) for name, each in named.items()}
        return load_adapters(folders, resolve_start(spec.model, cache_folder()))


def _folder_of(database: Database, spec: SweepSpec, adapter: int | str | Path, stack: ExitStack) -> Path:
    if not isinstance(adapter, int):
        return Path(adapter)
    return stack.enter_context(adapter_of(database, spec, complete_trial(database, spec, adapter)))


def _export(
    database: Database, spec: SweepSpec, row: TrialRow, adapter: Path, output: Path, *, merged: bool, check: bool
) -> Exported:
    about = durable.verify_folder(adapter)
    metric, recorded = spec.task.metric, row.value or 0.0
    if is_own(metric):  # a judge may answer otherwise the second time, and is not needed to compare models
        metric, recorded = "loss", _worth(database, spec, row)["loss"]
        spec = replace(spec, task=replace(spec.task, metric=metric, own_metrics={}))
    exported = Exported(
        trial=row.number,
        folder=str(output),
        merged=merged,
        metric=metric,
        recorded=recorded,
        measured=None,
        base=str(about["backbone"]["path"]),
        lines=(),
    )
    if merged:
        _check_mergeable(adapter, about)
    if not (merged or check):
        shutil.copytree(adapter, output)
        return replace(exported, lines=_lines(output, merged=False, auto=HEADS[kind_of(about)].auto))
    return _set_up_and_export(database, spec, exported, adapter, worth=_worth(database, spec, row) if check else None)


def _worth(database: Database, spec: SweepSpec, row: TrialRow) -> Metrics:
    """All metrics that were measured of the trial's adapter: at its best checkpoint, if that is what it is worth."""
    if row.checkpoint is not None:
        return row.checkpoint.metrics
    return database.store(spec.study).measurements(row.number)[-1].metrics


def _check_mergeable(adapter: Path, about: dict[str, Any]) -> None:
    """Before the model is loaded. Raises ModelError."""
    from automl.training.export import check_mergeable

    check_mergeable(adapter, about)


def _set_up_and_export(
    database: Database, spec: SweepSpec, exported: Exported, adapter: Path, *, worth: Metrics | None
) -> Exported:
    """What takes the model: to merge into it, or to measure the adapter on it.

    worth: metrics that it must have; None: it is not measured.
    """
    from automl.setup.setup import for_one_trial, set_up
    from automl.training.export import merge_adapter

    recorded = database.store(spec.study).last_event(GROUND)
    setup = set_up(for_one_trial(spec), cache_folder(), recorded, is_thorough=False)
    settings, output = setup.worker_settings(), Path(exported.folder)
    if exported.merged:
        merge_adapter(adapter, settings, output)
    else:
        shutil.copytree(adapter, output)
    lines = _lines(output, merged=exported.merged, auto=_auto(settings))
    exported = replace(exported, base=settings.backbone.path, lines=lines)
    if worth is None:
        return exported
    if settings.backbone.quantization is not None:
        return _checked_held(exported, adapter, settings, worth)
    (found,) = _checked(exported, [lines], settings, worth)
    return replace(exported, measured=found[exported.metric])


def _checked_held(exported: Exported, adapter: Path, settings: HostSettings, worth: Metrics) -> Exported:
    """Check it on a quantised backbone; measure it also on the model as it is stored, or what merging costs."""
    auto = _auto(settings)
    as_trained = _lines(adapter, merged=False, auto=auto)
    if exported.merged:
        before, after = _checked(replace(exported, merged=False), [as_trained, exported.lines], settings, worth)
        return replace(exported, measured=after[exported.metric], merging=after["loss"] - before["loss"])
    if settings.backbone.is_stored_so:
        (found,) = _checked(exported, [as_trained], settings, worth)
        return replace(exported, measured=found[exported.metric])
    as_stored = _lines(adapter, merged=False, auto=auto, is_held=False)
    found, beside = _checked(exported, [as_trained, as_stored], settings, worth)
    return replace(exported, measured=found[exported.metric], unquantised=beside[exported.metric])


def _lines(output: Path, *, merged: bool, auto: str, is_held: bool = True) -> tuple[str, ...]:
    """Python that loads what is in `output`, and leaves it as `model`. is_held: see `recipe`."""
    if not merged:
        found = recipe(str(output), is_held=is_held)
        if found is None:
            raise CheckpointError(f"{output}: adapter_config.json or manifest.json does not say how to load it")
        return tuple(found.use.splitlines())
    return f"from transformers import {auto}", f"model = {auto}.from_pretrained({str(output)!r})"


def _auto(settings: HostSettings) -> str:
    from automl.tasks import make_task

    return HEADS[make_task(settings.task).head(settings.prepared).kind].auto


def _checked(
    exported: Exported, programs: Sequence[Sequence[str]], settings: HostSettings, worth: Metrics
) -> list[Metrics]:
    """What models measure that are loaded by these lines; what was exported is deleted if the first is another one."""
    from automl.training.reload import measure_afresh

    try:
        found = measure_afresh(programs, settings)
        _compare(exported, settings, found[0], worth)
    except BaseException:
        shutil.rmtree(exported.folder)  # otherwise the same command would find it there
        raise
    return [each.metrics for each in found]


def _compare(exported: Exported, settings: HostSettings, found: Reloaded, recorded: Metrics) -> None:
    if found.labels != settings.prepared.labels:
        raise CheckpointError(f"{exported.folder}: names the classes {found.labels}, not {settings.prepared.labels}")
    if settings.precision == "bf16h":  # in another precision a text or two may change sides
        _same("loss", found.metrics["loss"], recorded["loss"], _SAME_BF16H)
        return
    same = _SAME if settings.backbone.quantization is None else _SAME_HELD
    for name in (exported.metric, "loss"):  # an accuracy alone is too coarse to tell
        _same(name, found.metrics[name], recorded[name], _SAME_MERGED if exported.merged else same)


def _same(name: str, measured: float, recorded: float, tolerance: float) -> None:
    if not math.isclose(measured, recorded, rel_tol=tolerance, abs_tol=tolerance):
        raise CheckpointError(
            f"the exported model measures {name} {measured:.8f}, the database says {recorded:.8f};"
            " it was trained on another device or with other library versions (--no-check exports it all the same)"
        )
