"""The executor for one process: notebooks, tests, and machines without Ray."""

from __future__ import annotations

from automl.execution.base import Executor, HostFactory
from automl.execution.dispatch import Dispatcher
from automl.execution.worker import Worker


class InlineExecutor(Executor):
    """Trains in the calling thread, on one host. Slots are the host's capacity."""

    def start(self) -> None:
        """Nothing to start."""

    def run(self, dispatcher: Dispatcher, build_host: HostFactory) -> None:
        """See `Executor.run`. Whatever ends the loop, the host is shut down and live trials are left resumable."""
        try:
            host = build_host()
            try:
                worker = Worker(host, 0)
                cohort = worker.hello()
                while not worker.stopped:
                    cohort = worker.step(dispatcher.exchange(cohort))
            finally:
                host.shutdown()
        finally:
            dispatcher.finish()

    def close(self) -> None:
        """Nothing to end: `run` has shut its host down."""
