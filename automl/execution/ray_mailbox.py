"""Where the driver leaves orders for the workers; an actor without CPUs. Also keeps count of every worker's starts."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from automl.trial import Order, OrderKind


class Mailbox:
    """Orders by (worker, epoch, seq). Whichever comes first, the post or the question for it, the other finds it.

    It outlives workers, not the driver. All methods run in one event loop, so nothing needs a lock.
    """

    def __init__(self) -> None:
        self._epochs: dict[int, int] = {}
        self._letters: dict[tuple[int, int, int], asyncio.Future[Sequence[Order]]] = {}

    async def enlist(self, worker: int) -> int:
        """Register a worker's start; returns its epoch, from 1. Whoever waits under an older epoch is told to stop."""
        self._epochs[worker] = self._epochs.get(worker, 0) + 1
        for key in [key for key in self._letters if key[0] == worker]:
            letter = self._letters.pop(key)
            if not letter.done():
                letter.set_result([Order(kind=OrderKind.STOP)])
        return self._epochs[worker]

    async def post(self, worker: int, epoch: int, seq: int, orders: Sequence[Order]) -> None:
        """Leave the answer to cohort `seq` of that start; dropped if the worker has started again since."""
        if epoch == self._epochs.get(worker):
            letter = self._letter(worker, epoch, seq)
            if not letter.done():
                letter.set_result(orders)

    async def take(self, worker: int, epoch: int, seq: int) -> Sequence[Order]:
        """Wait for the answer to cohort `seq`; STOP at once for a start that is not the latest."""
        if epoch != self._epochs.get(worker):
            return [Order(kind=OrderKind.STOP)]
        letter = self._letter(worker, epoch, seq)
        orders = await letter
        self._letters.pop((worker, epoch, seq), None)
        return orders

    def _letter(self, worker: int, epoch: int, seq: int) -> asyncio.Future[Sequence[Order]]:
        key = (worker, epoch, seq)
        if key not in self._letters:
            self._letters[key] = asyncio.get_running_loop().create_future()
        return self._letters[key]


def open_mailbox() -> ray.actor.ActorHandle:
    """Start a mailbox on the driver's machine; it ends when the last handle is gone, and with the driver.

    On another node it would be lost with that, and the search with it.
    """
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(num_cpus=0, scheduling_strategy=here)(Mailbox).remote()
