"""What a sweep will do and roughly cost, found out before anything is spent."""

from __future__ import annotations

import itertools
import math
import resource
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from automl.errors import SearchError
from automl.lora import Hyperparameters
from automl.methods.registry import METHODS
from automl.models.inventory import linear_layers
from automl.setup.affordable import Need, most_steps, needs, spent_before
from automl.setup.database_check import database_remarks
from automl.setup.evaluation import in_words, measured_rows, whole_evaluation
from automl.setup.hosts import build_host
from automl.setup.machine import Layout
from automl.setup.packing import Packing, known_memory, worker_bytes
from automl.setup.prepare import Inputs
from automl.setup.room import shortages
from automl.setup.setup import set_up
from automl.space.extremes import corners, extremes, highest, methods_of, target_names
from automl.space.length import own_step
from automl.space.spec import CategoricalParameter, FloatParameter, Parameter, SearchSettings, SearchSpace, SweepSpec
from automl.study.pruning import expected_share
from automl.tasks import make_task
from automl.training.runtime import HostSettings
from automl.trial import Measurement, TrialFailure, TrialSpec

_START_SECONDS = 30.0
_PROBE_STEPS = 4

GPU_FULL_TOKENS = 2048
"""Tokens of one trial's step from which a GPU is busy with one trial alone (docs/benchmarks.md, `gpu_packed`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Corner:
    """One extreme of the space: a target set at its smallest or largest rank, with the settings that take most memory.

    target, rank: None where the method does not use them. bytes: estimated memory of one worker with all its slots full
    of it, with the largest batch.
    """

    method: str
    target: str | None
    rank: int | None
    trainable_params: int
    bytes: int

    def __str__(self) -> str:
        parts = [
            *([f"{self.target:<12}"] if self.target else []),
            *([f"rank {self.rank:>4}"] if self.rank else []),
        ]
        return " ".join(parts or [self.method]).rstrip()


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """Measured here with a middling configuration: seconds of a trial's step and evaluation, peak memory of a worker.

    Where trials are packed, a step takes its share of the time of all.
    """

    step_seconds: float
    evaluation_seconds: float
    peak_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepPlan:
    """A sweep before it is run. Times are seconds of wall clock with all workers busy; None without a probe.

    quantization: how the backbone's linear layers are held, in words; empty: as they are stored.
    steps: of a full trial; length: in words, what the file says of it instead, empty if it says steps.
    measured: when, in words. kept: on what forgetting is measured, in words, empty if it is not.
    evaluations: whole ones that the measurements of a full trial amount to.
    evaluation_rows: in a whole evaluation. most_steps: training steps of the search if nothing is pruned.
    verification_trainings: in the verification that follows the search, at most, rank patterns aside; 0 if none does.
    available_bytes: that a worker may take; None: other machines' are not known.
    needs: what the search takes of its budgets; of hours and money nothing without a probe.
    """

    study: str
    model: str
    architecture: str
    model_parameters: int
    quantization: str
    rows: Mapping[str, int]
    longest: int
    trials: int
    steps: int
    length: str
    measured: str
    evaluations: float
    evaluation_rows: int
    most_steps: int
    verification_trainings: int
    parameters: tuple[str, ...]
    constraints: tuple[str, ...]
    kept: str
    corners: tuple[Corner, ...]
    layout: Layout
    packing: Packing
    available_bytes: int | None
    pruned_share: float | None
    probe: Probe | None
    advice: tuple[str, ...]
    needs: tuple[Need, ...] = ()

    @property
    def unpruned_seconds(self) -> float | None:
        """Wall clock of the search if every trial ran to its last step."""
        if self.probe is None:
            return None
        measuring = self.most_steps / self.steps * self.evaluations * self.probe.evaluation_seconds
        return _START_SECONDS + (self.most_steps * self.probe.step_seconds + measuring) / self.layout.workers

    @property
    def pruned_seconds(self) -> float | None:
        """Wall clock of the search if the pruner stops what it is expected to; None if that is not known."""
        if self.unpruned_seconds is None or self.pruned_share is None:
            return None
        return _START_SECONDS + (self.unpruned_seconds - _START_SECONDS) * self.pruned_share

    @property
    def verification_seconds(self) -> float | None:
        """Wall clock of the verification: its trainings, each scored once on the test rows."""
        if self.probe is None or not self.verification_trainings:
            return None
        scoring = self.probe.evaluation_seconds * self.rows.get("test", 0) / self.evaluation_rows
        training = self.steps * self.probe.step_seconds + scoring
        return _START_SECONDS + self.verification_trainings * training / self.layout.workers

    @property
    def evaluation_share(self) -> float | None:
        """Share of a full trial's time that its evaluations take."""
        if self.probe is None:
            return None
        measuring = self.evaluations * self.probe.evaluation_seconds
        return measuring / max(measuring + self.steps * self.probe.step_seconds, 1e-9)

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            **asdict(self),
            "unpruned_seconds": self.unpruned_seconds,
            "pruned_seconds": self.pruned_seconds,
            "verification_steps": self.verification_trainings * self.steps,
            "verification_seconds": self.verification_seconds,
            "evaluation_share": self.evaluation_share,
        }

    def lines(self) -> Iterator[str]:
        """The plan for a person."""
        yield f"study {self.study}: {self.trials} trials of {self.steps} steps{self.length}, measured {self.measured}"
        held = f", linear layers held in {self.quantization}" if self.quantization else ""
        yield f"model: {self.architecture}, {self.model_parameters:,} parameters{held} ({self.model})"
        rows = ", ".join(f"{count:,} {split}" for split, count in self.rows.items())
        yield f"data: {rows} rows, the longest {self.longest} tokens"
        yield "searched:"
        yield from (f"  {text}" for text in self.parameters)
        yield from (f"  subject to {text}" for text in self.constraints)
        if self.kept:
            yield f"forgetting: {self.kept}, measured when a trial has made its last step"
        of_what = "worker" if self.layout.shards == 1 else "process"
        yield f"trainable parameters and memory of one {of_what} at the corners of the space:"
        yield from self._corners()
        layout = self.layout
        memory = self.available_bytes
        told = "" if memory is None else f"; {memory / 2**30:.1f} GiB of memory for each"
        yield f"runs on: {layout.workers} workers x {layout.each} on {layout.device}{told}"
        yield f"each worker trains {self.packing}"
        yield from self._steps()
        yield from self._time()
        yield from (f"budget: {need}" for need in self.needs)
        yield from (f"advice: {text}" for text in self.advice)

    def _corners(self) -> Iterator[str]:
        several = len({corner.method for corner in self.corners}) > 1
        for corner in self.corners:
            name = f"{corner.method:<10} " if several and str(corner) != corner.method else ""
            yield (f"  {name}{corner}: {corner.trainable_params:>13,} parameters, about {corner.bytes / 2**30:.1f} GiB")

    def _steps(self) -> Iterator[str]:
        pruned = "" if self.pruned_share is None else f", about {self.most_steps * self.pruned_share:,.0f} with pruning"
        yield f"steps: {self.most_steps:,} in the search if nothing is pruned{pruned}"
        if self.verification_trainings:
            yield (
                f"       and up to {self.verification_trainings * self.steps:,} in the verification after it"
                f" ({self.verification_trainings} trainings of {self.steps:,})"
            )
        yield f"evaluations: of a full trial, {self.evaluations * self.evaluation_rows:,.0f} rows beside its training"

    def _time(self) -> Iterator[str]:
        if self.probe is None or self.unpruned_seconds is None:
            yield "time: not probed"
            return
        yield (
            f"probe: {self.probe.step_seconds:.3f} s per step, {self.probe.evaluation_seconds:.2f} s per evaluation,"
            f" peak memory {self.probe.peak_bytes / 2**30:.2f} GiB"
        )
        yield f"time: about {_duration(self.unpruned_seconds)} if nothing is pruned"
        if self.pruned_seconds is not None and self.pruned_share is not None:
            yield (
                f"      about {_duration(self.pruned_seconds)} with pruning, which may save up to"
                f" {1 - self.pruned_share:.0%} of the steps"
            )
        if self.verification_seconds is not None:
            yield f"      and up to {_duration(self.verification_seconds)} for the verification"
        if self.evaluation_share is not None:
            yield f"      of a full trial's time, evaluations take {self.evaluation_share:.0%}"


