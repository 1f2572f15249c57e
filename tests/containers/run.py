"""Builds and runs docker-compose.yml in containers, beside any other, and checks what docs/operations.md promises.

    ./scripts/containers [--install] [--no-build] [--keep] [--override FILE]

A sweep is submitted and everything is killed once in the midst of it: all trials must be counted once, with the values
of an undisturbed sweep. Volumes are destroyed and restored from a backup. Users, ports, routes and the places where
a secret could be seen are looked at.

Exit codes: 0 everything is as promised, 1 it is not, 2 it cannot be tried here, 130 interrupted. Without an engine that
answers, root gets one that ends with the run. Its base images, if it can pull none, are made from Debian's packages
(tests/containers/images): the project's image is then built on Debian's Python and PostgreSQL.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import http.server
import json
import os
import re
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from tests.containers.composed import PROJECT, Composed, make_folder, run, say
from tests.containers.engine import engine, why_not
from tests.containers.story import check

IMAGES = Path(__file__).parent / "images"
_TORCH_INDEX = os.environ.get("AUTOML_TORCH_INDEX", "")
_INDEX_PORT = 18329
"""Always the same: the layers of another index are built anew."""


def main() -> int:
    """Run it all; the first thing that is not as promised ends it with one line."""
    options = argparse.ArgumentParser(prog="scripts/containers", description="Run docker-compose.yml in containers.")
    options.add_argument("--install", action="store_true", help="first install the engine by apt-get (Debian, root)")
    options.add_argument("--no-build", action="store_true", help="use the image that is there")
    options.add_argument("--keep", action="store_true", help="leave the containers running")
    options.add_argument("--override", action="append", default=[], type=os.path.abspath, help="another compose file")
    chosen = options.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    begun = time.monotonic()
    try:
        if chosen.install and (status := run("install", [str(IMAGES / "install")]))[0] != 0:
            return _cannot(status[2][-2000:])
        if why := why_not():
            return _cannot(why)
        with engine(keep=chosen.keep) as own:
            _run(chosen, own=own)
    except KeyboardInterrupt:
        say("interrupted")
        return 130
    say(f"everything is as promised ({time.monotonic() - begun:.0f} s)")
    return 0


def _cannot(why: str) -> int:
    sys.stderr.write(f"containers cannot be run here: {why}\n")
    return 2


def _run(chosen: argparse.Namespace, *, own: bool) -> None:
    os.umask(0o022)  # the users of the containers read what is made here
    folder = Path(tempfile.mkdtemp(prefix="automl-containers-"))
    compose = Composed(folder, chosen.override)
    try:
        space = make_folder(folder)
        _remove(compose)
        if not chosen.no_build:
            _base_images(folder, own=own)
            _build(compose)
        check(compose, space)
    except SystemExit:
        _keep_logs(compose)
        raise
    finally:
        if chosen.keep:
            host = f"DOCKER_HOST={os.environ['DOCKER_HOST']} " if own else ""
            say(f"left running on port {compose.port}: cd {folder} && {host}docker compose -p {PROJECT} ps")
        else:
            _remove(compose)
            shutil.rmtree(folder, ignore_errors=True)


def _remove(compose: Composed) -> None:
    """Containers, networks and volumes of this run, or of one before that could not."""
    status, _, complaint = compose.attempt("--profile gpu down --volumes --remove-orphans --timeout=20")
    if status != 0:
        say(f"not removed: {complaint[-500:]}")


def _keep_logs(compose: Composed) -> None:
    path = Path(tempfile.gettempdir(), "automl-containers.log")
    path.write_bytes(compose.attempt("logs --no-color --timestamps")[1])
    say(f"what the services said: {path}")


def _base_images(folder: Path, *, own: bool) -> None:
    """Those of Dockerfile and docker-compose.yml are there, pulled, or, in an engine of our own, made."""
    (python,) = set(re.findall(r"^FROM (python\S+)", (folder / "Dockerfile").read_text(encoding="utf-8"), re.MULTILINE))
    (postgres,) = re.findall(r"image: (postgres\S+)", (folder / "docker-compose.yml").read_text(encoding="utf-8"))
    if all(_is_there(image) for image in (python, postgres)):
        return
    if not own:
        sys.exit(f"pull these images first, this engine has them not: {python} {postgres}")
    status, _, complaint = run("base images from Debian's packages", [str(IMAGES / "make"), python, postgres])
    if status != 0:
        sys.exit(f"{IMAGES / 'make'}: {complaint[-2000:]}")


def _is_there(image: str) -> bool:
    """Whether the engine has it or can have it. A stand-in is made again, which its layers make quick."""
    look = ["docker", "image", "inspect", '--format={{index .Config.Labels "automl.stand-in"}}', image]
    status, label, _ = run("docker image inspect", look)
    if status == 0 and label.strip() != b"true":
        return True
    return run(f"docker pull {image}", ["docker", "pull", "--quiet", image])[0] == 0


def _build(compose: Composed) -> None:
    """The project's image. torch comes from AUTOML_TORCH_INDEX, else as the pip of this machine gets it."""
    with _index(compose.folder) if not _TORCH_INDEX else contextlib.nullcontext(_TORCH_INDEX) as index:
        build = {"network": "host", "args": {"TORCH_INDEX": index}}
        override = compose.folder / "build.json"
        override.write_text(json.dumps({"services": {"roles": {"build": build}}}), encoding="utf-8")
        compose(f"--file={override} build")


@contextlib.contextmanager
def _index(folder: Path) -> Iterator[str]:
    """Serve torch and what it needs, as pip downloads them here, to the build on this machine's loopback."""
    (torch,) = re.findall(r'"(torch[^"]+)"', (folder / "Dockerfile").read_text(encoding="utf-8"))
    wheels = folder / "wheels"
    status, _, complaint = run(
        f"pip download {torch}", [sys.executable, "-m", "pip", "download", "--quiet", f"--dest={wheels}", torch]
    )
    if status != 0:
        sys.exit(f"pip download {torch}: {complaint[-2000:]}")
    for wheel in list(wheels.iterdir()):
        project = wheels / re.sub(r"[-_.]+", "-", wheel.name.split("-")[0]).lower()
        project.mkdir()
        wheel.rename(project / wheel.name)
    handler = functools.partial(_Quiet, directory=str(wheels))
    try:
        server = http.server.ThreadingHTTPServer(("127.0.0.1", _INDEX_PORT), handler)
    except OSError as error:
        sys.exit(f"127.0.0.1:{_INDEX_PORT}, where the build would find torch: {error}; or set AUTOML_TORCH_INDEX")
    with server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{_INDEX_PORT}/"
        server.shutdown()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *words: object) -> None:
        """Say nothing of requests."""


if __name__ == "__main__":
    sys.exit(main())
