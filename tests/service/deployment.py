"""The services of docker-compose.yml as plain processes on this machine.

Taken from the file: commands, environments and health checks. Changed: host names, ports and folders of secrets,
because no container maps them; and the server's programs make the database, because its image does so.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
from sqlalchemy.engine import make_url

from tests.databases import exposed_server, free_port, postgres_programs
from tests.service.composed import ROOT, SERVICES, environment_of, probe_of

PATIENCE_SECONDS = 240.0
_LEAVING_SECONDS = 240.0


class Deployment:
    """What `docker compose up` would start, started one by one. `folder` is what /srv/automl would be."""

    def __init__(self, home: Path, secrets: dict[str, str]) -> None:
        """secrets: texts by name, but for the database's administrator, whose password its server makes."""
        self.folder = home / "work"
        self.folder.mkdir()
        self.web_port = free_port()
        self.started: list[str] = []
        self._home = home
        self._database = exposed_server(SERVICES["database"]["command"][1:])
        self._database.execute("CREATE DATABASE automl")
        self.started.append("database")
        self.secrets = {**secrets, "database_admin": str(make_url(self._database.url("automl")).password)}
        folder = home / "secrets"
        folder.mkdir(mode=0o700)
        for name, secret in self.secrets.items():
            path = folder / name
            path.touch(mode=0o600)
            path.write_text(secret + "\n", encoding="utf-8")
        self.ray_folder = Path(tempfile.mkdtemp(prefix="automl-ray-", dir="/tmp"))  # paths of its sockets must be short
        cluster = str(free_port())
        self._replaced = {
            "@database/": f"@127.0.0.1:{self._database.port}/",
            "/run/secrets": str(folder),
            "ray-head:6379": f"127.0.0.1:{cluster}",
            "--port=6379": f"--port={cluster}",
            "8321": str(self.web_port),
            "9464": str(free_port()),
        }

    def log(self, name: str) -> Path:
        """What a service has said."""
        return self._home / f"{name}.log"

    def run(self, name: str) -> str:
        """A service that runs to its end; what it printed."""
        self.started.append(name)
        with self.log(name).open("wb") as output:
            done = subprocess.run(
                self._here(SERVICES[name]["command"]),
                env=self._environment(name),
                cwd=self.folder,
                stdout=output,
                stderr=subprocess.STDOUT,
                timeout=PATIENCE_SECONDS,
                check=False,
            )
        said = self.log(name).read_text(encoding="utf-8")
        assert done.returncode == 0, said
        return said

    @contextmanager
    def running(self, name: str) -> Iterator[psutil.Popen]:
        """A service that stays until the block ends; `healthy` waits for it."""
        self.started.append(name)
        with self.log(name).open("wb") as output:
            process = psutil.Popen(
                self._here(SERVICES[name]["command"]),
                env=self._environment(name),
                cwd=self.folder,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        try:
            yield process
        finally:
            with contextlib.suppress(psutil.NoSuchProcess):  # it has ended by itself; `healthy` says so
                process.terminate()
            try:
                process.wait(timeout=_LEAVING_SECONDS)
            finally:
                if process.is_running():
                    process.kill()

    def healthy(self, name: str, process: psutil.Popen) -> None:
        """Wait until the service's health check, its own command, says so."""
        wait_until(lambda: process.poll() is not None or self.is_healthy(name))
        assert process.poll() is None, self.log(name).read_text(encoding="utf-8")

    def is_healthy(self, name: str) -> bool:
        """What the service's health check says now."""
        done = subprocess.run(
            self._here(probe_of(SERVICES[name])), env=self._environment(name), capture_output=True, check=False
        )
        return done.returncode == 0

    def processes(self) -> list[psutil.Process]:
        """All that the services have started and that is still there, known by their home."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.status() != psutil.STATUS_ZOMBIE and process.environ().get("HOME") == str(self._home):
                    found.append(process)
        return found

    def end(self) -> None:
        """Whatever is still there goes, and the folders outside `home`."""
        self._database.end()
        left = self.processes()
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(left, timeout=240)
        shutil.rmtree(self.ray_folder, ignore_errors=True)

    def _here(self, words: list[str]) -> list[str]:
        return [self._put(word) for word in words]

    def _put(self, text: str) -> str:
        for old, new in self._replaced.items():
            text = text.replace(old, new)
        return text

    def _environment(self, name: str) -> dict[str, str]:
        """The file's, and what the image or the container would give. Nothing of this process's own but PATH."""
        programs = [str(Path(sys.executable).parent), str(postgres_programs()), os.environ["PATH"]]
        given = {key: self._put(value) for key, value in environment_of(SERVICES[name]).items()}
        ours = {
            "PATH": os.pathsep.join(programs),
            "HOME": str(self._home),
            "AUTOML_CACHE": str(self._home / "cache"),
            "PYTHONPATH": str(ROOT),
            "PGPORT": str(self._database.port),
            "OMP_NUM_THREADS": "1",
            "RAY_TMPDIR": str(self.ray_folder),
            "RAY_OBJECT_STORE_ALLOW_SLOW_STORAGE": "1",  # shm_size is the container's
        }
        return {**ours, **given}


def wait_until(done: Callable[[], bool], said: Callable[[], str] = lambda: "") -> None:
    """Until it is so; fails with what `said` says if it does not come about in time."""
    end = time.monotonic() + PATIENCE_SECONDS
    while not done():
        assert time.monotonic() < end, f"it did not come about: {said()}"
        time.sleep(0.2)
