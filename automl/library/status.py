"""How far a search is, in one line, for whoever shows it."""

from __future__ import annotations

import time

from automl.space.spec import SweepSpec
from automl.study.study import Study
from automl.sweep.run import Observer
from automl.trial import TrialState


class LineObserver(Observer):
    """Knows how far the search is; `line`, and `brief`, which says less, may be read from any thread."""

    def __init__(self, spec: SweepSpec) -> None:
        self._overview = Overview(spec)
        self.line = self.brief = "starting"

    def stage(self, text: str) -> None:
        self.line = self.brief = text

    def started(self, study: Study) -> None:
        self._overview.start(study)

    def tick(self) -> None:
        # Here, in the driver's thread: the study is not to be read from any other.
        self.line = self._overview.line() or self.line
        self.brief = self._overview.brief() or self.brief


class Overview:
    """How far a search is, in one line; the pace is that of this run."""

    def __init__(self, spec: SweepSpec) -> None:
        self._trials = spec.search.trials
        self._began = time.monotonic()
        self._study: Study | None = None
        self._steps_before = 0
        self._training_since = self._began

    def start(self, study: Study) -> None:
        """Trials begin, or go on."""
        self._study = study
        self._steps_before = study.spent_steps
        self._training_since = time.monotonic()

    def line(self) -> str:
        """Empty before trials begin, then as `overview` has it."""
        if self._study is None:
            return ""
        now = time.monotonic()
        gained = self._study.spent_steps - self._steps_before
        pace = gained / (now - self._training_since) if gained else 0.0
        return overview(self._study, self._trials, seconds=now - self._began, pace=pace)

    def brief(self) -> str:
        """The least that there is to say: `3 of 6 trials, best 0.8710`. Empty before trials begin."""
        if self._study is None:
            return ""
        counts, best = self._study.counts(), self._study.best()
        ended = f"{counts[TrialState.COMPLETE] + counts[TrialState.PRUNED]} of {self._trials} trials"
        return ended if best is None else f"{ended}, best {best.value:.4f}"


def overview(study: Study, trials: int, *, seconds: float, pace: float) -> str:
    """One line: `10 of 150 trials ended (9 complete, 1 pruned, 0 failed), 4 training, 127 parked, 78 % of about 6,440
    steps, best 0.8710 (trial 6), 95 s, about 60 s left`. seconds: since the start; pace: steps per second, 0 = unknown.
    """
    counts, outlook = study.counts(), study.outlook()
    complete, pruned, failed = (counts[state] for state in (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL))
    ended = f"{complete + pruned} of {trials} trials ended ({complete} complete, {pruned} pruned, {failed} failed)"
    parts = [ended, f"{len(study.live)} training"]
    if study.parked:
        parts.append(f"{study.parked} parked")
    parts.append(f"{100 * outlook.share:.0f} % of about {outlook.expected:,} steps")
    best = study.best()
    if best is not None:
        parts.append(f"best {best.value:.4f} (trial {best.number})")
    parts.append(f"{seconds:.0f} s")
    if pace and outlook.left:
        parts.append(f"about {outlook.left / pace:.0f} s left")
    return ", ".join(parts)
