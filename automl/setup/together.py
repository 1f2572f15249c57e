"""What workers are told that train trials of several studies side by side: one backbone, one precision, one pack."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from automl.errors import ConfigError, DataError, ModelError, Problem
from automl.lora import Hyperparameters
from automl.setup.machine import Layout
from automl.setup.packing import Packing, choose_packing
from automl.setup.setup import Setup, layout_of, set_up
from automl.space.extremes import starts_from_inputs
from automl.space.spec import SweepSpec
from automl.tasks import make_task
from automl.training.runtime import HostSettings

Recorded = Sequence[Mapping[str, Any] | None]


def layout_together(specs: Sequence[SweepSpec], recorded: Recorded) -> Layout:
    """Workers and threads for the trials of all; as `layout_of` gives them for the study that began first."""
    trials = sum(spec.search.trials for spec in specs)
    first = replace(specs[0], search=replace(specs[0].search, trials=trials))
    return layout_of(first, next(filter(None, recorded), None))


def set_up_together(specs: Sequence[SweepSpec], cache: Path, recorded: Recorded, *, layout: Layout) -> list[Setup]:
    """Prepare model and data of every study, as `set_up` does, in one precision: fp32 if `auto` means that for any.

    Raises what `set_up` raises, naming the study, and ConfigError if trials of these studies cannot share a backbone.
    """
    specs = _in_one_precision(specs, recorded)
    begun = list(zip(specs, recorded, strict=True))
    setups = [_set_up(spec, cache, known, layout) for spec, known in begun]
    if len({setup.spec.run.precision for setup in setups}) > 1:
        setups = [
            setup if setup.spec.run.precision == "fp32" else _set_up(_in(spec, "fp32"), cache, known, layout)
            for setup, (spec, known) in zip(setups, begun, strict=True)
        ]
    _check_alike(setups)
    packing = _packing(setups, sum(spec.search.trials for spec in specs))
    return [replace(setup, packing=packing) for setup in setups]


def worker_settings(setups: Sequence[Setup]) -> HostSettings:
    """What a worker needs to train trials of all these studies; memory is planned by the costliest of any."""
    first, *beside = (setup.worker_settings() for setup in setups)
    return replace(
        first,
        largest=max(map(_largest, setups), key=setups[0].inputs.derive.most_parameters),
        tokens=max(each.tokens for each in (first, *beside)),
        whole_batches=any(each.whole_batches for each in (first, *beside)),
        choices=tuple(dict.fromkeys(name for each in (first, *beside) for name in each.choices)),
        beside=tuple(beside),
    )


@contextmanager
def named(spec: SweepSpec) -> Iterator[None]:
    """Inside the block, errors about model, data and settings say which study they are of."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(replace(each, key=f"{spec.study}: {each.key}") for each in error.problems) from None
    except (DataError, ModelError) as error:
        kind: Callable[[str], Exception] = DataError if isinstance(error, DataError) else ModelError
        raise kind(f"{spec.study}: {error}") from error


def _set_up(spec: SweepSpec, cache: Path, recorded: Mapping[str, Any] | None, layout: Layout) -> Setup:
    with named(spec):
        return set_up(spec, cache, recorded, layout=layout)


def _in(spec: SweepSpec, precision: Any) -> SweepSpec:
    return replace(spec, run=replace(spec.run, precision=precision))


def _largest(setup: Setup) -> Hyperparameters:
    largest = setup.worker_settings().largest
    assert largest is not None, "the driver says which is the largest"
    return largest


def _in_one_precision(specs: Sequence[SweepSpec], recorded: Recorded) -> Sequence[SweepSpec]:
    """The specs in the precision in which one of them has begun; they are not to have begun in several."""
    if specs[0].run.precision != "auto":
        return specs
    begun = {
        str(known["precision"]): spec
        for spec, known in zip(specs, recorded, strict=True)
        if known is not None and "precision" in known
    }
    if len(begun) > 1:
        said = " and ".join(f"{spec.study} in {precision}" for precision, spec in begun.items())
        raise _refusal(specs[0], "run.precision", f"{said} have begun; search them one by one, by files of their own")
    return [_in(spec, next(iter(begun), "auto")) for spec in specs]


def _check_alike(setups: Sequence[Setup]) -> None:
    first = setups[0].spec
    kinds = [_head(setup) for setup in setups]
    other = next((index for index, kind in enumerate(kinds) if kind != kinds[0]), None)
    if other is not None:
        said = f"{first.study} needs a {kinds[0]} model and {setups[other].spec.study} a {kinds[other]} one"
        raise _refusal(first, "tasks", f"{said}; put tasks of another kind into a file of their own")
    for setup in setups:
        if starts_from_inputs(setup.inputs.space):
            message = "init eva starts from one task's rows; search such tasks by files of their own"
            raise _refusal(setup.spec, "tasks", f"{setup.spec.study}: {message}")


def _head(setup: Setup) -> str:
    return make_task(setup.spec.task).head(setup.inputs.prepared).kind


def _refusal(spec: SweepSpec, key: str, message: str) -> ConfigError:
    return ConfigError([Problem(spec.source, 0, 0, key, message)])


def _packing(setups: Sequence[Setup], trials: int) -> Packing:
    """Room for as many trials as the costliest study allows, counted over all; none is packed if one cannot be."""
    if alone := [setup.packing for setup in setups if not setup.packing.is_packed]:
        return alone[0]
    every = [
        choose_packing(
            replace(setup.spec, search=replace(setup.spec.search, trials=trials)), setup.inputs, setup.layout
        )
        for setup in setups
    ]
    return min(every, key=lambda packing: packing.slots)
