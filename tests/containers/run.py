"""Runs docker-compose.yml in containers, as a project of its own beside any other, and checks what the guide promises.

    python -m tests.containers.run [--no-build] [--override FILE]

A sweep is submitted, the head of the Ray cluster is killed in the middle of it, and all trials must be counted once.
The documented schedule is added, a number of workers outlives the next `up`, and a backup is copied out. Not part of
the tests: it needs a container engine, the base images, and ten minutes. The image is built as `automl-lora:local`.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import secrets
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.sweep.tiny_world import make_world

ROOT = Path(__file__).parents[2]
SECRETS = ("database_admin", "database_owner", "database_rw", "database_web", "dashboard_token", "ray_token")
STAYING = ("database", "ray-head", "ray-worker", "scheduler", "web")
TRIALS = 6


class Composed:
    """The service in a folder of its own, as project `automl-trial`, its pages on another port than the default."""

    def __init__(self, folder: Path, overrides: list[str]) -> None:
        self._folder = folder
        files = ["docker-compose.yml", *overrides]
        self._command = ["docker", "compose", "--project-name=automl-trial", *(f"--file={each}" for each in files)]
        self._environment = {**os.environ, "AUTOML_PORT": "18321", "AUTOML_WORKERS": "2"}

    def __call__(self, line: str) -> str:
        """What `docker compose` says to a line of words as of a shell. It must succeed."""
        begun = time.monotonic()
        command = [*self._command, *shlex.split(line)]
        done = subprocess.run(command, cwd=self._folder, env=self._environment, capture_output=True, check=False)
        if done.returncode != 0:
            sys.exit(f"docker compose {line}: {done.stderr.decode()[-2000:]}")
        if (took := time.monotonic() - begun) >= 1:
            _say(f"docker compose {line} ({took:.0f} s)")
        return done.stdout.decode(errors="replace")

    def ask(self, path: str, body: object = None) -> Any:
        """An answer of the API; {} while it gives none."""
        token = (self._folder / "secrets" / "dashboard_token").read_text(encoding="utf-8").strip()
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {token}"}
        content = json.dumps(body).encode() if body else None
        request = urllib.request.Request(f"http://127.0.0.1:18321/api/v1{path}", content, headers)
        try:
            with urllib.request.urlopen(request, timeout=20) as answer:
                return json.load(answer)
        except OSError:
            return {}


def main() -> None:
    """Run it all; the first thing that is not as promised ends it with one line."""
    options = argparse.ArgumentParser(description="Run docker-compose.yml in containers.")
    options.add_argument("--no-build", action="store_true", help="use the image that is there")
    options.add_argument("--override", action="append", default=[], type=os.path.abspath, help="another compose file")
    chosen = options.parse_args()
    if why := _no_engine():
        _say(f"skipped: {why}")
        return
    os.umask(0o022)  # the users of the containers read what is made here
    folder = Path(tempfile.mkdtemp(prefix="automl-containers-"))
    text = _make(folder)
    compose = Composed(folder, chosen.override)
    try:
        if not chosen.no_build:
            compose("build")
        _check(compose, text)
    finally:
        compose("down --volumes")
        shutil.rmtree(folder)
    _say("everything is as promised")


def _no_engine() -> str:
    if shutil.which("docker") is None:
        return "no program docker"
    for words in (["info"], ["compose", "version"]):
        if subprocess.run(["docker", *words], capture_output=True, check=False).returncode != 0:
            return f"`docker {' '.join(words)}` fails"
    return ""


def _make(folder: Path) -> str:
    """The project's files, secrets and data as the guide says; the space file to submit."""
    archive = subprocess.run(["git", "archive", "HEAD"], cwd=ROOT, capture_output=True, check=True).stdout
    subprocess.run(["tar", "--extract"], cwd=folder, input=archive, check=True)
    (folder / "secrets").mkdir(mode=0o700)
    for name in SECRETS:
        (folder / "secrets" / name).write_text(secrets.token_urlsafe(32) + "\n", encoding="utf-8")
        (folder / "secrets" / name).chmod(0o444)
    data = folder / "data"
    space = make_world(data, trials=TRIALS, steps=400, executor="ray", slots=1).read_text(encoding="utf-8")
    guide = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    (nightly,) = re.findall(r"```yaml\n# data/nightly.yaml\n(.*?)```", guide, flags=re.DOTALL)
    (data / "nightly.yaml").write_text(nightly, encoding="utf-8")
    shutil.copy(data / "data.jsonl", data / "train.jsonl")
    (data / "model" / "model.safetensors").chmod(0o644)  # written for its owner alone
    return space.replace(" ./", " data/")


def _check(compose: Composed, space: str) -> None:
    compose("up --detach")
    _wait("all services are healthy", lambda: _healthy(compose) == {*STAYING})
    submitted = compose.ask("/submissions", {"space": space, "submitted_by": "a trial"})

    def submission() -> dict[str, Any]:
        answer: dict[str, Any] = compose.ask(f"/submissions/{submitted['id']}")
        return answer

    _wait("two trials have ended", lambda: _trials(compose).get("COMPLETE", 0) >= 2 or _has_ended(submission()))
    compose("kill ray-head")
    _wait("the sweep is interrupted", lambda: submission().get("state") not in ("RUNNING", None))
    if submission()["state"] != "QUEUED":
        sys.exit(f"not continued: {submission()}")
    compose("up --detach")
    _wait("the sweep ended", lambda: _has_ended(submission()))
    if (submission()["state"], _trials(compose)) != ("DONE", {"COMPLETE": TRIALS}):
        sys.exit(f"not every trial was counted once: {submission()}, {_trials(compose)}")
    if compose.ask("/doctor").get("findings") != []:
        sys.exit(f"the doctor found something: {compose.ask('/doctor')}")
    _schedule_and_backup(compose)
    compose("up --detach")
    if (workers := len(compose("ps --quiet ray-worker").split())) != 2:
        sys.exit(f"workers after another `up`: {workers} of 2")


def _schedule_and_backup(compose: Composed) -> None:
    compose("exec -T scheduler automl schedule add data/nightly.yaml --cron '0 2 * * *' --timezone Europe/Berlin")
    compose("run --rm -T migrate automl db backup /backups --keep 7")
    listed = compose("run --rm --no-deps -T migrate tar --create --directory=/backups .")
    if "automl-" not in listed:
        sys.exit("the archive of the backups has no backup")


def _has_ended(submission: dict[str, Any]) -> bool:
    return submission.get("state") not in ("QUEUED", "RUNNING", None)


def _healthy(compose: Composed) -> set[str]:
    lines = [json.loads(line) for line in compose("ps --format=json").splitlines()]
    return {each["Service"] for each in lines if each["Health"] == "healthy"}


def _trials(compose: Composed) -> dict[str, int]:
    return dict(compose.ask("/studies/tiny").get("trials") or {})


def _wait(what: str, is_so: Callable[[], bool], seconds: float = 600.0) -> None:
    begun = time.monotonic()
    while not is_so():
        if time.monotonic() - begun > seconds:
            sys.exit(f"not within {seconds:.0f} s: {what}")
        time.sleep(2)
    _say(f"{what} ({time.monotonic() - begun:.0f} s)")


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
