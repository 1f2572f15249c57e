"""The executor that runs workers through Ray Tune, as seen from the driver. Ray itself is used in `ray_driver` only."""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any, NamedTuple

from automl.errors import ClusterLost, ResourceError
from automl.execution.base import Executor, HostFactory
from automl.execution.cluster import unreachable
from automl.execution.dispatch import CLUSTER_LOST, Dispatcher
from automl.execution.ray_link import Cluster, Ended, Failed, Fleet, Lost, Ready, Reply, kill_session
from automl.trial import Cohort

logger = logging.getLogger(__name__)

SILENCE_SECONDS = 1800.0
"""No single batch takes half an hour."""
_START_SECONDS = 180.0
_GRACE_SECONDS = 15.0
"""How long workers may take to reach their next cohort once they are to stop; then they are ended by force."""
_HOMEWARD_SECONDS = 3.0
"""How long workers that were sent home may take to leave."""
_POLL_SECONDS = 0.25

_KEPT = {
    *("AUTOML_CACHE", "AUTOML_RUN_ID", "HF_DATASETS_CACHE", "HF_HOME", "HF_HUB_CACHE", "HOME", "LANG", "LANGUAGE"),
    *("LD_LIBRARY_PATH", "LOGNAME", "PATH", "SHELL", "SSL_CERT_DIR", "SSL_CERT_FILE", "TMPDIR", "TZ", "USER"),
    *("RAY_worker_niceness", "VIRTUAL_ENV"),  # Ray starts workers at niceness 15 unless told otherwise
}
_KEPT_PREFIXES = (
    "AUTOML_METRIC_",  # what a user sets for programs that judge answers (automl.tasks.command)
    "CUDA_",
    "HIP_",
    "KMP_",
    "LC_",
    "MKL_",
    "NCCL_",
    "NVIDIA_",
    "OMP_",
    "PYTORCH_",
    "ROCR_",
    "TORCH_",
    "XDG_",
)

_SETTINGS = {
    "HF_DATASETS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_OFFLINE": "1",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_OBJECT_STORE_ALLOW_SLOW_STORAGE": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "TOKENIZERS_PARALLELISM": "false",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_FORCE_TRIAL_CLEANUP_S": "10",
    "TUNE_GLOBAL_CHECKPOINT_S": "86400",
}

# Ray has no setting "listen on loopback only" and replaces 127.0.0.1 by the address of the network card, unless it
# believes to run where clusters over several machines are unsupported (ray 2.60, _private/services.py:815).
_PRIVATE = {
    "RAY_AUTH_MODE": "token",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_gcs_rpc_server_reconnect_timeout_s": "10",  # a private cluster whose control service died does not come back
}


class RayExecutor(Executor):
    """`workers` processes under Ray Tune, each with `cpus_per_worker` CPUs and `gpus_per_worker` GPUs.

    shards: with more than one, each worker is a group of so many processes with as many CPUs and GPUs each.
    address: a running cluster to join ("auto" or host:port), None = a private one on this machine, reachable only from
    it and only with a token made for this run. `folder` must be one that the driver may write to; Tune's records lie
    there while a run lasts. silence: a worker that asks for no batch for so many seconds, to train on or to evaluate,
    counts as hung; it is ended, and started again.
    """

    def __init__(
        self,
        *,
        workers: int,
        cpus_per_worker: int = 1,
        gpus_per_worker: float = 0,
        shards: int = 1,
        address: str | None = None,
        folder: Path,
        silence: float = SILENCE_SECONDS,
    ) -> None:
        self.workers = workers
        self.cpus_per_worker = cpus_per_worker
        self.gpus_per_worker = gpus_per_worker
        self.shards = shards
        self._address = address
        self._folder = folder
        self._silence = silence
        self._head: _Head | None = None

    def start(self) -> None:
        """Start the head process, which starts or joins the cluster while the caller goes on.

        Raises ResourceError if nothing answers at the address; Ray itself would go on trying for minutes.
        """
        if self._head is None:
            if problem := unreachable(self._address):
                raise ResourceError(f"run.address: {problem}")
            cpus = self.workers * self.shards * self.cpus_per_worker
            self._head = _Head(self._address, cpus=cpus, threads=self.cpus_per_worker)

    def run(self, dispatcher: Dispatcher, build_host: HostFactory) -> None:
        """See `Executor.run`. May be called again; the cluster is kept until `close`."""
        try:
            self.start()
            assert self._head is not None
            if self._head.wait(dispatcher):
                self._converse(self._head.connection, dispatcher, build_host)
        finally:
            dispatcher.finish()

    def close(self) -> None:
        """End the head and everything it has started."""
        if self._head is not None:
            self._head.close()
            self._head = None

    def _converse(self, connection: Connection[Any, Any], dispatcher: Dispatcher, build_host: HostFactory) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        records = tempfile.mkdtemp(prefix=".tune-", dir=self._folder.resolve())
        try:
            connection.send(
                Fleet(
                    workers=self.workers,
                    cpus=self.cpus_per_worker,
                    gpus=self.gpus_per_worker,
                    host=bytes(ForkingPickler.dumps(build_host)),
                    folder=records,
                    silence=self._silence,
                    shards=self.shards,
                    private=self._address is None,
                )
            )
            while not isinstance(message := _next(connection, dispatcher), Ended):
                connection.send(_answer(message, dispatcher))
            if message.error:
                raise ResourceError(message.error)
        except TimeoutError:
            logger.warning("workers did not stop in time; they are ended by force and continue from their slot files")
            self.close()
        except (EOFError, ConnectionError):
            logger.error(CLUSTER_LOST)
            dispatcher.stop(CLUSTER_LOST, ClusterLost)
            self.close()
        finally:
            shutil.rmtree(records, ignore_errors=True)


