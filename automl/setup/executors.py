"""The executors of a command: a search and the verification that follows it train on the same one, started once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Self

from automl.execution import make_executor
from automl.execution.base import Executor
from automl.results.folders import study_folder
from automl.setup.machine import Layout
from automl.space.spec import SweepSpec


class Executors:
    """Executors of studies, made when they are first asked for; a context manager that closes all of them."""

    def __init__(self) -> None:
        self._made: dict[tuple[object, ...], Executor] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        for executor in self._made.values():
            executor.close()

    def of(self, spec: SweepSpec, layout: Layout) -> Executor:
        """The executor that `run:` names, for this layout; not started yet, unless it has been used before.

        Raises ValueError for an unknown name.
        """
        folder, size = study_folder(spec), (layout.workers, layout.threads, layout.gpus_per_worker, layout.shards)
        key = (spec.run.executor, spec.run.address, folder, size)
        if key not in self._made:
            self._made[key] = make_executor(
                spec.run.executor,
                workers=layout.workers,
                threads=layout.threads,
                gpus_per_worker=layout.gpus_per_worker,
                shards=layout.shards,
                address=spec.run.address,
                folder=folder,
            )
        return self._made[key]


@contextmanager
def lent(executors: Executors | None) -> Iterator[Executors]:
    """These executors, which whoever lends them closes; None = some for this block alone."""
    if executors is not None:
        yield executors
        return
    with Executors() as own:
        yield own
