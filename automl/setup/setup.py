"""The door of this room: everything a worker is told, from a space file and what the study's first run has recorded.

Searches, plans, verifications, exports and benchmarks all come in here, so that each finds the same rows, the same
precision and the same kernel.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from automl.execution.base import HostFactory
from automl.provenance import processor
from automl.results.recorded import as_begun
from automl.setup.evaluation import settle_evaluation
from automl.setup.hosts import host_factory
from automl.setup.machine import Layout, choose_layout, gpu_count
from automl.setup.packing import Packing, choose_packing, host_settings, kernel_of, pack_evenly, prove
from automl.setup.precision import settle_precision
from automl.setup.prepare import Inputs, prepare
from automl.space.length import record_of
from automl.space.spec import SweepSpec
from automl.tasks.own_metrics import check_own_metrics
from automl.training.runtime import HostSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """Model, data and machine of a study, ready. spec: with its data rules, precision and measurements settled."""

    spec: SweepSpec
    inputs: Inputs
    layout: Layout
    packing: Packing

    def worker_settings(self) -> HostSettings:
        """What a worker needs to build its host; picklable, without the test rows, a database URL or any secret."""
        return host_settings(self.spec, self.inputs, self.layout, self.packing)

    def host_factory(self, settings: HostSettings) -> HostFactory:
        """What builds the hosts of this study's workers by these settings, which may be others than the search's."""
        return host_factory(settings, self.spec.run, self.spec.artifacts)

    def for_trainings(self, count: int) -> Setup:
        """The setup for a number of trainings of equal length, none of which is pruned: packed to end together."""
        return replace(self, packing=pack_evenly(self.packing, self.spec, self.inputs, self.layout, count))

    def record(self) -> dict[str, Any]:
        """What is remembered of it with the study (`results.recorded.GROUND`); given to `set_up` again later."""
        search = self.spec.search
        return {
            **self.inputs.fingerprints,
            "precision": self.spec.run.precision,
            "model_parameters": self.inputs.backbone.parameters,
            "family": str(getattr(self.inputs.model.config, "model_type", "")),
            **self._quantised(),
            **({"keep": self.inputs.keep.record()} if self.inputs.keep is not None else {}),
            "target_sets": list(self.inputs.target_sets),
            "rows": dict(self.inputs.prepared.rows),
            "rules": self.spec.task.rules,
            "notes": list(self.inputs.notes),
            "layout": self.layout.as_dict(),
            "packing": {"slots": self.packing.slots, "solo": self.packing.solo},
            "kernel": kernel_of(self.spec, self.layout, self.packing),
            "processor": processor(),
            **record_of(search),
            "evaluate_every": search.evaluate_every,
            "evaluations": [list(pair) for pair in search.evaluations or ()],
        }

    def _quantised(self) -> dict[str, Any]:
        held = self.inputs.backbone.quantization
        return {"quantization": asdict(held)} if held is not None else {}


def layout_of(spec: SweepSpec, recorded: Mapping[str, Any] | None = None) -> Layout:
    """Workers and threads, before model and data are prepared: an executor can start meanwhile. See `choose_layout`."""
    return choose_layout(spec.run, trials=spec.search.trials, recorded=(recorded or {}).get("layout"))


def set_up(
    spec: SweepSpec,
    cache: Path,
    recorded: Mapping[str, Any] | None = None,
    *,
    layout: Layout | None = None,
    is_thorough: bool = True,
) -> Setup:
    """Prepare model and data and decide how they are trained on.

    recorded: what the study's first run wrote down (`Setup.record`), None if there was none; it holds for the whole
    study. layout: as `layout_of` gives it, which is asked if it is left out. is_thorough: find out whether packed
    training follows PEFT on this model, which loads it; otherwise what is not known yet is no obstacle. Raises
    ModelError, TargetError, DataError, ConfigError (everything wrong with the space at once) and ResourceError.
    """
    spec = as_begun(spec, recorded)
    check_own_metrics(spec.task, spec.source)
    if layout is None:
        layout = layout_of(spec, recorded)
    inputs = prepare(spec, cache, has_trials=recorded is not None)
    spec = replace(spec, search=inputs.search)
    inputs = prove(spec, inputs, layout, recorded, is_thorough=is_thorough)
    spec = settle_evaluation(settle_precision(spec, inputs, layout, recorded), inputs, recorded)
    return Setup(spec=spec, inputs=inputs, layout=layout, packing=choose_packing(spec, inputs, layout))


def for_one_trial(spec: SweepSpec) -> SweepSpec:
    """The spec to set up a single trial with, in this process: to measure or to merge what was trained.

    It is measured by the objective alone.
    """
    device = "cpu" if spec.run.device == "cuda" and not gpu_count() else spec.run.device  # the cluster's are elsewhere
    run = replace(spec.run, executor="inline", address=None, device=device, workers=1, shards=1, slots=1)
    return replace(spec, run=run, search=replace(spec.search, trials=1), task=replace(spec.task, metrics=()))
