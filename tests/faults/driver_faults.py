"""Drivers that are killed, stopped, doubled or asked to end (R-01, R-02, R-07, R-08, R-22); workers (R-03, R-04)."""

from __future__ import annotations

import json
import re
import signal
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from tests.databases import PostgresServer, exposed_server, why_no_postgres
from tests.faults.cluster import RayCluster
from tests.faults.drive import Disturbance
from tests.faults.forked import ForkedDriver, Options
from tests.faults.kill import Driver, Outcome, check
from tests.faults.kill import run as run_under_ray
from tests.faults.scenario import Findings, SkipScenario, Trial
from tests.faults.search import NAME, open_database, url

KILLS_OF_A_STUDY = 8
_RECOVERY_SECONDS = 10.0
_PROGRESS_SECONDS = 30.0
_START_SECONDS = 120.0


def ledger_lines(folder: Path) -> int:
    """Measurements the driver has acknowledged so far."""
    path = folder / "ledger"
    return path.read_text(encoding="utf-8").count("\n") if path.exists() else 0


def checked(folder: Path, findings: Findings, *, kills: int, seed: str) -> None:
    """All checks of a finished study; nothing may have been trained more often than the kills explain."""
    outcome = Outcome(seed=0, kills=["kill"] * kills, starts=2)
    findings.violations += [f"{seed}: {problem}" for problem in check(folder, outcome)]
    for name, number in (("acknowledged", outcome.acknowledged), ("attempts", outcome.attempts)):
        findings.details[name] = findings.details.get(name, 0) + number


@contextmanager
def postgres() -> Iterator[PostgresServer]:
    """A server of its own; the scenario is skipped where there is none."""
    if (reason := why_no_postgres()) is not None:
        raise SkipScenario(reason)
    server = exposed_server()
    try:
        server.template()
        yield server
    finally:
        server.end()


def place(folder: Path, server: PostgresServer | None, name: str, *, port: int | None = None) -> None:
    """Put the study of a folder into a new database of the server; None: a SQLite file in the folder."""
    if server is not None:
        server.execute(f"CREATE DATABASE {name} TEMPLATE {server.template()}")
        (folder / "url").touch(mode=0o600)
        (folder / "url").write_text(server.url(name, port=port), encoding="utf-8")


def run_to_the_end(folder: Path, findings: Findings, label: str) -> None:
    """Continue the study undisturbed until it is done."""
    _ended_well(ForkedDriver(folder, Options(step_seconds=0.0)), findings, label)


def _ended_well(driver: ForkedDriver, findings: Findings, label: str) -> None:
    code = driver.finish()
    findings.expect(code == 0, f"{label}: driver ended with {code}: {driver.log[-500:]}")
    findings.expect("Traceback" not in driver.log, f"{label}: traceback: {driver.log[-800:]}")


def kill_drivers_on_sqlite(trial: Trial) -> Findings:
    """R-01 on SQLite."""
    return _kill_drivers(trial, None)


def kill_drivers_on_postgres(trial: Trial) -> Findings:
    """R-01 on PostgreSQL."""
    with postgres() as server:
        return _kill_drivers(trial, server)


def _kill_drivers(trial: Trial, server: PostgresServer | None) -> Findings:
    findings, study = Findings(), 0
    while findings.count < trial.size:
        with trial.workspace() as folder:
            place(folder, server, f"killed_{study}")
            kills, progress = 0, 0
            while kills < KILLS_OF_A_STUDY and findings.count + kills < trial.size:
                driver = ForkedDriver(folder, Options(step_seconds=0.004))
                _await_a_moment(driver, trial)
                if not driver.alive:
                    break
                driver.process.kill()
                driver.finish()
                kills += 1
                findings.expect(ledger_lines(folder) >= progress, f"study {study}: progress went back")
                findings.expect("Traceback" not in driver.log, f"study {study}: {driver.log[-800:]}")
                progress = ledger_lines(folder)
            _take_over(folder, findings, f"study {study}")
            checked(folder, findings, kills=kills, seed=f"study {study}")
            findings.count += kills
            study += 1
            if not kills and study > 3 * trial.size:
                raise SkipScenario("this machine finishes a study before it can be killed")
    findings.details["studies"] = study
    return findings


def _await_a_moment(driver: ForkedDriver, trial: Trial) -> None:
    """A random moment: one time in five while it starts, else after some progress, on however slow a machine."""
    if trial.chance.random() < 0.2:
        driver.process.join(trial.chance.uniform(0.0, 1.0))
        return
    wanted = ledger_lines(driver.folder) + trial.chance.randint(0, 12)
    deadline = time.monotonic() + _PROGRESS_SECONDS
    while driver.alive and ledger_lines(driver.folder) < wanted and time.monotonic() < deadline:
        driver.process.join(0.005)
    driver.process.join(trial.chance.uniform(0.0, 0.1))