def make_plan(spec: SweepSpec, cache: Path, *, probe: bool) -> SweepPlan:
    """Prepare model and data and work out the plan; with `probe`, train a few steps in this process.

    A trial in several shards is not for one process, and not probed.
    Raises what `automl.setup.prepare.prepare` raises, and ConfigError if a search could not start from the study that
    the file names. Writes neither to the database nor to the output folder.
    """
    remarks = database_remarks(spec)
    setup = set_up(spec, cache, is_thorough=probe)
    spec, inputs, layout, packing = setup.spec, setup.inputs, setup.layout, setup.packing
    rows = whole_evaluation(spec, inputs)
    plan = SweepPlan(
        study=spec.study,
        model=inputs.backbone.path,
        architecture=inputs.backbone.architecture,
        model_parameters=inputs.backbone.parameters,
        quantization=str(inputs.backbone.quantization or ""),
        rows=inputs.prepared.rows,
        longest=inputs.prepared.longest,
        trials=spec.search.trials,
        steps=spec.search.steps,
        length=_length(spec.search),
        measured=in_words(spec.search),
        evaluations=measured_rows(spec, rows) / rows,
        evaluation_rows=rows,
        most_steps=most_steps(spec, inputs.space),
        verification_trainings=_verification_trainings(spec, inputs),
        parameters=tuple(map(describe, inputs.space.parameters)),
        constraints=tuple(each.expression for each in (*inputs.space.constraints, *inputs.space.measured)),
        kept=inputs.keep.in_words if inputs.keep is not None else "",
        corners=tuple(_corners(spec, inputs, layout, packing)),
        layout=layout,
        packing=packing,
        available_bytes=known_memory(spec.run, layout),
        pruned_share=expected_share(spec.search),
        probe=_probe(inputs, setup.worker_settings(), spec.search)
        if probe and layout.shards == 1 and layout.is_here
        else None,
        advice=(*remarks, *inputs.advice, *shortages(setup), *packing_warnings(spec, inputs, layout, packing)),
    )
    return _with_needs(plan, spec, inputs)


