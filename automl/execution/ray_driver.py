"""The process that speaks to Ray: holds the cluster connection and lets Ray Tune run the workers.

Started by `ray_tune` as `python -m automl.execution.ray_driver FD`, in a session and an environment of its own, and
kept apart from the driver on purpose: it never sees the study, the database URL or any other secret, so nothing of
Ray's can store or print them; the signals, the output and the memory of the driver stay the driver's; and it starts
while the driver prepares data. It ends, with all of Ray's processes, when the driver closes its end or dies.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from automl.execution.ray_crew import Crew
from automl.execution.ray_link import Cluster, Ended, Failed, Fleet, Lost, Ready, Reply, kill_session
from automl.execution.ray_mailbox import open_mailbox
from automl.execution.ray_worker import TuneWorker, traces_of
from automl.watchdog import where_it_hung

_OBJECT_STORE_BYTES = 128 * 2**20
"""Cohorts are small; Ray refuses less than 75 MiB."""

_OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


def main() -> None:
    """Serve the driver at the other end of the file descriptor in argv until it goes away."""
    os.umask(0o077)
    connection: Connection[Any, Any] = Connection(int(sys.argv[1]))
    cluster: Cluster = connection.recv()
    threading.Thread(target=_follow_driver, args=(cluster,), daemon=True).start()
    try:
        _connect(cluster)
        connection.send(Ready())
        while True:
            fleet: Fleet = connection.recv()
            connection.send(Ended(_run(fleet, connection)))
    except EOFError:
        time.sleep(60)  # the driver is gone, and `_follow_driver` about to end this process


def _follow_driver(cluster: Cluster) -> None:
    """Standard input is a pipe nobody writes to: it ends when the driver closes it or dies, even by SIGKILL."""
    sys.stdin.buffer.read()
    kill_session(os.getsid(0))
    shutil.rmtree(cluster.folder, ignore_errors=True)
    os._exit(0)


def _connect(cluster: Cluster) -> None:
    here = str(Path(cluster.folder) / "ray")
    if cluster.address is not None:
        _bring_a_node(cluster.address, here)
        ray.init(
            address=cluster.address,
            log_to_driver=False,
            logging_level="ERROR",
            runtime_env={"env_vars": {**_OFFLINE, "OMP_NUM_THREADS": str(cluster.threads)}},
            _temp_dir=here,
        )
    else:
        ray.init(
            num_cpus=cluster.cpus,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="ERROR",
            object_store_memory=_OBJECT_STORE_BYTES,
            _node_ip_address="127.0.0.1",
            _temp_dir=here,
        )


def _bring_a_node(address: str, folder: str) -> None:
    """Join the cluster with a node of our own that offers nothing, and ends with this session.

    Ray lets drivers in from its nodes only (ray 2.60, _private/services.py, get_node_to_connect_for_driver), and the
    driver may be on a machine that is none; or on one with a node that belongs to another search and ends with it.
    """
    start = [
        *(sys.executable, "-m", "ray.scripts.scripts", "start", f"--address={address}", f"--temp-dir={folder}"),
        *("--num-cpus=0", "--num-gpus=0", f"--object-store-memory={_OBJECT_STORE_BYTES}", "--disable-usage-stats"),
        *("--min-worker-port=0", "--max-worker-port=0", "--dashboard-agent-listen-port=0"),
    ]
    subprocess.run(start, stdin=subprocess.DEVNULL, check=True)  # noqa: S603 - Ray in our own interpreter


def lacking(nodes: Sequence[Mapping[str, float]], fleet: Fleet) -> str:
    """Why no worker has a place on nodes with these resources, for which Ray would wait for ever; empty if one has.

    What a process needs is on one node; the processes of a crew may be on several.
    """
    needed = {name: count for name, count in (("CPU", fleet.cpus), ("GPU", fleet.gpus)) if count > 0}
    places = [min(int(node.get(name, 0.0) // count) for name, count in needed.items()) for node in nodes]
    if sum(places) >= fleet.shards:
        return ""
    have = sorted({f"{node['CPU']:g} and {node.get('GPU', 0.0):g}" for node in nodes if node.get("CPU")})
    times = f" ({fleet.shards} times)" if fleet.shards > 1 else ""
    wanted = f"a worker needs {fleet.cpus:g} CPUs and {fleet.gpus:g} GPUs on one node{times}"
    return f"{wanted}; the nodes of the cluster have {', '.join(have) or 'none'}"


def _run(fleet: Fleet, connection: Connection[Any, Any]) -> str:
    """Let Tune run the fleet; returns why it could not, or an empty text. `Tuner.restore` is never used."""
    if problem := lacking([each["Resources"] for each in ray.nodes() if each["Alive"]], fleet):
        return problem
    mailbox = open_mailbox()
    ending = _Ending()
    crew = _crew(fleet)
    trainable = tune.with_parameters(
        TuneWorker, host=fleet.host, mailbox=mailbox, folder=fleet.folder, silence=fleet.silence, crew=crew
    )
    # Ray Train reserves the devices of a crew. Its worker needs none: a byte, since Ray refuses to reserve nothing.
    needed = {"cpu": fleet.cpus, "gpu": fleet.gpus} if crew is None else {"memory": 1}
    tuner = tune.Tuner(
        tune.with_resources(trainable, needed),
        param_space={"worker": tune.grid_search(list(range(fleet.workers)))},
        tune_config=tune.TuneConfig(
            scheduler=_Relay(connection, mailbox, ending, fleet), max_concurrent_trials=fleet.workers
        ),
        run_config=tune.RunConfig(
            name="workers",
            storage_path=fleet.folder,
            verbose=0,
            stop=ending,
            failure_config=tune.FailureConfig(max_failures=-1),
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
        ),
    )
    try:
        tuner.fit()
    finally:
        ray.kill(mailbox)
        shutil.rmtree(fleet.folder, ignore_errors=True)
    return ""


def _crew(fleet: Fleet) -> Crew | None:
    if fleet.shards == 1:
        return None
    return Crew(
        processes=fleet.shards,
        cpus=fleet.cpus,
        gpus=fleet.gpus,
        folder=fleet.folder,
        private=fleet.private,
        silence=fleet.silence,
    )


class _Ending(tune.Stopper):  # type: ignore[misc]  # Ray's types are not followed (pyproject.toml)
    """Tells Tune that no worker need be started or waited for any more."""

    def __init__(self) -> None:
        self.over = False

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self.over


class _Relay(FIFOScheduler):  # type: ignore[misc]  # Ray's types are not followed (pyproject.toml)
    """Hands every cohort to the driver and its orders to the mailbox; Tune itself always hears CONTINUE."""

    def __init__(
        self, connection: Connection[Any, Any], mailbox: ray.actor.ActorHandle, ending: _Ending, fleet: Fleet
    ) -> None:
        super().__init__()
        self._fleet = fleet
        self._connection = connection
        self._mailbox = mailbox
        self._ending = ending

    def __reduce__(self) -> tuple[type[FIFOScheduler], tuple[()]]:
        """Tune pickles its scheduler into the experiment folder; the connection has no business there."""
        return FIFOScheduler, ()

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Ask the driver. A worker that failed is stopped; it has nothing more to say."""
        if "error" in result:
            self._ask(Failed(trial.config["worker"], result["error"], result["trace"]))
            return str(TrialScheduler.STOP)
        cohort = result["cohort"]
        reply = self._ask(cohort)
        self._mailbox.post.remote(cohort.worker, cohort.epoch, cohort.seq, reply.orders)
        return str(TrialScheduler.CONTINUE)

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        """A worker's process has died; Tune starts it again, in its place or on another node."""
        worker = trial.config["worker"]
        self._ask(Lost(worker, _hung(self._fleet, worker) or _cause(trial)))

    def _ask(self, message: object) -> Reply:
        self._connection.send(message)
        reply: Reply = self._connection.recv()
        self._ending.over = reply.over
        return reply


def _hung(fleet: Fleet, worker: int) -> str:
    """One line on a worker that was ended because nothing moved any more; empty if that was not so."""
    traces = traces_of(Path(fleet.folder), worker)
    place = where_it_hung(traces)
    traces.unlink(missing_ok=True)
    return place and f"it asked for no batch in {fleet.silence:g} s and hung at {place}"


def _cause(trial: Any) -> str:
    """One line on why the trial's process died: the first sentence of Ray's paragraph on it."""
    path = Path(trial.error_file or "")
    if not path.is_file():
        return "no reason given"
    text = " ".join(path.read_text(encoding="utf-8").rsplit("Failure #", 1)[-1].split())
    if "PeerLost: " in text:
        return text.rsplit("PeerLost: ", 1)[-1][:200]
    return text.split("exit detail:")[-1].strip().split(". ")[0][:200]


if __name__ == "__main__":
    main()
