"""Fresh, empty databases for tests: SQLite files, and a private PostgreSQL server where its programs are installed."""

from __future__ import annotations

import atexit
import functools
import itertools
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from urllib.parse import quote

import pytest

from automl.storage.sql import open_database

_NOBODY = 65534
_PASSWORD = "p@ss{word}%:w"  # needs percent-encoding in a URL and doubling in `str.format`
_serial = itertools.count()


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
    """A server of our own on a Unix socket: scram passwords, no durability, no TCP port. Never runs as root."""

    def __init__(self, programs: Path) -> None:
        self._programs = programs
        self._folder = Path(tempfile.mkdtemp(prefix="automl-pg-", dir="/tmp"))
        password = self._folder / "password"
        password.write_text(_PASSWORD)
        if os.geteuid() == 0:
            for path in (self._folder, password):
                os.chown(path, _NOBODY, _NOBODY)
        data = str(self._folder / "data")
        options = ["--auth=scram-sha-256", "--encoding=UTF8", "--locale=C", "--no-sync", "--username=postgres"]
        self._run("initdb", "-D", data, f"--pwfile={password}", *options)
        settings = f"-c listen_addresses='' -c unix_socket_directories={self._folder} -c fsync=off"
        self._run("pg_ctl", "start", "-w", "-D", data, "-o", settings, "-l", str(self._folder / "log"))
        atexit.register(self._stop)

    def url(self, database: str) -> str:
        """URL of one of its databases, password included."""
        return f"postgresql://postgres:{quote(_PASSWORD, safe='')}@/{database}?host={self._folder}"

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
        with psycopg.connect(**parameters, autocommit=True) as connection:  # type: ignore[arg-type]
            connection.execute(statement)  # type: ignore[call-overload]

    def _run(self, program: str, *arguments: str) -> None:
        as_nobody = f"setpriv --reuid={_NOBODY} --regid={_NOBODY} --clear-groups".split() if os.geteuid() == 0 else []
        command = [*as_nobody, str(self._programs / program), *arguments]
        with (self._folder / "output").open("ab") as output:
            subprocess.run(command, stdout=output, stderr=output, cwd="/", check=True, timeout=60)

    def _stop(self) -> None:
        self._run("pg_ctl", "stop", "-D", str(self._folder / "data"), "-m", "immediate", "-w")
        shutil.rmtree(self._folder, ignore_errors=True)


@functools.cache
def _server() -> PostgresServer:
    programs = _postgres_programs()
    if programs is None:
        pytest.skip("PostgreSQL's initdb and pg_ctl are not installed")
    pytest.importorskip("psycopg", reason="psycopg is not installed")
    if os.geteuid() == 0 and not shutil.which("setpriv"):
        pytest.skip("the PostgreSQL server refuses to run as root, and there is no setpriv")
    return PostgresServer(programs)


def _postgres_programs() -> Path | None:
    config = shutil.which("pg_config")
    if config is None:
        return None
    folder = Path(subprocess.run([config, "--bindir"], capture_output=True, text=True, check=True).stdout.strip())
    return folder if (folder / "initdb").exists() and (folder / "pg_ctl").exists() else None


@functools.cache
def _sqlite_template() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="automl-sqlite-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    path = folder / "template.db"
    open_database(f"sqlite:///{path}", create=True).close()
    return path