def _with_needs(plan: SweepPlan, spec: SweepSpec, inputs: Inputs) -> SweepPlan:
    """The plan with what the search takes of its budgets, and what is said of those that are too small."""
    seconds, devices = plan.unpruned_seconds, plan.layout.devices
    found = tuple(needs(spec, inputs, seconds=seconds, devices=devices, spent=spent_before(spec)))
    return replace(plan, needs=found, advice=(*plan.advice, *(need.advice for need in found if need.is_too_much)))


def _length(search: SearchSettings) -> str:
    """What the file says of a trial instead of its steps: ` of 8 rows (3 epochs)`."""
    return "" if search.length is None else f" of {search.step_rows} rows ({search.length})"


def _verification_trainings(spec: SweepSpec, inputs: Inputs) -> int:
    """Finalists, the default configuration, the smallest within noise and lower ranks, on each seed; 0 if none is.

    Lower ranks may be tuned besides: at three rates on two seeds; several methods are, on one.
    """
    if not spec.verify.automatic or not inputs.prepared.rows.get("test", 0):
        return 0
    lower = {"off": 0, "cuts": 0, "auto": 1, "all": 3}[spec.verify.squeeze]
    methods = len(methods_of(inputs.space)) if len(methods_of(inputs.space)) > 1 else 0
    arms = max(spec.verify.finalists, methods) + 2 + lower
    return arms * spec.verify.most_seeds + 6 * lower + 3 * methods


def describe(parameter: Parameter) -> str:
    """`rank: 2 … 32, log` or `target: qv | all-linear`."""
    if isinstance(parameter, CategoricalParameter):
        text = " | ".join(str(choice) for choice in parameter.choices)
    else:
        text = f"{parameter.low:g} … {parameter.high:g}" + (", log" if parameter.log else "")
        if parameter.step not in (None, 1):
            text += f", step {parameter.step:g}"
        if isinstance(parameter, FloatParameter) and parameter.at_alpha is not None:
            text += f", at alpha {parameter.at_alpha:g}"
    if parameter.when is not None:
        values = " or ".join(str(value) for value in parameter.when.values)
        text += f", when {parameter.when.parameter} is {values}"
    return f"{parameter.name}: {text}"


