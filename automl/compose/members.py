"""The adapters that are mixed: which trials', whether they go together, and their tensors."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from automl import durable, ranking
from automl.compose.mixing import FUSION, MIXED, How
from automl.compose.wanted import Wanted
from automl.errors import CheckpointError, ModelError, SearchError
from automl.lora import Hyperparameters
from automl.methods.base import LowRank
from automl.methods.registry import METHODS
from automl.metric import METRICS
from automl.results.artifacts import adapter_of, complete_trial
from automl.space.spec import SweepSpec
from automl.storage.sql import Database
from automl.storage.trials import TrialRow, list_trials
from automl.training.cut import WEIGHTS, check_low_rank, other_tensors, read_config, tensor_shapes
from automl.training.export import OWN_WEIGHTS

FUSED_METHOD = "adapter"
"""The method of adapters that a fusion joins."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A trial's adapter on disk. about: of its manifest."""

    number: int
    folder: Path
    about: Mapping[str, Any]

    @property
    def hyper(self) -> Hyperparameters:
        """What the trial was trained with."""
        return Hyperparameters.of(self.about["hyperparameters"])

    @property
    def weights(self) -> Path:
        """The file with all its tensors."""
        own = self.folder / OWN_WEIGHTS
        return own if own.is_file() else self.folder / WEIGHTS

    @property
    def is_low_rank(self) -> bool:
        """Whether it is made of low-rank updates."""
        return "rank" in METHODS[self.hyper.method].takes


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """An adapter with its tensors on the CPU. updates: by path of the layer; none if it is not made of low-rank ones.

    others: all other tensors of its file, the head's among them, by name.
    """

    number: int
    updates: Mapping[str, LowRank]
    others: Mapping[str, Tensor]


def chosen_trials(database: Database, spec: SweepSpec, of: int | Sequence[int]) -> list[TrialRow]:
    """The best so many complete trials that have an adapter, or those of these numbers, best first.

    Raises SearchError if there are not two of them, or one is not there.
    """
    direction = METRICS[spec.task.metric].direction
    if not isinstance(of, int):
        rows = [complete_trial(database, spec, number) for number in dict.fromkeys(of)]
        return ranking.complete(rows, direction)
    kept = [row for row in ranking.complete(list_trials(database, spec.study), direction) if row.adapter]
    if len(kept) < 2:
        there = f"one adapter, that of trial {kept[0].number}" if kept else "no adapters"
        raise SearchError(f"study {spec.study!r} has {there} (search.keep: {spec.search.keep}); a mixture needs two")
    return kept[:of]


@contextmanager
def found_adapters(database: Database, spec: SweepSpec, rows: Sequence[TrialRow]) -> Iterator[list[Found]]:
    """Their folders, fetched where they are not on this machine. Raises CheckpointError if one is damaged."""
    with ExitStack() as stack:
        folders = [stack.enter_context(adapter_of(database, spec, row)) for row in rows]
        yield [
            Found(number=row.number, folder=folder, about=durable.verify_folder(folder))
            for row, folder in zip(rows, folders, strict=True)
        ]


def ways(found: Sequence[Found], wanted: Wanted) -> tuple[list[How], list[str]]:
    """The ways in which these adapters are to be mixed, and notes on those that they cannot be.

    Raises ModelError if there are none, or if one that was asked for is not possible.
    """
    _check_alike(found)
    if FUSION in wanted.how:
        return _fused_ways(found, wanted), []
    if not found[0].is_low_rank:
        _check_averaged(found, wanted)
        return ["soup"], []
    for each in found:
        check_low_rank(each.folder, read_config(each.folder), "mixed")
    asked = [how for how in MIXED if how in wanted.how or not wanted.how]
    if "linear" not in asked or (hindrance := _no_factors(found)) is None:
        return asked, []
    if wanted.how:
        raise ModelError(f"--how linear: {hindrance}; it adds A and B themselves: use soup or svd")
    return [how for how in asked if how != "linear"], [f"not mixed by linear: {hindrance}"]


def read_member(found: Found, adapted: Any) -> Member:
    """Copies of the tensors of an adapter. adapted: the model that holds it."""
    if not found.is_low_rank:
        return Member(number=found.number, updates={}, others=load_file(found.weights))
    method = METHODS[read_config(found.folder)["peft_type"].lower()]
    updates = {
        path: LowRank(path, a.detach().to("cpu", copy=True), b.detach().to("cpu", copy=True), scaling)
        for path, a, b, scaling in method.low_rank(adapted)
    }
    return Member(number=found.number, updates=updates, others=other_tensors(found.folder))


