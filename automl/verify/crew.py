"""Who trains the arms of a verification: worker processes, or this one. They know neither plan nor database.

A process of its own answers for two things: the driver hears signals at once, and its memory stays free of the
backbone. Each worker trains its share of the trials on the same host as a search does, packed where that is possible,
and ends with the driver, however that ends.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from types import FrameType
from typing import TYPE_CHECKING, Any, NamedTuple

from automl.errors import AutomlError, ResourceError, SearchError
from automl.execution.base import Host
from automl.setup.hosts import build_host
from automl.training.runtime import HostSettings
from automl.trial import Measurement, Metrics, TrialFailure, TrialSpec

if TYPE_CHECKING:
    from automl.packed.host import PackedHost
    from automl.training.host import SoloHost

_POLL_SECONDS = 0.5
_GOODBYE_SECONDS = 10.0

Outcome = Measurement | TrialFailure
_REPORT_SECONDS = 2.0

Job = tuple[TrialSpec, ...] | None
"""Trials to train; none of them = measure the model without training; None = go home."""


class _Steps(NamedTuple):
    """A worker's message: steps that its trials have made so far."""

    made: int


@dataclass(slots=True)
class _Member:
    process: BaseProcess
    connection: Connection[Any, Any]
    steps: int = 0


class Crew(ABC):
    """Trains on hosts of one configuration. A context manager: entering starts what is needed, leaving ends it."""

    @abstractmethod
    def __enter__(self) -> Crew: ...

    @abstractmethod
    def __exit__(self, kind: object, *_: object) -> None: ...

    @abstractmethod
    def train(self, trials: Sequence[TrialSpec]) -> Iterator[Outcome]:
        """Train them all to their last step; yields each trial's outcome as soon as it is known.

        Raises what a worker raises, and ResourceError if one dies.
        """

    @abstractmethod
    def untrained(self) -> Metrics:
        """Metrics of the model without training."""

    @property
    @abstractmethod
    def steps(self) -> int:
        """Training steps made so far, as far as is known; it may be asked for from another thread."""


class InlineCrew(Crew):
    """Trains in the calling thread. check: called between outcomes; what it raises ends the training."""

    def __init__(self, settings: HostSettings, *, check: Callable[[], None]) -> None:
        self._settings = settings
        self._check = check
        self._host: PackedHost | SoloHost | None = None

    def __enter__(self) -> Crew:
        self._host = build_host(self._settings)
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if self._host is not None:
            self._host.shutdown()

    def train(self, trials: Sequence[TrialSpec]) -> Iterator[Outcome]:
        """See `Crew.train`."""
        assert self._host is not None
        for outcome in train_on(self._host, trials):
            yield outcome
            self._check()

    def untrained(self) -> Metrics:
        """See `Crew.untrained`."""
        assert self._host is not None
        return self._host.baseline()

    @property
    def steps(self) -> int:
        """See `Crew.steps`."""
        return self._host.steps if self._host is not None else 0


class WorkerCrew(Crew):
    """Trains in processes of its own. check: called every half second; what it raises ends the waiting."""

    def __init__(self, settings: HostSettings, *, workers: int, check: Callable[[], None]) -> None:
        self._settings = settings
        self._size = workers
        self._check = check
        self._members: list[_Member] = []

    def __enter__(self) -> Crew:
        # spawn: the driver may have threads and open databases, which a forked child would inherit half alive.
        context = multiprocessing.get_context("spawn")
        for index in range(self._size):
            ours, theirs = context.Pipe()
            process = context.Process(target=_work, args=(theirs, self._settings_of(index)), daemon=True)
            process.start()
            theirs.close()
            self._members.append(_Member(process, ours))
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        for member in self._members:
            if kind is None and member.process.is_alive():
                member.connection.send(None)
            else:
                member.process.terminate()
        for member in self._members:
            member.process.join(_GOODBYE_SECONDS)
            if member.process.is_alive():
                member.process.kill()
                member.process.join()
            member.connection.close()

    def train(self, trials: Sequence[TrialSpec]) -> Iterator[Outcome]:
        """See `Crew.train`."""
        busy: dict[Connection[Any, Any], tuple[_Member, int]] = {}
        for index, member in enumerate(self._members):
            share = tuple(trials[index :: self._size])
            if share:
                member.connection.send(share)
                busy[member.connection] = (member, len(share))
        while busy:
            for connection in self._ready(list(busy)):
                member, left = busy[connection]
                outcome = _received(member)
                if outcome is None:
                    continue
                del busy[connection]
                if left > 1:
                    busy[connection] = (member, left - 1)
                assert isinstance(outcome, Measurement | TrialFailure)
                yield outcome

    def untrained(self) -> Metrics:
        """See `Crew.untrained`."""
        member = self._members[0]
        member.connection.send(())
        metrics = None
        while metrics is None:
            metrics = _received(member) if self._ready([member.connection]) else None
        assert isinstance(metrics, dict)
        return metrics

    @property
    def steps(self) -> int:
        """See `Crew.steps`."""
        return sum(member.steps for member in self._members)

    def _settings_of(self, index: int) -> HostSettings:
        """Every worker owns a GPU of its own, where there are any."""
        own = f"cuda:{index}" if self._settings.device == "cuda" else self._settings.device
        return replace(self._settings, device=own)

    def _ready(self, connections: Sequence[Connection[Any, Any]]) -> list[Connection[Any, Any]]:
        self._check()
        return [each for each in wait(connections, _POLL_SECONDS) if isinstance(each, Connection)]


