"""The container engine of a run: the one that answers, or one of its own that is started for it and ended after it.

An engine of its own (root, `dockerd` installed, none running) keeps images and layers in STATE, so that a second run
builds nothing anew. It has no default bridge and leaves this machine's forwarding of packets as it is.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

STATE = Path("/var/lib/automl-containers")
RUNTIME = Path("/run/automl-containers")
SOCKET = f"unix://{RUNTIME}/docker.sock"
_PID_FILE = RUNTIME / "dockerd.pid"
_PATIENCE_SECONDS = 120
_ADDRESSES = "base=10.213.0.0/16,size=24"
"""Of its networks: not those that every engine takes first, for which another one may have left rules behind."""


def why_not() -> str:
    """What is missing to run containers on this machine; empty if nothing is."""
    if shutil.which("docker") is None:
        return "no program docker: ./scripts/containers --install"
    if not _ran("docker", "compose", "version"):
        return "`docker compose version` fails: ./scripts/containers --install"
    if _ran("docker", "info"):
        return ""
    if os.geteuid() != 0:
        return "no container engine answers, and only root can start one"
    if shutil.which("dockerd") is None:
        return "no container engine answers, and there is no program dockerd: ./scripts/containers --install"
    return ""


@contextmanager
def engine(*, keep: bool) -> Iterator[bool]:
    """Set DOCKER_HOST to an engine that answers; True if it is one of our own, which is ended after the block.

    keep: let ours run on; the next run takes it over.
    """
    if _ran("docker", "info"):
        yield False
        return
    os.environ["DOCKER_HOST"] = SOCKET
    RUNTIME.mkdir(mode=0o700, exist_ok=True)
    with (RUNTIME / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            sys.exit(f"{RUNTIME}/lock: another run on this machine is in progress; wait for its end")
        try:
            if not _ran("docker", "info"):
                _start()
            yield True
        finally:
            if not keep:
                _end()


def _start() -> None:
    STATE.mkdir(mode=0o711, exist_ok=True)
    places = [f"--host={SOCKET}", f"--data-root={STATE}", f"--exec-root={RUNTIME}/exec", f"--pidfile={_PID_FILE}"]
    log = RUNTIME / "dockerd.log"
    with log.open("wb") as said:
        # A session of its own: Ctrl-C ends the containers first.
        process = subprocess.Popen(
            ["dockerd", "--bridge=none", "--ip-forward=false", f"--default-address-pool={_ADDRESSES}", *places],
            stdout=said,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    end = time.monotonic() + _PATIENCE_SECONDS
    while not _ran("docker", "info"):
        if process.poll() is not None or time.monotonic() > end:
            sys.exit(f"dockerd does not start; the end of {log}:\n{log.read_text(errors='replace')[-2000:]}")
        time.sleep(0.5)


def _end() -> None:
    """Stop our engine and wait for it."""
    with suppress(FileNotFoundError, ProcessLookupError):
        pid = int(_PID_FILE.read_text())
        os.kill(pid, signal.SIGTERM)
        end = time.monotonic() + _PATIENCE_SECONDS
        while _PID_FILE.exists() and time.monotonic() < end:
            with suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)
            time.sleep(0.2)


def _ran(*command: str) -> bool:
    return subprocess.run(command, capture_output=True, check=False).returncode == 0