def _corners(spec: SweepSpec, inputs: Inputs, layout: Layout, packing: Packing) -> Iterator[Corner]:
    for _, group in itertools.groupby(corners(inputs.space), lambda hyper: (hyper.method, hyper.target, hyper.rank)):
        hyper = max(group, key=inputs.derive.most_parameters)
        takes = METHODS[hyper.method].takes
        yield Corner(
            method=hyper.method,
            target=hyper.target if "target" in takes else None,
            rank=hyper.rank if "rank" in takes else None,
            trainable_params=int(inputs.derive(hyper)["trainable_params"]),
            bytes=worker_bytes(spec, inputs, layout, packing, hyper),
        )


def _middling(space: SearchSpace) -> Hyperparameters:
    """A configuration in the middle of the costs: largest batch, geometric middle of the ranks, last target set."""
    ranks = extremes(space, "rank")
    return Hyperparameters(
        method=methods_of(space)[0],
        rank=max(1, round(math.sqrt(ranks[0] * ranks[-1]))),
        target=target_names(space)[-1],
        batch_size=max(extremes(space, "batch_size")),
        dropout=highest(space, "dropout"),
    )


def _probe(inputs: Inputs, settings: HostSettings, search: SearchSettings) -> Probe:
    """Train as many middling trials as are trained together for a few steps; the first interval warms up."""
    together, hyper = settings.capacity if settings.packed else 1, _middling(inputs.space)
    share = (
        own_step(search, search.steps, hyper.batch_size) / search.steps
    )  # its batches may be larger than the study's
    trials = [
        TrialSpec(
            number=number,
            params={},
            hyper=hyper,
            seed=number,
            data_seed=number,
            steps=3 * _PROBE_STEPS,
            evaluate_every=_PROBE_STEPS,
        )
        for number in range(together)
    ]
    with tempfile.TemporaryDirectory(prefix="automl-plan-") as folder:
        host = build_host(replace(settings, output=folder))
        try:
            for trial in trials:
                host.open(trial)
            before = _seconds(host.advance())
            began = time.perf_counter()
            after = _seconds(host.advance())
            wall = time.perf_counter() - began
        finally:
            host.shutdown()
    scale = 1 if sys.platform == "darwin" else 1024
    return Probe(
        step_seconds=share * (after - before) / (_PROBE_STEPS * together),
        evaluation_seconds=max(0.0, wall - (after - before)) / together,
        peak_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale,
    )


def _seconds(news: Sequence[Measurement | TrialFailure]) -> float:
    """Training time of all these trials. Raises SearchError if one failed."""
    for item in news:
        if isinstance(item, TrialFailure):
            raise SearchError(f"the probe failed ({item.reason}): {item.message.strip().splitlines()[-1]}")
    return sum(item.seconds for item in news if isinstance(item, Measurement))


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def packing_warnings(spec: SweepSpec, inputs: Inputs, layout: Layout, packing: Packing) -> Iterator[str]:
    """Reasons why packing gains little in this sweep, each a sentence for a person; none if trials are not packed."""
    if not packing.is_packed:
        return
    rows = extremes(inputs.space, "batch_size")[0] * make_task(spec.task).texts
    tokens = rows * min(spec.task.longest_row, inputs.prepared.longest)
    if layout.device == "cuda" and tokens >= GPU_FULL_TOKENS:
        yield (
            f"a step of one trial has up to {tokens:,} tokens, which keep a GPU busy alone: packing saves start-up and"
            " copies of the model here, hardly any time (docs/packed.md)"
        )
    if packing.slots == 1 and spec.search.trials > layout.workers:
        yield "there is memory for one trial at a time only; smaller batches, shorter rows or a lower rank make room"
    share = shared_depth(inputs)
    if share >= 0.5:
        yield (
            f"no target reaches below the upper {1 - share:.0%} of the layers: one trial's backward pass is short"
            " already, and the lower layers, though equal for all, are computed for each (docs/packed.md)"
        )


def shared_depth(inputs: Inputs) -> float:
    """Share of the model's linear layers, counted from the input, that no target set adapts."""
    order = {layer.path: place for place, layer in enumerate(linear_layers(inputs.model))}
    lowest = min(order[layer.path] for name in target_names(inputs.space) for layer in inputs.derive.layers(name))
    return lowest / len(order)