def _next(connection: Connection[Any, Any], dispatcher: Dispatcher) -> object:
    """The head's next message. Raises TimeoutError if everything was told to stop and takes too long to do so."""
    deadline = float("inf")
    while not connection.poll(_POLL_SECONDS):
        if dispatcher.stopped is not None:
            grace = _HOMEWARD_SECONDS if dispatcher.over else _GRACE_SECONDS
            deadline = min(deadline, time.monotonic() + grace)
        if time.monotonic() > deadline:
            raise TimeoutError
    message: object = connection.recv()
    return message


def _answer(message: object, dispatcher: Dispatcher) -> Reply:
    if isinstance(message, Cohort):
        orders = tuple(dispatcher.exchange(message))
        return Reply(orders, dispatcher.over)
    if isinstance(message, Lost):
        dispatcher.lost(message.worker, message.why)
    elif isinstance(message, Failed):
        logger.debug("worker %d: %s", message.worker, message.trace)
        dispatcher.failed(message.worker, message.error)
    return Reply((), dispatcher.over)


class _Head:
    """The head process and the driver's end of its pipe."""

    def __init__(self, address: str | None, *, cpus: int, threads: int) -> None:
        # Ray's sockets lie in this folder, and their paths must be shorter than 108 characters.
        self._folder = tempfile.mkdtemp(prefix="automl-", dir="/tmp" if Path("/tmp").is_dir() else None)  # noqa: S108
        self._log = Path(self._folder) / "head.log"
        python = Installation.reached_through(Path(self._folder) / "python")
        self.connection, theirs = Pipe()
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(  # noqa: S603 - our own module in our own interpreter
                [python.executable, "-P", "-m", "automl.execution.ray_driver", str(theirs.fileno())],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment(os.environ, address=address, threads=threads, path=python.path),
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        theirs.close()
        self.connection.send(Cluster(address=address, cpus=cpus, threads=threads, folder=self._folder))
        self._ready = False

    def wait(self, dispatcher: Dispatcher) -> bool:
        """Wait until the cluster is there; False if everything was told to stop meanwhile. Raises ResourceError."""
        deadline = time.monotonic() + _START_SECONDS
        while not self._ready:
            if dispatcher.stopped is not None:
                return False
            if time.monotonic() > deadline:
                raise ResourceError(f"Ray did not start within {_START_SECONDS:.0f} s; last line: {self._last_line()}")
            if self.connection.poll(_POLL_SECONDS):
                try:
                    self._ready = isinstance(self.connection.recv(), Ready)
                except EOFError:
                    raise ResourceError(f"Ray could not be started: {self._last_line()}") from None
        return True

    def close(self) -> None:
        """The end of its standard input tells the head to clean up; what has not gone after 5 s is killed."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self.connection.close()
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            kill_session(self._process.pid)
            self._process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _last_line(self) -> str:
        lines = self._log.read_text(encoding="utf-8", errors="replace").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "no output")


class Installation(NamedTuple):
    """The running Python as another process is to start it: its executable, and the entries of its `sys.path`."""

    executable: str
    path: tuple[str, ...]

    @classmethod
    def reached_through(cls, link: Path) -> Installation:
        """This installation; if a blank is in its path, through a link without one, which is made.

        Ray 2.60 starts its workers from a command line that it cuts at blanks (_private/services.py, start_raylet).
        """
        prefix, entries = sys.prefix, tuple(entry or os.getcwd() for entry in sys.path)
        if not any(blank in prefix for blank in " \t"):
            return cls(sys.executable, entries)
        link.symlink_to(prefix, target_is_directory=True)

        def through(entry: str) -> str:
            return str(link) + entry[len(prefix) :] if Path(entry).is_relative_to(prefix) else entry

        return cls(through(sys.executable), tuple(through(entry) for entry in entries))


def environment(
    ours: Mapping[str, str], *, address: str | None, threads: int, path: Sequence[str] = ()
) -> dict[str, str]:
    """What the head and, through it, the workers of a private cluster get to see: an allow-list, and our settings.

    Database URLs, tokens and everything unknown stay behind. A cluster to join may need Ray's own variables (its
    token); a private one gets a fresh token and none of them.
    """
    kept = {name: value for name, value in ours.items() if name in _KEPT or name.startswith(_KEPT_PREFIXES)}
    if address is None:
        ray = {**_PRIVATE, "RAY_AUTH_TOKEN": secrets.token_urlsafe(32)}
    else:
        ray = {name: value for name, value in ours.items() if name.startswith("RAY_")}
    return {**kept, **ray, **_SETTINGS, "OMP_NUM_THREADS": str(threads), "PYTHONPATH": os.pathsep.join(path)}
