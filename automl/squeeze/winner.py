"""The winner of a search, squeezed when the search ends: briefly, once, and never to the harm of what was found."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import replace

from automl import durable, ranking
from automl.errors import InterruptedSearch
from automl.execution.stop import StopRequest
from automl.methods.registry import METHODS
from automl.metric import METRICS
from automl.results.artifacts import adapter_digest, adapter_of
from automl.results.folders import study_folder
from automl.results.squeezed import squeeze_of
from automl.setup.setup import Setup
from automl.space.assemble import assemble
from automl.space.length import own_step
from automl.space.spec import SweepSpec
from automl.squeeze.curve import Wanted
from automl.squeeze.found import Squeezed
from automl.storage.connect import Guard
from automl.storage.sql import Database
from automl.storage.squeezes import store_squeeze
from automl.storage.trials import TrialRow, list_trials
from automl.training.runtime import HostSettings
from automl.trial_folders import squeezed_folder

logger = logging.getLogger(__name__)

SEEN = 64
"""Training rows by which directions are ranked here."""
LEAST_ROWS = 128
"""Validation rows that a size is measured on if there are so many, however short the training was."""
_EVALUATIONS = 4
"""The whole, and the sizes that bisection asks for."""
_SHARE = 0.06
"""Part of one training that evaluations may take; loading the model and turning the adapter come on top."""
_PASSES = 2.4
"""Time of a row's training in forward passes: one forward, and backward without gradients of frozen weights."""


def squeeze_winner(
    database: Database, setup: Setup, *, guard: Guard, stop: StopRequest, stage: Callable[[str], None]
) -> None:
    """Squeeze the adapter of the best trial and record it, unless that was done before or is not wanted.

    Says in a line of the log why nothing came of it; raises InterruptedSearch alone. guard: the lease's. stage: told
    that it begins.
    """
    spec = setup.spec
    row = ranking.best(list_trials(database, spec.study), METRICS[spec.task.metric].direction)
    if row is None or not row.adapter or spec.search.squeeze == "off" or _is_known(database, spec.study, row.number):
        return
    by_hand = f"automl squeeze {spec.study}"
    method = assemble(setup.inputs.space, row.params).method
    if "rank" not in METHODS[method].takes:
        logger.info("trial %d is not squeezed: an adapter of method %s has no ranks", row.number, method)
        return
    if reason := next(_reasons(spec), ""):
        logger.info("trial %d is not squeezed: %s; try: %s", row.number, reason, by_hand)
        return
    stage(f"looking how small the adapter of trial {row.number} could be")
    try:
        found = _squeezed(database, setup, row, stop)
        digest = adapter_digest(database, spec.study, row.number)
        store_squeeze(database, spec.study, found.as_row(row.number, digest), guard=guard)
    except InterruptedSearch:
        raise
    except Exception as error:  # noqa: BLE001 - whatever an adapter could not bear, the search is over and recorded
        logger.warning("trial %d is not squeezed: %s", row.number, str(error) or type(error).__name__)


def affordable_rows(steps: int, batch_size: int) -> int:
    """Validation rows for each size, so that all together take a sixteenth of so long a training; at least 128."""
    passes = _SHARE * _PASSES * steps * batch_size
    return max(LEAST_ROWS, int((passes - SEEN) / _EVALUATIONS))


def _is_known(database: Database, study: str, trial: int) -> bool:
    before = squeeze_of(database, study, trial)
    return before is not None and before.adapter_sha256 == adapter_digest(database, study, trial)


def _reasons(spec: SweepSpec) -> Iterator[str]:
    """Why it takes too long, or cannot be done, in the process that drives the search."""
    if spec.run.address is not None or spec.run.shards > 1:
        yield "it was trained by processes of other machines, or by several together"
    if METRICS[spec.task.metric].generates:
        yield f"{spec.task.metric} is measured on texts that the model writes, which takes long for many sizes"


def _squeezed(database: Database, setup: Setup, row: TrialRow, stop: StopRequest) -> Squeezed:
    from automl.squeeze.run import Effort, squeeze_adapter  # it needs PEFT, which takes seconds to import

    spec = setup.spec
    output = squeezed_folder(study_folder(spec))
    durable.remove_folder(output)
    hyper = assemble(setup.inputs.space, row.params)
    steps = own_step(spec.search, spec.search.steps, hyper.batch_size)
    effort = Effort(seen=SEEN, rows=affordable_rows(steps, hyper.batch_size), is_brief=True)
    with adapter_of(database, spec, row) as folder:
        source = f"trial {row.number} of {spec.study}"
        settings, model = _settings(setup), setup.inputs.model
        found = squeeze_adapter(folder, settings, model, Wanted(), output, stop, source=source, effort=effort)
    if found.knee is found.whole:
        durable.remove_folder(output)  # the trial's own adapter is the same
        found = replace(found, output=None)
    return found


def _settings(setup: Setup) -> HostSettings:
    """Those of a worker, for one that is alone on the machine and holds one adapter."""
    settings, layout = setup.worker_settings(), setup.layout
    threads = None if settings.threads is None else settings.threads * layout.workers
    return replace(settings, threads=threads, capacity=1, packed=False, workers=1)
