"""A verification outlasts its database: the server is killed in the middle of it, and started again or not."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import optuna
import pytest
from sqlalchemy import Connection

from automl.cli.main import main
from automl.cli.signals import signals_as_interruption
from automl.errors import InterruptedSearch
from automl.report.write import renew_report
from automl.space.load import load_space
from automl.space.spec import SweepSpec
from automl.storage.sql import Database, open_database
from automl.storage.verification import Score, Verification, VerificationStore
from automl.sweep.run import run_sweep
from automl.verify.plan import LEAST_PATTERN_SEEDS
from automl.verify.protocol import SECONDS
from automl.verify.run import Suggest, VerifyOptions, verify_study
from tests.databases import PostgresServer, exposed_server
from tests.sweep.tiny_world import make_world
from tests.verify.acting import On, acting

pytestmark = pytest.mark.postgres

STUDY = "tiny"
AWAY = "the database is away"
BACK = "the database is back"


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    server = exposed_server()
    yield server
    server.end()


@pytest.fixture(scope="module")
def searched(server: PostgresServer, tmp_path_factory: pytest.TempPathFactory) -> SweepSpec:
    """A search of one trial, in a database that is a template for those of the tests."""
    folder = tmp_path_factory.mktemp("away")
    path = make_world(folder, trials=1)
    text = path.read_text(encoding="utf-8").replace("run: {", f"run: {{output: '{folder}/out', ")
    path.write_text(f"{text}storage: {{grace: 0.3}}\n", encoding="utf-8")
    server.execute(f"CREATE DATABASE searched TEMPLATE {server.template()}")
    spec = replace(load_space(path), storage_url=server.url("searched"), storage_grace_seconds=60.0)
    run_sweep(spec, cache_of(spec))
    return spec


@pytest.fixture
def url(server: PostgresServer, searched: SweepSpec, request: pytest.FixtureRequest) -> Iterator[str]:
    name = f"verified_{abs(hash(request.node.name))}"
    server.execute(f"CREATE DATABASE {name} TEMPLATE searched")
    yield server.url(name)
    if not server.processes():
        server.start()


def cache_of(searched: SweepSpec) -> Path:
    return Path(searched.source).parent / "cache"


def verify(searched: SweepSpec, url: str, *, seeds: int = 3, suggest: Suggest | None = None) -> Verification:
    with open_database(url, create=False, grace_seconds=60.0) as database:
        options = VerifyOptions(seeds=seeds, finalists=1, suggest=suggest)
        with signals_as_interruption() as stop:
            return verify_study(database, searched, cache_of(searched), options, stop=stop)


def stored(url: str) -> list[Score]:
    with open_database(url, create=False) as database:
        return VerificationStore(database, STUDY).scores(1)


def expire_lease(url: str) -> None:
    """As 30 s without its holder do it; a holder that is known to be dead is not waited for even so."""
    with open_database(url, create=False) as database, database.writing("expire") as connection:
        connection.exec_driver_sql("UPDATE automl_sweeps SET lease_until = now()")


def test_it_goes_on_by_itself_whenever_the_server_is_back(
    searched: SweepSpec, url: str, server: PostgresServer, caplog: pytest.LogCaptureFixture
) -> None:
    """Killed while the plan is made, and again when a training has been scored."""
    kills = iter([server.kill])

    def suggest(database: Database, study: str) -> None:
        for kill in kills:
            kill()

    with acting(On("1 of ", server.kill), On(AWAY, server.start)):
        found = verify(searched, url, seeds=LEAST_PATTERN_SEEDS, suggest=suggest)
    assert found.is_done
    lines = [record.getMessage() for record in caplog.records]
    assert sum(AWAY in line for line in lines) == sum(BACK in line for line in lines) >= 2
    trained = [score for score in stored(url) if score.metric == SECONDS]
    assert sum("on test rows" in line and "of" in line.split(":")[0] for line in lines) == len(trained)  # none twice
    with open_database(url, create=False) as database:
        assert database.store(STUDY).sweep().owner is None


def test_the_command_gives_up_after_the_grace_of_the_space_file_and_the_next_one_goes_on(
    searched: SweepSpec,
    url: str,
    server: PostgresServer,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("AUTOML_DB_URL", url)
    monkeypatch.setenv("AUTOML_CACHE", str(cache_of(searched)))
    with acting(On("2 of ", server.kill)), pytest.raises(SystemExit) as ended:
        main(["verify", STUDY, "--seeds", "3", "--finalists", "1"])
    assert ended.value.code == 3
    assert capsys.readouterr().err.splitlines()[-1].endswith("nothing is lost, the same command continues")
    server.start()
    kept = stored(url)
    assert sum(score.metric == SECONDS for score in kept) >= 2
    expire_lease(url)
    assert verify(searched, url).is_done
    assert all(score in stored(url) for score in kept)


def test_a_signal_ends_it_while_the_server_is_away(searched: SweepSpec, url: str, server: PostgresServer) -> None:
    with (
        acting(On("1 of ", server.kill), On(AWAY, lambda: os.kill(os.getpid(), signal.SIGTERM))),
        pytest.raises(InterruptedSearch, match=r"stopped \(SIGTERM\) while the database was away") as ended,
    ):
        verify(searched, url)
    assert ended.value.exit_code == 4


def test_the_report_is_made_again(
    searched: SweepSpec, url: str, server: PostgresServer, caplog: pytest.LogCaptureFixture
) -> None:
    """Killed at the first commit of what the report puts into Optuna's dashboard."""
    kills = iter([server.kill])

    def guard(connection: Connection) -> None:
        for kill in kills:
            kill()

    with acting(On(AWAY, server.start)), open_database(url, create=False, grace_seconds=60.0) as database:
        with database.writing("forget") as connection:
            connection.exec_driver_sql("DELETE FROM study_user_attributes")
        renew_report(database, searched, guard=guard)
        told = optuna.load_study(study_name=STUDY, storage=database.optuna_storage()).user_attrs
    assert AWAY in caplog.text
    assert "no report was written" not in caplog.text
    assert "evidence" in told
