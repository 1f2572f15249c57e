"""Both dashboards are looked at while searches write to SQLite at full speed: nothing of a search may change."""

from __future__ import annotations

import http.client
import itertools
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from automl.storage.invariants import check
from automl.storage.sql import open_database
from automl.storage.trials import list_trials
from tests.dashboards.browsing import CHROMIUM, chromium, watch
from tests.faults.kill import ROOT
from tests.faults.scenario import Findings, SkipScenario, Trial

_SPACE = """\
version: 1
study: {study}
task: {{type: table, file: curves.npz, log: [lr]}}
search: {{sampler: random, trials: {trials}, steps: 20, evaluate_every: 1, seed: 3}}
run: {{slots: 8}}
"""
_STEPS, _CONFIGURATIONS = 20, 2_000
_PAGE_SECONDS, _OPTUNA_SECONDS, _PROGRAM_SECONDS = 2.0, 10.0, 0.1
"""Between two looks: the pages' script at the longest while something runs, Optuna's pages, a program at the API."""
_WITH_BROWSER = 60
_LOCKED = ("locked", "busy", "away", "Traceback")

Row = tuple[object, ...]


class Request(NamedTuple):
    """An answered request. seconds: until it was read."""

    path: str
    status: int
    seconds: float


def looked_at(trial: Trial) -> Findings:
    """Searches one after the other for as many seconds as the size says, all beside one that nobody looks at."""
    trials = 60 if trial.tier == "ci" else 400
    findings = Findings()
    with trial.workspace() as folder:
        _write_table(folder / "curves.npz")
        expected, alone = _search(folder, "alone", "alone", trials, findings)
        asked: list[Request] = []
        with _dashboard(folder) as port, _viewers(port, asked, findings, browser=trial.size >= _WITH_BROWSER):
            until, lasted = time.monotonic() + trial.size, []
            while time.monotonic() < until:
                rows, seconds = _search(folder, "shared", f"watched-{len(lasted)}", trials, findings)
                findings.expect(rows == expected, f"search {len(lasted)}: not the trials of the search that was alone")
                lasted.append(seconds)
    findings.count = len(asked)
    bad = [request for request in asked if request.status not in (200, 304)]
    findings.expect(not bad, f"{len(bad)} requests were not answered, such as {bad[:1]}")
    findings.details |= {
        "searches": len(lasted),
        "trials": trials * len(lasted),
        "search_seconds_alone_watched": [round(alone, 1), round(statistics.median(lasted), 1)],
        "answer_ms_p50_p95": [round(1e3 * each) for each in _quantiles([request.seconds for request in asked])],
        "with_browser": bool(CHROMIUM) and trial.size >= _WITH_BROWSER,
    }
    return findings


def _search(folder: Path, database: str, study: str, trials: int, findings: Findings) -> tuple[list[Row], float]:
    """`automl search` to its end: its trials, its seconds. What it says and leaves is checked."""
    space = folder / f"{study}.yaml"
    space.write_text(_SPACE.format(study=study, trials=trials), encoding="utf-8")
    began = time.monotonic()
    done = _automl(folder, _url(folder, database), "search", str(space), "--no-verify")
    seconds = time.monotonic() - began
    said = done.stdout + done.stderr
    findings.expect(done.returncode == 0, f"{study}: ended with {done.returncode}: {said[-500:]}")
    for word in _LOCKED:
        findings.expect(word not in said, f"{study}: {word!r} in what it says: {said[-500:]}")
    with open_database(_url(folder, database), create=False, read_only=True) as opened:
        for broken in check(opened, study, finished=True, max_trials=trials):
            findings.violations.append(f"{study}: {broken.id} {broken.description}: {broken.rows[:3]}")
        found = list_trials(opened, study)
        rows: list[Row] = [
            (each.number, each.state, each.value, tuple(each.params.items()), each.steps, each.stop_reason)
            for each in found
        ]
    findings.expect(len(rows) == trials, f"{study}: {len(rows)} trials")
    findings.expect(all(row[1] != "FAIL" for row in rows), f"{study}: a trial failed")
    return rows, seconds


def _automl(folder: Path, url: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "automl.cli.main", *arguments],
        cwd=folder,
        env=_environment(url),
        capture_output=True,
        text=True,
        check=False,
        timeout=1_800,
    )


@contextmanager
def _dashboard(folder: Path) -> Iterator[int]:
    """`automl dashboard` on a database that has tables; its port."""
    url = _url(folder, "shared")
    open_database(url, create=True).close()
    log = folder / "dashboard.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "automl.cli.main", "dashboard", "--port", "0"],
            cwd=folder,
            env=_environment(url),
            stdout=output,
            stderr=output,
        )
    try:
        while "http://" not in (said := log.read_text(encoding="utf-8")):
            if process.poll() is not None:
                raise SkipScenario(f"the dashboard does not start: {said.strip()[-300:]}")
            time.sleep(0.1)
        yield int(said.split("http://127.0.0.1:")[1].split("/")[0])
    finally:
        process.terminate()
        process.wait(timeout=240)


