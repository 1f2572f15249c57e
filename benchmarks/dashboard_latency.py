"""How quickly the dashboard answers over a study of 10,000 trials, each request alone and nothing shared.

Usage: python -m benchmarks.dashboard_latency [--trials 10000] [--requests 40] [--postgres | --db URL] [--json FILE]

Fills a fresh database (a temporary SQLite file, a private PostgreSQL server, or --db, whose tables must exist and
hold no study `large`) in bulk: 80,000 measurements, 160,000 values, four parameters a trial. Then asks the real
server over a socket, one request at a time, for the overview, the study page, its changing part, the trials and the
API. Answers are not shared between requests, so each is made anew. Prints median and 95th percentile, in wall time
and in processor time of this process, which is server and client; PostgreSQL's own is not in it.
"""

from __future__ import annotations

import json
import os
import random
import resource
import socket
import statistics
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import Any

import uvicorn
from sqlalchemy import Connection, text

from automl.storage.lease import StudyLease
from automl.storage.sql import Database, open_database
from benchmarks import postgres
from benchmarks.report import Report, parser, table
from dashboards.app import build_app
from dashboards.recent import Recent
from dashboards.serve import Address, rules_for, server_config
from dashboards.views import Views

STUDY = "large"
STEPS, EVERY = 80, 10
GOAL_SECONDS = 0.3
PATHS = {
    "overview": "/",
    "study page": f"/studies/{STUDY}",
    "live part": f"/studies/{STUDY}/live",
    "trials, last page": f"/studies/{STUDY}/trials?page=200",
    "trials, best first": f"/studies/{STUDY}/trials?order=best",
    "API studies": "/api/v1/studies",
    "API study": f"/api/v1/studies/{STUDY}",
    "API trials": f"/api/v1/studies/{STUDY}/trials?limit=200",
}
_SPACE = """\
version: 1
study: large
model: ./model
task: {type: classification, data: ./data.jsonl, metric: accuracy}
space: {rank: {type: int, low: 2, high: 32}, learning_rate: {type: float, low: 1.0e-4, high: 1.0e-1, log: true}}
search: {trials: 12000, steps: 80, evaluate_every: 10}
"""
_DISTRIBUTIONS = {
    "rank": '{"name": "IntDistribution", "attributes": {"log": false, "step": 1, "low": 2, "high": 32}}',
    "learning_rate": '{"name": "FloatDistribution", "attributes": {"low": 1e-4, "high": 0.1, "log": true}}',
    "target": '{"name": "CategoricalDistribution", "attributes": {"choices": ["qv", "all-linear"]}}',
    "dropout": '{"name": "CategoricalDistribution", "attributes": {"choices": [0.0, 0.1]}}',
}
_BATCH = 5_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """Seconds of one kind of request. cpu: processor time of the server and its client, mean."""

    name: str
    median: float
    p95: float
    cpu: float
    bytes: int


class Always(Recent):
    """Shares nothing: every question is answered anew."""

    def get(self, key: Any, seconds: float, compute: Any) -> Any:
        return compute()


def fill(database: Database, trials: int, seed: int = 0) -> None:
    """Write the study in bulk: 44 % complete, the rest pruned, four still running."""
    with StudyLease(database, STUDY) as lease:
        lease.take(_SPACE, "0" * 64, {"folder": "."})
        with database.writing("fill the study") as connection:
            _write(connection, trials, random.Random(seed))
            if connection.dialect.name == "postgresql":
                connection.execute(text("ANALYZE"))  # as its autovacuum does within a minute of such a change


def _write(connection: Connection, trials: int, generator: random.Random) -> None:
    connection.execute(text("INSERT INTO studies (study_name) VALUES (:name)"), {"name": STUDY})
    study = connection.execute(text("SELECT study_id FROM studies WHERE study_name = :name"), {"name": STUDY}).scalar()
    connection.execute(
        text("INSERT INTO study_directions (direction, study_id, objective) VALUES ('MAXIMIZE', :study, 0)"),
        {"study": study},
    )
    first = (connection.execute(text("SELECT MAX(trial_id) FROM trials")).scalar() or 0) + 1
    rows: dict[str, list[dict[str, Any]]] = {}
    for number in range(trials):
        for name, made in _trial(generator, number, first + number, study, trials).items():
            rows.setdefault(name, []).extend(made)
    for name, made in rows.items():
        names = list(made[0])
        marks = ", ".join(f":{column}" for column in names)
        statement = text(f"INSERT INTO {name} ({', '.join(names)}) VALUES ({marks})")
        for start in range(0, len(made), _BATCH):
            connection.execute(statement, made[start : start + _BATCH])


