"""What the driver and the head process say to each other over their pipe. Neither Ray nor Optuna is needed to read it.

The head sends a Cohort, Lost or Failed and waits for a Reply; a Ready or Ended is not answered. The driver sends a
Cluster first, then one Fleet for each run.
"""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from pathlib import Path

from automl.errors import AutomlError
from automl.trial import Order


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """Which cluster to use: one to join at `address`, or a private one with `cpus` in `folder`. threads: per worker."""

    address: str | None
    cpus: int
    threads: int
    folder: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """The workers of one run. `host` is the pickled factory of their hosts, which only they open.

    silence: seconds without a batch after which a worker counts as hung. shards: with more than one, a worker's host is
    a group of so many processes; cpus, gpus: those of each process. private: the cluster is our own, on this machine.
    """

    workers: int
    cpus: float
    gpus: float
    host: bytes
    folder: str
    silence: float
    shards: int = 1
    private: bool = True


@dataclass(frozen=True, slots=True)
class Ready:
    """The cluster is there."""


@dataclass(frozen=True, slots=True)
class Lost:
    """A worker's process has died; Tune starts it again."""

    worker: int
    why: str


@dataclass(frozen=True, slots=True)
class Failed:
    """A worker raised outside of any trial and has ended. `trace` is the traceback as text."""

    worker: int
    error: AutomlError
    trace: str


@dataclass(frozen=True, slots=True)
class Ended:
    """The run is over (`error` empty), or could not be carried out, and why."""

    error: str = ""


@dataclass(frozen=True, slots=True)
class Reply:
    """The driver's answer: orders for the worker that spoke; `over`: no worker need be started or waited for."""

    orders: tuple[Order, ...]
    over: bool


def kill_session(session: int) -> None:
    """Kill every process of a session but the caller: Ray's services, its workers, and what those have started."""
    if not Path("/proc/self/stat").exists():
        os.killpg(session, signal.SIGKILL)
        return
    for entry in os.listdir("/proc"):
        if entry.isdigit() and int(entry) != os.getpid():
            try:
                if os.getsid(int(entry)) == session:
                    os.kill(int(entry), signal.SIGKILL)
            except (ProcessLookupError, PermissionError):
                continue
