"""docker-compose.yml as a project of its own: its folder, its commands, its API, and waiting for it."""

from __future__ import annotations

import json
import os
import re
import secrets
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from tests.databases import free_port

ROOT = Path(__file__).parents[2]
PROJECT = "automl-trial"
SECRETS = ("database_admin", "database_owner", "database_rw", "database_web", "dashboard_token", "ray_token")
STAYING = ("database", "ray-head", "ray-worker", "scheduler", "web")
WORKERS = 2
_TOLD_SECONDS = 3.0
"""What took less is not told."""
_STILL_SECONDS = 10.0
"""After so long a wait says that it still waits."""


class Composed:
    """The service of a folder. `overrides`: further compose files."""

    def __init__(self, folder: Path, overrides: list[str]) -> None:
        self.folder = folder
        self.port = free_port()
        files = ["docker-compose.yml", *overrides]
        self.command = ["docker", "compose", f"--project-name={PROJECT}", *(f"--file={each}" for each in files)]
        self._environment = {**os.environ, "AUTOML_PORT": str(self.port), "AUTOML_WORKERS": str(WORKERS)}

    def __call__(self, line: str, given: bytes = b"") -> str:
        """What `docker compose` says to a line of words as of a shell. It must succeed."""
        return self.raw(line, given).decode(errors="replace")

    def raw(self, line: str, given: bytes = b"") -> bytes:
        """The same, as it comes."""
        status, said, complaint = self.attempt(line, given)
        if status != 0:
            sys.exit(f"docker compose {line}: {complaint[-2000:]}")
        return said

    def attempt(self, line: str, given: bytes = b"") -> tuple[int, bytes, str]:
        """Exit status, output, and what it complained of."""
        command = [*self.command, *shlex.split(line)]
        return run(f"docker compose {line}", command, self.folder, self._environment, given)

    def secret(self, name: str) -> str:
        """The text of a secret."""
        return (self.folder / "secrets" / name).read_text(encoding="utf-8").strip()

    def ask(self, path: str, body: object = None, *, token: str | None = None) -> Any:
        """An answer of the API; {} while it gives none."""
        bearer = f"Bearer {self.secret('dashboard_token') if token is None else token}"
        headers = {"Content-Type": "application/json", "Authorization": bearer}
        content = json.dumps(body).encode() if body else None
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", content, headers)
        try:
            with urllib.request.urlopen(request, timeout=20) as answer:
                text = answer.read().decode()
        except OSError as error:
            return {"status": error.code} if isinstance(error, urllib.request.HTTPError) else {}
        return json.loads(text) if path.startswith("/api/") else text

    def healthy(self) -> dict[str, int]:
        """How many containers of each service are healthy."""
        lines = [json.loads(line) for line in self("ps --format=json").splitlines()]
        well = [each["Service"] for each in lines if each["Health"] == "healthy"]
        return {name: well.count(name) for name in sorted(set(well))}

    def inspected(self, *services: str) -> list[dict[str, Any]]:
        """What the engine knows of the containers of services, of all if none is named."""
        names = self(shlex.join(["ps", "--all", "--quiet", *services])).split()
        found: list[dict[str, Any]] = json.loads(run("docker inspect", ["docker", "inspect", *names])[1])
        return found


def make_folder(folder: Path) -> str:
    """Put the project's files, as they are now, secrets and data there as the guide says; the space file to submit."""
    from tests.sweep.tiny_world import make_world  # imports torch, for which a refusal need not wait

    changed = subprocess.run(["git", "stash", "create"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    archived = ["git", "archive", changed.strip() or "HEAD"]
    archive = subprocess.run(archived, cwd=ROOT, capture_output=True, check=True).stdout
    subprocess.run(["tar", "--extract"], cwd=folder, input=archive, check=True)
    (folder / "secrets").mkdir(mode=0o700)
    for name in SECRETS:
        (folder / "secrets" / name).write_text(secrets.token_urlsafe(32) + "\n", encoding="utf-8")
        (folder / "secrets" / name).chmod(0o444)
    data = folder / "data"
    space = make_world(data, trials=8, steps=300, executor="ray", slots=1, verify=True).read_text(encoding="utf-8")
    guide = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    (nightly,) = re.findall(r"```yaml\n# data/nightly.yaml\n(.*?)```", guide, flags=re.DOTALL)
    (data / "nightly.yaml").write_text(nightly, encoding="utf-8")
    shutil.copy(data / "data.jsonl", data / "train.jsonl")
    (data / "model" / "model.safetensors").chmod(0o644)  # written for its owner alone
    return space.replace(" ./", " data/")


def run(
    what: str,
    command: list[str],
    folder: Path | None = None,
    environment: dict[str, str] | None = None,
    given: bytes = b"",
) -> tuple[int, bytes, str]:
    """Run a program: exit status, output, complaint. Says every few seconds that it is still at it, and its last line.

    In a session of its own, so that Ctrl-C reaches this process alone, which ends it.
    """
    begun, told = time.monotonic(), _STILL_SECONDS
    with tempfile.TemporaryFile() as stdin, tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as stderr:
        stdin.write(given)
        stdin.seek(0)
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdin=stdin, stdout=stdout, stderr=stderr, start_new_session=True
        )
        try:
            while process.poll() is None:
                time.sleep(0.1)
                if (took := time.monotonic() - begun) >= told:
                    told = took + _STILL_SECONDS
                    say(f"  … {what} ({took:.0f} s) {_last_line(stderr.fileno()) or _last_line(stdout.fileno())}")
        except BaseException:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            process.wait()
            raise
        if (took := time.monotonic() - begun) >= _TOLD_SECONDS:
            say(f"{what} ({took:.0f} s)")
        stdout.seek(0)
        stderr.seek(0)
        return process.returncode, stdout.read(), stderr.read().decode(errors="replace")


def wait(
    what: str, is_so: Callable[[], bool], state: Callable[[], object] = lambda: "", seconds: float = 600.0
) -> None:
    """Until it is so; ends the run if that takes too long. `state` is shown meanwhile."""
    begun, told = time.monotonic(), _STILL_SECONDS
    while not is_so():
        took = time.monotonic() - begun
        if took > seconds:
            sys.exit(f"not within {seconds:.0f} s: {what}; {state()}")
        if took >= told:
            told = took + _STILL_SECONDS
            say(f"  … until {what} ({took:.0f} s) {state()}")
        time.sleep(1)
    say(f"{what} ({time.monotonic() - begun:.0f} s)")


def say(line: str) -> None:
    """A line of progress."""
    sys.stdout.write(f"{time.strftime('%H:%M:%S')} {line}\n")
    sys.stdout.flush()


def _last_line(file: int) -> str:
    size = os.fstat(file).st_size
    lines = os.pread(file, 1000, max(0, size - 1000)).decode(errors="replace").split("\n")
    return next((line.strip()[:120] for line in reversed(lines) if line.strip()), "")