def averaged(members: Sequence[Member]) -> dict[str, Tensor]:
    """The mean of everything that is no low-rank update: heads, and all of an adapter that has none.

    Integers and the like are those of the first. Raises ModelError if names or shapes differ.
    """
    first = members[0].others
    for member in members[1:]:
        if (differing := _differing(_shapes(first), _shapes(member.others))) is not None:
            raise ModelError(
                f"trials {members[0].number} and {member.number} differ in '{differing}'; they cannot be mixed"
            )
    return {
        name: sum(member.others[name].double() for member in members).div(len(members)).to(tensor.dtype)  # type: ignore[union-attr]
        if tensor.is_floating_point()
        else tensor
        for name, tensor in first.items()
    }


def _check_alike(found: Sequence[Found]) -> None:
    """One method, one model, one set of data."""
    first = found[0]
    for other in found[1:]:
        for what, ours, theirs in (
            ("method", first.hyper.method, other.hyper.method),
            ("model", first.about["backbone"]["fingerprint"][:12], other.about["backbone"]["fingerprint"][:12]),
            ("classes", first.about["labels"], other.about["labels"]),
        ):
            if ours != theirs:
                raise ModelError(
                    f"trial {first.number} is of {what} {ours}, trial {other.number} of {theirs}; only adapters of one"
                    f" {what} can be mixed: choose them with --trials"
                )


def _fused_ways(found: Sequence[Found], wanted: Wanted) -> list[How]:
    """Fusion, and whatever else was asked for. Raises ModelError or CheckpointError if adapters cannot be joined so."""
    first = found[0]
    if first.hyper.method != FUSED_METHOD:
        raise ModelError(
            f"--how {FUSION}: joins adapters of method {FUSED_METHOD}; trial {first.number} is of method"
            f" {first.hyper.method}"
        )
    for each in found:
        _check_finite(each)
    others = [how for how in wanted.how if how != FUSION]
    if not others:
        return [FUSION]
    _check_averaged(found, replace(wanted, how=others))
    return ["soup", FUSION]


def _check_finite(found: Found) -> None:
    """Raise CheckpointError if a number of the adapter is none."""
    tensors = load_file(found.weights)
    if (strange := next((name for name, each in tensors.items() if not each.isfinite().all()), None)) is not None:
        raise CheckpointError(f"trial {found.number}: '{strange}' of its adapter is not finite; it cannot be joined")


def _check_averaged(found: Sequence[Found], wanted: Wanted) -> None:
    """Raise ModelError unless all tensors of these adapters mean the same, so that their mean means something."""
    method = found[0].hyper.method
    instead = f"; --how {FUSION} joins them by training" if method == FUSED_METHOD else ""
    if other := next((how for how in wanted.how if how != "soup"), None):
        raise ModelError(
            f"--how {other}: is for low-rank updates; adapters of method {method} are mixed by soup alone{instead}"
        )
    for each in found[1:]:
        settings = [{**one.hyper.settings, "target": one.hyper.target} for one in (found[0], each)]
        differing = _differing(*settings) or _differing(*(tensor_shapes(one.weights) for one in (found[0], each)))
        if differing is not None:
            raise ModelError(
                f"trials {found[0].number} and {each.number} of method {method} differ in '{differing}'; their mean"
                f" would mean nothing{instead}"
            )


def _no_factors(found: Sequence[Found]) -> str | None:
    """Why A and B of these adapters cannot be added up, None if they can."""
    shapes = [_factor_shapes(each.weights) for each in found]
    if found[0].hyper.method != "lora":
        return f"method {found[0].hyper.method} has more than A and B"
    for each, theirs in zip(found[1:], shapes[1:], strict=True):
        differing = _differing(shapes[0], theirs)
        if differing is not None:
            what = "ranks" if differing in theirs and differing in shapes[0] else "layers"
            return f"trials {found[0].number} and {each.number} have different {what}"
    return None


def _factor_shapes(file: Path) -> dict[str, tuple[int, ...]]:
    """Shapes of A and B alone."""
    return {name: shape for name, shape in tensor_shapes(file).items() if ".lora_" in name}


def _differing(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> str | None:
    """A name that one of the two lacks, or has with another value."""
    return next((name for name in sorted({*ours, *theirs}) if ours.get(name) != theirs.get(name)), None)


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def numbers_in(file: Path) -> int:
    """How many numbers a file of tensors holds."""
    return sum(map(math.prod, tensor_shapes(file).values()))
