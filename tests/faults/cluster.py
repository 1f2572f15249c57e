"""A Ray cluster of several nodes on this machine, each started by `ray start` as on a machine of its own, to be killed.

Every node has a loopback address of its own (127.0.0.2, 127.0.0.3, …), its own ports and CPUs. Its processes carry its
mark in their environment, so all of them are found however they are related.
"""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from tests.databases import free_port

ROOT = Path(__file__).resolve().parents[2]

_MARK = "AUTOML_TEST_NODE"
_QUICKLY = {
    # A dead node, which refuses connections, is noticed after some seconds instead of about 20. One that lives, but is
    # silent for 10 s on a busy machine, is not taken for dead.
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_timeout_ms": "1500",
    "RAY_health_check_failure_threshold": "8",
}
_START_SECONDS = 400.0
_END_SECONDS = 120.0
_STARTS = 4
_TOO_SLOW = "The current node timed out during startup"
"""What `ray start` says when its node is not up within 30 s, a limit that cannot be changed: it is started again."""


class Node:
    """One node: its processes, by their mark."""

    def __init__(self, command: list[str], environment: Mapping[str, str], *, blind: Path | None = None) -> None:
        """blind: a folder of which this node sees nothing (by a mount namespace; needs root)."""
        self._tag = uuid.uuid4().hex
        apart = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs none "$0" && exec "$@"', str(blind)] if blind else []
        whole = [*apart, sys.executable, "-m", "ray.scripts.scripts", "start", *command]
        for _ in range(_STARTS):
            started = self._start(whole, environment)
            if not started.returncode:
                return
            self.kill()
            if _TOO_SLOW not in started.stdout:
                break
        raise RuntimeError(f"ray start {' '.join(command)} ended with {started.returncode}: {started.stdout}")

    def _start(self, command: list[str], environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command,
            env={**environment, _MARK: self._tag},
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=_START_SECONDS,
            check=False,
        )

    def pids(self) -> set[int]:
        """Its living processes: raylet, agents, workers."""
        return {process.pid for process in psutil.process_iter() if self._owns(process)}

    def kill(self) -> None:
        """SIGKILL to all of them at once, until none is left: what a machine that loses its power looks like."""
        deadline = time.monotonic() + _END_SECONDS
        while pids := self.pids():
            for pid in pids:
                try:
                    psutil.Process(pid).kill()
                except psutil.NoSuchProcess:
                    continue
            assert time.monotonic() < deadline, f"processes of a node do not die: {pids}"
            time.sleep(0.05)

    def _owns(self, process: psutil.Process) -> bool:
        try:
            return process.status() != psutil.STATUS_ZOMBIE and process.environ().get(_MARK) == self._tag
        except psutil.Error:
            return False


class RayCluster:
    """A head node and others, all with `cpus` CPUs; a context manager that leaves no process and no folder.

    variables: what a driver needs in its environment to join it, at `address`.
    """

    def __init__(self, *, nodes: int = 2, cpus: int = 1) -> None:
        self.variables = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_urlsafe(32)}
        self.address = f"127.0.0.2:{free_port()}"
        self.nodes: list[Node] = []
        # Sockets lie in it, and their paths must be short.
        self._folder = Path(tempfile.mkdtemp(prefix="automl-", dir="/tmp"))
        try:
            for _ in range(nodes):
                self.add(cpus=cpus)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End every node."""
        for node in reversed(self.nodes):
            node.kill()
        shutil.rmtree(self._folder, ignore_errors=True)

    def add(self, *, cpus: int = 1, blind: Path | None = None) -> Node:
        """Start another node; the first is the head."""
        number = len(self.nodes)
        role = ["--head", f"--port={self.address.rpartition(':')[2]}", "--include-dashboard=false"]
        if number:
            role = [f"--address={self.address}"]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        node = Node(
            [
                *role,
                f"--node-ip-address=127.0.0.{number + 2}",
                f"--num-cpus={cpus}",
                "--num-gpus=0",
                f"--object-store-memory={80 * 2**20}",
                f"--temp-dir={self._folder / str(number)}",
                f"--dashboard-agent-listen-port={free_port()}",
                *("--min-worker-port=0", "--max-worker-port=0"),
                "--disable-usage-stats",
            ],
            {**environment, **self.variables, **_QUICKLY, "PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0"},
            blind=blind,
        )
        self.nodes.append(node)
        return node
