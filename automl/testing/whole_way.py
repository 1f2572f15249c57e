"""The whole way of a method: killed in a trial, it goes on, is exported, and is loaded in a fresh process.

Real processes and a real SIGKILL. What is walked comes from the registry, so that no method is left out: each as it is,
and with the values that it tries of each of its settings. The tests walk on models of two layers,
`python -m benchmarks.methods` on those of a space file.
"""

from __future__ import annotations

import hashlib
import math
import multiprocessing
import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any

from automl.errors import ModelError, TargetError
from automl.lora import Hyperparameters
from automl.methods.registry import METHODS
from automl.methods.settings import Setting, Span, chosen
from automl.models.inventory import resolve_targets
from automl.report.recipe import recipe
from automl.training.export import check_mergeable, evaluate_merged, merge_adapter, verify_manifest
from automl.training.host import SoloHost
from automl.training.reload import measure_afresh
from automl.training.runtime import HostSettings, Runtime, load_runtime
from automl.training.solo import SoloTrial
from automl.trial import Measurement, Metrics, Scalar, TrialSpec
from automl.trial_folders import adapter_folder

STEPS = 6
"""Length of a trial, which is measured in the middle and at the end, and killed in between."""
RANK = 4
"""Rank of the trials that have one."""

SAME, SAME_HELD, SAME_MERGED = 1e-6, 1e-5, 1e-4
"""Relative differences that are none: of what is loaded again, on a quantised backbone, and merged."""

TUNERS: Mapping[str, Mapping[str, Scalar]] = {
    "vera": {},
    "loha": {"r": 3},
    "oft": {"oft_block_size": 4},
    "fourierft": {"n_frequency": 30},
}
"""Tuners of PEFT that stand for all that are reached by their names, with fields that suit narrow layers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A method with settings of its own, and with hyperparameters that all methods have."""

    method: str
    own: tuple[tuple[str, Scalar], ...] = ()
    general: tuple[tuple[str, Scalar], ...] = ()

    def __str__(self) -> str:
        return " ".join([self.method, *(f"{name}={value}" for name, value in (*self.own, *self.general))])


@dataclass(frozen=True, slots=True, kw_only=True)
class Walk:
    """How far a case has come. refused: why the model cannot be adapted so, in a line; then there is nothing else.

    fault: what went wrong, empty if nothing did. parameters: those that are trained, the head's aside. losses: in the
    middle and at the end. is_same: the resumed trial's curve and files are those of an undisturbed one, to the bit.
    off: the largest relative difference of a metric when the export is loaded in a fresh process; merged_off: when it
    is merged into the model, None if that cannot be or was not asked for.
    """

    case: Case
    refused: str = ""
    fault: str = ""
    parameters: int = 0
    losses: tuple[float, float] = (math.nan, math.nan)
    is_same: bool = False
    off: float = math.inf
    merged_off: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Trained:
    """What a trial left: measurements without their seconds, and checksums of its adapter's tensors."""

    curve: list[tuple[int, Metrics, int]] = field(default_factory=list)
    sums: Mapping[str, str] = field(default_factory=dict)
    fault: str = ""


def cases() -> list[Case]:
    """Every method of the registry, alone and with every value that it tries or names of each setting; some tuners."""
    found = [case for method in METHODS for case in (Case(method=method), *_with_settings(method))]
    general: Mapping[str, Scalar] = {"use_rslora": True, "neftune_alpha": 5.0}
    return [*found, *map(tuner_case, TUNERS), *(Case(method="lora", general=(each,)) for each in general.items())]


def tuner_case(name: str) -> Case:
    """One of `TUNERS` with its fields."""
    own = tuple((f"{name}.{field}", value) for field, value in TUNERS[name].items())
    return Case(method=f"peft:{name}", own=own)


