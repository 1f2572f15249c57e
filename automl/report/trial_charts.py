"""Charts about trials: what was tried, how it learnt, what it cost, what is small and good."""

from __future__ import annotations

import math
from collections.abc import Sequence

import plotly.graph_objects as go

from automl.metric import as_loss
from automl.report.answers import LINES, pareto, spending
from automl.report.chart_style import (
    BLACK,
    BLUE,
    FAINT,
    GREY,
    SKY,
    VERMILLION,
    add_baseline,
    log_axis,
    new_figure,
    points,
    thinned,
    with_value,
)
from automl.report.frames import StudyFrame
from automl.storage.trials import TrialRow
from automl.trial import TrialState


def history(frame: StudyFrame) -> go.Figure | None:
    """Every trial in its order, the best so far, and the value without training."""
    complete, pruned = with_value(frame, TrialState.COMPLETE), with_value(frame, TrialState.PRUNED)
    if not complete and not pruned:
        return None
    figure = new_figure(xaxis_title="trial", yaxis_title=frame.metric)
    hollow = {"color": GREY, "symbol": "x-thin", "size": 8, "line": {"width": 1.5, "color": GREY}}
    figure.add_trace(points(frame, pruned, [t.number for t in pruned], "stopped early (last value)", hollow))
    figure.add_trace(points(frame, complete, [t.number for t in complete], "complete", {"color": BLUE}))
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
    add_baseline(figure, frame)
    return figure


def _best_so_far(frame: StudyFrame, complete: Sequence[TrialRow]) -> list[tuple[int, float]]:
    steps: list[tuple[int, float]] = []
    best = math.inf
    for trial in sorted(complete, key=lambda trial: trial.number):
        if trial.value is not None and as_loss(trial.value, frame.direction) < best:
            best = as_loss(trial.value, frame.direction)
            steps.append((trial.number, trial.value))
    return [*steps, (frame.trials[-1].number, steps[-1][1])] if steps else []


def curves(frame: StudyFrame) -> go.Figure | None:
    """The objective of the trials over their steps; complete trials stand out, the best most.

    Of many trials, the best complete ones and an even sample of the others: more lines would hide each other.
    """
    drawn = [trial for trial in frame.trials if trial.curve]
    if not drawn:
        return None
    best = frame.best
    step = "optimizer step" if frame.step_rows is None else f"steps of {frame.step_rows} rows, whatever a trial's batch"
    figure = new_figure(xaxis_title=step, yaxis_title=frame.metric)
    groups = (
        ("not complete", thinned([t for t in drawn if t.state != TrialState.COMPLETE]), FAINT, 1),
        ("complete", [t for t in frame.complete[:LINES] if t.curve and t is not best], SKY, 1.3),
        ("best", [t for t in drawn if t is best], VERMILLION, 3),
    )
    for name, trials, colour, width in groups:
        if trials:
            figure.add_trace(_lines(frame, trials, name, colour, width))
    add_baseline(figure, frame)
    return figure


def _lines(frame: StudyFrame, trials: Sequence[TrialRow], name: str, colour: str, width: float) -> go.Scatter:
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


def spent(frame: StudyFrame) -> go.Figure | None:
    """Training steps by what became of the trial, and what pruning saved."""
    costs = spending(frame)
    if not costs.total.steps:
        return None
    names = {"COMPLETE": ("complete", BLUE), "PRUNED": ("stopped early", SKY), "FAIL": ("failed", BLACK)}
    rows = [(*names.get(state, ("not finished", GREY)), cost.steps) for state, cost in costs.by_state.items()]
    figure = new_figure(height=230, barmode="stack", bargap=0.4, xaxis_title="optimizer steps")
    for name, colour, steps in [*rows, ("saved by stopping early", "white", costs.saved.steps)]:
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


def front(frame: StudyFrame) -> go.Figure | None:
    """Complete trials by size and value, and those that no smaller one beats."""
    best = pareto(frame)
    sized = [trial for trial in frame.complete if frame.size(trial)]
    if not best or not sized:
        return None
    is_time = frame.also_minimize == "seconds"
    title = "training seconds, as measured" if is_time else "trainable parameters, head included"
    figure = new_figure(xaxis_title=title, yaxis_title=frame.metric)
    others = [trial for trial in sized if trial not in best]
    figure.add_trace(points(frame, others, [frame.size(t) for t in others], "complete", {"color": SKY}))
    trace = points(
        frame,
        best,
        [frame.size(t) for t in best],
        f"no {'quicker' if is_time else 'smaller'} one is better",
        {"color": VERMILLION},
    )
    trace.update(mode="lines+markers", line={"color": VERMILLION, "width": 2, "shape": "hv"}, marker_symbol="diamond")
    figure.add_trace(trace)
    log_axis(figure, [float(frame.size(trial) or 1) for trial in sized])
    return figure
