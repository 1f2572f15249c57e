"""Baseline (b): a class trainable of Ray Tune with reuse_actors=True and a hand-written loop over PEFT.

What a careful user writes: a process lives on from trial to trial, with imports, backbone and tokenised rows; only the
adapter is new. One trial at a time in each process.
"""

from __future__ import annotations

import time
from typing import Any

from ray import tune

from benchmarks.baselines.tune import read_world, run


class LoraTrial(tune.Trainable):  # type: ignore[misc]  # Ray's types are not followed (pyproject.toml)
    """One process; `reset_config` makes it the next trial."""

    def setup(self, config: dict[str, Any]) -> None:
        """Import, load and tokenise, once, which belongs to no trial; then begin the first one."""
        from benchmarks.baselines.loop import PeftLoop

        self._world: dict[str, Any] = config["world"]
        self._loop = PeftLoop(self._world)
        self._validation = self._loop.rows("validation")
        self._begin(config["number"], time.time())

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Become the next trial."""
        self._begin(new_config["number"], time.time())
        return True

    def step(self) -> dict[str, Any]:
        """Train up to the next evaluation and evaluate."""
        from benchmarks.baselines import trial

        start = time.perf_counter()
        self._loop.train_to(min(self._loop.step + self._world["evaluate_every"], self._world["steps"]))
        trained = time.perf_counter()
        metrics = self._loop.evaluate(self._validation) | {"step": self._loop.step}
        self._train_seconds += trained - start
        self._evaluation_seconds += time.perf_counter() - trained
        self._measured.append(metrics)
        done = self._loop.step == self._world["steps"]
        if done:
            trial.save_adapter(self._world, self._loop.model, self._number)
            trial.write_result(
                self._world,
                self._number,
                self._started,
                self._train_seconds,
                self._evaluation_seconds,
                self._measured,
            )
        return metrics | {"done": done}

    def _begin(self, number: int, started: float) -> None:
        self._number, self._started = number, started
        self._train_seconds, self._evaluation_seconds = 0.0, 0.0
        self._measured: list[dict[str, float]] = []
        self._loop.begin(
            self._world["configurations"][number],
            seed=self._world["seed"] + number,
            steps=self._world["steps"],
            batch_size=self._world["batch_size"],
        )


if __name__ == "__main__":
    run(LoraTrial, read_world(), reuse_actors=True)