def _received(member: _Member) -> Outcome | Metrics | None:
    """What a worker says; None if it was only how far it is."""
    try:
        message = member.connection.recv()
    except EOFError:
        member.process.join(_GOODBYE_SECONDS)
        code = member.process.exitcode
        raise ResourceError(
            f"a verification worker died (exit status {code}); perhaps memory was short: fewer run.slots or run.workers"
        ) from None
    if isinstance(message, Exception):
        raise message
    if isinstance(message, _Steps):
        member.steps = message.made
        return None
    assert isinstance(message, Measurement | TrialFailure | dict)
    return message


def _work(connection: Connection[Any, Any], settings: HostSettings) -> None:
    """The worker's process: one job after the other until the driver hangs up."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the driver says when to stop
    signal.signal(signal.SIGTERM, _leave)
    logging.getLogger().setLevel(logging.ERROR)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        _serve(connection, settings)
    except (EOFError, BrokenPipeError):
        return
    except AutomlError as error:
        connection.send(error)
    except Exception as error:  # noqa: BLE001 - the edge of the process: the driver raises it
        connection.send(SearchError(f"a verification worker failed: {type(error).__name__}: {error}"))


def _serve(connection: Connection[Any, Any], settings: HostSettings) -> None:
    host = build_host(settings)
    sending = threading.Lock()

    def send(message: object) -> None:
        with sending:
            connection.send(message)

    over = threading.Event()
    threading.Thread(target=_report, args=(host, send, over), daemon=True).start()
    try:
        while (job := connection.recv()) is not None:
            if not job:
                send(dict(host.baseline()))
            for outcome in train_on(host, job):
                send(_Steps(host.steps))
                send(outcome)
    finally:
        over.set()
        host.shutdown()


def _report(host: PackedHost | SoloHost, send: Callable[[object], None], over: threading.Event) -> None:
    """Tell the driver now and then how far the trials are."""
    told = 0
    while not over.wait(_REPORT_SECONDS):
        if (steps := host.steps) != told:
            told = steps
            with suppress(OSError):  # the driver has gone: `_end_with_parent` ends this process
                send(_Steps(steps))


def train_on(host: Host, trials: Sequence[TrialSpec]) -> Iterator[Outcome]:
    """Train trials that are measured once, after their last step, as many at once as the host holds."""
    waiting = list(reversed(trials))
    training: set[int] = set()
    while waiting or training:
        news: list[Outcome] = []
        while waiting and len(training) < host.capacity:
            spec = waiting.pop()
            training.add(spec.number)
            news += host.open(spec)  # what its slot file holds, if it was trained by a worker that died
        for outcome in news or host.advance():
            training.remove(outcome.trial)
            host.close(outcome.trial)
            yield outcome


def _leave(number: int, frame: FrameType | None) -> None:
    """End as a process does that has nothing more to do, so that nothing of it is left in the system."""
    sys.exit(0)


def _end_with_parent() -> None:
    """End this process when the driver is gone, however it ended: nobody waits for its work."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(_GOODBYE_SECONDS)
        os._exit(0)
