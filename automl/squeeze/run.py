"""From a finished trial, or an adapter made elsewhere, to the curve of its sizes and a smaller adapter on disk."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from automl import durable, progress
from automl.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    InterruptedSearch,
    ModelError,
    Problem,
    StorageError,
    StudyBusyError,
)
from automl.execution.stop import StopRequest
from automl.metric import METRICS, practical_margin
from automl.models.backbone import resolve_model
from automl.results.artifacts import adapter_of, complete_trial
from automl.results.folders import cache_folder
from automl.results.recorded import GROUND
from automl.setup.setup import Setup, for_one_trial, set_up
from automl.setup.starter import starting_space
from automl.space.load import parse_space
from automl.space.spec import ModelSettings, SweepSpec
from automl.squeeze.curve import Cut, Wanted, knee, measured, planned
from automl.storage.lease import held
from automl.storage.sql import Database
from automl.storage.squeezes import ModuleRow, SqueezeRow, store_squeeze
from automl.study.retention import ADAPTER
from automl.tasks.batches import some_of
from automl.training.cut import TurnedAdapter, check_cuttable, cut_hyperparameters, read_config
from automl.training.runtime import HostSettings, Runtime, load_runtime

ROWS = 256
"""Training rows on which is seen what the modules' inputs are."""

CAUTION = (
    "a cut shows what this adapter can do without; one trained at the small rank, with a learning rate of its own, may"
    " be better still"
)

logger = logging.getLogger(__name__)

_UNNAMED = "LABEL_"


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Squeezed:
    """What was found of an adapter's sizes.

    source: the trial or folder. rows: of validation that were measured on; seen: training rows by which directions were
    ranked, 0 if by their energy alone. whole, knee, chosen: cuts; chosen is the size asked for, or else the knee. cuts:
    all of them. modules: all of the adapter's. ranks: of the chosen cut, by module, those above 0. output: folder of
    the chosen one, None if it was not written. notes: what a person should know.
    """

    source: str
    metric: str
    margin: float
    rows: int
    seen: int
    cuts: tuple[Cut, ...]
    whole: Cut
    knee: Cut
    chosen: Cut
    modules: tuple[ModuleRow, ...]
    ranks: Mapping[str, int]
    seconds: float
    output: str | None
    base: str
    notes: tuple[str, ...]
    caution: str = CAUTION

    def __repr__(self) -> str:
        return f"<automl squeezed: {self.source}, {self.headline()}>"

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        plain = {name: getattr(self, name) for name in ("source", "metric", "margin", "rows", "seen", "output", "base")}
        parts = {name: getattr(self, name).as_dict() for name in ("whole", "knee", "chosen")}
        curve = [cut.as_dict() for cut in self.cuts]
        return {**plain, **parts, "ranks": dict(self.ranks), "curve": curve, "notes": self.notes, "caution": CAUTION}

    def as_row(self, trial: int, adapter_sha256: str) -> SqueezeRow:
        """As it is stored. Sizes at which a metric is no number are left out."""
        even_one = sum(module.cost for module in self.modules if module.rank)
        return SqueezeRow(
            trial=trial,
            adapter_sha256=adapter_sha256,
            metric=self.metric,
            margin=self.margin,
            rows=self.rows,
            seen=self.seen,
            knee=self.knee.parameters,
            recovery_steps=0,
            seconds=self.seconds,
            cuts=tuple(cut.as_row(self.metric, even_one=even_one) for cut in self.cuts if cut.is_finite),
            modules=self.modules,
        )

    def headline(self) -> str:
        """What may be believed, in a sentence."""
        whole, found, name = self.whole, self.knee, self.metric
        if found.parameters == whole.parameters:
            return f"no smaller size is as good: {whole.parameters:,} parameters, {name} {whole.metrics[name]:.4f}"
        return (
            f"knee: {found.parameters:,} of {whole.parameters:,} parameters ({found.share:.1%}), {name}"
            f" {found.metrics[name]:.4f} against {whole.metrics[name]:.4f} of the whole adapter; not worse by more than"
            f" {self.margin:.3g} on {self.rows:,} validation rows"
        )


def squeeze_trial(
    database: Database, spec: SweepSpec, trial: int | None, wanted: Wanted, output: Path | None, *, stop: StopRequest
) -> Squeezed:
    """Squeeze the adapter of a complete trial (None: the best), on the validation rows of its search, and record it.

    Raises SearchError if there is no such trial, ConfigError for a size it cannot be cut to, InterruptedSearch.
    """
    _check_request(wanted, output)
    row = complete_trial(database, spec, trial)
    with adapter_of(database, spec, row) as folder:
        recorded = database.store(spec.study).last_event(GROUND)
        setup = set_up(for_one_trial(spec), cache_folder(), recorded, is_thorough=False)
        found = _squeeze(folder, setup, wanted, output, stop, source=f"trial {row.number} of {spec.study}")
    _record(database, spec.study, row.number, found)
    return found


def squeeze_folder(
    folder: Path, model: str, data: str, task: str | None, wanted: Wanted, output: Path | None, *, stop: StopRequest
) -> Squeezed:
    """Squeeze an adapter that plain PEFT has saved, with a model and data as `automl init` takes them.

    task: its type; None reads it off the data. Raises ModelError if it is of another model or cannot be cut, DataError
    for the data, ConfigError for a size it cannot be cut to, InterruptedSearch.
    """
    _check_request(wanted, output)
    read_config(folder)
    text = starting_space(model, data, task_type=task, study="squeeze")
    setup = set_up(for_one_trial(parse_space(text, "command line", Path.cwd())), cache_folder(), is_thorough=False)
    return _squeeze(folder, setup, wanted, output, stop, source=str(folder))


