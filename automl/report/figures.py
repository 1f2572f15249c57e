"""The charts: one function per question, from the frame to a Plotly figure. The only module that draws.

Colours are those of Okabe and Ito (2008), told apart by people with any common colour blindness; states also differ in
the shape of their marks, and scales run through cividis. Text that comes from outside is escaped: Plotly reads labels
as HTML.
"""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from automl.report.answers import pareto, rates_by_rank, spending
from automl.report.frames import StudyFrame, TrialFrame, VerificationFrame, place_of
from automl.report.wording import configuration, number, score, signed
from automl.space.spec import CategoricalParameter, Parameter
from automl.trial import TrialState

BLACK, ORANGE, SKY, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
YELLOW, BLUE, VERMILLION, PURPLE = "#F0E442", "#0072B2", "#D55E00", "#CC79A7"
GREY, FAINT = "#767676", "rgba(118, 118, 118, 0.35)"
SERIES = (BLUE, ORANGE, GREEN, PURPLE, VERMILLION, SKY, BLACK)
SCALE = "Cividis"
_SYMBOLS = ("circle", "square", "diamond", "triangle-up", "x", "star", "cross")
_MARK = {"size": 9, "line": {"width": 1, "color": "white"}}


def _escaped(text: object) -> str:
    return html.escape(str(text), quote=False)


def _figure(height: int = 380, **layout: Any) -> go.Figure:
    """An empty figure in the report's look: no template, horizontal legend below the title, room for a phone."""
    figure = go.Figure()
    _dress(figure, height, **layout)
    return figure


def _dress(figure: go.Figure, height: int, **layout: Any) -> None:
    figure.update_layout(
        template="none",
        height=height,
        autosize=True,
        margin={"l": 62, "r": 14, "t": 34, "b": 50},
        font={"family": "system-ui, sans-serif", "size": 13, "color": "#1a1a1a"},
        legend={"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom", "xanchor": "left"},
        hoverlabel={"align": "left"},
        dragmode=False,
        **layout,
    )
    figure.update_xaxes(gridcolor="#e6e6e6", zeroline=False, automargin=True, ticks="outside", tickcolor="#bbbbbb")
    figure.update_yaxes(gridcolor="#e6e6e6", zeroline=False, automargin=True)


def _hover(frame: StudyFrame, trial: TrialFrame) -> str:
    size = "" if trial.trainable_params is None else f"<br>{number(trial.trainable_params)} trainable parameters"
    reason = f" ({trial.stop_reason})" if trial.stop_reason not in (None, "finished") else ""
    return (
        f"trial {trial.number}, {trial.state.lower()}{reason}, step {trial.steps}"
        f"<br>{frame.metric} {score(trial.value)}<br>{_escaped(configuration(trial.params))}{size}"
    )


def _points(
    frame: StudyFrame, trials: Sequence[TrialFrame], x: Iterable[Any], name: str, marker: Mapping[str, Any]
) -> go.Scatter:
    """Marks of these trials at the given places, their values upwards."""
    return go.Scatter(
        x=list(x),
        y=[trial.value for trial in trials],
        mode="markers",
        name=_escaped(name),
        text=[_hover(frame, trial) for trial in trials],
        hovertemplate="%{text}<extra></extra>",
        marker={**_MARK, **marker},
    )


def _with_value(frame: StudyFrame, *states: TrialState) -> list[TrialFrame]:
    return [t for t in frame.trials if t.state in states and t.value is not None and math.isfinite(t.value)]


def history(frame: StudyFrame) -> go.Figure | None:
    """Every trial in its order, the best so far, and the value without training."""
    complete, pruned = _with_value(frame, TrialState.COMPLETE), _with_value(frame, TrialState.PRUNED)
    if not complete and not pruned:
        return None
    figure = _figure(xaxis_title="trial", yaxis_title=frame.metric)
    hollow = {"color": GREY, "symbol": "x-thin", "size": 8, "line": {"width": 1.5, "color": GREY}}
    figure.add_trace(_points(frame, pruned, [t.number for t in pruned], "stopped early (last value)", hollow))
    figure.add_trace(_points(frame, complete, [t.number for t in complete], "complete", {"color": BLUE}))
    best = _best_so_far(frame, complete)
    if best:
        x, y = zip(*best, strict=True)
        line = {"color": VERMILLION, "width": 2, "shape": "hv"}
        figure.add_trace(go.Scatter(x=x, y=y, mode="lines", name="best so far", line=line, hoverinfo="skip"))
    failed = [trial.number for trial in frame.trials if trial.state == TrialState.FAIL]
    if failed:
        floor = min(t.value for t in (*complete, *pruned) if t.value is not None)
        marker = {"symbol": "line-ns-open", "color": BLACK, "size": 10}
        figure.add_trace(go.Scatter(x=failed, y=[floor] * len(failed), mode="markers", name="failed", marker=marker))
    _baseline(figure, frame)
    return figure


