"""What all charts share: colours, marks, layout, and the text shown for a trial.

Colours are those of Okabe and Ito (2008), told apart by people with any common colour blindness; states also differ in
the shape of their marks, and scales run through cividis. Text that comes from outside is escaped: Plotly reads labels
as HTML.
"""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from automl.report.answers import LINES
from automl.report.frames import StudyFrame
from automl.report.wording import configuration, number, score
from automl.storage.trials import TrialRow
from automl.trial import TrialState

BLACK, ORANGE, SKY, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
YELLOW, BLUE, VERMILLION, PURPLE = "#F0E442", "#0072B2", "#D55E00", "#CC79A7"
GREY, FAINT = "#767676", "rgba(118, 118, 118, 0.35)"
SERIES = (BLUE, ORANGE, GREEN, PURPLE, VERMILLION, SKY, BLACK)
SCALE = "Cividis"
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "x", "star", "cross")
_MARK = {"size": 9, "line": {"width": 1, "color": "white"}}


def escaped(text: object) -> str:
    return html.escape(str(text), quote=False)


def new_figure(height: int = 380, **layout: Any) -> go.Figure:
    """An empty figure in the report's look: no template, horizontal legend below the title, room for a phone."""
    figure = go.Figure()
    dress(figure, height, **layout)
    return figure


def dress(figure: go.Figure, height: int, **layout: Any) -> None:
    figure.update_layout(
        template="none",
        height=height,
        autosize=True,
        margin={"l": 62, "r": 14, "t": 34, "b": 58},
        font={"family": "system-ui, sans-serif", "size": 13, "color": "#1a1a1a"},
        legend={"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom", "xanchor": "left", "traceorder": "normal"},
        hoverlabel={"align": "left"},
        dragmode=False,
        **layout,
    )
    figure.update_xaxes(gridcolor="#e6e6e6", zeroline=False, automargin=True, ticks="outside", tickcolor="#bbbbbb")
    figure.update_yaxes(gridcolor="#e6e6e6", zeroline=False, automargin=True)


def hover_text(frame: StudyFrame, trial: TrialRow) -> str:
    size = "" if trial.trainable_params is None else f"<br>{number(trial.trainable_params)} trainable parameters"
    reason = f" ({trial.shown_reason})" if trial.shown_reason not in ("", "finished") else ""
    return (
        f"trial {trial.number}, {trial.state.lower()}{reason}, step {trial.steps}"
        f"<br>{frame.metric} {score(trial.value)}<br>{escaped(configuration(trial.params, trial.trained_rate))}{size}"
    )


def points(
    frame: StudyFrame, trials: Sequence[TrialRow], x: Iterable[Any], name: str, marker: Mapping[str, Any]
) -> go.Scatter:
    """Marks of these trials at the given places, their values upwards."""
    return go.Scatter(
        x=list(x),
        y=[trial.value for trial in trials],
        mode="markers",
        name=escaped(name),
        text=[hover_text(frame, trial) for trial in trials],
        hovertemplate="%{text}<extra></extra>",
        marker={**_MARK, **marker},
    )


def with_value(frame: StudyFrame, *states: TrialState) -> list[TrialRow]:
    return [t for t in frame.trials if t.state in states and t.value is not None and math.isfinite(t.value)]


def add_baseline(figure: go.Figure, frame: StudyFrame) -> None:
    if frame.baseline is not None:
        figure.add_hline(
            y=frame.baseline,
            line={"color": BLACK, "dash": "dot", "width": 1},
            annotation={"text": "without training", "font": {"size": 11}, "xanchor": "right"},
        )


def by_completion(trials: Sequence[TrialRow], symbol: str) -> list[tuple[list[TrialRow], str]]:
    valued = [trial for trial in trials if trial.value is not None and math.isfinite(trial.value)]
    complete = [trial for trial in valued if trial.state == TrialState.COMPLETE]
    others = [trial for trial in valued if trial.state == TrialState.PRUNED]
    return [(found, shape) for found, shape in ((complete, symbol), (others, f"{symbol}-open")) if found]


def log_axis(figure: go.Figure, values: Iterable[float], **place: Any) -> None:
    """Make the x axis logarithmic, with as many round ticks as its range asks for. values: > 0; place: a subplot."""
    low, high = min(values := list(values)), max(values)
    margin = 0.04 * math.log10(high / low) if high > low else 0.3
    bounds = [math.log10(low) - margin, math.log10(high) + margin]
    ticks = round_ticks(10 ** bounds[0], 10 ** bounds[1])
    figure.update_xaxes(type="log", range=bounds, tickvals=ticks, ticktext=[_short(tick) for tick in ticks], **place)


def round_ticks(low: float, high: float) -> list[float]:
    """Between two and about seven of 1, 2, 5 times powers of ten in the range, fewer digits where it is long."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for leads in ((1,), (1, 3), (1, 2, 5), tuple(range(1, 10))):
        ticks = [lead * 10.0**power for power in powers for lead in leads]
        inside = [tick for tick in ticks if low <= tick <= high]
        if len(inside) >= 3:
            return inside
    return inside or [low]


def _short(tick: float) -> str:
    """`0.0005`, `20`, `50k`, `2M`."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if tick >= size:
            return f"{tick / size:.3g}{unit}"
    return f"{tick:.3g}" if tick >= 1e-4 else f"{tick:.0e}".replace("e-0", "e-")


def thinned(trials: Sequence[TrialRow]) -> list[TrialRow]:
    """At most `LINES` of these, evenly spread."""
    if len(trials) <= LINES:
        return list(trials)
    return [trials[index * len(trials) // LINES] for index in range(LINES)]
