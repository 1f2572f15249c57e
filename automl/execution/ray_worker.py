"""A worker as one Tune trial: carries orders from the mailbox to the host, and cohorts back as Tune results."""

from __future__ import annotations

import socket
import traceback
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import ray
from ray import tune

from automl.errors import AutomlError, PeerLost, ResourceError
from automl.execution.base import Host, HostFactory
from automl.execution.ray_crew import Crew
from automl.execution.worker import Worker
from automl.watchdog import watched


class TuneWorker(tune.Trainable):  # type: ignore[misc]  # Ray's types are not followed (pyproject.toml)
    """One process on one device. Its results: {"cohort": …}, or {"error": …, "trace": …} as the last one.

    The host is built in the first `step`, not in `setup`, so that an exception travels as a result with its text; Tune
    would take it for a lost worker and start it again. A dead process is what Tune does restart.
    """

    def setup(
        self,
        config: dict[str, Any],
        *,
        host: bytes,
        mailbox: ray.actor.ActorHandle,
        folder: str,
        silence: float,
        crew: Crew | None,
    ) -> None:
        """Keep what the first step needs. `host` comes from our own driver; it is opened here and nowhere else.

        folder: made by the driver for this run, in the folder of the study. silence: seconds without a batch after
        which this process counts as hung and is ended. crew: the processes that are the host together, None = it is in
        this one.
        """
        self._index: int = config["worker"]
        self._mailbox = mailbox
        self._factory = host
        self._folder = Path(folder)
        self._silence = silence
        self._crew = crew
        self._host: Host | None = None
        self._worker: Worker | None = None
        self._epoch = 0
        self._seq = 0

    def step(self) -> dict[str, Any]:
        """One cohort: hello at first, then orders and training."""
        try:
            return self._greet() if self._worker is None else self._train(self._worker)
        except PeerLost:
            raise  # to Tune, as the death of this process would be
        except Exception as error:  # noqa: BLE001 - the executor's edge: the driver ends the sweep with this error
            trace = "".join(traceback.format_exception(error))
            return {"error": self._nameable(error), "trace": trace}

    def cleanup(self) -> None:
        """Release the device."""
        if self._host is not None:
            self._host.shutdown()

    def _greet(self) -> dict[str, Any]:
        self._epoch = ray.get(self._mailbox.enlist.remote(self._index))
        self._require_shared_folder()
        factory: HostFactory = ForkingPickler.loads(self._factory)
        self._host = self._build(factory)
        self._worker = Worker(self._host, self._index, epoch=self._epoch)
        return {"cohort": self._worker.hello()}

    def _train(self, worker: Worker) -> dict[str, Any]:
        orders = ray.get(self._mailbox.take.remote(self._index, self._epoch, self._seq))
        with watched(self._silence, traces_of(self._folder, self._index)):
            cohort = worker.step(orders)
        self._seq = cohort.seq
        if worker.stopped:
            return {"done": True}
        return {"cohort": cohort}

    def _build(self, factory: HostFactory) -> Host:
        if self._crew is None:
            return factory()
        from automl.execution.ray_group import GroupHost

        return GroupHost(factory, self._crew)

    def _require_shared_folder(self) -> None:
        """Slot files that only this machine can read would be lost with it, and adapters never reach the driver."""
        if not self._folder.is_dir():
            raise ResourceError(
                f"run.output: node {socket.gethostname()} does not see {self._folder.parent}; it must lie on storage"
                " that the driver and all nodes share, under the same path"
            )

    def _nameable(self, error: Exception) -> AutomlError:
        """An error the driver can raise without the packages that only workers load."""
        if isinstance(error, ray.exceptions.RayActorError):
            return ResourceError(f"worker {self._index}: the process that holds its orders has died")
        if isinstance(error, AutomlError):
            return error
        return AutomlError(f"worker {self._index}: {type(error).__name__}: {error}")


def traces_of(folder: Path, worker: int) -> Path:
    """Where a worker that hung says in which call."""
    return folder / f"worker-{worker}.hung"