def _take_over(folder: Path, findings: Findings, label: str) -> None:
    """The driver after the last kill: it has the study soon, and finishes it."""
    driver = ForkedDriver(folder, Options(step_seconds=0.0))
    try:
        seconds = driver.wait_until_driving()
        findings.expect_within("takeover_seconds", seconds, _RECOVERY_SECONDS, f"{label}: takeover")
    except RuntimeError as error:
        findings.violations.append(str(error))
    _ended_well(driver, findings, label)


POINTS = ("commit", "os.rename", "os.remove", "open")


def kill_at_durable_points(trial: Trial) -> Findings:
    """R-02: before the n-th commit, and before the n-th rename, deletion and opening of a slot file."""
    findings = Findings()
    while findings.count < trial.size:
        with trial.workspace() as folder:
            kills = 0
            for point in POINTS:
                number = trial.chance.choice((1, 2, 3, trial.chance.randint(4, 60)))
                options = Options(step_seconds=0.0, disturbance=Disturbance(point, number))
                driver = ForkedDriver(folder, options)
                code = driver.finish()
                if code == -signal.SIGKILL:
                    kills += 1
                    key = f"killed_before_{point}"
                    findings.details[key] = findings.details.get(key, 0) + 1
                else:
                    findings.expect(code == 0, f"{point}:{number}: ended with {code}: {driver.log[-500:]}")
            run_to_the_end(folder, findings, "after the points")
            checked(folder, findings, kills=kills, seed="durable points")
            findings.count += max(kills, 1)
    return findings


def second_drivers(trial: Trial) -> Findings:
    """R-07: a driver is started while another one holds the study."""
    findings = Findings()
    while findings.count < trial.size:
        with trial.workspace() as folder:
            first = ForkedDriver(folder, Options(step_seconds=0.3))
            first.wait_until_driving()
            while findings.count < trial.size:
                began = time.monotonic()
                second = ForkedDriver(folder, Options())
                code = second.finish()
                if not first.alive:  # done meanwhile, so the second one was right to start
                    break
                findings.expect_within("refused_seconds", time.monotonic() - began, 5.0, "second driver refused")
                named = re.search(rf"StudyBusyError: .*process {first.pid} on ", second.log)
                findings.expect(code == 3 and named is not None, f"second driver: {code} {second.log[-300:]}")
                findings.count += 1
            first.process.kill()
            first.finish()
            run_to_the_end(folder, findings, "after refusing")
            checked(folder, findings, kills=1, seed="second drivers")
    return findings


def zombies_on_postgres(trial: Trial) -> Findings:
    """R-08: a driver is stopped for longer than its lease, another one takes the study, then the first goes on."""
    findings = Findings()
    with postgres() as server:
        for number in range(trial.size):
            with trial.workspace() as folder:
                place(folder, server, f"zombie_{number}")
                zombie = ForkedDriver(folder, Options(step_seconds=0.02, ttl_seconds=1.0))
                zombie.wait_until_driving()
                time.sleep(trial.chance.uniform(0.1, 1.0))
                zombie.send(signal.SIGSTOP)
                time.sleep(1.5)
                _replace(folder, zombie, findings, label=f"zombie {number}")
                checked(folder, findings, kills=1, seed=f"zombie {number}")
                findings.count += 1
    return findings


def _replace(folder: Path, zombie: ForkedDriver, findings: Findings, *, label: str) -> None:
    heir = ForkedDriver(folder, Options(step_seconds=0.0, ttl_seconds=1.0))
    code = heir.finish()
    if code == 3 and "away" not in heir.log:  # stopped inside a transaction: its row locks keep the study
        findings.details["blocked"] = findings.details.get("blocked", 0) + 1
        zombie.process.kill()
        zombie.send(signal.SIGCONT)
        zombie.finish()
        run_to_the_end(folder, findings, label)
        return
    findings.expect(code == 0, f"{label}: the second driver ended with {code}: {heir.log[-500:]}")
    before = _rows(folder)
    zombie.send(signal.SIGCONT)
    began = time.monotonic()
    ended = zombie.finish()
    findings.expect_within("zombie_seconds", time.monotonic() - began, 5.0, f"{label}: the first driver's end")
    findings.expect(ended == 3, f"{label}: the first driver ended with {ended}: {zombie.log[-500:]}")
    findings.expect(_rows(folder) == before, f"{label}: the first driver wrote after it was replaced")


def _rows(folder: Path) -> tuple[int, int]:
    with open_database(url(folder), create=False) as database:
        store = database.store(NAME)
        return len(store.measurements()), len(store.attempts())


def signals(trial: Trial) -> Findings:
    """R-22: SIGINT, SIGTERM and two of them at random times."""
    findings = Findings()
    while findings.count < trial.size:
        with trial.workspace() as folder:
            kind = trial.chance.choice(("SIGINT", "SIGTERM", "twice"))
            driver = ForkedDriver(folder, Options(step_seconds=0.01))
            driver.wait_until_driving()
            time.sleep(trial.chance.uniform(0.05, 1.5))
            first = signal.SIGTERM if kind == "SIGTERM" else signal.SIGINT
            began = time.monotonic()
            driver.send(first)
            if kind == "twice":
                time.sleep(0.02)
                driver.send(first)
            code = driver.finish()
            findings.expect_within("end_seconds", time.monotonic() - began, 20.0, f"{kind}: the end")
            findings.expect(code in (0, 4), f"{kind}: ended with {code}: {driver.log[-500:]}")
            if code == 4 and kind != "twice":
                findings.expect("LOST" not in _attempt_states(folder), f"{kind}: attempts LOST, not INTERRUPTED")
            run_to_the_end(folder, findings, kind)
            checked(folder, findings, kills=1, seed=kind)
            findings.count += 1
    return findings


