"""A small source of trials without Optuna or SQL, whose decisions are written down beforehand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from automl.lora import Hyperparameters
from automl.trial import Action, Decision, Measurement, TrialFailure, TrialSpec


class ScriptedStudy:
    """Hands out `trials` trials of 4 steps, judged every 2; `script` says what to decide at (trial, step)."""

    def __init__(self, trials: int, script: Mapping[tuple[int, int], Action] | None = None) -> None:
        self._left = list(range(trials))
        self._script = dict(script or {})
        self._live: dict[int, TrialSpec] = {}
        self._steps: dict[int, int] = {}
        self.log: list[str] = []

    @property
    def live(self) -> Mapping[int, TrialSpec]:
        return dict(self._live)

    @property
    def finished(self) -> bool:
        return not self._left and not self._live

    def next(self, worker: int) -> TrialSpec | None:
        if not self._left:
            return None
        return self._hand_out(self._left.pop(0), attempt=1)

    def restart(self, trial: int, worker: int) -> TrialSpec:
        self.log.append(f"restart {trial}")
        return self._hand_out(trial, attempt=self._live[trial].attempt + 1)

    def report(self, measurements: Sequence[Measurement]) -> None:
        for item in measurements:
            self.log.append(f"report {item.trial}@{item.step}")
            self._steps[item.trial] = item.step
            if item.metrics["loss"] > 1e6:
                self.log.append(f"diverged {item.trial}")
                del self._live[item.trial]

    def fail(self, failure: TrialFailure) -> None:
        self.log.append(f"fail {failure.trial} {failure.reason}")
        del self._live[failure.trial]

    def decide(self, trials: Sequence[int]) -> list[Decision]:
        return [self._decide(trial) for trial in trials]

    def interrupt(self, reason: str) -> None:
        self.log.append(f"interrupt {reason}")

    def _decide(self, trial: int) -> Decision:
        step = self._steps[trial]
        action = self._script.get((trial, step), Action.FINISH if step == 4 else Action.CONTINUE)
        self.log.append(f"{action} {trial}@{step}")
        if action is not Action.CONTINUE:
            del self._live[trial]
        if action is Action.PARK:
            self._left.append(trial)
        return Decision(trial=trial, action=action, reason="as written")

    def _hand_out(self, number: int, *, attempt: int) -> TrialSpec:
        self._live[number] = TrialSpec(
            number=number,
            params={},
            hyper=Hyperparameters(),
            seed=number,
            data_seed=0,
            steps=4,
            evaluate_every=2,
            attempt=attempt,
        )
        return self._live[number]
