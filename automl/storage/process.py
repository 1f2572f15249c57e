"""Identity of an operating-system process, so that a dead lease holder on the same machine is recognised at once.

A process id alone is not enough: ids are reused, and two containers may share a host name but not their process table.
"""

from __future__ import annotations

import os
from pathlib import Path

_PROC = Path("/proc")
_START_TIME = 19  # field of /proc/PID/stat, counted from the state, which follows the name in parentheses


def process_identity(pid: int | None = None) -> str:
    """`machine:process table:pid:start time` of a live process (default: this one); "" if it cannot be told.

    It cannot on systems without Linux's /proc, and for a process that does not exist or is only waiting to be reaped.
    """
    pid = os.getpid() if pid is None else pid
    table = _process_table()
    start = _start_time(pid)
    return f"{table}:{pid}:{start}" if table and start else ""


def is_alive(identity: str) -> bool | None:
    """Whether the process of that identity lives; None if it cannot be seen from here (another machine, or hidden)."""
    table, _, pid = identity.rpartition(":")[0].rpartition(":")
    if not table or table != _process_table():
        return None
    if process_identity(int(pid)) == identity:
        return True
    if _stat(int(pid)):
        return False  # a zombie, or a later process with the same id
    return None if _exists(int(pid)) else False


def _process_table() -> str:
    """This boot of this machine and, within it, the name space of process ids."""
    try:
        boot = (_PROC / "sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}:{os.stat(_PROC / 'self/ns/pid').st_ino}"
    except OSError:
        return ""


def _start_time(pid: int) -> str:
    state, *fields = _stat(pid) or ["X"]
    return "" if state in ("Z", "X") else fields[_START_TIME - 1]


def _stat(pid: int) -> list[str]:
    """Fields of /proc/PID/stat from the state on; empty if there is no such process, or its owner hides it."""
    try:
        return (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
