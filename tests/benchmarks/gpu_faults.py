"""Parts for `benchmarks.gpu_check` that end badly, each in its own way."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

import torch


def raises(world: Any) -> None:
    raise ValueError("of two minds")


def lacks(world: Any) -> None:
    import no_such_package  # type: ignore[import-not-found]  # noqa: F401


def asks_for_too_much(world: Any) -> None:
    torch.empty(2**60)


def hangs(world: Any) -> None:
    world.keep({"so": "far"})
    time.sleep(600)


def dies(world: Any) -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def denies(world: Any) -> dict[str, Any]:
    return {"holds": False, "difference": 0.5}


def agrees(world: Any) -> dict[str, Any]:
    return {"holds": True}
