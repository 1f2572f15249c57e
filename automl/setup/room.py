"""The memory that the trials of a study have: what is known not to fit is told before anything is started."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import cache
from typing import Any

from automl.errors import ResourceError
from automl.lora import Hyperparameters
from automl.methods.registry import METHODS
from automl.setup.packing import known_memory, least_bytes
from automl.setup.setup import Setup
from automl.space.extremes import choices, corners
from automl.study.room import Room

_AMPLE = 2
"""Times the costliest trial that a worker must have for memory to be in nobody's way, by a bound above any plan."""


def room_for(
    setup: Setup,
    known: Mapping[str, Any] | None,
    remember: Callable[[dict[str, Any]], None] = lambda detail: None,
    *,
    is_over: bool = False,
) -> Room | None:
    """Memory for the trials of a study; None if there is plenty, or if other machines' is not known.

    known: detail of the study's last event MEMORY. is_over: the study has been brought to its end, and may only be
    summed up. Raises ResourceError if no trial of the space fits, unless it is over.
    """
    spec, layout = setup.spec, setup.layout
    available = known_memory(spec.run, layout)
    if available is None:
        return None
    factor = max(1.0, float((known or {}).get("factor", 1.0)))
    if _AMPLE * factor * _most(setup) <= available:
        return None

    @cache
    def needed(kind: Hyperparameters) -> int:
        return least_bytes(spec, setup.inputs, layout, setup.packing, kind)

    room = Room(lambda hyper: needed(_kind(hyper)), available, factor=factor, remember=remember)
    if not is_over:
        _check(setup, room)
    return room


def shortages(setup: Setup) -> Iterator[str]:
    """What of the space is not started for want of memory, each a sentence for a person."""
    try:
        room = room_for(setup, None)
    except ResourceError as error:
        yield str(error)
        return
    if room is None:
        return
    for hyper in corners(setup.inputs.space):
        if reason := room.shortage(hyper):
            yield f"a trial of {_in_words(hyper)} {reason}: it is not started"


def _most(setup: Setup) -> int:
    """More than any trial of the space needs at the least, said at once."""
    return max(
        least_bytes(setup.spec, setup.inputs, setup.layout, setup.packing, hyper, is_bound=True)
        for hyper in corners(setup.inputs.space)
    )


def _check(setup: Setup, room: Room) -> None:
    """Raise ResourceError if not even the smallest corner of the space fits."""
    dropout = min(float(value) for value in choices(setup.inputs.space, "dropout"))
    smallest = [replace(hyper, dropout=dropout) for hyper in corners(setup.inputs.space)]
    reasons = {hyper: room.shortage(hyper) for hyper in smallest}
    if all(reasons.values()):
        least = min(smallest, key=setup.inputs.derive.most_parameters)
        raise ResourceError(
            f"no trial of this space fits: {_in_words(least)} {reasons[least]}; shorter rows (max_length),"
            " model: {quantization: nf4}, a smaller model or a larger device make room"
        )


def _kind(hyper: Hyperparameters) -> Hyperparameters:
    """What the memory of a trial, one row at a time, follows from."""
    return Hyperparameters(
        method=hyper.method,
        rank=hyper.rank,
        dropout=hyper.dropout,
        target=hyper.target,
        rank_pattern=hyper.rank_pattern,
        own=hyper.own,
    )


def _in_words(hyper: Hyperparameters) -> str:
    takes = METHODS[hyper.method].takes
    parts = [f"rank {hyper.rank}"] if "rank" in takes else []
    parts += [f"target {hyper.target}"] if "target" in takes else []
    return ", ".join([f"method {hyper.method}", *parts])
