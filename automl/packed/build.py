"""The packed host of the main job: slot files and adapters lie where the solo host would have them."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from torch import nn

from automl import durable
from automl.packed.body import find_body
from automl.packed.host import PackedHost
from automl.packed.trainer import PackedTrainer
from automl.packed.workload import Workload
from automl.training.adapter import adapter_draft, adapter_folder, adapter_meta
from automl.training.bench import Bench, HostSettings, load_bench
from automl.training.checkpoint import slot_files, slot_folder
from automl.trial import Measurement, TrialSpec

PACKABLE = frozenset({"lora"})
"""Methods whose adapters can be trained together."""


def obstacle(model: nn.Module, methods: Iterable[str]) -> str:
    """Why trials of these methods cannot be packed on this model, in a few words; empty if they can."""
    unknown = sorted(set(methods) - PACKABLE)
    if unknown:
        return f"method {unknown[0]} cannot be packed"
    if find_body(model) is None:
        return f"{type(model).__name__} cannot be packed"
    return ""


def build_packed_host(settings: HostSettings) -> PackedHost:
    """Load backbone and data and return the host; called inside the worker."""
    return packed_host(settings, load_bench(settings))


def packed_host(settings: HostSettings, bench: Bench) -> PackedHost:
    """The host over a bench that has been loaded. Raises ModelError or TargetError if the model cannot be packed."""
    workload = Workload(
        task=bench.task,
        train_rows=bench.train_rows,
        evaluation_rows=bench.evaluation_rows,
        tokenizer=bench.tokenizer,
        evaluation_tokens=bench.evaluation_tokens,
    )
    trainer = PackedTrainer(bench.model, workload, targets=bench.targets, precision=bench.precision)
    output = Path(settings.output).absolute()

    def export(spec: TrialSpec, measurement: Measurement) -> str:
        folder = adapter_folder(output, spec.number)
        meta = adapter_meta(settings, bench.task, spec, measurement)
        with adapter_draft(folder, meta, config=trainer.model.config, tokenizer=bench.tokenizer) as draft:
            trainer.export(spec.number, draft, base=settings.backbone.path)
        return str(folder)

    return PackedHost(
        trainer,
        capacity=_capacity(settings, trainer),
        files=lambda spec: slot_files(settings, spec),
        discard=lambda trial: durable.remove_folder(slot_folder(output, trial)),
        export=export,
        majority=settings.prepared.baseline,
        ahead=True,
    )


def _capacity(settings: HostSettings, trainer: PackedTrainer) -> int:
    """As many trials as the driver wants here, or as the memory left by the backbone has room for.

    A CPU worker counts on its part of what is free on its machine: as many workers may be there as there are, or as
    the CPUs suffice for.
    """
    if settings.largest is None:
        return settings.capacity
    share = 1.0
    if trainer.device.type == "cpu":
        cpus = os.cpu_count() or 1
        share = max(1 / settings.workers, min(1.0, (settings.threads or cpus) / cpus))
    return min(settings.capacity, trainer.capacity(settings.largest, tokens=settings.tokens, share=share))
