"""Execution: how cohorts and orders travel between workers and the driver, in one process or through Ray Tune."""

from __future__ import annotations

from pathlib import Path

from automl.execution.base import Executor
from automl.space.entries import EXECUTORS, ExecutorKind


def _inline(**_: object) -> Executor:
    from automl.execution.inline import InlineExecutor

    return InlineExecutor()


def _ray(
    *, workers: int, threads: int, gpus_per_worker: float, shards: int, address: str | None, folder: Path
) -> Executor:
    from automl.execution.ray_tune import RayExecutor

    return RayExecutor(
        workers=workers,
        cpus_per_worker=threads,
        gpus_per_worker=gpus_per_worker,
        shards=shards,
        address=address,
        folder=folder,
    )


INLINE = ExecutorKind(build=_inline)
RAY = ExecutorKind(build=_ray, shards=True)


def make_executor(
    name: str,
    *,
    workers: int = 1,
    threads: int = 1,
    gpus_per_worker: float = 0,
    shards: int = 1,
    address: str | None = None,
    folder: Path = Path("automl-output"),
) -> Executor:
    """The executor of that name.

    workers: processes that train, each with `threads` CPUs and `gpus_per_worker` GPUs (inline has one, this process).
    shards: with more than one, each worker is a group of so many such processes, which hold one trial together.
    address: a running Ray cluster to join, None = a private one on this machine. folder: for short-lived files of Ray.
    Raises ValueError for an unknown name.
    """
    if name not in EXECUTORS:
        raise ValueError(EXECUTORS.unknown(name))
    executor: Executor = EXECUTORS[name].build(
        workers=workers,
        threads=threads,
        gpus_per_worker=gpus_per_worker,
        shards=shards,
        address=address,
        folder=folder,
    )
    return executor