def walk(settings: HostSettings, walkers: Sequence[Case], *, merge: bool = False) -> list[Walk]:
    """Walk these cases on the backbone and data of the settings, in their output folder, where nothing may be yet.

    Three processes: this one trains undisturbed; one kills and goes on; one loads what came of it, by the lines that a
    user is told. merge: also fold into the model what can be.
    """
    settings = replace(settings, input_rank=max(settings.input_rank, RANK))
    calm, hard = (replace(settings, output=str(Path(settings.output) / name)) for name in ("undisturbed", "killed"))
    runtime = load_runtime(calm)
    specs = [_spec(case, number, settings) for number, case in enumerate(walkers)]
    refused = {spec.number: _refusal(spec, runtime) for spec in specs}
    going = [spec for spec in specs if not refused[spec.number]]
    whole = {spec.number: _trained(SoloHost(calm, runtime), spec) for spec in going}
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as fresh:
        resumed = fresh.submit(killed_and_resumed, hard, going).result()
    well = [number for number, found in resumed.items() if not found.fault]
    loaded = dict(zip(well, _loaded([_adapter(hard, number) for number in well], settings), strict=True))

    def found(spec: TrialSpec) -> Walk:
        number, case = spec.number, walkers[spec.number]
        if refused[number]:
            return Walk(case=case, refused=refused[number])
        ours, theirs, again = whole[number], resumed[number], loaded.get(number, {})
        if fault := ours.fault or theirs.fault or (again if isinstance(again, str) else ""):
            return Walk(case=case, fault=fault)
        assert not isinstance(again, str)
        last = theirs.curve[-1][1]
        return Walk(
            case=case,
            parameters=_parameters(spec, runtime),
            losses=(ours.curve[0][1]["loss"], ours.curve[-1][1]["loss"]),
            is_same=ours == theirs,
            off=difference(again, last),
            merged_off=_merged_off(_adapter(hard, number), hard, last) if merge else None,
        )

    return [found(spec) for spec in specs]


def killed_and_resumed(settings: HostSettings, specs: Sequence[TrialSpec]) -> dict[int, _Trained]:
    """Kill every trial in a process forked for it, then go on with each here, where none was before; by number."""
    runtime = load_runtime(settings)
    faults = {spec.number: _killed(settings, runtime, spec) for spec in specs}
    return {
        spec.number: (
            _Trained(fault=faults[spec.number])
            if faults[spec.number]
            else _trained(SoloHost(settings, runtime), spec, resumed=1)
        )
        for spec in specs
    }


def difference(found: Metrics, expected: Metrics) -> float:
    """Largest relative difference of a metric, those near zero aside: below 1 it is absolute."""
    if found.keys() != expected.keys():
        return math.inf
    return max(abs(found[name] - value) / max(1.0, abs(value)) for name, value in expected.items())


def _with_settings(method: str) -> Iterator[Case]:
    for setting in METHODS[method].settings:
        for value in _tried(setting):
            if value != setting.default:
                yield Case(method=method, own=((setting.name, value),))


def _tried(setting: Setting) -> Sequence[Scalar]:
    """All choices, or what `auto` tries; of a span the smallest, or the largest where that is the default."""
    if not isinstance(setting.tried, Span):
        return list(dict.fromkeys((*setting.tried, *setting.choices)))
    low, high = (setting.typed(int(end) if setting.kind == "whole" else end) for end in setting.tried[:2])
    return [high if low == setting.default else low]


def _spec(case: Case, number: int, settings: HostSettings) -> TrialSpec:
    low, high = METHODS[case.method].learning_rates(settings.backbone.parameters, STEPS)
    own = chosen(METHODS[case.method].settings, dict(case.own))
    usual: dict[str, Any] = {"rank": RANK, "alpha": 2.0 * RANK, "dropout": 0.1, "batch_size": 2, **dict(case.general)}
    hyper = Hyperparameters(method=case.method, own=own, learning_rate=math.sqrt(low * high), **usual)
    return TrialSpec(
        number=number, params={}, hyper=hyper, seed=11, data_seed=7, steps=STEPS, evaluate_every=STEPS // 2
    )


