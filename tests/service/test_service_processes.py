"""The commands of docker-compose.yml as plain processes: a sweep is submitted, trained, watched, and reported.

Every service's command is started here. The sweep trains in the Ray worker, while a browser looks at it.
"""

from __future__ import annotations

import contextlib
import re
import signal
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.dashboards.browsing import CHROMIUM, chromium, watch
from tests.dashboards.serving import TOKEN, Site
from tests.faults.kill import WORKER_TITLES
from tests.service.composed import SERVICES
from tests.service.deployment import Deployment, wait_until
from tests.sweep.tiny_world import make_world

pytestmark = [pytest.mark.slow, pytest.mark.postgres, pytest.mark.ray, pytest.mark.timeout(900)]

TRIALS = 4
_SECRETS = {
    "database_owner": "own er%of/it",
    "database_rw": "wri:ter@work",
    "database_web": "we/b%er",
    "dashboard_token": TOKEN,
    "ray_token": "0123456789abcdef0123456789abcdef",
}


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Deployment]:
    deployment = Deployment(tmp_path, _SECRETS)
    yield deployment
    deployment.end()


def test_a_submitted_sweep_is_trained_on_the_cluster_watched_and_reported(here: Deployment) -> None:
    space = make_world(here.folder, trials=TRIALS, steps=40, executor="ray", slots=1).read_text(encoding="utf-8")
    assert here.is_healthy("database")
    with ExitStack() as up:
        services = {name: up.enter_context(here.running(name)) for name in ("ray-head",)}
        assert here.run("roles").splitlines() == [
            "automl_owner: password set",
            "automl_rw: password set",
            "automl_web: password set",
            "automl_ro: no password given",
        ]
        assert here.run("migrate").endswith(", ready\n")
        here.healthy("ray-head", services["ray-head"])
        services |= {name: up.enter_context(here.running(name)) for name in ("ray-worker", "web", "scheduler")}
        for name in ("web", "scheduler", "ray-worker"):
            here.healthy(name, services[name])
        _submit_and_watch(here, space, services["ray-worker"])
    # What the file starts, and no more. The worker with GPUs differs by what its container is given alone.
    assert SERVICES["ray-worker-gpu"]["command"] == SERVICES["ray-worker"]["command"]
    assert {*here.started, "ray-worker-gpu"} == set(SERVICES)
    assert services["web"].returncode == -signal.SIGTERM  # uvicorn ends, then raises the signal again
    assert services["scheduler"].returncode == 0
    _nothing_is_left(here)


def _submit_and_watch(here: Deployment, space: str, worker: psutil.Popen) -> None:
    site, bearer = Site(here.web_port), f"Bearer {TOKEN}"
    assert site.ask("/").status == 401
    submitted = site.post("/api/v1/submissions", {"space": space, "submitted_by": "a test"})
    assert submitted.status == 201, submitted.text

    def submission() -> dict[str, Any]:
        answer: dict[str, Any] = site.ask(f"/api/v1/submissions/{submitted.json['id']}", Authorization=bearer).json
        return answer

    where: list[int] = []

    def is_trained_in_the_worker() -> bool:
        where.extend(each.pid for each in worker.children(recursive=True) if _title(each).startswith(WORKER_TITLES))
        return bool(where) or submission()["state"] not in ("QUEUED", "RUNNING")

    with contextlib.ExitStack() as stack:
        page = said = None
        if CHROMIUM:
            browser = stack.enter_context(chromium())
            context = browser.new_context(http_credentials={"username": "a test", "password": TOKEN})
            page, said = watch(context.new_page())
            page.goto(site.url)
            page.evaluate("window.notLoadedAgain = true")
            page.locator("#scroll-studies a", has_text="tiny").wait_for()
            assert page.evaluate("window.notLoadedAgain")
            page.goto(f"{site.url}/studies/tiny")
            page.evaluate("window.notLoadedAgain = true")
        wait_until(is_trained_in_the_worker, lambda: str(submission()))
        wait_until(lambda: submission()["state"] not in ("QUEUED", "RUNNING"), lambda: str(submission()))
        assert (submission()["state"], submission()["exit_code"]) == ("DONE", 0), here.log("scheduler").read_text()
        assert where, "no worker of the cluster has trained"
        detail = site.ask("/api/v1/studies/tiny", Authorization=bearer).json
        assert (detail["state"], detail["trials"]["COMPLETE"]) == ("finished", TRIALS)
        report = site.ask("/studies/tiny/report", Authorization=bearer)
        assert (report.status, "LoRA search report" in report.text) == (200, True)
        if page is not None:
            page.locator("#ended", has_text=re.compile(rf"{TRIALS}\s*of {TRIALS}")).wait_for()
            page.locator("text=finished").first.wait_for()
            assert page.evaluate("window.notLoadedAgain")
            page.goto(f"{site.url}/studies/tiny/report")
            page.wait_for_selector(".js-plotly-plot .main-svg")
            assert said == []


def _nothing_is_left(here: Deployment) -> None:
    """No process, no port, no secret in what was said."""
    wait_until(lambda: here.processes() == [], lambda: str([_title(each) for each in here.processes()]))
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", here.web_port), timeout=5)
    files = [path for path in (*here.folder.parent.rglob("*"), *here.ray_folder.rglob("*")) if path.is_file()]
    said = [path.read_bytes() for path in files if path.parent.name != "secrets"]
    assert len(said) > len(here.started)
    assert [name for name, secret in here.secrets.items() for text in said if secret.encode() in text] == []


def _title(process: psutil.Process) -> str:
    """Its command line; empty if it has just ended."""
    with contextlib.suppress(psutil.Error):
        return " ".join(process.cmdline())
    return ""