def _best_so_far(frame: StudyFrame, complete: Sequence[TrialFrame]) -> list[tuple[int, float]]:
    steps: list[tuple[int, float]] = []
    best = math.inf
    for trial in sorted(complete, key=lambda trial: trial.number):
        if frame.cost(trial) < best and trial.value is not None:
            best = frame.cost(trial)
            steps.append((trial.number, trial.value))
    return [*steps, (frame.trials[-1].number, steps[-1][1])] if steps else []


def _baseline(figure: go.Figure, frame: StudyFrame) -> None:
    if frame.baseline is not None:
        figure.add_hline(
            y=frame.baseline,
            line={"color": BLACK, "dash": "dot", "width": 1},
            annotation={"text": "without training", "font": {"size": 11}, "xanchor": "right"},
        )


def curves(frame: StudyFrame) -> go.Figure | None:
    """The objective of every trial over its steps; complete trials stand out, the best most."""
    drawn = [trial for trial in frame.trials if trial.curve]
    if not drawn:
        return None
    best = frame.best
    figure = _figure(xaxis_title="optimizer step", yaxis_title=frame.metric)
    groups = (
        ("not complete", [t for t in drawn if t.state != TrialState.COMPLETE], FAINT, 1),
        ("complete", [t for t in drawn if t.state == TrialState.COMPLETE and t is not best], SKY, 1.3),
        ("best", [t for t in drawn if t is best], VERMILLION, 3),
    )
    for name, trials, colour, width in groups:
        if trials:
            figure.add_trace(_lines(frame, trials, name, colour, width))
    _baseline(figure, frame)
    return figure


def _lines(frame: StudyFrame, trials: Sequence[TrialFrame], name: str, colour: str, width: float) -> go.Scatter:
    """Curves of many trials in one trace, with gaps between them: cheap in the page, and one legend entry."""
    x: list[int | None] = []
    y: list[float | None] = []
    numbers: list[int | None] = []
    for trial in trials:
        x += [*(point.step for point in trial.curve), None]
        y += [*(point.value for point in trial.curve), None]
        numbers += [trial.number] * len(trial.curve) + [None]
    lone = all(len(trial.curve) == 1 for trial in trials)
    return go.Scatter(
        x=x,
        y=y,
        customdata=numbers,
        mode="markers" if lone else "lines",
        name=name,
        line={"color": colour, "width": width},
        hovertemplate=f"trial %{{customdata}}, step %{{x}}, {frame.metric} %{{y:.4g}}<extra></extra>",
    )


