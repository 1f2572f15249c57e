"""`automl.search`: a search said in Python, run as `automl search` runs a space file."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

from automl.errors import BudgetSpent, InterruptedSearch, TimeIsUp
from automl.execution.stop import StopRequest
from automl.library.document import document_of, mistake, named, read, with_columns
from automl.library.given import holds_rows, is_mixture, keep_model, keep_rows
from automl.library.parameters import Range
from automl.library.progress import watched
from automl.library.status import LineObserver
from automl.library.study import Study
from automl.results.folders import cache_folder
from automl.setup.starter import guess_task, study_name
from automl.space.load import with_overrides
from automl.space.spec import SweepSpec
from automl.sweep.run import run_sweep
from automl.trial import Scalar

logger = logging.getLogger(__name__)

Options = Mapping[str, Any]
_BUDGET = ("trials", "time")


def search(
    model: Any = None,
    data: Any = None,
    *,
    space: Mapping[str, Range | list[Scalar] | Options | Literal["auto"]] | Literal["auto"] | SweepSpec | None = None,
    task: str | Options | None = None,
    metric: str | Options | None = None,
    study: str | None = None,
    tokenizer: Any = None,
    columns: Mapping[str, str] | None = None,
    fixed: Mapping[str, Scalar] | None = None,
    targets: Mapping[str, str | list[str]] | None = None,
    enqueue: Sequence[Mapping[str, Scalar]] | None = None,
    constraints: Sequence[str] | None = None,
    sampler: str | Options | None = None,
    pruner: str | Options | None = None,
    trials: int | None = None,
    steps: int | None = None,
    epochs: float | Literal["auto"] | None = None,
    examples: int | None = None,
    tokens: int | None = None,
    evaluate_every: int | None = None,
    seed: int | None = None,
    time: float | str | None = None,
    max_steps: int | None = None,
    budget: Options | None = None,
    max_failed_trials: int | None = None,
    keep: int | None = None,
    importance: bool | None = None,
    squeeze: bool | None = None,
    warm_start: str | None = None,
    learn_from: Literal["auto", "off"] | None = None,
    patience: int | None = None,
    also_minimize: Literal["trainable_params", "seconds", "forgetting"] | None = None,
    checkpoint: Literal["best", "last"] | None = None,
    early_stopping: bool | None = None,
    keep_data: str | Options | None = None,
    verify: bool | Options | None = None,
    run: str | Options | None = None,
    storage: str | Options | None = None,
    allow_space_change: bool = False,
    show_progress: bool = True,
) -> Study:
    """Run a search to its end, or to Ctrl-C, and return its study; the same call again continues what was interrupted.

    Arguments are the sections of a space file and the entries of its `search:` (docs/python.md, docs/reference). model:
    also a loaded model, with `tokenizer`. data: also rows in memory. keep_data: the section `keep:`. space: also a
    whole file, from `load_space`. task, run, storage: the section, or its type, executor, URL. What is left out is as
    in a file; but the task follows from the columns, the study's name from data and meaning, and nothing is verified
    unless `verify` says so.

    Raises ConfigError with all problems, DataError, ModelError before any trial starts; errors of `run_sweep`.
    """
    given = {name: value for name, value in locals().items() if value is not None}
    del given["allow_space_change"], given["show_progress"]
    spec = _whole(given) if isinstance(space, SweepSpec) else spec_of(given)
    return _run(spec, allow_space_change=allow_space_change, show_progress=show_progress)


def spec_of(given: Mapping[str, Any]) -> SweepSpec:
    """What the arguments mean. Models and rows in memory are written to the cache folder. Raises as `search` does."""
    here, cache, given = Path.cwd(), cache_folder(), dict(given)
    tokenizer, stem = given.pop("tokenizer", None), "study"
    if (data := given.get("data")) is not None:
        stem = _stem(data)
        given["data"] = keep_rows(data, cache) if holds_rows(data) else data
    model = given.get("model")
    if not isinstance(model, str | Path | Mapping | None):
        given["model"] = keep_model(model, tokenizer, cache)
    elif tokenizer is not None:
        raise mistake("tokenizer", "belongs to a loaded model; a folder or hub id brings its own")
    document = document_of(given, here)
    if "data" in given and "type" not in document["task"]:
        document = _with_task(document, here)
    return read(named(document, stem, here), here)


def _stem(data: Any) -> str:
    """What a study of this data is called in the first place."""
    if holds_rows(data):
        return "rows"
    if is_mixture(data):
        data = data[0]
    if isinstance(data, Mapping):
        data = next((data[name] for name in ("hub", "file", "folder", "package") if name in data), "study")
    return study_name(str(data))


def _with_task(document: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The document with the type of task that the data's columns tell, and our names for theirs."""
    task = document["task"]
    start = read({"study": "start", **document, "task": {"type": "classification", "data": task["data"]}}, folder)
    first = start.task.data.places[0]
    columns = first.columns
    found, renamed = guess_task(first, "data", start.model)
    task = {"type": found, **task}
    if renamed:
        task["data"] = with_columns(task["data"], {**renamed, **columns}, folder)
    return {**document, "task": task}


def _whole(given: Mapping[str, Any]) -> SweepSpec:
    """The space file that was given as `space`, with another budget."""
    for name in given:
        if name not in ("space", *_BUDGET):
            raise mistake(name, "is what the space file in space= says; beside it only trials and time may be given")
    return with_overrides(given["space"], trials=given.get("trials"), time=given.get("time"))


def _run(spec: SweepSpec, *, allow_space_change: bool, show_progress: bool) -> Study:
    stop, observer = StopRequest(), LineObserver(spec)
    work = partial(run_sweep, spec, cache_folder(), observer=observer, allow_space_change=allow_space_change, stop=stop)
    study = Study(spec.study, spec.storage_url, spec.task.own_metrics)
    try:
        watched(work, stop, lambda: observer.line, show=show_progress)
    except InterruptedSearch as end:
        if not (stop.reason or isinstance(end, TimeIsUp | BudgetSpent)):
            raise
        logger.warning("%s", end)
        return study
    if spec.verify.automatic:
        study.verify(seeds=spec.verify.seeds, finalists=spec.verify.finalists, show_progress=show_progress)
    return study