def _record(database: Database, study: str, trial: int, found: Squeezed) -> None:
    """Store what was found, unless somebody drives the study meanwhile or the database cannot be written."""
    kept = database.store(study).artifacts(include_deleted=True)
    digest = next((each.sha256 for each in kept if (each.trial, each.kind) == (trial, ADAPTER)), "")
    try:
        with held(database, study) as guard:
            store_squeeze(database, study, found.as_row(trial, digest), guard=guard)
    except (StudyBusyError, StorageError) as error:
        logger.warning("what was found is not recorded with the study: %s", error)


def _check_request(wanted: Wanted, output: Path | None) -> None:
    wanted.check()
    if output is not None and output.exists():
        raise ConfigError([Problem(str(output), 0, 0, "--output", "exists already; choose a new folder")])


def _squeeze(
    folder: Path, setup: Setup, wanted: Wanted, output: Path | None, stop: StopRequest, *, source: str
) -> Squeezed:
    began = time.monotonic()
    settings = setup.worker_settings()
    about = _about(folder, settings)
    check_cuttable(folder, setup.inputs.model)
    with progress.telling(lambda: "looking at the adapter's directions"):
        runtime = load_runtime(settings)
        rows = some_of(runtime.train_rows, ROWS)
        adapter = TurnedAdapter(folder, runtime, rows)
    budget = wanted.parameters(adapter)
    cuts = tuple(_curve(adapter, runtime, budget, stop))
    metric = settings.task.metric
    whole, found = cuts[0], knee(cuts, metric)
    chosen = cuts[-1] if budget is not None else found
    ranks = {path: rank for path, rank in zip(adapter.paths, chosen.ranks, strict=True) if rank}
    if output is not None:
        adapter.write(chosen.ranks, output, _described(about, folder, ranks, chosen, adapter, metric))
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
        seconds=time.monotonic() - began,
        output=None if output is None else str(output),
        base=settings.backbone.path,
        notes=tuple(_notes(whole, settings)),
    )


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
        if stop.reason:
            raise InterruptedSearch(f"stopped ({stop.reason}); nothing was written, the same command starts again")
        with progress.telling(lambda number=number: f"measuring size {number} of {len(plan)}"):  # type: ignore[misc]
            yield measured(adapter, runtime, kind, ranks)


def _about(folder: Path, settings: HostSettings) -> dict[str, Any]:
    """What the manifest says of an adapter of ours; of another, what is known, if it may be of this model."""
    backbone, labels = settings.backbone, settings.prepared.labels
    if (folder / durable.MANIFEST).is_file():
        about = durable.verify_folder(folder)
        if about.get("kind") != "adapter":
            raise CheckpointError(f"{folder}: holds {about.get('kind', 'something else')}, not adapter")
        trained, names = about["backbone"]["fingerprint"], tuple(about["labels"])
        if trained != backbone.fingerprint:
            raise ModelError(f"{folder}: was trained on model {trained[:12]}, not on {backbone.fingerprint[:12]}")
    else:
        about, names = _about_stranger(folder, settings), _class_names(folder)
    if labels and names and names != labels:
        raise DataError(f"{folder}: its classes are {', '.join(names)}; those of the data are {', '.join(labels)}")
    return about


def _about_stranger(folder: Path, settings: HostSettings) -> dict[str, Any]:
    backbone = settings.backbone
    base = Path(str(read_config(folder).get("base_model_name_or_path") or ""))
    if (base / "config.json").is_file():
        other = resolve_model(ModelSettings(kind="folder", location=str(base)), cache_folder())
        if other.fingerprint != backbone.fingerprint:
            raise ModelError(f"{folder}: was trained on {base}, which is not the model in {backbone.path}")
    return {
        "kind": "adapter",
        "trial": None,
        "step": None,
        "hyperparameters": {},
        "backbone": {"fingerprint": backbone.fingerprint, "architecture": backbone.architecture, "path": backbone.path},
        "data": {"fingerprint": settings.prepared.fingerprint},
        "precision": settings.precision,
        "labels": list(settings.prepared.labels),
    }


def _class_names(folder: Path) -> tuple[str, ...]:
    """Names of the classes in the order of their ids, if a model's configuration that names them lies beside it."""
    try:
        named = json.loads((folder / "config.json").read_text(encoding="utf-8"))["id2label"]
        names = tuple(str(named[key]) for key in sorted(named, key=int))
    except (OSError, ValueError, KeyError, TypeError):
        return ()
    return () if all(name.startswith(_UNNAMED) for name in names) else names


def _described(
    about: Mapping[str, Any], folder: Path, ranks: Mapping[str, int], cut: Cut, adapter: TurnedAdapter, metric: str
) -> dict[str, Any]:
    """The manifest's words on the cut adapter."""
    hyper = cut_hyperparameters(read_config(folder), ranks)
    names = ("method", "rank", "alpha", "use_rslora", "rank_pattern")
    changed = {name: value for name, value in asdict(hyper).items() if name in names}
    return {
        **about,
        "metric": {"name": metric, "value": cut.metrics[metric]},
        "metrics": dict(cut.metrics),
        "hyperparameters": {**about["hyperparameters"], **changed},
        "squeezed": {"parameters": cut.parameters, "of": adapter.parameters, "kept": cut.kept},
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