def parameter_shares(frame: StudyFrame) -> go.Figure | None:
    """Importance of each parameter with its 90 % interval, by estimator."""
    shares = frame.parameter_importance.shares
    if not shares:
        return None
    names = list(next(iter(shares.values())))[::-1]
    figure = _figure(height=110 + 46 * len(names), xaxis_title="share of the importance", barmode="group", bargap=0.3)
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
            y=[_escaped(name) for name in names],
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
    """One line per trial through all parameters to its value; the best quarter of the complete trials in colour."""
    valued = _with_value(frame, TrialState.COMPLETE, TrialState.PRUNED)
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
    figure = _figure(height=430)
    for name, trials, colour, width in groups:
        if trials:
            figure.add_trace(_threads(frame, trials, parameters, (low, high), name, colour, width))
    labels = [*(_escaped(parameter.name.replace("_", " ")) for parameter in parameters), frame.metric]
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
        x=x, y=y, text=_escaped(text), showarrow=False, font={"size": 11}, bgcolor="rgba(255,255,255,0.8)", yshift=0
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
    trials: Sequence[TrialFrame],
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
    valued = _with_value(frame, TrialState.COMPLETE, TrialState.PRUNED)
    parameters = [p for p in frame.parameters if any(p.name in trial.params for trial in valued)]
    if not parameters:
        return None
    columns = min(3, len(parameters))
    rows = math.ceil(len(parameters) / columns)
    figure = make_subplots(
        rows=rows,
        cols=columns,
        shared_yaxes=True,
        horizontal_spacing=0.04,
        vertical_spacing=0.28 / rows,
        subplot_titles=[_escaped(parameter.name) for parameter in parameters],
    )
    _dress(figure, 90 + 230 * rows)
    for index, parameter in enumerate(parameters):
        row, column = divmod(index, columns)
        place = {"row": row + 1, "col": column + 1}
        for trace in _slice(frame, valued, parameter, first=index == 0):
            figure.add_trace(trace, **place)
        if isinstance(parameter, CategoricalParameter):
            choices = [_escaped(number(choice, 3)) for choice in parameter.choices]
            figure.update_xaxes(type="category", categoryorder="array", categoryarray=choices, **place)
        elif parameter.log:
            figure.update_xaxes(type="log", dtick=None, nticks=5, exponentformat="power", **place)
    figure.update_annotations(font_size=13)
    figure.update_yaxes(title_text=frame.metric, col=1)
    figure.update_layout(legend={"y": 1 + 34 / (90 + 230 * rows) * 2})
    figure.update_layout(margin={"t": 66})
    return figure


def _slice(
    frame: StudyFrame, valued: Sequence[TrialFrame], parameter: Parameter, *, first: bool
) -> Iterable[go.Scatter]:
    looks: tuple[tuple[str, TrialState, dict[str, Any]], ...] = (
        ("stopped early", TrialState.PRUNED, {"symbol": "x-thin", "size": 7, "line": {"width": 1.3, "color": GREY}}),
        ("complete", TrialState.COMPLETE, {"color": BLUE, "size": 8}),
    )
    for name, state, marker in looks:
        trials = [trial for trial in valued if trial.state == state and parameter.name in trial.params]
        x = [trial.params[parameter.name] for trial in trials]
        if isinstance(parameter, CategoricalParameter):
            x = [_escaped(number(value, 3)) for value in x]
        trace = _points(frame, trials, x, name, marker)
        trace.update(legendgroup=name, showlegend=first)
        yield trace


def rate_by_rank(frame: StudyFrame) -> go.Figure | None:
    """The value over the learning rate, ranks told apart by colour and shape; hollow marks were stopped early."""
    groups = rates_by_rank(frame)
    if not groups:
        return None
    figure = _figure(xaxis_title="learning rate", yaxis_title=frame.metric)
    colours = _sequence(len(groups))
    for group, colour, symbol in zip(groups, colours, _SYMBOLS * len(groups), strict=False):
        for trials, shape in _by_completion(group.trials, symbol):
            rates = [trial.params["learning_rate"] for trial in trials]
            marker: dict[str, Any] = {"color": colour, "symbol": shape}
            if shape.endswith("open"):
                marker = {**marker, "size": 8, "line": {"width": 1.4, "color": colour}}
            trace = _points(frame, trials, rates, f"rank {group.label}", marker)
            trace.update(legendgroup=group.label, showlegend=not shape.endswith("open") or not group.complete)
            figure.add_trace(trace)
    figure.update_xaxes(type="log", nticks=6, exponentformat="power")
    _baseline(figure, frame)
    return figure


def _sequence(count: int) -> list[str]:
    """Dark to light in order, each still visible on white."""
    scale = ("#00204C", "#31446B", "#666870", "#958F78", "#CAB969", "#E69F00")
    return [scale[round(i * (len(scale) - 1) / max(1, count - 1))] for i in range(count)]


def _by_completion(trials: Sequence[TrialFrame], symbol: str) -> list[tuple[list[TrialFrame], str]]:
    valued = [trial for trial in trials if trial.value is not None and math.isfinite(trial.value)]
    complete = [trial for trial in valued if trial.state == TrialState.COMPLETE]
    others = [trial for trial in valued if trial.state == TrialState.PRUNED]
    return [(found, shape) for found, shape in ((complete, symbol), (others, f"{symbol}-open")) if found]


