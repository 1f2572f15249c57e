"""Execution: how cohorts and orders travel between workers and the driver, in one process or through Ray Tune."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from pathlib import Path

from automl.execution.base import Executor


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


EXECUTORS: dict[str, Callable[..., Executor]] = {"inline": _inline, "ray": _ray}
"""Executors by name; each entry imports its module when it is called, so naming one does not load Ray."""


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
        near = difflib.get_close_matches(name, EXECUTORS, n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise ValueError(f"executor: unknown name {name!r}; known: {', '.join(EXECUTORS)}{hint}")
    return EXECUTORS[name](
        workers=workers,
        threads=threads,
        gpus_per_worker=gpus_per_worker,
        shards=shards,
        address=address,
        folder=folder,
    )
