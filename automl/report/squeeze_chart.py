"""The metric of the winner's adapter over its size, with the knee, and what was trained smaller beside it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go

from automl.report.chart_style import BLUE, GREEN, GREY, ORANGE, VERMILLION, log_axis, new_figure, points
from automl.report.frames import StudyFrame
from automl.results.squeezed import recovered_value
from automl.storage.squeezes import CutRow, SqueezeRow
from automl.storage.trials import TrialRow


def squeeze_curve(frame: StudyFrame) -> go.Figure | None:
    """Lines of global and even cuts from the whole adapter down, recovered ones dotted; trials of fewer parameters."""
    squeeze = frame.squeeze
    if squeeze is None or len(squeeze.cuts) < 2:
        return None
    figure = new_figure(xaxis_title="parameters of the low-rank matrices", yaxis_title=frame.metric)
    cuts = sorted(squeeze.cuts, key=lambda cut: cut.parameters)
    even = [cut for cut in cuts if cut.kind in ("even", "whole")]
    kept = [cut for cut in cuts if cut.kind != "even"]
    if len(even) > 1:
        figure.add_trace(_line(squeeze, even, "cut evenly", {"color": GREY, "dash": "dash", "width": 1.5}))
    figure.add_trace(_line(squeeze, kept, "cut globally", {"color": BLUE, "width": 2}))
    recovered = [cut for cut in kept if cut.recovered is not None]
    if recovered:
        style = {"color": GREEN, "dash": "dot", "width": 2}
        figure.add_trace(_line(squeeze, recovered, f"and {squeeze.recovery_steps} steps", style, is_recovered=True))
    trained = _trained_smaller(frame, squeeze)
    if trained:
        rows, sizes = zip(*trained, strict=True)
        figure.add_trace(points(frame, rows, sizes, "trained so small", {"color": ORANGE, "symbol": "square"}))
    _mark_knee(figure, squeeze)
    log_axis(figure, [float(cut.parameters) for cut in cuts] + [float(size) for _, size in trained])
    return figure


def _line(
    squeeze: SqueezeRow, cuts: Sequence[CutRow], name: str, style: dict[str, Any], *, is_recovered: bool = False
) -> go.Scatter:
    values = [cut.recovered[squeeze.metric] if is_recovered and cut.recovered else cut.value for cut in cuts]
    return go.Scatter(
        x=[cut.parameters for cut in cuts],
        y=values,
        mode="lines+markers",
        name=name,
        line=style,
        customdata=[f"even rank {cut.even_rank:.3g}, {cut.kept:.1%} of the strength" for cut in cuts],
        hovertemplate=f"{name}: %{{x:,}} parameters, {squeeze.metric} %{{y:.4g}}<br>%{{customdata}}<extra></extra>",
    )


def _trained_smaller(frame: StudyFrame, squeeze: SqueezeRow) -> list[tuple[TrialRow, int]]:
    """Complete trials with fewer low-rank parameters than the whole adapter; heads are of one size."""
    best = frame.best
    if best is None or best.trainable_params is None:
        return []
    head = best.trainable_params - squeeze.whole.parameters
    sizes = [(trial, (trial.trainable_params or 0) - head) for trial in frame.complete]
    return [(trial, size) for trial, size in sizes if 0 < size < squeeze.whole.parameters]


def _mark_knee(figure: go.Figure, squeeze: SqueezeRow) -> None:
    knee = squeeze.at_knee
    figure.add_trace(
        go.Scatter(
            x=[knee.parameters],
            y=[recovered_value(squeeze, knee)[0]],
            mode="markers",
            name="knee" if knee.kind != "whole" else "no knee: the whole",
            marker={"size": 16, "symbol": "circle-open", "color": VERMILLION, "line": {"width": 3}},
            hovertemplate=f"{knee.parameters:,} parameters<extra></extra>",
        )
    )
