"""A driver outlasts its database: refused, swallowed, cut off in the middle of a commit, or silent."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Iterator

import optuna
import pytest
from optuna.storages import BaseStorage
from optuna.trial import TrialState
from sqlalchemy import Connection, event
from sqlalchemy.engine import make_url
from sqlalchemy.exc import OperationalError

from automl.errors import InterruptedSearch, ResourceError, StorageError
from automl.storage.base import AttemptState
from automl.storage.connect import PostgresConnect
from automl.storage.optuna_retry import RetryingStorage
from automl.storage.retry import Retry
from automl.storage.sql import Database, SqlStore, open_database
from automl.storage.verification import Score, VerificationStore
from automl.trial import Measurement
from tests.databases import PostgresServer, exposed_server, free_port
from tests.faults.proxy import Proxy

ADDRESS = make_url("postgresql+psycopg://u:hunter2@db/automl")


class Clock:
    """Time that passes only when somebody sleeps."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def refused(code: int | None = None) -> OperationalError:
    cause = sqlite3.OperationalError("database hunter2 is locked")
    cause.sqlite_errorcode = sqlite3.SQLITE_BUSY if code is None else code  # type: ignore[misc]
    return OperationalError("SELECT secret", {}, cause)


def failing(times: int, error: Exception) -> Iterator[str]:
    for _ in range(times):
        yield "fail"
    while True:
        yield "done"


@pytest.mark.parametrize("store", [SqlStore, VerificationStore])
def test_every_method_of_a_store_is_repeated(store: type) -> None:
    public = {name: method for name, method in vars(store).items() if callable(method) and not name.startswith("_")}
    assert public
    assert [name for name, method in public.items() if not hasattr(method, "__wrapped__")] == []


def test_every_method_of_optunas_storage_is_repeated() -> None:
    kept = {"get_trial_params", "get_trial_user_attrs", "get_trial_system_attrs", "check_trial_is_updatable"}
    asked = {name for name, method in vars(BaseStorage).items() if callable(method) and not name.startswith("_")}
    assert asked - vars(RetryingStorage).keys() == kept, "those ask `get_trial`, or nothing"


class TestPatience:
    def run(self, retry: Retry, times: int, error: Exception) -> str:
        outcomes = failing(times, error)

        def work() -> str:
            if (outcome := next(outcomes)) == "fail":
                raise error
            return outcome

        return retry.call(work)

    def test_repeats_until_the_database_is_back(self, caplog: pytest.LogCaptureFixture) -> None:
        clock = Clock()
        assert self.run(Retry(ADDRESS, 60.0, clock=clock, sleep=clock.sleep), 12, refused()) == "done"
        first, last = (record.getMessage() for record in caplog.records)
        assert first == (
            "postgresql+psycopg://u:***@db/automl: the database is away, waiting up to 60 s for it:"
            " database *** is locked"
        )
        assert last.startswith("postgresql+psycopg://u:***@db/automl: the database is back after ")

    def test_gives_up_after_its_time_with_one_line(self) -> None:
        clock = Clock()
        with pytest.raises(
            StorageError, match=r"^postgresql.*@db/automl: away for 60 s: .* the same command continues$"
        ):
            self.run(Retry(ADDRESS, 60.0, clock=clock, sleep=clock.sleep), 1000, refused())
        assert 60 <= clock.now < 62

    def test_every_outage_has_its_own_time(self) -> None:
        clock = Clock()
        retry = Retry(ADDRESS, 10.0, clock=clock, sleep=clock.sleep)
        for _ in range(5):
            assert self.run(retry, 8, refused()) == "done"
        assert clock.now > 20

    def test_a_full_disk_is_a_lack_of_resources(self) -> None:
        clock = Clock()
        with pytest.raises(ResourceError):
            self.run(Retry(ADDRESS, 5.0, clock=clock, sleep=clock.sleep), 1000, refused(sqlite3.SQLITE_FULL))

    def test_without_time_the_error_is_the_error(self) -> None:
        with pytest.raises(OperationalError):
            self.run(Retry(ADDRESS), 1, refused())

    @pytest.mark.parametrize("code", [sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_CONSTRAINT, sqlite3.SQLITE_READONLY])
    def test_other_errors_are_not_waited_for(self, code: int) -> None:
        with pytest.raises(OperationalError):
            self.run(Retry(ADDRESS, 60.0), 1, refused(code))

    def test_a_signal_ends_the_waiting(self) -> None:
        clock = Clock()
        retry = Retry(ADDRESS, 600.0, clock=clock, sleep=lambda seconds: (clock.sleep(seconds), halt())[0])

        def halt() -> None:
            if clock.now > 3:
                retry.interrupt("SIGTERM")

        with pytest.raises(InterruptedSearch, match=r"stopped \(SIGTERM\) while the database was away"):
            self.run(retry, 1000, refused())
        assert clock.now < 4
        with pytest.raises(InterruptedSearch):  # and nothing is waited for after it
            self.run(retry, 1000, refused())


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    server = exposed_server()
    yield server
    server.end()


@pytest.fixture
def proxy(server: PostgresServer) -> Iterator[Proxy]:
    assert server.port is not None
    with Proxy(server.port, free_port()) as proxy:
        yield proxy


@pytest.fixture
def database(server: PostgresServer, proxy: Proxy, request: pytest.FixtureRequest) -> Iterator[Database]:
    name = f"away_{abs(hash(request.node.name))}"
    server.execute(f"CREATE DATABASE {name} TEMPLATE {server.template()}")
    with open_database(server.url(name, port=proxy.port), create=False, grace_seconds=30.0) as database:
        yield database


