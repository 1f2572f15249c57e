"""Short trainings of cuts of one adapter: in a pack on its backbone, or one by one where they cannot be packed.

Both begin with the same directions and heads, see the same rows, and end alike but for the order of sums.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from automl import progress
from automl.errors import Diverged, TargetError
from automl.importance.cuts import parameters
from automl.lora import Hyperparameters
from automl.models.inventory import head_modules
from automl.packed.build import Way, choose_way, disagreement, obstacle
from automl.packed.layout import a_name, b_name, file_name, head_name
from automl.packed.memory import available_bytes
from automl.packed.trainer import PackedTrainer
from automl.packed.workload import Workload
from automl.space.entries import TASKS
from automl.tasks import make_task
from automl.training.cut import Trained, TurnedAdapter, other_tensors
from automl.training.recovery import recover
from automl.training.runtime import HostSettings, Runtime
from automl.training.state import TrainState
from automl.trial import Measurement, TrialSpec

logger = logging.getLogger(__name__)

SEED = 0
"""Seed of the order of rows, the same for all."""

_ALL = "all modules of the adapter"
_PREFIX = "base_model.model."


class Job(NamedTuple):
    """A cut to train. ranks: by module, in the order of the adapter."""

    ranks: tuple[int, ...]
    learning_rate: float


class Result(NamedTuple):
    """What a trained cut measures on the evaluation rows, and its tensors."""

    metrics: Mapping[str, float]
    trained: Trained


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """How cuts of an adapter are trained. hyper: of optimizer, batch and schedule. check_running: called before each
    step; what it raises ends everything.
    """

    adapter: TurnedAdapter
    runtime: Runtime
    hyper: Hyperparameters
    steps: int
    check_running: Callable[[], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ground:
    """What a pack stands on.

    settings: of the model and the data. plain: the backbone without the adapter; it may share its weights. source: the
    adapter's folder. slots: most cuts at once, None = as many as memory has room for.
    """

    settings: HostSettings
    plain: nn.Module
    source: Path
    slots: int | None = None


Train = Callable[[Sequence[Job]], Sequence[Result | Diverged]]
"""Trains cuts; answers are in the order of the jobs. Raises OutOfMemory, DataError, and what `check_running` raises."""


def trainer_of(course: Course, ground: Ground, cuts: Sequence[tuple[int, ...]]) -> Train:
    """What trains cuts of these ranks, each by module in the order of the adapter."""
    with progress.telling(lambda: "finding out whether cuts can be trained together"):
        reason = why_alone(course, ground, cuts)
    if reason:
        logger.info("cuts are trained one after the other: %s", reason)
        return lambda jobs: [_alone(course, job) for job in jobs]
    return lambda jobs: _together(course, ground, jobs)


def why_alone(course: Course, ground: Ground, cuts: Sequence[tuple[int, ...]]) -> str:
    """Why cuts of these ranks are not trained in a pack, in a few words; empty if they are."""
    settings = ground.settings
    if ground.slots == 1:
        return "slots: 1"
    if settings.precision == "bf16" and course.runtime.device.type == "cpu":
        return "precision bf16 cannot be packed on a CPU"
    if not TASKS[settings.task.type].packable:
        return f"task {settings.task.type} cannot be packed"
    if reason := obstacle(ground.plain, ["lora"]) or _oddity(course.adapter, ground):
        return reason
    own = _pack_settings(course, ground, cuts)
    runtime = replace(course.runtime, model=ground.plain, precision=own.precision, targets=own.targets)
    try:
        return disagreement(own, ground.plain, runtime=lambda: runtime) or ""
    except TargetError as error:
        return str(error)


def _oddity(adapter: TurnedAdapter, ground: Ground) -> str:
    """What an adapter made elsewhere may have that trials in a pack have not; empty if nothing."""
    if len(_scalings(adapter)) > 1:
        return "its modules are scaled differently"
    plain = {
        head_name(head, name): tensor
        for head in head_modules(ground.plain)
        for name, tensor in ground.plain.get_submodule(head).named_parameters()
    }
    if adapter.heads.keys() != plain.keys():
        return "its heads are not those of the model"
    frozen = dict(ground.plain.named_parameters())
    heads = set(map(file_name, plain))
    for name, tensor in other_tensors(ground.source).items():
        path = name.removeprefix(_PREFIX)
        if name not in heads and not (
            path in frozen and torch.equal(frozen[path].cpu(), tensor.to(frozen[path].dtype))
        ):
            return f"it has trained {path}"
    return ""


def _alone(course: Course, job: Job) -> Result | Diverged:
    adapter, runtime = course.adapter, course.runtime
    at = 0

    def before_step(step: int) -> None:
        nonlocal at
        course.check_running()
        at = step

    what = f"recovering {_size(adapter, job.ranks)} at rate {job.learning_rate:.2g}"
    try:
        with progress.telling(lambda: f"{what}, step {at} of {course.steps}"):
            hyper = replace(course.hyper, learning_rate=job.learning_rate)
            trained = recover(
                adapter, runtime, job.ranks, hyper, steps=course.steps, seed=SEED, before_step=before_step
            )
            return Result(runtime.evaluate(adapter.model, runtime.evaluation_rows, runtime.evaluation_tokens), trained)
    except Diverged as error:
        return error


def _together(course: Course, ground: Ground, jobs: Sequence[Job]) -> list[Result | Diverged]:
    """Train all in packs; whoever fails there is trained once more, alone, which says why."""
    found: dict[int, Result] = {}
    own = _pack_settings(course, ground, [job.ranks for job in jobs])
    way = _way(own, ground, course.runtime)
    specs = [_spec(course, number, job) for number, job in enumerate(jobs)]
    starts = {number: _start(course, job) for number, job in enumerate(jobs)}
    with (
        closing(_packed_trainer(course, ground, own, way)) as trainer,
        progress.telling(lambda: _line([member.step for member in list(trainer.members.values())], course.steps)),
    ):
        for event in trainer.train(specs, slots=way.slots, starts=starts, before_turn=course.check_running):
            if isinstance(event, Measurement):
                params = trainer.snapshot(event.trial).params
                found[event.trial] = Result(dict(event.metrics), _trained(course.adapter, jobs[event.trial], params))
    return [found.get(number) or _alone(course, job) for number, job in enumerate(jobs)]


def _packed_trainer(course: Course, ground: Ground, own: HostSettings, way: Way) -> PackedTrainer:
    runtime = course.runtime
    workload = Workload(
        task=runtime.task,
        train_rows=runtime.train_rows,
        evaluation_rows=runtime.evaluation_rows,
        tokenizer=runtime.tokenizer,
        evaluation_tokens=runtime.evaluation_tokens,
    )
    return PackedTrainer(
        ground.plain,
        workload,
        targets=own.targets,
        precision=own.precision,
        bank=way.bank,
        recompute=way.recompute,
    )


def _pack_settings(course: Course, ground: Ground, cuts: Sequence[tuple[int, ...]]) -> HostSettings:
    """Settings of a host for these cuts: its target sets, its costliest trial, and the tokens of a batch.

    In float32 where trials were in `bf16h`, as all else that is measured of a cut.
    """
    adapter, settings = course.adapter, ground.settings
    sets = {_ALL: adapter.paths, **{_target(ranks): _kept(adapter, ranks) for ranks in cuts}}
    most = max(cuts, key=lambda ranks: parameters(ranks, adapter.costs))
    longest = min(settings.task.longest_row, settings.prepared.longest)
    return replace(
        settings,
        targets={**settings.targets, **{name: tuple(map(re.escape, paths)) for name, paths in sets.items()}},
        choices=(*settings.choices, _ALL),
        precision="fp32" if settings.precision == "bf16h" else settings.precision,
        largest=_hyper(course, Job(most, course.hyper.learning_rate)),
        tokens=course.hyper.batch_size * make_task(settings.task).texts * longest,
        capacity=len(cuts) if ground.slots is None else min(len(cuts), ground.slots),
        workers=1,
        packed=True,
        importance=False,
    )


def _way(own: HostSettings, ground: Ground, runtime: Runtime) -> Way:
    return choose_way(own, ground.plain, runtime.device, available=available_bytes(runtime.device))


def _spec(course: Course, number: int, job: Job) -> TrialSpec:
    return TrialSpec(
        number=number,
        params={},
        hyper=_hyper(course, job),
        seed=SEED,
        data_seed=SEED,
        steps=course.steps,
        evaluate_every=course.steps,
    )


def _hyper(course: Course, job: Job) -> Hyperparameters:
    adapter, most = course.adapter, max(job.ranks)
    ranks = {path: rank for path, rank in zip(adapter.paths, job.ranks, strict=True) if rank}
    return replace(
        course.hyper,
        rank=most,
        alpha=min(_scalings(adapter)) * most,
        target=_target(job.ranks),
        learning_rate=job.learning_rate,
    ).with_ranks(ranks)


def _start(course: Course, job: Job) -> TrainState:
    """The cut as a trial that has not made a step."""
    updates = course.adapter.updates(job.ranks)
    params = {a_name(each.path): each.a for each in updates} | {b_name(each.path): each.b for each in updates}
    params |= course.adapter.heads
    zeros = {name: torch.zeros_like(tensor) for name, tensor in params.items()}
    return TrainState(
        step=0,
        params=params,
        moments={f"{key}/{name}": zero for key in ("exp_avg", "exp_avg_sq") for name, zero in zeros.items()},
        dropout=None,
        micro_batch=course.hyper.batch_size,
        evaluation_tokens=course.runtime.evaluation_tokens,
        seconds=0.0,
        tokens=0,
    )


def _trained(adapter: TurnedAdapter, job: Job, params: Mapping[str, Tensor]) -> Trained:
    """The tensors of a trial of a pack as those of a cut."""
    empty = [(torch.zeros(0, inputs), torch.zeros(outputs, 0)) for inputs, outputs in adapter.shapes]
    parts = zip(adapter.paths, job.ranks, empty, strict=True)
    factors = tuple((params[a_name(path)], params[b_name(path)]) if rank else none for path, rank, none in parts)
    return Trained(factors, {file_name(name): params[name] for name in adapter.heads})


def _scalings(adapter: TurnedAdapter) -> set[float]:
    """Those of the modules that have directions: AdaLoRA divides by ranks, which may have become 0."""
    return {scaling for scaling, found in zip(adapter.scalings, adapter.strengths, strict=True) if found}


def _kept(adapter: TurnedAdapter, ranks: Sequence[int]) -> tuple[str, ...]:
    return tuple(path for path, rank in zip(adapter.paths, ranks, strict=True) if rank)


def _target(ranks: Sequence[int]) -> str:
    return f"cut to {' '.join(map(str, ranks))}"


def _size(adapter: TurnedAdapter, ranks: Sequence[int]) -> str:
    return f"{parameters(ranks, adapter.costs):,} parameters"


def _line(steps: Sequence[int], most: int) -> str:
    return f"recovering {len(steps)} cuts together, step {min(steps)} of {most}" if steps else "recovering cuts"
