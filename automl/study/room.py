"""Memory for one trial: what a study plans with, and what it learns where a trial did not fit after all."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from automl.lora import Hyperparameters
from automl.space.sizes import gigabytes

logger = logging.getLogger(__name__)

MEMORY = "memory"
"""Event: a trial ran out of memory alone and one row at a time. `planned`, `available`: bytes; `factor`: see `Room`."""

MOST = 4.0
"""Times the plan beyond which a lack of memory is not put down to the plan: somebody else has taken the memory."""

_ABOVE = 1 + 1e-9
"""Puts what did not fit above what is there, whatever the rounding."""


class Room:
    """What trials need at the least against what a worker has.

    needed: planned bytes of a worker with one trial like this, alone and one row at a time. available: bytes of a
    worker. factor: times the plan that trials take, as the study has found out. remember: keeps the detail of an event
    MEMORY with the study.
    """

    def __init__(
        self,
        needed: Callable[[Hyperparameters], int],
        available: int,
        *,
        factor: float = 1.0,
        remember: Callable[[dict[str, Any]], None] = lambda detail: None,
    ) -> None:
        self._needed = needed
        self._remember = remember
        self.available = available
        self.factor = factor

    def shortage(self, hyper: Hyperparameters) -> str:
        """Why there is no memory for a trial like this, with both numbers; empty if there is."""
        needed = self.factor * self._needed(hyper)
        if needed <= self.available:
            return ""
        learnt = f" ({self.factor:.2f} times the plan, as trials here have shown)" if self.factor > 1 else ""
        return (
            f"needs {gigabytes(needed)} of memory even alone and one row at a time{learnt}, and"
            f" {gigabytes(self.available)} are there"
        )

    def learn(self, hyper: Hyperparameters) -> None:
        """Note that a trial like this did not fit, alone and one row at a time: the plan was too low by so much."""
        planned = self._needed(hyper)
        factor = self.available / planned * _ABOVE
        if factor > MOST:
            logger.warning(
                "a trial planned with %s ran out of memory where %s were there: something else has taken it",
                gigabytes(planned),
                gigabytes(self.available),
            )
        elif factor > self.factor:
            self.factor = factor
            self._remember({"planned": planned, "available": self.available, "factor": factor})
            logger.warning("trials take more memory than planned; from now on %.2f times the plan counts", factor)
