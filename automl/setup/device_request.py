"""What a plan for devices is asked: from options of a command, or from a space file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from automl.errors import ConfigError, ModelError, Problem, TargetError
from automl.head import WRITERS
from automl.lora import Hyperparameters
from automl.methods.base import Method
from automl.methods.registry import METHODS
from automl.models.described import Described, describe
from automl.models.folder import inside_package
from automl.models.inventory import head_parameters, resolve_targets
from automl.models.positions import positions
from automl.setup.device_plan import Devices, Load, Sizer, Variant, Way, way
from automl.setup.packing import DEFAULT_SLOTS
from automl.space.defaults import resolve
from automl.space.entries import head_of
from automl.space.extremes import corners, extremes, methods_of
from automl.space.sizes import bytes_of
from automl.space.spec import Quantization, SweepSpec
from automl.tasks import make_task

PRECISIONS = ("fp32", "bf16")
QUANTIZATIONS = ("none", "int8", "nf4", "fp4")
ATTENTIONS = ("eager", "sdpa", "flash")

_MOST_DEVICES = 100_000


class DevicePlan(NamedTuple):
    """What was asked, and the answer: every way, the one that is advised first."""

    described: Described
    devices: Devices
    load: Load
    ways: tuple[Way, ...]

    @property
    def sizer(self) -> Sizer:
        """The arithmetic of the first way."""
        return Sizer(self.described.model, self.ways[0].variant, self.load)


def devices_of(count: int, memory: str) -> Devices:
    """Devices as they are given on the command line. memory: `80GB`, `24 GiB`; a number alone is of GB.

    Raises ConfigError for what is none.
    """
    if not 1 <= count <= _MOST_DEVICES:
        raise _wrong("--gpus", f"{count} is not between 1 and {_MOST_DEVICES:,}")
    try:
        return Devices(count=count, memory=bytes_of(memory))
    except ValueError as error:
        raise _wrong("--gpu-memory", f"'{memory}' {error}") from None


def variants_of(
    method: str | None, precision: str | None, quantization: str | None, base: Hyperparameters
) -> list[Variant]:
    """The ways of training that options ask for, the wanted one first; what is not said is varied.

    base: rank, target and the like. Raises ConfigError for names that are not known.
    """
    for name, value, known in (
        ("--precision", precision, PRECISIONS),
        ("--quantization", quantization, QUANTIZATIONS),
    ):
        if value is not None and value not in known:
            raise _wrong(name, f"'{value}' is not known; known: {', '.join(known)}")
    if method == "qlora" and quantization == "none":
        raise _wrong("--quantization", "none is lora, and --method asks for qlora; leave one of them out")
    if method == "qlora":
        method, quantization = "lora", quantization or "nf4"
    if method is not None and method not in METHODS:
        raise _wrong("--method", METHODS.unknown(method))
    if method is None:
        return [*_varied("lora", precision, quantization, base), *_varied("full", precision, None, base)]
    return list(_varied(method, precision, quantization, base))


def _varied(name: str, precision: str | None, quantization: str | None, base: Hyperparameters) -> Iterator[Variant]:
    method: Method = METHODS[name]
    hyper = replace(base, method=name)
    if quantization not in (None, "none"):
        if not method.quantizable:
            raise _wrong("--quantization", f"method {name} trains weights that are not quantised; leave it out")
        yield Variant(hyper=hyper, precision=precision or "bf16", quantization=_held(str(quantization)))
        return
    if precision is None and name != "full" and not method.halvable:
        precision = "fp32"
    yield Variant(hyper=hyper, precision=precision or "bf16")
    if quantization is None and method.quantizable:
        yield from (
            Variant(hyper=hyper, precision=precision or "bf16", quantization=_held(kind)) for kind in ("int8", "nf4")
        )
    if name == "full" and precision is None:
        yield Variant(hyper=hyper, precision="fp32")


def _held(kind: Any) -> Quantization:
    return Quantization(kind=kind, double=kind == "nf4")


def plan_devices(described: Described, variants: Sequence[Variant], load: Load, devices: Devices) -> DevicePlan:
    """Size every variant; the first one that fits comes first, the others follow as they were given.

    Raises ConfigError if rows are longer than the model can read, or if no variant is possible.
    """
    _check(described, load, variants)
    ways = [way(described.model, each, load, devices, DEFAULT_SLOTS["cuda"]) for each in variants]
    possible = [each for each in ways if not each.refused]
    if not possible:
        raise ConfigError([Problem("", 0, 0, "--method", ways[0].refused)])
    first = next((each for each in possible if each.best), possible[0])
    if first is not ways[0] and ways[0] in possible and len({each.variant.hyper.method for each in ways}) == 1:
        first = ways[0]  # what was asked for is what is answered; the others are offered
    return DevicePlan(described, devices, load, (first, *(each for each in ways if each is not first)))


def _check(described: Described, load: Load, variants: Sequence[Variant]) -> None:
    config: Any = described.model.config
    limit = positions(config.to_dict())
    if limit is not None and limit.is_hard and load.length > limit.tokens:
        raise _wrong("--max-length", f"{load.length} is above the {limit.tokens} positions of the model")
    if load.attention not in ATTENTIONS:
        raise _wrong("--attention", f"'{load.attention}' is not known; known: {', '.join(ATTENTIONS)}")
    for name in {each.hyper.target for each in variants if "target" in METHODS[each.hyper.method].takes}:
        try:
            resolve_targets(described.model, name, variants[0].targets)
        except TargetError as error:
            raise _wrong("--target", str(error)) from error


def request_of(spec: SweepSpec) -> tuple[Described, list[Variant], Load]:
    """What a space file asks at its costliest, from the model's configuration: each method with its largest corner.

    Neither data nor weights are read: rows are as long as `max_length` allows, and a classifier has two classes.
    """
    if spec.model.kind not in ("hub", "folder", "package"):
        raise ModelError(
            f"a plan for devices is made from a config.json, and a model of kind {spec.model.kind} has none"
        )
    place = spec.model.location
    if spec.model.kind == "package":
        place = str(inside_package(spec.model.location, spec.model.path))
    described = describe(place, 0 if head_of(spec.task.type) in WRITERS else 2, spec.model.revision)
    space = resolve(spec.space, described.parameters, spec.search.steps)
    precision = "fp32" if spec.run.precision in ("fp32", "bf16h") else "bf16"
    variants = []
    for name in methods_of(space):
        own = [hyper for hyper in corners(space) if hyper.method == name]
        largest = max(own, key=lambda hyper: _trained(described, hyper, spec))
        variants.append(
            Variant(
                hyper=largest,
                precision=precision,
                quantization=spec.model.quantization,
                targets=spec.space.targets,
            )
        )
    rows = int(extremes(space, "batch_size")[-1]) * make_task(spec.task).texts
    return described, variants, Load(rows=rows, length=spec.task.max_length)


def _trained(described: Described, hyper: Hyperparameters, spec: SweepSpec) -> int:
    layers = resolve_targets(described.model, hyper.target, spec.space.targets)
    return METHODS[hyper.method].trainable(described.model, layers, hyper) + head_parameters(described.model)


def _wrong(option: str, message: str) -> ConfigError:
    return ConfigError([Problem("", 0, 0, option, message)])
