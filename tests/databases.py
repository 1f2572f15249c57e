"""Fresh, empty databases for tests: SQLite files, and a private PostgreSQL server where its programs are installed."""

from __future__ import annotations

import atexit
import contextlib
import functools
import importlib.util
import itertools
import os
import random
import shlex
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

import psutil
import pytest

from automl.storage.sql import open_database

_NOBODY = 65534
_PORTS = range(20_000, 32_768)
"""Below what Linux hands out by itself (net.ipv4.ip_local_port_range), above what Ray's workers take."""
_PATIENCE_SECONDS = 240
_PASSWORD = "p@ss{word}%:w"  # needs percent-encoding in a URL and doubling in `str.format`
_serial = itertools.count()

at_end = contextlib.ExitStack()
"""What goes with this process: servers and folders. `conftest` closes it with the session."""
atexit.register(at_end.close)


def fresh_sqlite(folder: Path) -> str:
    """URL of a new SQLite database with all tables."""
    path = folder / f"study-{next(_serial)}.db"
    shutil.copy(_sqlite_template(), path)
    return f"sqlite:///{path}"


def fresh_postgres(*, tables: bool = True) -> str:
    """URL of a new database in the private server; skips the test where PostgreSQL is not installed."""
    server = _server()
    name = f"study_{next(_serial)}"
    server.execute(f"CREATE DATABASE {name} TEMPLATE {server.template() if tables else 'template1'}")
    return server.url(name)


class PostgresServer:
    """A server of our own, on a Unix socket: scram passwords, no durability. Never runs as root.

    exposed: it also listens on a free port of 127.0.0.1, for a proxy in between, and is durable, to be killed. options:
    further words of its command line.
    """

    def __init__(self, programs: Path, *, exposed: bool = False, options: Sequence[str] = ()) -> None:
        self._programs = programs
        self.port = free_port() if exposed else None
        self._folder = Path(tempfile.mkdtemp(prefix="automl-pg-", dir="/tmp"))
        password = self._folder / "password"
        password.write_text(_PASSWORD)
        if os.geteuid() == 0:
            for path in (self._folder, password):
                os.chown(path, _NOBODY, _NOBODY)
        data = str(self._folder / "data")
        how = ["--auth=scram-sha-256", "--encoding=UTF8", "--locale=C", "--no-sync", "--username=postgres"]
        self._run("initdb", "-D", data, f"--pwfile={password}", *how)
        listen = f"-c listen_addresses=127.0.0.1 -c port={self.port}" if exposed else "-c listen_addresses=''"
        durable = "on" if exposed else "off"
        self._settings = f"{shlex.join(options)} {listen} -c unix_socket_directories={self._folder} -c fsync={durable}"
        self.start()
        at_end.callback(self.end)

    def start(self) -> None:
        """Start the server; returns when it answers, after recovery."""
        arguments = ["-D", str(self._folder / "data"), "-o", self._settings, "-l", str(self._folder / "log")]
        self._run("pg_ctl", "start", "-w", "-t", str(_PATIENCE_SECONDS), *arguments)

    def processes(self) -> list[psutil.Process]:
        """The postmaster, then its children; empty if it does not run."""
        try:
            lines = (self._folder / "data" / "postmaster.pid").read_text(encoding="utf-8").split()
            postmaster = psutil.Process(int(lines[0]))
            if str(self._folder) not in " ".join(postmaster.cmdline()):
                return []  # the file is of a server that was killed, its number another process's by now
            return [postmaster, *postmaster.children()]
        except (OSError, IndexError, ValueError, psutil.NoSuchProcess):
            return []

    def kill(self) -> None:
        """SIGKILL to the postmaster, as the kernel does it; its children follow by themselves or are helped.

        It is stopped first: a child that it forks while its children are looked up would outlive it, and hold on to the
        shared memory, which keeps the next server from starting.
        """
        postmaster = self.processes()[:1]
        _signal(postmaster, signal.SIGSTOP)
        while any(map(_runs, postmaster)):
            time.sleep(0.001)
        family = self.processes()
        _signal(family, signal.SIGKILL)
        psutil.wait_procs(family, timeout=_PATIENCE_SECONDS)

    def freeze(self) -> None:
        """SIGSTOP to every process of the server."""
        _signal(self.processes(), signal.SIGSTOP)

    def thaw(self) -> None:
        """Let the server go on."""
        _signal(self.processes(), signal.SIGCONT)

    def end(self) -> None:
        """Stop it for good and remove its files; harmless if it has gone."""
        self.thaw()
        self.kill()
        shutil.rmtree(self._folder, ignore_errors=True)

    def url(self, database: str, *, port: int | None = None) -> str:
        """URL of one of its databases, password included; by the given port of 127.0.0.1, or the socket."""
        if port is not None:
            return f"postgresql://postgres:{quote(_PASSWORD, safe='')}@127.0.0.1:{port}/{database}"
        socket_port = f"&port={self.port}" if self.port else ""
        return f"postgresql://postgres:{quote(_PASSWORD, safe='')}@/{database}?host={self._folder}{socket_port}"

    @functools.cache  # noqa: B019  # one server lives as long as the test run
    def template(self) -> str:
        """Name of a database that has all tables."""
        self.execute("CREATE DATABASE ready")
        open_database(self.url("ready"), create=True).close()
        return "ready"

    def execute(self, statement: str) -> None:
        """Run one statement outside a transaction."""
        import psycopg

        parameters = {"host": str(self._folder), "user": "postgres", "password": _PASSWORD, "dbname": "postgres"}
        if self.port:
            parameters["port"] = str(self.port)
        with psycopg.connect(**parameters, autocommit=True) as connection:  # type: ignore[arg-type]
            connection.execute(statement)  # type: ignore[call-overload]

    def _run(self, program: str, *arguments: str) -> None:
        as_nobody = f"setpriv --reuid={_NOBODY} --regid={_NOBODY} --clear-groups".split() if os.geteuid() == 0 else []
        command = [*as_nobody, str(self._programs / program), *arguments]
        with (self._folder / "output").open("ab") as output:
            subprocess.run(command, stdout=output, stderr=output, cwd="/", check=True, timeout=2 * _PATIENCE_SECONDS)


