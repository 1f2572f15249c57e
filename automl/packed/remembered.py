"""Whether packing follows PEFT on a model, remembered in the cache, so that it is found out once.

A file's name is a hash of all that the answer depends on: the model's fingerprint, its head and the layers that may be
adapted, the path (loop or bank, gradient checkpointing, kernel, device), how long rows are and whether they are joined,
and the versions and sources of what computes.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from automl import durable
from automl.errors import ResourceError, is_out_of_memory
from automl.models.calling import first_line
from automl.models.inventory import resolve_targets
from automl.packed.kernels import choose_kernel
from automl.provenance import versions
from automl.space.spec import Quantization
from automl.tasks import make_task
from automl.training.runtime import HostSettings, Runtime

logger = logging.getLogger(__name__)


def objection(
    settings: HostSettings,
    model: nn.Module,
    device: torch.device,
    *,
    bank: bool,
    recompute: bool,
    runtime: Callable[[], Runtime] | None,
) -> str | None:
    """Why trials are not to be packed in this way, in one line; empty if packed they follow PEFT.

    model: with or without its weights. runtime: loads them if nothing is remembered; without it, the answer is None.
    """
    if not settings.choices:
        return ""
    about = _about(settings, model, device, bank=bank, recompute=recompute)
    known = _recalled(settings, about)
    if known is not None or runtime is None:
        return known
    from automl.packed.proof import disproof

    logger.info("holding packed training against PEFT on this model (%s)", "bank" if bank else "loop")
    try:
        found = disproof(runtime(), settings.choices, bank=bank, recompute=recompute)
    except Exception as error:
        if isinstance(error, RuntimeError | MemoryError) and is_out_of_memory(error):
            return "there is no memory to hold packing against PEFT"  # another time there may be
        logger.debug("packing could not be held against PEFT", exc_info=True)
        found = f"packing cannot be held against PEFT: {first_line(error)}"
    _remember(settings, about, found)
    return found


def _about(
    settings: HostSettings, model: nn.Module, device: torch.device, *, bank: bool, recompute: bool
) -> dict[str, Any]:
    precision = "bf16" if settings.precision == "bf16" else "fp32"  # bf16h is proven in fp32
    head = make_task(settings.task).head(settings.prepared)
    layers = [layer for name in settings.choices for layer in resolve_targets(model, name, settings.targets)]
    return {
        "model": settings.backbone.fingerprint,
        "task": settings.task.type,
        "head": [head.kind, len(head.labels)],
        "layers": sorted({layer.path for layer in layers}),
        "longest": min(settings.task.longest_row, settings.prepared.longest),
        "precision": precision,
        "kernel": choose_kernel(precision, device),
        "path": ["bank" if bank else "loop", *(["recompute"] if recompute else [])],
        "device": torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else torch.backends.cpu.get_cpu_capability(),
        "versions": _versions(),
        **({"short_texts": settings.task.short_texts} if settings.task.short_texts else {}),
        **_quantised(settings.backbone.quantization),
    }


def _quantised(quantization: Quantization | None) -> dict[str, object]:
    if quantization is None:
        return {}
    return {"quantization": str(quantization), "bitsandbytes": versions()["bitsandbytes"]}


@lru_cache(maxsize=1)
def _versions() -> dict[str, object]:
    """Versions of what computes; our own sources by their contents, since a checkout changes between two versions."""
    sources = sorted(Path(__file__).parent.glob("*.py"))
    code = hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()
    return {"code": code, **{name: versions()[name] for name in ("automl", "torch", "transformers", "peft")}}


def _file(settings: HostSettings, about: dict[str, Any]) -> Path | None:
    if not settings.proofs:
        return None
    return Path(settings.proofs) / f"{hashlib.sha256(durable.canonical(about)).hexdigest()}.json"


def _recalled(settings: HostSettings, about: dict[str, Any]) -> str | None:
    file = _file(settings, about)
    try:
        return None if file is None else str(json.loads(file.read_text(encoding="utf-8"))["objection"])
    except (OSError, ValueError, KeyError, TypeError):
        return None  # it was never found out, or the file is no use


def _remember(settings: HostSettings, about: dict[str, Any], found: str) -> None:
    file = _file(settings, about)
    if file is None:
        return
    try:
        durable.make_folder(file.parent)
        durable.replace_file(file, durable.canonical({"objection": found, "about": about}))
    except (OSError, ResourceError) as error:
        logger.warning("cannot remember whether this model can be packed: %s", error)