def _trial(
    generator: random.Random, number: int, trial_id: int, study: Any, trials: int
) -> Mapping[str, list[dict[str, Any]]]:
    began = datetime(2026, 8, 1) + timedelta(seconds=20 * number)
    top = generator.uniform(0.5, 0.95)
    is_running = number >= trials - 4
    is_complete = not is_running and generator.random() < 0.44
    state = "RUNNING" if is_running else "COMPLETE" if is_complete else "PRUNED"
    steps = range(EVERY, STEPS + 1, EVERY)
    curve = {step: top * (1 - 0.7 ** (step / EVERY)) for step in steps}
    ends = None if is_running else began + timedelta(seconds=15)
    params = {
        "rank": generator.randint(2, 32),
        "learning_rate": 10 ** generator.uniform(-4, -1),
        "target": 1,
        "dropout": 0,
    }
    found: dict[str, list[dict[str, Any]]] = {
        "trials": [
            {"trial_id": trial_id, "number": number, "study_id": study, "state": state}
            | {"datetime_start": began, "datetime_complete": ends}
        ],
        "trial_params": [
            {"trial_id": trial_id, "param_name": name, "param_value": value, "distribution_json": _DISTRIBUTIONS[name]}
            for name, value in params.items()
        ],
        "trial_intermediate_values": [
            {"trial_id": trial_id, "step": step, "intermediate_value": value, "intermediate_value_type": "FINITE"}
            for step, value in curve.items()
        ],
        "automl_measurements": [
            {"study_name": STUDY, "trial": number, "step": step, "seconds": step / 4, "tokens": 384 * step, "at": began}
            for step in curve
        ],
        "automl_metric_values": [
            {"study_name": STUDY, "trial": number, "step": step, "metric": metric, "value": value}
            for step, accuracy in curve.items()
            for metric, value in (("accuracy", accuracy), ("loss", 1 - accuracy))
        ],
    }
    if not is_running:
        value = {"trial_id": trial_id, "objective": 0, "value": curve[STEPS], "value_type": "FINITE"}
        reason = json.dumps("finished" if is_complete else "pruned")
        found["trial_values"] = [value]
        found["trial_user_attributes"] = [{"trial_id": trial_id, "key": "stop_reason", "value_json": reason}]
    return found


@contextmanager
def _sqlite() -> Iterator[str]:
    """URL of a file that is gone afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        yield f"sqlite:///{folder}/large.db"


def measure(url: str, requests: int) -> list[Latency]:
    """Ask for every path so often, one request at a time."""
    with _served(url) as address:
        for path in PATHS.values():  # templates are compiled, connections opened
            _ask(address + path)
        return [_measured(name, address + path, requests) for name, path in PATHS.items()]


def _measured(name: str, url: str, requests: int) -> Latency:
    seconds, size = [], 0
    before = resource.getrusage(resource.RUSAGE_SELF)
    for _ in range(requests):
        began = time.perf_counter()
        size = _ask(url)
        seconds.append(time.perf_counter() - began)
    after = resource.getrusage(resource.RUSAGE_SELF)
    cpu = (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) / requests
    p95 = statistics.quantiles(seconds, n=20)[-1]
    return Latency(name=name, median=statistics.median(seconds), p95=p95, cpu=cpu, bytes=size)


def _ask(url: str) -> int:
    with urllib.request.urlopen(url, timeout=120) as answer:
        return len(answer.read())


@contextmanager
def _served(url: str) -> Iterator[str]:
    with open_database(url, create=False, read_only=True) as database:
        app = build_app(database, rules_for(Address(), None, {}), views=Views(database, Always()))
        server = uvicorn.Server(server_config(app))
        with socket.create_server(("127.0.0.1", 0)) as listener:
            thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
            thread.start()
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
            server.should_exit = True
            thread.join(timeout=30)


def _row(found: Latency) -> dict[str, object]:
    return {
        "request": found.name,
        "median, ms": round(1e3 * found.median),
        "p95, ms": round(1e3 * found.p95),
        "processor, ms": round(1e3 * found.cpu),
        "kB": round(found.bytes / 1e3),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Fill, ask, print. Exits with 1 if a 95th percentile is above the goal."""
    made = parser("dashboard_latency", "Latency of the dashboard's pages and API over a large study.")
    made.add_argument("--trials", type=int, default=10_000)
    made.add_argument("--requests", type=int, default=40, help="of each kind")
    place = made.add_mutually_exclusive_group()
    place.add_argument("--db", metavar="URL", help="default: a temporary SQLite file")
    place.add_argument("--postgres", action="store_true", help="a private PostgreSQL server")
    given = made.parse_args(arguments)
    trials, requests = (50, 2) if given.quick else (given.trials, given.requests)
    report = Report("dashboard_latency", given)
    if given.postgres and (reason := postgres.why_not()) is not None:
        raise SystemExit(reason)
    with ExitStack() as stack:
        url = given.db or stack.enter_context(postgres.server() if given.postgres else _sqlite())
        with open_database(url, create=given.db is None) as database:
            fill(database, trials)
        found = measure(url, requests)
    report.add("requests", [asdict(each) for each in found])
    print(table([_row(each) for each in found]))
    worst = max(each.p95 for each in found)
    print(f"\n{trials:,} trials, {requests} requests of each kind, load {os.getloadavg()[0]:.1f}")
    print(f"worst 95th percentile: {1e3 * worst:.0f} ms")
    if worst > GOAL_SECONDS and not given.quick:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
