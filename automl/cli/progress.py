"""What a person sees while a search runs: a live table on a terminal, plain lines in a log."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from automl import progress
from automl.cli import console
from automl.library.status import LineObserver, Overview
from automl.sweep.run import Observer

if TYPE_CHECKING:
    from automl.space.spec import SweepSpec
    from automl.study.study import Study

_TOLD = 6
"""Studies of which a line tells."""


@contextmanager
def observe(spec: SweepSpec) -> Iterator[Observer]:
    """An observer for this terminal: drawn in place if it is one, lines otherwise."""
    if not console.is_terminal():
        lines = LineObserver(spec)
        with progress.telling(lambda: lines.line):
            yield lines
        return
    observer = LiveObserver(spec)
    with (
        console.drawn_in_place(),
        Live(get_renderable=observer.draw, console=console.err, refresh_per_second=2, transient=True),
    ):
        yield observer


@contextmanager
def observe_all(specs: Sequence[SweepSpec]) -> Iterator[Sequence[Observer]]:
    """An observer for each study: of one as `observe` says, of several lines that tell of all."""
    if len(specs) == 1:
        with observe(specs[0]) as observer:
            yield [observer]
        return
    observers = [LineObserver(spec) for spec in specs]

    def line() -> str:
        said = [f"{spec.study}: {each.brief}" for spec, each in zip(specs, observers, strict=True)]
        return "; ".join([*said[:_TOLD], *([f"and {len(said) - _TOLD} more"] if len(said) > _TOLD else [])])

    with progress.telling(line):
        yield observers


class LiveObserver(Observer):
    """The running trials with their last value, what has ended, the best so far, and when it may be over."""

    def __init__(self, spec: SweepSpec) -> None:
        self._spec = spec
        self._study: Study | None = None
        self._overview = Overview(spec)
        self._began = time.monotonic()
        self._stage = "starting"
        self._picture: Group | None = None

    def stage(self, text: str) -> None:
        self._stage = text
        self._picture = None

    def started(self, study: Study) -> None:
        self._study = study
        self._overview.start(study)

    def tick(self) -> None:
        # Drawn here, in the driver's thread: the study is not to be read from the thread that refreshes the screen.
        if self._study is not None:
            self._picture = self._draw(self._study)

    def draw(self) -> Group:
        """The latest picture, for the thread that refreshes the screen."""
        now = Text(f"{time.monotonic() - self._began:.0f} s")  # something moves, also while nobody is heard of
        return Group(self._picture, now) if self._picture else Group(Text(f"{self._spec.study}: {self._stage}"), now)

    def _draw(self, study: Study) -> Group:
        return Group(Text(f"{self._spec.study}: {self._overview.line()}"), self._running(study))

    def _running(self, study: Study) -> Table:
        metric = self._spec.task.metric
        latest = study.latest
        drawn = Table(box=None, pad_edge=False)
        for column in ("trial", "step", metric, "rank", "target", "learning rate"):
            drawn.add_column(column, justify="left" if column == "target" else "right")
        for number, trial in sorted(study.live.items()):
            last = latest.get(number)
            drawn.add_row(
                str(number),
                f"{last.step if last else 0}/{trial.steps}",
                f"{last.metrics[metric]:.4f}" if last else "",
                str(trial.hyper.rank),
                trial.hyper.target,
                f"{trial.hyper.learning_rate:.3g}",
            )
        return drawn