def _attempt_states(folder: Path) -> set[str]:
    with open_database(url(folder), create=False) as database:
        return {attempt.state.value for attempt in database.store(NAME).attempts()}


def kill_under_ray(trial: Trial) -> Findings:
    """R-03, R-04: workers and drivers of a real Ray cluster."""
    findings = Findings()
    while findings.count < trial.size:
        with trial.workspace() as folder:
            seed = trial.chance.randrange(10_000)
            outcome = run_under_ray(folder, "ray", kills=min(3, trial.size - findings.count), seed=seed)
            findings.violations += [f"seed {seed}: {problem}" for problem in outcome.problems]
            findings.count += len(outcome.kills)
            for victim in outcome.kills:
                name = "killed_" + victim.split(",")[0]
                findings.details[name] = findings.details.get(name, 0) + 1
            if not outcome.kills:
                break
    return findings


def kill_nodes(trial: Trial) -> Findings:
    """R-04: of a cluster of two machines one dies while both train; the search goes on with what is left."""
    findings = Findings()
    for number in range(trial.size):
        with trial.workspace() as folder, RayCluster() as cluster:
            driver = Driver(folder, "ray", step_seconds=0.04, cluster=cluster)
            driver.wait_until_driving()
            victim = cluster.nodes[1]
            deadline = time.monotonic() + _START_SECONDS
            while not (_trained_on(folder) & victim.pids()) and time.monotonic() < deadline:
                time.sleep(0.1)
            time.sleep(trial.chance.uniform(0.0, 2.0))
            victim.kill()
            code, errors = driver.finish()
            findings.expect(code == 0, f"node {number}: driver ended with {code}: {errors[-800:]}")
            findings.expect("Traceback" not in errors, f"node {number}: traceback: {errors[-800:]}")
            findings.violations += [f"node {number}: left over: {left}" for left in driver.orphans()]
            checked(folder, findings, kills=1, seed=f"node {number}")
            findings.count += 1
    return findings


def _trained_on(folder: Path) -> set[int]:
    """Processes that the driver has acknowledged a measurement to."""
    path = folder / "ledger"
    lines = path.read_text(encoding="utf-8").split("\n")[:-1] if path.exists() else []
    return {json.loads(line)[-1] for line in lines}


def check_can_fail(trial: Trial) -> Findings:
    """The checker of all these scenarios finds every damage done to a finished study."""
    findings = Findings()
    with trial.workspace() as folder:
        run_to_the_end(folder, findings, "sound study")
        checked(folder, findings, kills=0, seed="sound study")
        for name, statements in _DAMAGE.items():
            with trial.workspace() as copy:
                _copy(folder, copy)
                with closing(sqlite3.connect(copy / "search.db")) as connection:
                    for statement in statements:
                        connection.execute(statement)
                    connection.commit()
                found = check(copy, Outcome(seed=0, starts=2))
                findings.expect(bool(found), f"the checker did not see: {name}")
                findings.count += 1
    return findings


_FIRST = "(SELECT trial_id FROM trials WHERE number = 0)"
_DAMAGE = {
    "an acknowledged measurement is lost": (
        "DELETE FROM automl_metric_values WHERE trial = 0 AND step = 2",
        "DELETE FROM automl_measurements WHERE trial = 0 AND step = 2",
    ),
    "a trial is counted twice": ("UPDATE trials SET number = 0 WHERE number = 1",),
    "a trial is lost": ("UPDATE trials SET state = 'FAIL' WHERE number = 1",),
    "a trial runs for ever": ("UPDATE trials SET state = 'RUNNING' WHERE number = 1",),
    "a value differs": (f"UPDATE trial_intermediate_values SET intermediate_value = 0.5 WHERE trial_id = {_FIRST}",),
    "two attempts succeeded": (
        "INSERT INTO automl_attempts SELECT study_name, trial, number + 1, worker, run, state, reason, started_at,"
        " ended_at FROM automl_attempts WHERE trial = 0",
    ),
    "trained far too often": (
        "WITH RECURSIVE n(i) AS (SELECT 2 UNION ALL SELECT i + 1 FROM n WHERE i < 9)"
        " INSERT INTO automl_attempts SELECT study_name, trial, n.i, worker, run, 'LOST', 'again', ended_at, ended_at"
        " FROM automl_attempts, n WHERE trial = 0 AND number = 1",
    ),
}


def _copy(source: Path, target: Path) -> None:
    (target / "ledger").write_bytes((source / "ledger").read_bytes())
    with (
        closing(sqlite3.connect(source / "search.db")) as old,
        closing(sqlite3.connect(target / "search.db")) as new,
    ):
        old.backup(new)