def targets_by_size(frame: StudyFrame) -> go.Figure | None:
    """The value over the number of trainable parameters, by target set."""
    sized = [trial for trial in frame.trials if trial.trainable_params and "target" in trial.params]
    targets = sorted({str(trial.params["target"]) for trial in sized})
    if len(targets) < 2:
        return None
    figure = _figure(xaxis_title="trainable parameters, head included", yaxis_title=frame.metric)
    for target, colour, symbol in zip(targets, SERIES * len(targets), _SYMBOLS * len(targets), strict=False):
        chosen = [trial for trial in sized if str(trial.params["target"]) == target]
        parts = _by_completion(chosen, symbol)
        for trials, shape in parts:
            is_open = shape.endswith("open")
            marker: dict[str, Any] = {"color": colour, "symbol": shape}
            if is_open:
                marker = {**marker, "size": 7, "line": {"width": 1.3, "color": colour}}
            trace = _points(frame, trials, [t.trainable_params for t in trials], target, marker)
            trace.update(legendgroup=target, showlegend=not is_open or len(parts) == 1)
            figure.add_trace(trace)
    figure.update_xaxes(type="log", nticks=6, exponentformat="SI")
    return figure


def front(frame: StudyFrame) -> go.Figure | None:
    """Complete trials by size and value, and those that no smaller one beats."""
    best = pareto(frame)
    sized = [trial for trial in frame.complete if trial.trainable_params]
    if not best or not sized:
        return None
    figure = _figure(xaxis_title="trainable parameters, head included", yaxis_title=frame.metric)
    others = [trial for trial in sized if trial not in best]
    figure.add_trace(_points(frame, others, [t.trainable_params for t in others], "complete", {"color": SKY}))
    trace = _points(frame, best, [t.trainable_params for t in best], "no smaller one is better", {"color": VERMILLION})
    trace.update(mode="lines+markers", line={"color": VERMILLION, "width": 2, "shape": "hv"}, marker_symbol="diamond")
    figure.add_trace(trace)
    figure.update_xaxes(type="log", nticks=6, exponentformat="SI")
    return figure


def spent(frame: StudyFrame) -> go.Figure | None:
    """Training steps by what became of the trial, and what pruning saved."""
    costs = spending(frame)
    if not costs.total.steps:
        return None
    names = {"COMPLETE": ("complete", BLUE), "PRUNED": ("stopped early", SKY), "FAIL": ("failed", BLACK)}
    rows = [(*names.get(state, ("not finished", GREY)), cost.steps) for state, cost in costs.by_state.items()]
    figure = _figure(height=150, barmode="stack", xaxis_title="optimizer steps")
    for name, colour, steps in [*rows, ("saved by pruning", "white", costs.saved.steps)]:
        if steps:
            line = {"color": GREY if colour == "white" else colour, "width": 1}
            pattern = {"shape": "/", "fgcolor": GREY} if colour == "white" else {}
            bar = go.Bar(
                x=[steps],
                y=[""],
                orientation="h",
                name=name,
                marker={"color": colour, "line": line, "pattern": pattern},
                hovertemplate=f"{name}: %{{x:,}} steps<extra></extra>",
            )
            figure.add_trace(bar)
    figure.update_yaxes(visible=False)
    return figure


def module_shares(frame: StudyFrame) -> go.Figure | None:
    """Heat map of the importance of each module: kinds by layer."""
    shares = {each.module: 100 * each.share for each in frame.module_importance}
    notes = {
        each.module: f"{each.share:.1%} of the importance, {each.low:.1%} to {each.high:.1%} over {each.trials} trials"
        for each in frame.module_importance
    }
    return _layers(frame, shares, notes, "share, %", digits=1)


def suggested_ranks(frame: StudyFrame) -> go.Figure | None:
    """Heat map of the ranks that were suggested."""
    if frame.suggestion is None:
        return None
    ranks = {module: float(rank) for module, rank in frame.suggestion.ranks.items()}
    return _layers(frame, ranks, {module: f"rank {rank:g}" for module, rank in ranks.items()}, "rank", digits=0)