class CutAtCommit:
    """A guard that lets the commit reach the server, or not, and breaks the connection before the answer."""

    def __init__(self, proxy: Proxy, *, committed: bool) -> None:
        self._proxy = proxy
        self._committed = committed
        self.left = 0

    def __call__(self, connection: Connection) -> None:
        if self.left:
            self.left -= 1
            if self._committed:
                connection.exec_driver_sql("COMMIT")
            self._proxy.reset()


@pytest.mark.postgres
@pytest.mark.parametrize("committed", [False, True], ids=["rolled back", "committed without an answer"])
class TestLostAnswers:
    @pytest.fixture
    def cut(self, proxy: Proxy, committed: bool) -> CutAtCommit:
        return CutAtCommit(proxy, committed=committed)

    def test_a_study_is_driven_as_if_nothing_had_happened(self, database: Database, cut: CutAtCommit) -> None:
        study = optuna.create_study(study_name="s", storage=database.driver_storage(cut))
        study.enqueue_trial({"x": 0.5})
        for _ in range(2):
            cut.left = 1
            trial = study.ask()
            cut.left = 1
            value = trial.suggest_float("x", 0, 1)
            cut.left = 1
            trial.report(value, 1)
            cut.left = 1
            trial.set_user_attr("key", 1)
            cut.left = 1
            study.tell(trial, value)
        trials = database.optuna_storage().get_all_trials(study._study_id)
        assert [trial.number for trial in trials] == [0, 1]
        assert {trial.state for trial in trials} == {TrialState.COMPLETE}
        assert trials[0].params == {"x": 0.5}
        assert [len(trial.intermediate_values) for trial in trials] == [1, 1]

    def test_the_store_holds_everything_once(self, database: Database, cut: CutAtCommit) -> None:
        store = database.store("s", cut)
        cut.left = 1
        store.add_measurements([Measurement(trial=0, step=1, metrics={"loss": 1.0})])
        cut.left = 1
        attempt = store.start_attempt(0, worker=0, run=1)
        cut.left = 1
        store.end_attempt(0, AttemptState.SUCCEEDED, "finished")
        assert len(store.measurements()) == 1
        assert [(each.number, each.state) for each in store.attempts()] == [(1, AttemptState.SUCCEEDED)]
        assert attempt.number == 1
        assert store.start_attempt(0, worker=0, run=1).number == 2

    def test_a_verification_is_there_once(self, database: Database, cut: CutAtCommit) -> None:
        store = VerificationStore(database, "s", cut)
        score = Score(arm="best", seed=4, learning_rate=1e-3, split="test", metric="loss", value=0.5)
        cut.left = 1
        store.begin(1, {"seeds": [4]})
        cut.left = 1
        store.add_scores(1, [score])
        cut.left = 1
        store.finish(1, {"headline": "done"})
        assert store.scores(1) == [score]
        found = store.latest(done=True)
        assert found is not None
        assert (found.number, found.plan, found.result) == (1, {"seeds": [4]}, {"headline": "done"})
        with pytest.raises(StorageError, match="begin verification 1 of study 's'"):
            store.begin(1, {"seeds": [4]})


@pytest.mark.postgres
def test_a_connection_lost_in_the_midst_of_a_transaction(database: Database, proxy: Proxy) -> None:
    inner = database.optuna_storage(lambda connection: None)
    study = optuna.create_study(study_name="s", storage=RetryingStorage(inner, database.retry, lambda: None))
    left = [0]

    def cut(*_: object) -> None:
        if left[0]:
            left[0] -= 1
            proxy.reset()

    event.listen(inner.engine, "before_cursor_execute", cut)
    for number in range(4):
        left[0] = 1
        trial = study.ask()
        left[0] = number
        study.tell(trial, trial.suggest_float("x", 0, 1))
    assert [trial.state for trial in study.get_trials()] == [TrialState.COMPLETE] * 4


@pytest.mark.postgres
def test_what_is_written_while_it_is_away_is_there_afterwards(database: Database, proxy: Proxy) -> None:
    store = database.store("s")
    store.add_event("before", {})
    proxy.set("refuse")
    back = threading.Timer(1.0, proxy.set, ["pass"])
    back.start()
    store.add_event("meanwhile", {})
    back.join()
    assert [kind for _, kind, _ in store.events()] == ["before", "meanwhile"]


# A stopped server acknowledges every packet, so nothing but our own limit ends the wait.
@pytest.mark.postgres
def test_a_silent_server_is_given_up_and_found_again(server: PostgresServer) -> None:
    connection = PostgresConnect(make_url(server.url("postgres")), read_only=True)()
    connection.silence_seconds = 0.5
    connection.execute("SELECT 1")
    connection.rollback()
    server.freeze()
    try:
        began = time.monotonic()
        with pytest.raises(Exception, match="the server has not answered for 0 s"):
            connection.execute("SELECT 1")
        assert connection.closed
        assert time.monotonic() - began < 60
    finally:
        server.thaw()
    with open_database(server.url(server.template()), create=False) as database:
        assert database.studies() == []


@pytest.mark.parametrize(("store", "least"), [(SqlStore, 11), (VerificationStore, 5)])
def test_every_public_method_of_a_store_is_patient(store: type, least: int) -> None:
    methods = [value for name, value in vars(store).items() if callable(value) and not name.startswith("_")]
    assert len(methods) >= least
    assert all(hasattr(method, "__wrapped__") for method in methods)