def why_no_postgres() -> str | None:
    """Why no server can be started here, in one line; None if it can."""
    if postgres_programs() is None:
        return "PostgreSQL's initdb and pg_ctl are not installed"
    if importlib.util.find_spec("psycopg") is None:
        return "psycopg is not installed"
    if os.geteuid() == 0 and not shutil.which("setpriv"):
        return "the PostgreSQL server refuses to run as root, and there is no setpriv"
    return None


def exposed_server(options: Sequence[str] = ()) -> PostgresServer:
    """A server of its own, to be killed and cut off; skips the test where PostgreSQL is not installed."""
    if (reason := why_no_postgres()) is not None:
        pytest.skip(reason)
    programs = postgres_programs()
    assert programs is not None
    return PostgresServer(programs, exposed=True, options=options)


def free_port() -> int:
    """A TCP port that nobody uses on this machine, for somebody who will bind it later, or again.

    Not one of those that the system itself gives to connections and to whoever asks for any port: it would give it away
    again, to a client of another test for instance, before it is bound.
    """
    for port in random.SystemRandom().sample(_PORTS, len(_PORTS)):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("", port))
            return port
    raise RuntimeError("no free port")


def _signal(processes: list[psutil.Process], number: signal.Signals) -> None:
    """To each of them that still lives: the others of a server may go by themselves meanwhile."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(number)


def _runs(process: psutil.Process) -> bool:
    """Whether it is there and not stopped."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return bool(process.status() not in (psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE))
    return False


@functools.cache
def _server() -> PostgresServer:
    if (reason := why_no_postgres()) is not None:
        pytest.skip(reason)
    programs = postgres_programs()
    assert programs is not None
    return PostgresServer(programs)


def postgres_programs() -> Path | None:
    """Folder of initdb and pg_ctl, None if they are not installed."""
    config = shutil.which("pg_config")
    if config is None:
        return None
    folder = Path(subprocess.run([config, "--bindir"], capture_output=True, text=True, check=True).stdout.strip())
    return folder if (folder / "initdb").exists() and (folder / "pg_ctl").exists() else None


@functools.cache
def _sqlite_template() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="automl-sqlite-"))
    at_end.callback(shutil.rmtree, folder, ignore_errors=True)
    path = folder / "template.db"
    open_database(f"sqlite:///{path}", create=True).close()
    return path