def _layers(
    frame: StudyFrame, values: Mapping[str, float], notes: Mapping[str, str], unit: str, *, digits: int
) -> go.Figure | None:
    if not values:
        return None
    places = {module: place_of(module) for module in values}
    kinds = list(dict.fromkeys(kind for _, kind in places.values()))[::-1]
    layers = sorted({-1 if layer is None else layer for layer, _ in places.values()})
    cells = [[None] * len(layers) for _ in kinds]
    texts = [[""] * len(layers) for _ in kinds]
    hover = [[""] * len(layers) for _ in kinds]
    grid: list[list[float | None]] = [list(row) for row in cells]
    for module, (layer, kind) in places.items():
        row, column = kinds.index(kind), layers.index(-1 if layer is None else layer)
        grid[row][column] = values[module]
        texts[row][column] = f"{values[module]:.{digits}f}"
        hover[row][column] = f"{_escaped(module)}<br>{notes[module]}"
    figure = _figure(height=130 + 34 * len(kinds))
    figure.add_trace(
        go.Heatmap(
            z=grid,
            x=["–" if layer < 0 else str(layer) for layer in layers],
            y=[_escaped(_short(kind)) for kind in kinds],
            text=texts if len(layers) <= 16 else None,
            texttemplate="%{text}" if len(layers) <= 16 else None,
            customdata=hover,
            hovertemplate="%{customdata}<extra></extra>",
            colorscale=SCALE,
            xgap=2,
            ygap=2,
            colorbar={"title": {"text": unit, "side": "right"}, "thickness": 10, "outlinewidth": 0},
        )
    )
    figure.update_xaxes(title_text="layer", type="category", showgrid=False)
    figure.update_yaxes(showgrid=False)
    return figure


def _short(kind: str) -> str:
    """The last two parts of a module's name."""
    return ".".join(kind.split(".")[-2:])


def verified(frame: StudyFrame) -> go.Figure | None:
    """Differences of the verification with their 95 % intervals."""
    verification = frame.verification
    if verification is None or not verification.comparisons:
        return None
    rows = list(verification.comparisons)[::-1]
    colours = {"better": GREEN, "worse": VERMILLION}
    shapes = {"better": "triangle-up", "worse": "triangle-down"}
    figure = _figure(height=100 + 48 * len(rows), xaxis_title=f"difference in {_escaped(verification.metric)}")
    error = {
        "type": "data",
        "symmetric": False,
        "array": [each.high - each.difference for each in rows],
        "arrayminus": [each.difference - each.low for each in rows],
        "thickness": 2,
        "color": "#333333",
    }
    figure.add_trace(
        go.Scatter(
            x=[each.difference for each in rows],
            y=[_against(verification, each.arm, each.against) for each in rows],
            error_x=error,
            mode="markers",
            showlegend=False,
            marker={
                "size": 13,
                "color": [colours.get(each.verdict, GREY) for each in rows],
                "symbol": [shapes.get(each.verdict, "circle") for each in rows],
            },
            text=[f"{each.verdict}: {signed(each.difference)}" for each in rows],
            hovertemplate="%{text} [%{customdata}]<extra></extra>",
            customdata=[f"{signed(each.low)}, {signed(each.high)}" for each in rows],
        )
    )
    figure.add_vline(x=0, line={"color": BLACK, "width": 1, "dash": "dot"})
    return figure


def _against(verification: VerificationFrame, arm: str, against: str) -> str:
    titles = [found.title if (found := verification.arm(name)) else name for name in (arm, against)]
    return f"{_escaped(titles[0])}<br>against {_escaped(titles[1])}"


FIGURES: Mapping[str, Callable[[StudyFrame], go.Figure | None]] = {
    "verified": verified,
    "history": history,
    "curves": curves,
    "parameter-importance": parameter_shares,
    "parallel": parallel,
    "slices": slices,
    "rate-by-rank": rate_by_rank,
    "targets-by-size": targets_by_size,
    "pareto": front,
    "module-importance": module_shares,
    "suggested-ranks": suggested_ranks,
    "spent": spent,
}
"""Every chart by name; None where the study has nothing to draw."""