def _refusal(spec: TrialSpec, runtime: Runtime) -> str:
    """Why the model cannot be adapted so; empty if it can."""
    trial = SoloTrial(spec, runtime)
    try:
        _parameters(spec, runtime)
        trial.attach()
    except TargetError as error:
        return str(error)
    trial.detach()
    return ""


def _parameters(spec: TrialSpec, runtime: Runtime) -> int:
    layers = resolve_targets(runtime.model, spec.hyper.target, runtime.targets)
    return METHODS[spec.hyper.method].trainable(runtime.model, layers, spec.hyper)


def _adapter(settings: HostSettings, number: int) -> Path:
    return adapter_folder(Path(settings.output).absolute(), number)


def _trained(host: SoloHost, spec: TrialSpec, *, resumed: int = 0) -> _Trained:
    """Train to the end. resumed: measurements that the slot file has to hold already."""
    measurements = list(host.open(spec))
    if len(measurements) != resumed:
        return _Trained(fault=f"{len(measurements)} measurements were in the slot file, not {resumed}")
    while not measurements or measurements[-1].step < spec.steps:
        (found,) = host.advance()
        if not isinstance(found, Measurement):
            return _Trained(fault=found.reason)
        measurements.append(found)
    host.close(spec.number)
    folder = _adapter(host.settings, spec.number)
    sums = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.glob("*.safetensors")}
    return _Trained(curve=[(each.step, each.metrics, each.tokens) for each in measurements], sums=sums)


def _killed(settings: HostSettings, runtime: Runtime, spec: TrialSpec) -> str:
    """Kill the trial in a process of its own; what went wrong if that did not end it, else empty."""
    child = os.fork()
    if child == 0:
        try:
            _die_in_the_middle(SoloHost(settings, runtime), spec)
        finally:
            os._exit(1)
    status = os.waitpid(child, 0)[1]
    is_killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    return "" if is_killed else f"its process was to be killed, and ended with status {status}"


def _die_in_the_middle(host: SoloHost, spec: TrialSpec) -> None:
    """Train up to the first measurement, and on into the second step behind it, of which nothing is saved."""
    host.open(spec)
    host.advance()
    words, calls = host.runtime.model.get_input_embeddings(), count(1)  # type: ignore[operator]

    def kill(module: Any, inputs: object) -> None:
        if module.training and next(calls) == STEPS // 3:
            os.kill(os.getpid(), signal.SIGKILL)

    words.register_forward_pre_hook(kill)
    host.advance()


def _loaded(adapters: Sequence[Path], settings: HostSettings) -> list[Metrics | str]:
    """What each measures in a fresh process, all in the same; or, where one cannot be loaded, each in its own, why."""
    programs = [_lines(adapter) for adapter in adapters]
    try:
        return [each.metrics for each in measure_afresh(programs, settings)]
    except ModelError:
        return [_loaded_alone(program, settings) for program in programs]


def _loaded_alone(program: Sequence[str], settings: HostSettings) -> Metrics | str:
    try:
        return measure_afresh([program], settings)[0].metrics
    except ModelError as error:
        return str(error)


def _lines(adapter: Path) -> list[str]:
    found = recipe(str(adapter))
    return found.use.splitlines() if found else [f"raise ValueError('{adapter.name} does not say how to load it')"]


def _merged_off(adapter: Path, settings: HostSettings, expected: Metrics) -> float | None:
    """How far a merged model is from its adapter; None if it cannot be merged."""
    try:
        check_mergeable(adapter, verify_manifest(adapter))
    except ModelError:
        return None
    merged = adapter.with_name(f"{adapter.name}-merged")
    merge_adapter(adapter, settings, merged)
    return difference(evaluate_merged(merged, settings), expected)
