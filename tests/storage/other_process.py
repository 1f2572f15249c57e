"""What the storage tests let another process do; the first argument says what. Prints a line when it has begun."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import sys
import time


def say(text: object) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def hold(url: str, study: str, ttl: str) -> None:
    """Take the lease, open an attempt, and keep writing events until killed."""
    from automl.storage.lease import StudyLease
    from automl.storage.sql import open_database

    logging.basicConfig(format="%(message)s")
    with open_database(url, create=False) as database, StudyLease(database, study, float(ttl)) as lease:
        run = lease.take("space", "a" * 64, {})
        store = database.store(study, guard=lease.verify)
        store.start_attempt(0, worker=0, run=run)
        say(f"run {run}")
        while True:
            store.add_event("beat", {"pid": os.getpid()})
            time.sleep(0.05)


def killed(url: str, study: str, kind: str) -> None:
    """Write 200 events of that kind and die, as by `kill -9`, with all of them in the write-ahead log alone."""
    from automl.storage.sql import open_database

    with open_database(url, create=False) as database:
        store = database.store(study)
        for number in range(200):
            store.add_event(kind, {"number": number, "text": "x" * 1000})
        os.kill(os.getpid(), signal.SIGKILL)


def take(url: str, study: str, ttl: str) -> None:
    """Take the lease, say so, give it back; exit with the error's code if that is refused."""
    from automl.errors import AutomlError
    from automl.storage.lease import StudyLease
    from automl.storage.sql import open_database

    with open_database(url, create=False) as database, StudyLease(database, study, float(ttl)) as lease:
        try:
            say(f"run {lease.take('space', 'a' * 64, {})}")
        except AutomlError as error:
            say(error)
            sys.exit(error.exit_code)


def optimise(url: str, study: str) -> None:
    """Plain Optuna without a lease, killed in the middle of a trial."""
    import optuna

    from automl.storage.sql import open_database

    with open_database(url, create=False) as database:
        plain = optuna.create_study(study_name=study, storage=database.optuna_storage())
        for _ in range(2):
            trial = plain.ask()
            plain.tell(trial, trial.suggest_float("x", 0, 1))
        trial = plain.ask()
        trial.report(trial.suggest_float("x", 0, 1), 1)
        say("in a trial")
        time.sleep(600)


def remove(url: str, study: str) -> None:
    """Remove a study; it may be killed in the midst of it."""
    from automl.storage.removal import remove_study
    from automl.storage.sql import open_database

    with open_database(url, create=False) as database:
        say("removing")
        remove_study(database, study)


def create(url: str, processes: str) -> None:
    """Create the same database from many processes at the same moment; prints one line for each."""
    import automl.storage.optuna_storage
    from automl.storage.sql import open_database

    assert automl.storage.optuna_storage  # imported before the fork, so that the processes start together
    fork = multiprocessing.get_context("fork")
    barrier, results = fork.Barrier(int(processes)), fork.SimpleQueue()

    def one() -> None:
        barrier.wait()
        try:
            with open_database(url, create=True) as database:
                results.put(f"ok {database.status().ready}")
        except Exception as error:  # noqa: BLE001  # whatever it is, it is this process's result
            results.put(f"{type(error).__name__}: {error}")

    children = [fork.Process(target=one) for _ in range(int(processes))]
    for child in children:
        child.start()
    for _ in children:
        say(results.get())
    for child in children:
        child.join()


if __name__ == "__main__":
    {"hold": hold, "killed": killed, "take": take, "remove": remove, "optimise": optimise, "create": create}[
        sys.argv[1]
    ](*sys.argv[2:])
