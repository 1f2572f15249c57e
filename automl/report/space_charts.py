"""Charts about the search space: importance, parallel coordinates, slices, rates by rank, targets by size."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import cycle
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from automl.report.answers import rates_by_rank
from automl.report.chart_style import (
    BLUE,
    FAINT,
    GREY,
    SERIES,
    SKY,
    SYMBOLS,
    VERMILLION,
    add_baseline,
    by_completion,
    dress,
    escaped,
    log_axis,
    new_figure,
    points,
    thinned,
    with_value,
)
from automl.report.frames import StudyFrame
from automl.report.wording import number, score
from automl.space.spec import CategoricalParameter, Parameter
from automl.storage.trials import TrialRow
from automl.trial import TrialState


def parameter_shares(frame: StudyFrame) -> go.Figure | None:
    """Importance of each parameter with its 90 % interval, by estimator."""
    shares = frame.parameter_importance.shares
    if not shares:
        return None
    names = list(next(iter(shares.values())))[::-1]
    height = 110 + 46 * len(names)
    figure = new_figure(height, xaxis_title="share of the importance", barmode="group", bargap=0.3)
    for (estimator, rows), colour in zip(shares.items(), SERIES, strict=False):
        found = [rows[name] for name in names]
        error = {
            "type": "data",
            "symmetric": False,
            "array": [max(0.0, share.high - share.mean) for share in found],
            "arrayminus": [max(0.0, share.mean - share.low) for share in found],
            "color": "#333333",
            "thickness": 1.2,
        }
        bar = go.Bar(
            x=[share.mean for share in found],
            y=[escaped(name) for name in names],
            orientation="h",
            name=estimator,
            marker={"color": colour},
            error_x=error,
            hovertemplate="%{y}: %{x:.0%}<extra>" + estimator + "</extra>",
        )
        figure.add_trace(bar)
    figure.update_xaxes(tickformat=".0%", range=[0, 1.02])
    return figure


def parallel(frame: StudyFrame) -> go.Figure | None:
    """One line per trial through all parameters to its value; the best quarter of the complete trials in colour.

    Of many trials, an even sample of each group: more lines would hide each other.
    """
    valued = with_value(frame, TrialState.COMPLETE, TrialState.PRUNED)
    parameters = [p for p in frame.parameters if any(p.name in trial.params for trial in valued)]
    if not parameters or len(valued) < 2:
        return None
    values = [trial.value for trial in valued if trial.value is not None]
    low, high = min(values), max(values)
    complete = frame.complete
    top = {t.number for t in complete[: max(1, len(complete) // 4)]}
    best = frame.best.number if frame.best else None
    groups = (
        ("stopped early", [t for t in valued if t.state == TrialState.PRUNED], FAINT, 1.0),
        ("complete", [t for t in complete if t.number not in top], SKY, 1.2),
        ("best quarter", [t for t in complete if t.number in top and t.number != best], BLUE, 1.8),
        ("best", [t for t in complete if t.number == best], VERMILLION, 3.0),
    )
    figure = new_figure(height=430)
    for name, trials, colour, width in groups:
        if trials:
            figure.add_trace(_threads(frame, thinned(trials), parameters, (low, high), name, colour, width))
    labels = [*(escaped(parameter.name.replace("_", " ")) for parameter in parameters), frame.metric]
    figure.update_xaxes(
        tickvals=list(range(len(labels))),
        ticktext=[label.replace(" ", "<br>") for label in labels],
        showgrid=True,
        gridcolor="#999999",
        range=[-0.35, len(labels) - 0.65],
    )
    figure.update_yaxes(visible=False, range=[-0.09, 1.09])
    for index, parameter in enumerate(parameters):
        for position, text in _ticks(parameter):
            _tick(figure, index, position, text)
    for position, value in ((0.0, low), (1.0, high)):
        _tick(figure, len(parameters), position, score(value))
    return figure


def _tick(figure: go.Figure, x: float, y: float, text: str) -> None:
    figure.add_annotation(
        x=x, y=y, text=escaped(text), showarrow=False, font={"size": 11}, bgcolor="rgba(255,255,255,0.8)", yshift=0
    )


def _ticks(parameter: Parameter) -> list[tuple[float, str]]:
    if isinstance(parameter, CategoricalParameter):
        return [(_position(parameter, choice), number(choice, 3)) for choice in parameter.choices]
    return [(0.0, number(parameter.low, 3)), (1.0, number(parameter.high, 3))]


def _position(parameter: Parameter, value: Any) -> float:
    """Where a value lies on the parameter's axis, in [0, 1]."""
    if isinstance(parameter, CategoricalParameter):
        last = len(parameter.choices) - 1
        return parameter.choices.index(value) / last if last and value in parameter.choices else 0.5
    low, high, at = float(parameter.low), float(parameter.high), float(value)
    if parameter.log and low > 0 and at > 0:
        low, high, at = math.log(low), math.log(high), math.log(at)
    return (at - low) / (high - low) if high > low else 0.5


