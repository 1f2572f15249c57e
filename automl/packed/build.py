"""The packed host of the main job: slot files and adapters lie where the solo host would have them."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from torch import nn

from automl.errors import ModelError
from automl.lanes import lane_of
from automl.lora import Hyperparameters
from automl.methods.registry import METHODS
from automl.models.inventory import head_modules
from automl.packed.bank import BankSize
from automl.packed.body import find_body
from automl.packed.host import PackedHost
from automl.packed.memory import SHARE, available_bytes, capacity, give_back_memory, pack_bytes
from automl.packed.remembered import objection
from automl.packed.trainer import PackedTrainer
from automl.packed.workload import Workload
from automl.tasks import make_task
from automl.training.adapter import adapter_draft, adapter_meta
from automl.training.checkpoint import discard_slot_files, finished_folder, slot_files
from automl.training.finalists import Finalists
from automl.training.memory import TOKEN_BUDGET
from automl.training.runtime import (
    HostSettings,
    Runtime,
    choose_device,
    load_runtime,
    load_runtimes,
    referred_to,
    stored_dtype,
)
from automl.trial import Measurement, Scalar, TrialSpec

if TYPE_CHECKING:
    from automl.training.host import SoloHost

logger = logging.getLogger(__name__)

_NONE: Mapping[str, Sequence[Scalar]] = MappingProxyType({})


def obstacle(model: nn.Module, methods: Iterable[str], values: Mapping[str, Sequence[Scalar]] = _NONE) -> str:
    """Why trials of these methods cannot be packed on this model, in a few words; empty if they can.

    values: those of the methods' own settings that trials may have, by name. All that stands in the way is named.
    """
    names = sorted(set(methods))
    alone = [name for name in names if not METHODS[name].packable]
    parts = [f"method{'s' * (len(alone) > 1)} {', '.join(alone)}"] if alone else []
    settings = [each for name in names if name not in alone for each in METHODS[name].settings]
    for setting in settings:
        if unpacked := setting.alone(values.get(setting.name, ())):
            parts.append(f"{setting.name} {', '.join(map(str, unpacked))}")
    if not parts and find_body(model) is None:
        parts = [type(model).__name__]
    return f"{' and '.join(parts)} cannot be packed" if parts else ""


def build_packed_host(settings: HostSettings) -> PackedHost | SoloHost:
    """Load backbone and data and return the host; called inside the worker.

    Where packed training does not follow PEFT on this model and device for the trials of any lane, the host trains its
    trials one at a time. Raises ModelError then if the precision is for packed training only.
    """
    runtimes = load_runtimes(settings, is_judging=_is_judging)
    runtime = runtimes[0]
    reason = _disagreement_of_any(settings, runtimes)
    if not reason:
        return packed_host(settings, runtime, beside=runtimes[1:])
    if settings.precision == "bf16h":
        raise ModelError(f"precision bf16h is for packed training, and this model cannot be packed: {reason}")
    from automl.training.host import SoloHost  # it needs PEFT, which takes seconds to import

    logger.warning("trials are trained one at a time: %s", reason)
    return SoloHost(settings, runtime, beside=runtimes[1:])


def disagreement(settings: HostSettings, model: nn.Module, *, runtime: Callable[[], Runtime] | None) -> str | None:
    """Why packed training, in the way that a worker would choose here, does not follow PEFT; empty if it does.

    model: with or without its weights. runtime: loads them if that is not known yet; None leaves it at what is known,
    and is answered by None if nothing is.
    """
    device = choose_device(settings.device)
    way = choose_way(settings, model, device, available=_available(settings, model, device))
    return objection(settings, model, device, bank=way.bank is not None, recompute=way.recompute, runtime=runtime)


def _disagreement_of_any(settings: HostSettings, runtimes: Sequence[Runtime]) -> str:
    """`disagreement` of the first lane for which there is one, in the way in which all are trained."""
    model, device = runtimes[0].model, runtimes[0].device
    way = choose_way(settings, model, device, available=_available(settings, model, device))
    lanes = zip(settings.lanes, runtimes, strict=True)
    return next(filter(None, (_objection(own, each, way) for own, each in lanes)), "")


def _objection(settings: HostSettings, runtime: Runtime, way: Way) -> str | None:
    return objection(
        settings,
        runtime.model,
        runtime.device,
        bank=way.bank is not None,
        recompute=way.recompute,
        runtime=lambda: runtime,
    )


def examine(settings: HostSettings, model: nn.Module) -> str:
    """`disagreement`, found out in a process that does not train itself: memory and threads are as before."""
    threads = torch.get_num_threads()
    try:
        return disagreement(settings, model, runtime=lambda: _loaded(settings)) or ""
    finally:
        torch.set_num_threads(threads)
        give_back_memory()


def packed_host(settings: HostSettings, runtime: Runtime, *, beside: Sequence[Runtime] = ()) -> PackedHost:
    """The host over what has been loaded for the first lane, and for those beside it: one model for all.

    Raises ModelError or TargetError if the model cannot be packed.
    """
    runtimes = [runtime, *beside]
    workloads = [_workload(each, runtime.model) for each in runtimes]
    way = choose_way(
        settings, runtime.model, runtime.device, available=_available(settings, runtime.model, runtime.device)
    )
    logger.info("%d slots, %s", way.slots, "together" if way.bank else "one by one")
    trainer = PackedTrainer(
        runtime.model,
        workloads[0],
        beside=workloads[1:],
        targets=runtime.targets,
        precision=runtime.precision,
        split=way.split,
        bank=way.bank,
        recompute=way.recompute,
        importance=runtime.importance,
    )
    bare = trainer.backbone
    for lane, own in enumerate(settings.lanes):
        if _is_own_reference(own):
            untuned = cast(Callable[[], nn.Module], partial(bare.view, None))
            runtimes[lane] = referred_to(runtimes[lane], own, untuned, bare.untuned)
            trainer.work_on(_workload(runtimes[lane], runtime.model), lane)
    finalists = [Finalists(each.task.metric) for each in settings.lanes]

    def export(spec: TrialSpec, measurement: Measurement) -> str:
        lane, own = lane_of(spec.number), settings.of(spec.number)
        meta = adapter_meta(own, runtimes[lane].task, spec, measurement)
        folder = finished_folder(settings, spec.number)
        with adapter_draft(folder, meta, config=runtimes[lane].model.config, tokenizer=runtime.tokenizer) as draft:
            trainer.export(spec.number, draft, base=settings.backbone.path)
        return str(folder)

    return PackedHost(
        trainer,
        capacity=way.slots,
        files=lambda spec: slot_files(settings, spec),
        discard=lambda trial: discard_slot_files(settings, trial),
        export=export,
        majorities=[each.prepared.baseline for each in settings.lanes],
        is_finalist=lambda last: finalists[lane_of(last.trial)].admit(last.worth),
        ahead=True,
    )


def _is_own_reference(settings: HostSettings) -> bool:
    """Whether trials are compared with the untuned model in an arithmetic that only a pack has."""
    return settings.precision == "bf16h" and make_task(settings.task).refers


def _is_judging(settings: HostSettings) -> bool:
    return not _is_own_reference(settings)


def _loaded(settings: HostSettings) -> Runtime:
    return load_runtime(settings, is_judging=_is_judging(settings))


def _workload(runtime: Runtime, model: nn.Module) -> Workload:
    """Task and rows of a lane of a pack on this model."""
    own = runtime.model
    return Workload(
        task=runtime.task,
        train_rows=runtime.train_rows,
        evaluation_rows=runtime.evaluation_rows,
        tokenizer=runtime.tokenizer,
        evaluation_tokens=runtime.evaluation_tokens,
        validation_rows=runtime.validation_rows,
        kept=runtime.kept,
        heads=None if own is model else {name: own.get_submodule(name) for name in head_modules(own)},
    )


class Way(NamedTuple):
    """How a host trains: most slots, room for them if they are computed together, and gradient checkpointing.

    split: tokens above which a trial's batch is computed in parts; None: only where memory is short.
    """

    slots: int
    bank: BankSize | None
    recompute: bool
    split: int | None = None


def choose_way(settings: HostSettings, model: nn.Module, device: torch.device, *, available: int) -> Way:
    """Choose as many slots as the driver wants here, or as `available` bytes have room for; nothing is allocated.

    On a GPU slots are computed together, in a bank that holds all the space may choose, and activations are computed
    again where only that makes room for all the slots wanted. On a CPU the loop over slots is as fast and exact to the
    bit, and computing again costs more than packing brings: it is done if not even one trial fits otherwise.

    A batch above the usual tokens of a micro-step is computed in parts, and in smaller ones where one trial has no room
    for them even so.
    """
    if settings.largest is None:
        return Way(settings.capacity, None, False)
    sizes: dict[str, Any] = {
        "token_budget": TOKEN_BUDGET[device.type],
        "block": settings.task.max_length if settings.task.short_texts else 0,
        "targets": settings.targets,
        "dtype": stored_dtype(settings.precision),
        "device": device.type,
    }
    split = _split(model, settings, SHARE * available, sizes)
    most = settings.tokens if settings.whole_batches else min(settings.tokens, split)
    sizes |= {"tokens": max(_row_tokens(settings), most), "token_budget": split}
    is_together = device.type != "cpu"
    wanted = settings.capacity if is_together else 1
    recompute = not _has_room(model, settings.largest, wanted, SHARE * available, sizes)
    slots = capacity(
        model, settings.largest, available=available, recompute=recompute, wanted=settings.capacity, **sizes
    )
    choices = settings.choices or (settings.largest.target,)
    bank = BankSize(slots, settings.largest.rank, choices) if is_together else None
    return Way(slots, bank, recompute, split)


def _row_tokens(settings: HostSettings) -> int:
    """Tokens of the longest row, or of all its texts."""
    return max(1, make_task(settings.task).texts * min(settings.task.longest_row, settings.prepared.longest))


def _split(model: nn.Module, settings: HostSettings, room: float, sizes: Mapping[str, Any]) -> int:
    """Tokens of a micro-step: as many as keep the device busy, or half of that until one trial has room."""
    assert settings.largest is not None
    least, split = _row_tokens(settings), int(sizes["token_budget"])
    while split > least:
        tokens = {**sizes, "tokens": max(least, min(settings.tokens, split)), "token_budget": split}
        if any(
            pack_bytes(model, settings.largest, slots=1, recompute=True, is_bound=is_bound, **tokens) <= room
            for is_bound in (True, False)
        ):
            break
        split //= 2
    return split


def _has_room(model: nn.Module, largest: Hyperparameters, slots: int, room: float, sizes: Mapping[str, Any]) -> bool:
    """Whether so many fit without computing activations again, or would fit no better with it."""
    for is_bound in (True, False):
        plain = pack_bytes(model, largest, slots=slots, is_bound=is_bound, **sizes)
        if plain <= room:
            return True
    return plain <= pack_bytes(model, largest, slots=slots, recompute=True, **sizes)


def _available(settings: HostSettings, model: nn.Module, device: torch.device) -> int:
    """Memory this worker may plan with beside the frozen weights, which are loaded.

    A CPU worker counts on its part of what is free on its machine: as many workers may be there as there are, or as
    the CPUs suffice for.
    """
    share = 1.0
    if device.type == "cpu":
        cpus = os.cpu_count() or 1
        share = max(1 / settings.workers, min(1.0, (settings.threads or cpus) / cpus))
    free = int(share * available_bytes(device))
    if settings.memory is None:
        return free
    return max(0, min(free, settings.memory - sum(parameter.nbytes for parameter in model.parameters())))
