"""Several processes in the place of one host: a group that Ray Train starts inside a worker, for trials larger than one
device.

The worker is the Tune trial, and reserves nothing: the devices are the group's, which Ray Train reserves all at once.
The group lives as long as the worker. Each process has a host of its own, built by the same factory; all of them are
told the same, in the same order, over an actor without CPUs, and the process of rank 0 answers. See
docs/adr/0011-sharded-trials.md.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import struct
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import ray
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer

from automl.errors import AutomlError, PeerLost
from automl.execution.base import Host, HostFactory
from automl.execution.ray_crew import Answer, Crew, HostCall, Line
from automl.trial import Measurement, Metrics, StopReason, TrialFailure, TrialSpec
from automl.watchdog import beat, watched, where_it_hung

_POLL_SECONDS = 1.0
_LEAVING_SECONDS = 2.0
"""How long the processes may take to leave by themselves; afterwards they end with the worker."""

_SETTINGS = {
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_TRAIN_METRICS_ENABLED": "0",
}


class GroupHost:
    """The hosts of the processes as one host of capacity 1; follows `automl.execution.base.Host`.

    Raises PeerLost, from any method, if a process has died: the worker is to be started again. A trial that failed in
    one process ends the group, and the next trial starts another.
    """

    capacity = 1

    def __init__(self, build_host: HostFactory, crew: Crew) -> None:
        self._build_host = build_host
        self._crew = crew
        self._started = 0
        self._busy_before = 0.0  # of earlier groups
        self._busy = 0.0
        self._to_close: list[int] = []
        self._group: _Group | None = self._start()

    @property
    def busy_seconds(self) -> float:
        """Seconds of the process of rank 0, over all groups."""
        return self._busy_before + self._busy

    def open(self, spec: TrialSpec) -> Sequence[Measurement]:
        """See `Host.open`."""
        while self._to_close:
            self._ask("close", self._to_close.pop())
        found: Sequence[Measurement] = self._ask("open", spec)
        return found

    def advance(self) -> Sequence[Measurement | TrialFailure]:
        """See `Host.advance`."""
        if self._group is None:
            return ()
        news: Sequence[Measurement | TrialFailure] = self._ask("advance")
        if self._group is None:  # no process is left that could delete its files
            self._to_close += [item.trial for item in news if isinstance(item, TrialFailure)]
        return news

    def park(self, trial: int) -> None:
        """See `Host.park`."""
        if self._group is not None:
            self._ask("park", trial)

    def close(self, trial: int) -> None:
        """See `Host.close`. Files of a trial that ended its group go when there is another."""
        if self._group is None:
            self._to_close.append(trial)
        else:
            self._ask("close", trial)

    def baseline(self) -> Metrics:
        """See `Host.baseline`."""
        metrics: Metrics = self._ask("baseline")
        return metrics

    def shutdown(self) -> None:
        """Send the processes home."""
        if self._group is not None:
            self._group.leave()
            self._group = None

    def _start(self) -> _Group:
        self._started += 1
        group = _Group(self._build_host, self._crew, self._started)
        self._take(group, group.ask(None))
        return group

    def _ask(self, method: str, *arguments: Any) -> Any:
        if self._group is None:
            self._group = self._start()
        return self._take(self._group, self._group.ask(HostCall(method, arguments)))

    def _take(self, group: _Group, answer: Answer) -> Any:
        self._busy = answer.busy_seconds
        if answer.ends:
            group.join()
            self._group = None
            self._busy_before, self._busy = self.busy_seconds, 0.0
        if answer.error is not None:
            raise answer.error
        return answer.result


class _Group:
    """One run of Ray Train, in a thread of this process. Its processes end with it, and it with this process."""

    def __init__(self, build_host: HostFactory, crew: Crew, number: int) -> None:
        os.environ.update(_SETTINGS)
        name = f"group-{os.getpid()}-{number}"
        self._traces = Path(crew.folder) / f"{name}.hung"
        self._line = ray.remote(num_cpus=0)(Line).remote()
        self._number = 0
        self._error = "it has ended"
        self._trainer = TorchTrainer(
            serve,
            train_loop_config={
                "build_host": build_host,
                "line": self._line,
                "silence": crew.silence,
                "traces": str(self._traces),
            },
            torch_config=Meeting(file=str(Path(crew.folder) / f"{name}.meeting") if crew.private else ""),
            scaling_config=ScalingConfig(
                num_workers=crew.processes,
                use_gpu=crew.gpus > 0,
                resources_per_worker={"CPU": crew.cpus, **({"GPU": crew.gpus} if crew.gpus else {})},
            ),
            run_config=RunConfig(name=name, storage_path=crew.folder, failure_config=FailureConfig(max_failures=0)),
        )
        self._thread = threading.Thread(target=self._fit, daemon=True)
        self._thread.start()

    def ask(self, order: HostCall | None) -> Answer:
        """Give an order and wait for the answer; the first one is the greeting, and no order. Raises PeerLost."""
        try:
            if order is not None:
                self._line.give.remote(self._number, order)
            coming = self._line.result.remote(self._number)
            self._number += 1
            while not ray.wait([coming], timeout=_POLL_SECONDS)[0]:
                beat()  # the processes are watched themselves
                if not self._thread.is_alive() and not ray.wait([coming], timeout=_POLL_SECONDS)[0]:
                    raise PeerLost(f"a process of the group was lost: {self._hung() or self._error}")
            answer: Answer = ray.get(coming)
        except ray.exceptions.RayActorError as error:
            raise PeerLost(f"the group cannot be reached: {error}") from error
        return answer

    def leave(self) -> None:
        """Send the processes home and wait a little."""
        self._line.give.remote(self._number, None)
        self._thread.join(_LEAVING_SECONDS)

    def join(self) -> None:
        """Wait until a group that ends by itself has gone, so that its devices are free."""
        self._thread.join()

    def _hung(self) -> str:
        """One line on a process that was ended because nothing moved any more; empty if none was."""
        places = map(where_it_hung, sorted(self._traces.parent.glob(f"{self._traces.name}-*")))
        return next((f"it hung at {place}" for place in places if place), "")

    def _fit(self) -> None:
        try:
            self._trainer.fit()
        except Exception as error:  # noqa: BLE001 - the edge of the thread: `ask` tells it
            self._error = " ".join(str(error).split())[:200]


def serve(config: dict[str, Any]) -> None:
    """What each process of the group does: build its host, and obey until it is sent home.

    Whatever goes wrong with the trial or the host in this process alone would leave the others waiting for it: it is
    the answer, whichever process gives it, and this one ends, whereupon Ray Train ends all. A lost peer is no answer.
    """
    line, number = config["line"], 0
    rank = ray.train.get_context().get_world_rank()
    traces = Path(f"{config['traces']}-{rank}")
    host: Host | None = None
    order: HostCall | None = None
    while host is None or order is not None:
        result: Any = None
        try:
            if host is None:
                build_host: HostFactory = config["build_host"]
                host = build_host()
            elif order is not None:
                with watched(config["silence"], traces):
                    result = getattr(host, order.method)(*order.arguments)
        except PeerLost:
            raise
        except Exception as error:
            busy = host.busy_seconds if host is not None else 0.0
            ray.get(line.answer.remote(number, Answer(None, busy, _sendable(error), ends=True)))
            raise
        if order is not None and order.method == "advance" and (failed := _failed_here(result)):
            ray.get(line.answer.remote(number, Answer(result, host.busy_seconds, ends=True)))
            raise AutomlError(f"trial {failed.trial} failed: {failed.reason}")
        if rank == 0:
            ray.get(line.answer.remote(number, Answer(result, host.busy_seconds)))
        number += 1
        order = ray.get(line.take.remote(number))


def _failed_here(news: Sequence[Measurement | TrialFailure]) -> TrialFailure | None:
    """What may have failed in this process alone: all see a trial diverge, since they have the same metrics."""
    failures = [item for item in news if isinstance(item, TrialFailure)]
    return next((failure for failure in failures if failure.reason is not StopReason.DIVERGED), None)


def _sendable(error: Exception) -> Exception:
    return error if isinstance(error, AutomlError) else AutomlError(f"{type(error).__name__}: {error}")


@dataclass
class Meeting(TorchConfig):  # type: ignore[misc]  # Ray's types are not followed (pyproject.toml)
    """How the processes find each other: over this file, or as Ray Train does it.

    Ray Train lets torch open a port for it, which torch can open on all network cards only.
    """

    file: str = ""

    @property
    def backend_cls(self) -> type[Any]:
        """What Ray Train calls in the controller of the group."""
        return _MeetingBackend


class _MeetingBackend(TorchConfig().backend_cls):  # type: ignore[misc]
    def on_start(self, worker_group: Any, backend_config: Meeting) -> None:
        size = len(worker_group)
        if not backend_config.file:
            ray.get([worker_group.execute_single_async(rank, _talk_over_the_network) for rank in range(size)])
            super().on_start(worker_group, backend_config)
            return
        ray.get([worker_group.execute_single_async(rank, _meet, backend_config, rank, size) for rank in range(size)])

    def on_shutdown(self, worker_group: Any, backend_config: Meeting) -> None:
        """The processes end anyway; to take leave of each other they would all have to be well."""


def _talk_over_the_network() -> None:
    """Tell gloo the network card by which Ray reaches this node: by itself it takes the one of the host's name, which
    many machines resolve to loopback.
    """
    if card := card_of(ray.util.get_node_ip_address()):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", card)


def card_of(address: str) -> str:
    """The network card that has this IPv4 address, empty if none has it as its first one."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        for _, name in socket.if_nameindex():
            with contextlib.suppress(OSError):  # it has none
                held = fcntl.ioctl(any_socket, _SIOCGIFADDR, struct.pack("256s", name.encode()))
                if socket.inet_ntoa(held[20:24]) == address:
                    return name
    return ""


_SIOCGIFADDR = 0x8915  # of Linux, netdevice(7)


def _meet(config: Meeting, rank: int, size: int) -> None:
    from torch import distributed

    if config.backend == "gloo":
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    distributed.init_process_group(
        config.backend,
        init_method=Path(config.file).absolute().as_uri(),
        rank=rank,
        world_size=size,
        timeout=timedelta(seconds=config.timeout_s),
    )
