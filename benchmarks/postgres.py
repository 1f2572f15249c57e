"""A PostgreSQL server of our own for a benchmark: on a Unix socket, with PostgreSQL's default durability."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

_NOBODY = 65534


def why_not() -> str | None:
    """Why no server can be started here, in one line; None if it can."""
    if _programs() is None:
        return "PostgreSQL's initdb and pg_ctl are not installed (or pg_config is not on the PATH)"
    if find_spec("psycopg") is None:
        return "psycopg is not installed: pip install 'automl-lora[postgres]'"
    if os.geteuid() == 0 and shutil.which("setpriv") is None:
        return "the PostgreSQL server refuses to run as root, and there is no setpriv"
    return None


@contextmanager
def server() -> Iterator[str]:
    """URL of an empty database in a private server, which ends with the block.

    It keeps fsync and synchronous_commit on, as a real one does; never runs as root and opens no TCP port.
    """
    programs = _programs()
    assert programs is not None, why_not()
    folder = Path(tempfile.mkdtemp(prefix="automl-pg-", dir="/tmp"))
    password = folder / "password"
    secret = secrets.token_hex(16)
    password.touch(mode=0o600)
    password.write_text(secret, encoding="utf-8")
    if os.geteuid() == 0:
        for path in (folder, password):
            os.chown(path, _NOBODY, _NOBODY)
    data = str(folder / "data")
    try:
        auth = ["--auth=scram-sha-256", "--encoding=UTF8", "--locale=C", "--username=postgres"]
        _call(folder, programs / "initdb", "-D", data, f"--pwfile={password}", *auth)
        options = f"-c listen_addresses='' -c unix_socket_directories={folder}"
        _call(folder, programs / "pg_ctl", "start", "-w", "-D", data, "-o", options, "-l", str(folder / "log"))
        try:
            yield f"postgresql://postgres:{secret}@/postgres?host={folder}"
        finally:
            _call(folder, programs / "pg_ctl", "stop", "-D", data, "-m", "fast", "-w")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _programs() -> Path | None:
    config = shutil.which("pg_config")
    if config is None:
        return None
    answer = subprocess.run([config, "--bindir"], capture_output=True, text=True, check=True)
    folder = Path(answer.stdout.strip())
    return folder if (folder / "initdb").exists() and (folder / "pg_ctl").exists() else None


def _call(folder: Path, program: Path, *arguments: str) -> None:
    as_nobody = f"setpriv --reuid={_NOBODY} --regid={_NOBODY} --clear-groups".split() if os.geteuid() == 0 else []
    with (folder / "output").open("ab") as output:  # a pipe would be kept open by the server
        subprocess.run(
            [*as_nobody, str(program), *arguments], stdout=output, stderr=output, cwd="/", check=True, timeout=120
        )