@contextmanager
def _viewers(port: int, asked: list[Request], findings: Findings, *, browser: bool) -> Iterator[None]:
    """People and programs who look until the block ends: two of each kind, and a real browser if there is one."""
    over = threading.Event()
    kinds: list[Callable[[], None]] = [
        lambda: _follow_pages(port, asked, over),
        lambda: _follow_optuna(port, asked, over),
        lambda: _follow_api(port, asked, over),
    ]
    work = [*kinds, *kinds, *([lambda: _browse(port, over, findings)] if browser and CHROMIUM else [])]
    threads = [threading.Thread(target=_reported, args=(each, findings)) for each in work]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join(timeout=120)


def _reported(work: Callable[[], None], findings: Findings) -> None:
    try:
        work()
    except Exception as error:  # noqa: BLE001 - whatever a viewer sees is a violation
        findings.violations.append(f"a viewer failed: {type(error).__name__}: {error}")


def _follow_pages(port: int, asked: list[Request], over: threading.Event) -> None:
    """Our pages as their script does it: the overview and the latest study, unchanged parts not again."""
    tags: dict[str, str] = {}
    for turn in itertools.count():
        study = _latest(port, asked)
        for path in ["/live", *([f"/studies/{study}/live"] if study else [])]:
            _, headers, _ = _ask(port, path, asked, {"If-None-Match": tags.get(path, "")})
            tags[path] = headers.get("etag", "")
        if study and turn % 5 == 0:
            for path in ("/", f"/studies/{study}", f"/studies/{study}/trials?order=best", "/doctor"):
                _ask(port, path, asked)
        if over.wait(_PAGE_SECONDS):
            return


def _follow_optuna(port: int, asked: list[Request], over: threading.Event) -> None:
    """Optuna's pages as their script does it: the list, and of a study the trials that have not ended yet."""
    _ask(port, "/dashboard", asked)
    _ask(port, "/api/meta", asked)
    while True:
        _, _, body = _ask(port, "/api/studies", asked)
        for study in json.loads(body)["study_summaries"][-1:]:
            path = f"/api/studies/{study['study_id']}"
            _, _, body = _ask(port, f"{path}?after=0", asked)
            ended = sum(each["state"] in ("Complete", "Pruned", "Fail") for each in json.loads(body)["trials"])
            _ask(port, f"{path}?after={ended}", asked)
        if over.wait(_OPTUNA_SECONDS):
            return


def _follow_api(port: int, asked: list[Request], over: threading.Event) -> None:
    """A program that hardly waits."""
    while not over.wait(_PROGRAM_SECONDS):
        study = _latest(port, asked)
        if study:
            _ask(port, f"/api/v1/studies/{study}", asked)
            _ask(port, f"/api/v1/studies/{study}/trials?limit=200", asked)


def _browse(port: int, over: threading.Event, findings: Findings) -> None:
    """Two windows of Chromium, one on each dashboard."""
    with chromium() as browser:
        (ours, complaints), (theirs, more) = (watch(browser.new_page()) for _ in range(2))
        ours.goto(f"http://127.0.0.1:{port}/")
        theirs.goto(f"http://127.0.0.1:{port}/dashboard")
        while not over.is_set():
            ours.wait_for_timeout(1e3 * _OPTUNA_SECONDS)
            theirs.reload()  # the list of studies is not asked for again by itself
        theirs.locator("text=watched").first.wait_for()
        findings.expect(ours.locator("#scroll-studies a").count() > 0, "the browser's overview shows no study")
        findings.expect(not complaints + more, f"the browser complains: {(complaints + more)[:3]}")


def _latest(port: int, asked: list[Request]) -> str:
    """Name of the study worked on last, "" if there is none."""
    _, _, body = _ask(port, "/api/v1/studies", asked)
    return next((str(each["study"]) for each in json.loads(body)), "")


def _ask(
    port: int, path: str, asked: list[Request], headers: Mapping[str, str] | None = None
) -> tuple[int, Mapping[str, str], str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    began = time.monotonic()
    try:
        connection.request("GET", path, headers=dict(headers or {}))
        answer = connection.getresponse()
        body = answer.read().decode()
    finally:
        connection.close()
    asked.append(Request(path, answer.status, time.monotonic() - began))
    return answer.status, {name.lower(): value for name, value in answer.getheaders()}, body


def _url(folder: Path, database: str) -> str:
    return f"sqlite:///{folder / database}.db"


def _environment(url: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "AUTOML_DB_URL": url, "OMP_NUM_THREADS": "1"}


def _write_table(path: Path) -> None:
    """Curves of 2,000 learning rates that fall towards a floor, best at 1e-3."""
    rates = np.logspace(-5, -1, _CONFIGURATIONS)
    floor = 0.1 * np.abs(np.log10(rates) + 3)[:, None]
    np.savez(
        path,
        names=np.array(["lr"]),
        configurations=rates[:, None],
        curves=floor + np.exp(-np.arange(_STEPS) / 5),
    )


def _quantiles(seconds: Sequence[float]) -> tuple[Any, Any]:
    cuts = statistics.quantiles(seconds, n=20)
    return cuts[9], cuts[-1]
