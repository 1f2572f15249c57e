"""An executor that trains in another thread, so that the thread which decides is never kept waiting by a step."""

from __future__ import annotations

from typing import TYPE_CHECKING

from automl.space.entries import ExecutorKind

if TYPE_CHECKING:
    from automl.execution.base import Executor


def _build(**_: object) -> Executor:
    from concurrent.futures import ThreadPoolExecutor

    from automl.execution.base import Executor, HostFactory
    from automl.execution.dispatch import Dispatcher
    from automl.execution.worker import Worker

    class AsideExecutor(Executor):
        """Has one worker. Cohorts and orders are arguments and results of calls in its thread."""

        def start(self) -> None:
            pass

        def run(self, dispatcher: Dispatcher, build_host: HostFactory) -> None:
            with ThreadPoolExecutor(1) as aside:
                try:
                    host = aside.submit(build_host).result()
                    try:
                        worker = Worker(host, 0)
                        cohort = aside.submit(worker.hello).result()
                        while not worker.stopped:
                            cohort = aside.submit(worker.step, dispatcher.exchange(cohort)).result()
                    finally:
                        aside.submit(host.shutdown).result()
                finally:
                    dispatcher.finish()

        def close(self) -> None:
            pass

    return AsideExecutor()


ASIDE = ExecutorKind(build=_build)
