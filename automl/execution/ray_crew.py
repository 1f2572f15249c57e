"""The group of processes that is the host of a worker, and the messages to them. Needs no Ray."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any, NamedTuple


@dataclass(frozen=True, slots=True, kw_only=True)
class Crew:
    """processes: how many, each with `cpus` and `gpus`. folder: where Ray Train keeps its records, for all of them.

    private: all are on this machine, and talk to each other over loopback and a file in `folder`. silence: seconds
    without a batch after which a process counts as hung and is ended.
    """

    processes: int
    cpus: float
    gpus: float
    folder: str
    private: bool
    silence: float


class HostCall(NamedTuple):
    """A method of the hosts, and what it is given."""

    method: str
    arguments: tuple[Any, ...]


class Answer(NamedTuple):
    """What the method returned or raised. busy_seconds: the host's so far. ends: the group ends with it."""

    result: Any
    busy_seconds: float
    error: Exception | None = None
    ends: bool = False


class Line:
    """Orders by number, for every process that asks, early or late; and one answer to each, the first that comes.

    All methods run in one event loop, so nothing needs a lock.
    """

    def __init__(self) -> None:
        self._orders: dict[int, asyncio.Future[HostCall | None]] = {}
        self._answers: dict[int, asyncio.Future[Answer]] = {}

    async def give(self, number: int, order: HostCall | None) -> None:
        """The next order; None sends everybody home."""
        _future(self._orders, number).set_result(order)

    async def take(self, number: int) -> HostCall | None:
        """Wait for the order of that number."""
        order: HostCall | None = await _future(self._orders, number)
        return order

    async def answer(self, number: int, answer: Answer) -> None:
        """Leave the answer to the order of that number, which need not be given yet; a second one is dropped."""
        future = _future(self._answers, number)
        if not future.done():
            future.set_result(answer)

    async def result(self, number: int) -> Answer:
        """Wait for the answer to the order of that number."""
        answer: Answer = await _future(self._answers, number)
        return answer


def _future(futures: dict[int, asyncio.Future[Any]], number: int) -> asyncio.Future[Any]:
    if number not in futures:
        futures[number] = asyncio.get_running_loop().create_future()
    return futures[number]
