"""What a person sees while a search runs: a live table on a terminal, plain lines in a log."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from automl.cli import console
from automl.sweep.run import Observer
from automl.trial import Measurement, TrialState

if TYPE_CHECKING:
    from automl.space.spec import SweepSpec
    from automl.study.study import Study, StudyEvent

_SECONDS_BETWEEN_LINES = 30.0


@contextmanager
def observe(spec: SweepSpec) -> Iterator[Observer]:
    """An observer for this terminal: drawn in place if it is one, lines otherwise."""
    if not console.is_terminal():
        yield LineObserver(spec)
        return
    observer = LiveObserver(spec)
    with Live(get_renderable=observer.draw, console=console.err, refresh_per_second=2, transient=True):
        yield observer


class LineObserver(Observer):
    """One line per stage and event, and a sign of life when nothing happens for a while."""

    def __init__(self, spec: SweepSpec) -> None:
        self._spec = spec
        self._study: Study | None = None
        self._began = time.monotonic()
        self._last_line = self._began

    def stage(self, text: str) -> None:
        self._line(text)

    def started(self, study: Study) -> None:
        self._study = study

    def event(self, event: StudyEvent) -> None:
        self._line(event.text)

    def measured(self, measurement: Measurement) -> None:
        if time.monotonic() - self._last_line > _SECONDS_BETWEEN_LINES and self._study is not None:
            self._line(overview(self._spec, self._study, time.monotonic() - self._began))

    def _line(self, text: str) -> None:
        self._last_line = time.monotonic()
        console.note(f"{self._last_line - self._began:6.1f} s  {text}")


class LiveObserver(Observer):
    """The running trials with their last value, what has ended, the best so far, and when it may be over."""

    def __init__(self, spec: SweepSpec) -> None:
        self._spec = spec
        self._study: Study | None = None
        self._began = time.monotonic()
        self._stage = "starting"
        self._last: dict[int, Measurement] = {}

    def stage(self, text: str) -> None:
        self._stage = text

    def started(self, study: Study) -> None:
        self._study = study

    def event(self, event: StudyEvent) -> None:
        console.note(event.text)

    def measured(self, measurement: Measurement) -> None:
        self._last[measurement.trial] = measurement

    def draw(self) -> Group:
        """The picture of this moment."""
        elapsed = time.monotonic() - self._began
        if self._study is None:
            return Group(Text(f"{self._spec.study}: {self._stage} ({elapsed:.0f} s)"))
        return Group(Text(overview(self._spec, self._study, elapsed)), self._running(self._study))

    def _running(self, study: Study) -> Table:
        metric = self._spec.task.metric
        drawn = Table(box=None, pad_edge=False)
        for column in ("trial", "step", metric, "rank", "target", "learning rate"):
            drawn.add_column(column, justify="left" if column == "target" else "right")
        for number, spec in sorted(dict(study.live).items()):
            last = self._last.get(number)
            drawn.add_row(
                str(number),
                f"{last.step if last else 0}/{spec.steps}",
                f"{last.metrics[metric]:.4f}" if last else "",
                str(spec.hyper.rank),
                spec.hyper.target,
                f"{spec.hyper.learning_rate:.3g}",
            )
        return drawn


def overview(spec: SweepSpec, study: Study, elapsed: float) -> str:
    """One line: `14 of 24 trials (5 complete, 9 pruned), best 0.8710 (trial 6), 95 s, about 60 s left`."""
    counts = study.counts()
    complete, pruned, failed = (counts[state] for state in (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL))
    ended = complete + pruned
    parts = [f"{ended} of {spec.search.trials} trials ({complete} complete, {pruned} pruned, {failed} failed)"]
    best = study.best()
    if best is not None:
        parts.append(f"best {best.value:.4f} (trial {best.number})")
    parts.append(f"{elapsed:.0f} s")
    if ended:
        parts.append(f"about {elapsed / ended * (spec.search.trials - ended):.0f} s left")
    return ", ".join(parts)
