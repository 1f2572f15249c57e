"""The service's numbers for Prometheus: a collector for any registry, and a small server for one of our own.

Every scrape asks the database; nothing is counted in between, so every process that serves the collector shows the
same, and a restart loses nothing. What the metrics mean is in docs/schedules.md.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CollectorRegistry, make_wsgi_app
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from automl.errors import ResourceError, StorageError
from automl.results.spending import Spending, accounts
from automl.results.standing import Outlook, outlook_of, spending_of
from automl.schedule.cron import next_slots
from automl.schedule.options import schedule_problem
from automl.storage.jobs import Schedule
from automl.storage.operations import Operations, read_operations
from automl.storage.overview import StudyTotals, study_totals
from automl.storage.schedules import list_schedules
from automl.storage.sql import Database

logger = logging.getLogger(__name__)

HOST = "127.0.0.1"
_GOOD_HOSTS = (HOST, "localhost", "[::1]")


class ServiceCollector(Collector):
    """Reads the service's state from SQL at each scrape; `automl_up` is 0 while the database is away."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def describe(self) -> Iterable[Metric]:
        """Nothing: registering must not ask the database."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """All metrics, at this moment."""
        try:
            found = read_operations(self._database)
            schedules = list_schedules(self._database)
            totals = study_totals(self._database, [each.study for each in found.driven])
            outlooks = _outlooks(self._database, totals)
            spendings = {each.study: spending_of(self._database, each) for each in totals}
        except StorageError:
            yield _gauge("automl_up", "1 if the database answers", 0.0)
            return
        yield _gauge("automl_up", "1 if the database answers", 1.0)
        yield from _families(found, schedules, outlooks, spendings)


@contextmanager
def serving(database: Database, port: int) -> Iterator[int]:
    """Serve /metrics on 127.0.0.1 while the block runs; yields the port (0 asked for a free one).

    Raises ResourceError if the port is taken.
    """
    registry = CollectorRegistry(auto_describe=False)
    registry.register(ServiceCollector(database))
    try:
        server = make_server(HOST, port, _guarded(make_wsgi_app(registry)), _Server, _Quiet)
    except OSError as error:
        raise ResourceError(f"--metrics-port: port {port} of {HOST} cannot be used: {error.strerror}") from error
    thread = threading.Thread(target=server.serve_forever, name="metrics", daemon=True)
    thread.start()
    try:
        yield int(server.server_port)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _families(
    found: Operations,
    schedules: Sequence[Schedule],
    outlooks: Mapping[str, Outlook],
    spendings: Mapping[str, Spending],
) -> Iterator[Metric]:
    unreadable = {schedule.name for schedule in schedules if schedule_problem(schedule)}
    due = _next_slots([schedule for schedule in schedules if schedule.name not in unreadable], found.at)
    yield _gauge("automl_studies", "Studies in the database", float(found.studies))
    yield _labelled("automl_trials", "Trials of all studies", ("state",), {(k,): v for k, v in found.trials.items()})
    by_state = {(each.study, state): count for each in found.driven for state, count in each.trials.items()}
    yield _labelled("automl_study_trials", "Trials of studies being driven", ("study", "state"), by_state)
    rates = {(each.study,): each.steps_per_second for each in found.driven}
    yield _labelled("automl_steps_per_second", "Training steps, mean of the last 5 minutes", ("study",), rates)
    steps = {(study,): each.steps for study, each in outlooks.items()}
    yield _labelled("automl_study_steps", "Training steps so far, of studies being driven", ("study",), steps)
    left = {(study,): each.left for study, each in outlooks.items()}
    yield _labelled("automl_study_steps_left", "Training steps to come, a guess", ("study",), left)
    yield from _spending(spendings)
    leases = {(each.study,): each.lease_seconds for each in found.driven}
    yield _labelled("automl_lease_seconds", "Until a driver's lease ends unless renewed", ("study",), leases)
    yield _labelled("automl_queue_length", "Waiting to be run", ("kind",), {(k,): v for k, v in found.queued.items()})
    yield _labelled("automl_running", "Being run by schedulers", ("kind",), {(k,): v for k, v in found.running.items()})
    yield _labelled("automl_nights", "Nights by outcome", ("schedule", "state"), found.nights)
    ends = {(name,): moment.timestamp() for name, moment in found.last_success.items()}
    yield _labelled(
        "automl_last_successful_night_timestamp_seconds", "End of the last successful night", ("schedule",), ends
    )
    slots = {(name,): moment.timestamp() for name, moment in due.items()}
    yield _labelled("automl_next_night_timestamp_seconds", "When the next night is due", ("schedule",), slots)
    paused = {(name,): float(is_paused) for name, is_paused in found.paused.items()}
    yield _labelled("automl_schedule_paused", "1 if the schedule is paused", ("schedule",), paused)
    odd = {(schedule.name,): float(schedule.name in unreadable) for schedule in schedules}
    yield _labelled("automl_schedule_unreadable", "1 if this version cannot go by the schedule", ("schedule",), odd)
    silent = {(name,): seconds for name, seconds in found.silent_seconds.items()}
    yield _labelled("automl_scheduler_silent_seconds", "Since a scheduler's last heartbeat", ("scheduler",), silent)


def _spending(spendings: Mapping[str, Spending]) -> Iterator[Metric]:
    """What studies being driven have spent in all their runs, and how much of their budget that is."""
    spent = {study: each.spent for study, each in spendings.items()}
    seconds = {(study,): each.device_seconds or 0.0 for study, each in spent.items()}
    yield _labelled("automl_study_device_seconds", "For which devices were held, all together", ("study",), seconds)
    tokens = {(study,): each.tokens for study, each in spent.items()}
    yield _labelled("automl_study_tokens", "Training tokens of all trials", ("study",), tokens)
    examples = {(study,): each.examples for study, each in spent.items()}
    yield _labelled("automl_study_examples", "Rows trained on by all trials", ("study",), examples)
    money = {(study, each.currency): each.cost for study, each in spent.items() if each.cost is not None}
    yield _labelled("automl_study_cost", "Money for the time of devices", ("study", "currency"), money)
    shares = {
        (study, account.key): account.spent / account.limit
        for study, each in spendings.items()
        for account in accounts(each.budget, each.spent)
    }
    yield _labelled("automl_study_budget_share", "Part of a budget that is spent", ("study", "budget"), shares)


def _outlooks(database: Database, totals: Sequence[StudyTotals]) -> dict[str, Outlook]:
    known = {each.study: outlook_of(database, each) for each in totals}
    return {study: each for study, each in known.items() if each is not None}


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value=value)


def _labelled(name: str, text: str, labels: tuple[str, ...], values: Any) -> Metric:
    family = GaugeMetricFamily(name, text, labels=labels)
    for names, value in sorted(values.items()):
        family.add_metric(list(names), float(value))
    return family


def _next_slots(schedules: Sequence[Schedule], now: datetime) -> dict[str, datetime]:
    found = {}
    for schedule in schedules:
        slots = [] if schedule.is_paused else next_slots(schedule.cron, schedule.timezone, now.astimezone(UTC), 1)
        if slots:
            found[schedule.name] = slots[0]
    return found


Answer = Callable[..., Any]


def _guarded(application: Callable[..., Any]) -> Callable[..., Any]:
    """Only GET /metrics, asked for by a local name: a page in somebody's browser gets nothing by rebinding DNS."""

    def guarded(environ: dict[str, Any], start: Answer) -> Any:
        host = str(environ.get("HTTP_HOST", "")).rpartition(":")
        name = host[0] if host[1] and host[2].isdigit() else str(environ.get("HTTP_HOST", ""))
        if name not in _GOOD_HOSTS:
            return _refuse(start, "421 Misdirected Request")
        if environ.get("REQUEST_METHOD") != "GET":
            return _refuse(start, "405 Method Not Allowed")
        if environ.get("PATH_INFO") != "/metrics":
            return _refuse(start, "404 Not Found")
        return application(environ, start)

    return guarded


def _refuse(start: Answer, status: str) -> list[bytes]:
    start(status, [("Content-Type", "text/plain"), ("X-Content-Type-Options", "nosniff")])
    return [f"{status}\n".encode()]


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _Quiet(WSGIRequestHandler):
    def log_message(self, format: str, *arguments: Any) -> None:
        logger.debug(format, *arguments)