def _threads(
    frame: StudyFrame,
    trials: Sequence[TrialRow],
    parameters: Sequence[Parameter],
    bounds: tuple[float, float],
    name: str,
    colour: str,
    width: float,
) -> go.Scatter:
    x: list[float | None] = []
    y: list[float | None] = []
    text: list[str] = []
    low, high = bounds
    for trial in trials:
        places = [(i, _position(p, trial.params[p.name])) for i, p in enumerate(parameters) if p.name in trial.params]
        value = trial.value if trial.value is not None else low
        places.append((len(parameters), (value - low) / (high - low) if high > low else 0.5))
        x += [*(place[0] for place in places), None]
        y += [*(place[1] for place in places), None]
        text += [f"trial {trial.number}: {frame.metric} {score(trial.value)}"] * (len(places) + 1)
    line = {"color": colour, "width": width}
    return go.Scatter(x=x, y=y, mode="lines", name=name, line=line, text=text, hovertemplate="%{text}<extra></extra>")


def slices(frame: StudyFrame) -> go.Figure | None:
    """The value over each parameter by itself."""
    valued = with_value(frame, TrialState.COMPLETE, TrialState.PRUNED)
    parameters = [p for p in frame.parameters if any(p.name in trial.params for trial in valued)]
    if not parameters:
        return None
    columns = min(2, len(parameters))
    rows = math.ceil(len(parameters) / columns)
    figure = make_subplots(
        rows=rows,
        cols=columns,
        shared_yaxes=True,
        horizontal_spacing=0.04,
        vertical_spacing=0.28 / rows,
        subplot_titles=[escaped(parameter.name) for parameter in parameters],
    )
    dress(figure, 90 + 210 * rows)
    for index, parameter in enumerate(parameters):
        row, column = divmod(index, columns)
        place = {"row": row + 1, "col": column + 1}
        for trace in _slice(frame, valued, parameter, first=index == 0):
            figure.add_trace(trace, **place)
        if isinstance(parameter, CategoricalParameter):
            choices = [escaped(number(choice, 3)) for choice in parameter.choices]
            figure.update_xaxes(type="category", categoryorder="array", categoryarray=choices, **place)
        elif parameter.log:
            log_axis(figure, (float(parameter.low), float(parameter.high)), **place)
    figure.update_annotations(font_size=13)
    figure.update_yaxes(title_text=frame.metric, col=1)
    figure.update_layout(legend={"y": 1 + 28 / (210 * rows)}, margin={"t": 56})
    return figure


def _slice(frame: StudyFrame, valued: Sequence[TrialRow], parameter: Parameter, *, first: bool) -> Iterable[go.Scatter]:
    looks: tuple[tuple[str, TrialState, dict[str, Any]], ...] = (
        ("stopped early", TrialState.PRUNED, {"symbol": "x-thin", "size": 7, "line": {"width": 1.3, "color": GREY}}),
        ("complete", TrialState.COMPLETE, {"color": BLUE, "size": 8}),
    )
    for name, state, marker in looks:
        trials = [trial for trial in valued if trial.state == state and parameter.name in trial.params]
        x = [trial.params[parameter.name] for trial in trials]
        if isinstance(parameter, CategoricalParameter):
            x = [escaped(number(value, 3)) for value in x]
        trace = points(frame, trials, x, name, marker)
        trace.update(legendgroup=name, showlegend=first)
        yield trace


def rate_by_rank(frame: StudyFrame) -> go.Figure | None:
    """The value over the learning rate, ranks told apart by colour and shape; hollow marks were stopped early."""
    groups = rates_by_rank(frame)
    if not groups:
        return None
    figure = new_figure(xaxis_title="learning rate", yaxis_title=frame.metric)
    for group, colour, symbol in zip(groups, cycle(SERIES), cycle(SYMBOLS), strict=False):
        for trials, shape in by_completion(group.trials, symbol):
            rates = [trial.params["learning_rate"] for trial in trials]
            marker: dict[str, Any] = {"color": colour, "symbol": shape}
            if shape.endswith("open"):
                marker = {**marker, "size": 8, "line": {"width": 1.4, "color": colour}}
            trace = points(frame, trials, rates, f"rank {group.label}", marker)
            trace.update(legendgroup=group.label, showlegend=not shape.endswith("open") or not group.complete)
            figure.add_trace(trace)
    log_axis(figure, [float(t.params["learning_rate"]) for group in groups for t in group.trials])
    add_baseline(figure, frame)
    return figure


def targets_by_size(frame: StudyFrame) -> go.Figure | None:
    """The value over the number of trainable parameters, by target set."""
    sized = [trial for trial in frame.trials if trial.trainable_params and "target" in trial.params]
    targets = sorted({str(trial.params["target"]) for trial in sized})
    if len(targets) < 2:
        return None
    figure = new_figure(xaxis_title="trainable parameters, head included", yaxis_title=frame.metric)
    for target, colour, symbol in zip(targets, cycle(SERIES), cycle(SYMBOLS), strict=False):
        chosen = [trial for trial in sized if str(trial.params["target"]) == target]
        parts = by_completion(chosen, symbol)
        for trials, shape in parts:
            is_open = shape.endswith("open")
            marker: dict[str, Any] = {"color": colour, "symbol": shape}
            if is_open:
                marker = {**marker, "size": 7, "line": {"width": 1.3, "color": colour}}
            trace = points(frame, trials, [t.trainable_params for t in trials], target, marker)
            trace.update(legendgroup=target, showlegend=not is_open or len(parts) == 1)
            figure.add_trace(trace)
    log_axis(figure, [float(trial.trainable_params or 1) for trial in sized])
    return figure
