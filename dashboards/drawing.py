"""Which charts the pages show, made from what `Views` answers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from automl.report.frames import ModuleShare
from automl.storage.trial_pages import TrialValue
from dashboards.charts import Chart, Series, Spot, chart
from dashboards.views import ScheduleLine, StudyLine, StudyView

_SHADES = 9


class Cell(NamedTuple):
    """A module in the heat map. shade: 0 (least) to 8; share: its part of the importance of all modules."""

    module: str
    share: float
    shade: int


@dataclass(frozen=True, slots=True, kw_only=True)
class HeatMap:
    """Kinds of modules by layer; a cell is None where a layer has no such module."""

    layers: Sequence[str]
    rows: Sequence[tuple[str, Sequence[Cell | None]]]
    trials: int
    top: Sequence[Cell]


def history(view: StudyView) -> Chart | None:
    """Every trial's value, and the best so far."""
    complete = [Spot(place.number, place.value) for place in view.history if place.state == "COMPLETE"]
    pruned = [Spot(place.number, place.value) for place in view.history if place.state != "COMPLETE"]
    best = _so_far(view.improvements, sum(view.line.totals.counts.values()) - 1)
    series = [
        Series(label="pruned", points=pruned, kind="marks", colour=6),
        Series(label="complete", points=complete, kind="marks", colour=0),
        Series(label="best so far", points=best, kind="steps", colour=1),
    ]
    return chart("Value of every trial", series, x_label="trial", y_label=view.line.metric)


def curves(view: StudyView) -> Chart | None:
    """Learning curves of the best trials and of those in progress."""
    running = {trial.number for trial in view.running}
    numbers = [trial.number for trial in (*view.best, *view.running) if trial.number in view.curves]
    series = [
        Series(
            label=f"trial {trial}{' (running)' if trial in running else ''}",
            points=[Spot(*point) for point in view.curves[trial]],
            colour=index,
        )
        for index, trial in enumerate(dict.fromkeys(numbers))
    ]
    return chart("Best trials and trials in progress", series[:7], x_label="step", y_label=view.line.metric)


def comparison(lines: Sequence[StudyLine], found: Sequence[Sequence[TrialValue]]) -> Chart | None:
    """Best so far of several studies of one metric; None if they have different ones."""
    if len({line.metric for line in lines}) != 1:
        return None
    series = [
        Series(
            label=line.study,
            points=_so_far(places, sum(line.totals.counts.values()) - 1),
            kind="steps",
            colour=index,
        )
        for index, (line, places) in enumerate(zip(lines, found, strict=True))
    ]
    return chart("Best value so far", series, x_label="trial", y_label=lines[0].metric)


def nights(line: ScheduleLine) -> Chart | None:
    """The best value of each night, the latest on the right."""
    ended = line.ended[::-1]
    points = [Spot(index - len(ended) + 1, night.value) for index, night in enumerate(ended) if night.value is not None]
    worse = [point for point, night in zip(points, ended, strict=True) if night.state == "REGRESSION"]
    series = [
        Series(label="best of the night", points=points, colour=0),
        Series(label="regression", points=worse, kind="marks", colour=4),
    ]
    return chart("Best value of each night", series, x_label="night (0: the latest)", y_label="value")


def heat_map(shares: Sequence[ModuleShare]) -> HeatMap | None:
    """Modules by kind and layer, shaded by their share; None if nothing was measured."""
    if not shares:
        return None
    most = max(each.share for each in shares)
    cells = {(each.layer, each.kind): Cell(each.module, each.share, _shade(each.share, most)) for each in shares}
    layers = sorted({each.layer for each in shares}, key=lambda layer: -1 if layer is None else layer)
    kinds = sorted({each.kind for each in shares}, key=_natural)
    rows = [(kind, [cells.get((layer, kind)) for layer in layers]) for kind in kinds]
    top = sorted(cells.values(), key=lambda cell: -cell.share)[:10]
    names = ["–" if layer is None else str(layer) for layer in layers]
    return HeatMap(layers=names, rows=rows, trials=max(each.trials for each in shares), top=top)


def _so_far(improvements: Sequence[TrialValue], last: int) -> list[Spot]:
    """The best value at each improvement, held until the last trial."""
    points = [Spot(place.number, place.value) for place in improvements]
    if points and last > points[-1].x:
        points.append(Spot(last, points[-1].y))
    return points


def _shade(share: float, most: float) -> int:
    return min(_SHADES - 1, int(_SHADES * share / most)) if most > 0 else 0


def _natural(kind: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", kind)]
