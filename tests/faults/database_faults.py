"""Databases that die, hang, fill up, are damaged or crowded (R-05, R-06, R-09, R-11, R-20, R-33)."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import sqlite3
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from automl.errors import AutomlError, StorageError
from automl.storage.backup import back_up, restore
from automl.storage.sql import open_database
from automl.trial import Measurement
from tests.databases import PostgresServer, free_port, fresh_sqlite
from tests.faults.driver_faults import checked, ledger_lines, place, postgres, run_to_the_end
from tests.faults.forked import ForkedDriver, Options
from tests.faults.proxy import Proxy
from tests.faults.scenario import Findings, SkipScenario, Trial
from tests.faults.search import NAME, url

_RECOVERY_SECONDS = 10.0


def kill_servers(trial: Trial) -> Findings:
    """R-05: SIGKILL to the postmaster at a random moment; it is back after some seconds."""
    findings, study = Findings(), 0
    pause = 1.0 if trial.tier == "ci" else 3.0
    with postgres() as server:
        while findings.count < trial.size:
            with trial.workspace() as folder:
                place(folder, server, f"server_{study}")
                driver = ForkedDriver(folder, Options(step_seconds=0.01))
                driver.wait_until_driving()
                killed = 0
                while driver.alive and killed < 4 and findings.count + killed < trial.size:
                    driver.process.join(trial.chance.uniform(0.1, 1.5))
                    if driver.alive:
                        server.kill()
                        time.sleep(pause)
                        server.start()
                        killed += 1
                        _await_progress(folder, driver, findings, f"server kill {killed} of study {study}")
                _no_trial_suffered(folder, driver, findings, f"study {study}")
                findings.count += killed
                study += 1
    return findings


def outages(trial: Trial) -> Findings:
    """R-06: connections refused, swallowed, reset, and a server that hangs; the size is the outage in seconds."""
    findings = Findings()
    with postgres() as server:
        assert server.port is not None
        threads = [
            threading.Thread(target=_cut_off, args=(trial, server, mode, findings))
            for mode in ("refuse", "blackhole", "reset")
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        _hang(trial, server, findings)
        _too_long(trial, server, findings)
        _signal_meanwhile(trial, server, findings)
    findings.details["outage_seconds"] = trial.size
    return findings


def _cut_off(trial: Trial, server: PostgresServer, mode: Any, findings: Findings) -> None:
    assert server.port is not None
    with trial.workspace() as folder, Proxy(server.port, free_port()) as proxy:
        place(folder, server, f"cut_off_{mode}", port=proxy.port)
        driver = ForkedDriver(folder, Options(step_seconds=0.02, grace_seconds=trial.size + 60.0))
        driver.wait_until_driving()
        time.sleep(0.5)
        if mode == "reset":
            until = time.monotonic() + trial.size
            while time.monotonic() < until:
                proxy.reset()
                time.sleep(min(2.0, trial.size / 4))
        else:
            proxy.set(mode)
            time.sleep(trial.size)
            proxy.set("pass")
        _await_progress(folder, driver, findings, mode)
        _no_trial_suffered(folder, driver, findings, mode)
        findings.count += 1


def _hang(trial: Trial, server: PostgresServer, findings: Findings) -> None:
    with trial.workspace() as folder:
        place(folder, server, "hang")
        driver = ForkedDriver(folder, Options(step_seconds=0.02, grace_seconds=trial.size + 60.0))
        driver.wait_until_driving()
        time.sleep(0.5)
        server.freeze()
        time.sleep(trial.size)
        server.thaw()
        _await_progress(folder, driver, findings, "hang")
        _no_trial_suffered(folder, driver, findings, "hang")
        findings.count += 1


def _too_long(trial: Trial, server: PostgresServer, findings: Findings) -> None:
    """Longer than the grace: exit code 3 in time, and the next driver loses nothing."""
    assert server.port is not None
    grace = min(4.0, trial.size / 2)
    with trial.workspace() as folder, Proxy(server.port, free_port()) as proxy:
        place(folder, server, "too_long", port=proxy.port)
        driver = ForkedDriver(folder, Options(step_seconds=0.02, grace_seconds=grace))
        driver.wait_until_driving()
        time.sleep(0.5)
        proxy.set("refuse")
        began = time.monotonic()
        code = driver.finish()
        late = time.monotonic() - began - grace
        findings.expect_within("given_up_seconds_after_grace", late, _RECOVERY_SECONDS, "too long: giving up")
        findings.expect(code == 3, f"too long: ended with {code}: {driver.log[-500:]}")
        findings.expect("Traceback" not in driver.log, f"too long: {driver.log[-800:]}")
        proxy.set("pass")
        run_to_the_end(folder, findings, "too long")
        checked(folder, findings, kills=1, seed="too long")
        findings.count += 1


def _signal_meanwhile(trial: Trial, server: PostgresServer, findings: Findings) -> None:
    """SIGINT, and in another run SIGKILL, while the driver waits for its database."""
    assert server.port is not None
    for name in ("SIGINT", "SIGKILL"):
        with trial.workspace() as folder, Proxy(server.port, free_port()) as proxy:
            place(folder, server, f"meanwhile_{name.lower()}", port=proxy.port)
            driver = ForkedDriver(folder, Options(step_seconds=0.02))
            driver.wait_until_driving()
            time.sleep(0.5)
            proxy.set("refuse")
            time.sleep(1.5)
            began = time.monotonic()
            driver.send(getattr(signal, name))
            code = driver.finish()
            wanted = 4 if name == "SIGINT" else -signal.SIGKILL
            findings.expect(code == wanted, f"{name} in an outage: ended with {code}: {driver.log[-500:]}")
            findings.expect_within("end_in_outage_seconds", time.monotonic() - began, 20.0, f"{name} in an outage")
            proxy.set("pass")
            run_to_the_end(folder, findings, name)
            checked(folder, findings, kills=1, seed=f"{name} in an outage")
            findings.count += 1


def _await_progress(folder: Path, driver: ForkedDriver, findings: Findings, label: str) -> None:
    """The database is back: the driver acknowledges another measurement soon, which it does after its commit."""
    began, before = time.monotonic(), ledger_lines(folder)
    while driver.alive and ledger_lines(folder) == before and time.monotonic() - began < 120:
        time.sleep(0.02)
    seconds = time.monotonic() - began
    findings.expect_within("recovery_seconds", seconds, _RECOVERY_SECONDS, f"{label}: next report in SQL")


def _no_trial_suffered(folder: Path, driver: ForkedDriver, findings: Findings, label: str) -> None:
    """The driver ends well, no trial has failed, and none was handed out twice."""
    code = driver.finish()
    findings.expect(code == 0, f"{label}: driver ended with {code}: {driver.log[-500:]}")
    findings.expect("Traceback" not in driver.log, f"{label}: {driver.log[-800:]}")
    if code == 0:
        checked(folder, findings, kills=0, seed=label)
        with open_database(url(folder), create=False) as database:
            failed = [trial for trial in database.store(NAME).attempts() if trial.state.value == "FAILED"]
        findings.expect(not failed, f"{label}: failed attempts: {failed}")


def full_disks(trial: Trial) -> Findings:
    """R-09: the disk of the database fills up; it is freed again, or it is not."""
    findings = Findings()
    for number in range(trial.size):
        with trial.workspace() as folder, _small_disk(folder / "small", megabytes=6) as disk:
            (folder / "url").write_text(f"sqlite:///{disk / 'search.db'}", encoding="utf-8")
            freed = number % 2 == 0
            driver = ForkedDriver(folder, Options(step_seconds=0.01, grace_seconds=60.0 if freed else 6.0))
            driver.wait_until_driving()
            time.sleep(trial.chance.uniform(0.0, 0.8))
            _fill(disk / "ballast")
            time.sleep(2.0)
            if freed:
                (disk / "ballast").unlink()
                _no_trial_suffered(folder, driver, findings, f"full disk {number}, freed")
            else:
                code = driver.finish()
                findings.expect(code in (0, 5), f"full disk {number}: ended with {code}: {driver.log[-500:]}")
                findings.expect("Traceback" not in driver.log, f"full disk {number}: {driver.log[-800:]}")
                (disk / "ballast").unlink()
                run_to_the_end(folder, findings, f"full disk {number}")
                checked(folder, findings, kills=1, seed=f"full disk {number}")
            with closing(sqlite3.connect(disk / "search.db")) as connection:
                verdict = connection.execute("PRAGMA integrity_check").fetchone()[0]
            findings.expect(verdict == "ok", f"full disk {number}: {verdict}")
            findings.count += 1
    return findings


@contextmanager
def _small_disk(folder: Path, *, megabytes: int) -> Iterator[Path]:
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode != 0:
        raise SkipScenario("a small file system can be mounted only by root")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def _fill(path: Path) -> None:
    with path.open("wb", buffering=0) as ballast:
        try:
            while True:
                ballast.write(bytes(4096))
        except OSError:
            return


WRITERS = 32


def crowds_on_sqlite(trial: Trial) -> Findings:
    """R-11 on SQLite: 32 processes write at the same time."""
    with trial.workspace() as folder:
        return _crowd(trial, fresh_sqlite(folder))


def crowds_on_postgres(trial: Trial) -> Findings:
    """R-11 on PostgreSQL."""
    with postgres() as server:
        server.execute(f"CREATE DATABASE crowd TEMPLATE {server.template()}")
        return _crowd(trial, server.url("crowd"))


def _crowd(trial: Trial, address: str) -> Findings:
    findings = Findings()
    with open_database(address, create=False) as database:
        storage = database.optuna_storage()
        study = storage.create_new_study([], "crowd")
    context = multiprocessing.get_context("forkserver")
    errors, barrier = context.SimpleQueue(), context.Barrier(WRITERS)
    writers = [
        context.Process(target=_write, args=(address, study, number, trial.size, barrier, errors), daemon=True)
        for number in range(WRITERS)
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(600)
        findings.expect(writer.exitcode == 0, f"writer ended with {writer.exitcode}")
    while not errors.empty():
        findings.violations.append(str(errors.get()))
    rows = WRITERS * trial.size
    with open_database(address, create=False) as database:
        store, storage = database.store("crowd"), database.optuna_storage()
        found = {
            "measurements": (len(store.measurements()), 5 * rows),
            "attempts": (len(store.attempts()), rows),
            "events": (len(store.events()), rows),
            "trials": (storage.get_n_trials(study), rows),
        }
        numbers = sorted(each.number for each in storage.get_all_trials(study))
    for name, (got, wanted) in found.items():
        findings.expect(got == wanted, f"{got} {name}, {wanted} written")
    findings.expect(numbers == list(range(rows)), "trial numbers are not 0, 1, 2, …")
    findings.count = rows
    return findings


def _write(address: str, study: int, number: int, trials: int, barrier: Any, errors: Any) -> None:
    from automl.storage.base import AttemptState

    barrier.wait(120)
    try:
        with open_database(address, create=False, grace_seconds=120.0) as database:
            store, storage = database.store("crowd"), database.optuna_storage()
            for trial in range(number * trials, (number + 1) * trials):
                database.retry.call(lambda: storage.create_new_trial(study))
                store.start_attempt(trial, worker=number, run=1)
                for step in range(1, 6):
                    store.add_measurements([Measurement(trial=trial, step=step, metrics={"loss": 1.0})])
                store.end_attempt(trial, AttemptState.SUCCEEDED, "finished")
                store.add_event("written", {"trial": trial})
    except Exception as error:  # noqa: BLE001 - whatever it is, it is this writer's result
        errors.put(f"writer {number}: {type(error).__name__}: {error}")


def damaged_files(trial: Trial) -> Findings:
    """R-20: SQLite files cut short, overwritten and flipped; refused or sound, and never changed by looking."""
    findings = Findings()
    with trial.workspace() as folder:
        run_to_the_end(folder, findings, "sound study")
        with closing(sqlite3.connect(folder / "search.db")) as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        whole = (folder / "search.db").read_bytes()
        for number in range(trial.size):
            with trial.workspace() as place_:
                path = place_ / "search.db"
                kind, content = _damaged(whole, trial)
                path.write_bytes(content)
                try:
                    with open_database(f"sqlite:///{path}", create=number % 2 == 0) as database:
                        readable = database.status().ready
                    outcome = "sound" if readable else "unready"
                except StorageError:
                    outcome = "refused"
                except Exception as error:  # noqa: BLE001 - any other error is what is looked for
                    findings.violations.append(f"{kind}: {type(error).__name__}: {error}")
                    continue
                key = f"{kind}: {outcome}"
                findings.details[key] = findings.details.get(key, 0) + 1
                findings.expect(kind == "bit flip" or outcome == "refused", f"{kind}: {outcome}")
                findings.expect(path.read_bytes() == content, f"{kind}: the file was changed")
                findings.count += 1
    return findings


def _damaged(whole: bytes, trial: Trial) -> tuple[str, bytes]:
    kind = trial.chance.choice(("empty", "cut", "header", "garbage", "zeroed", "bit flip"))
    place_ = trial.chance.randrange(4096, len(whole) - 4096)
    bit = 1 << trial.chance.randrange(8)
    made: dict[str, Callable[[], bytes]] = {
        "empty": lambda: b"",
        "cut": lambda: whole[:place_],
        "header": lambda: trial.chance.randbytes(100) + whole[100:],
        "garbage": lambda: trial.chance.randbytes(len(whole)),
        "zeroed": lambda: whole[:4096] + bytes(len(whole) - 4096),
        "bit flip": lambda: whole[:place_] + bytes([whole[place_] ^ bit]) + whole[place_ + 1 :],
    }
    return kind, made[kind]()


def backups(trial: Trial) -> Findings:
    """R-33: a backup is taken while a driver writes; it opens, its invariants hold, and it can be restored."""
    findings = Findings()
    while findings.count < trial.size:
        with trial.workspace() as folder:
            driver = ForkedDriver(folder, Options(step_seconds=0.003))
            driver.wait_until_driving()
            number = 0
            while driver.alive and findings.count < trial.size:
                copy = folder / f"backup-{number}.db"
                number += 1
                try:
                    back_up(url(folder), copy)
                    with trial.workspace() as elsewhere:
                        restored = f"sqlite:///{elsewhere / 'search.db'}"
                        restore(copy, restored)
                        _sound(restored, findings)
                except AutomlError as error:
                    findings.violations.append(f"backup {number}: {error}")
                findings.count += 1
                driver.process.join(trial.chance.uniform(0.0, 0.3))
            driver.finish()
            run_to_the_end(folder, findings, "after backups")
            checked(folder, findings, kills=0, seed="after backups")
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
    return findings


def left_logs(trial: Trial) -> Findings:
    """R-35: a driver is killed, its file deleted without its log, then the study begun anew or a backup restored."""
    findings = Findings()
    while findings.count < trial.size:
        with trial.workspace() as folder:
            driver = ForkedDriver(folder, Options(step_seconds=0.003))
            driver.wait_until_driving()
            back_up(url(folder), folder / "backup.db")
            driver.process.join(trial.chance.uniform(0.0, 0.5))
            driver.process.kill()
            driver.finish()
            (folder / "search.db").unlink()
            shutil.rmtree(folder / "slots", ignore_errors=True)
            if trial.chance.random() < 0.5:
                restore(folder / "backup.db", url(folder))
                _sound(url(folder), findings)
            run_to_the_end(folder, findings, "after a left log")
            with closing(sqlite3.connect(folder / "search.db")) as connection:
                verdict = connection.execute("PRAGMA integrity_check(1)").fetchone()
            findings.expect(verdict == ("ok",), f"after a left log: {verdict}")
            _sound(url(folder), findings)
            findings.count += 1
    return findings


def _sound(address: str, findings: Findings) -> None:
    from automl.storage.invariants import check

    with open_database(address, create=False) as database:
        for violation in check(database, None, finished=False, files=False):
            # The lease in the copy runs out: its driver drives the original.
            findings.expect(violation.id == "I13", f"backup: {violation.id} {violation.description}: {violation.rows}")
