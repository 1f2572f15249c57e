"""Which method: the metric over what each trains, and over the memory it takes."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import cycle

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from automl.report.chart_style import SERIES, SYMBOLS, dress, escaped, log_axis
from automl.report.frames import MethodRow, StudyFrame
from automl.report.wording import score


def metric_by_cost(frame: StudyFrame) -> go.Figure | None:
    """A mark for each method, over trainable parameters and, where it is known, over the memory of a step."""
    verification = frame.verification
    rows = verification.methods if verification is not None else ()
    if not rows:
        return None
    costs: dict[str, list[float]] = {"trainable parameters": [row.trainable_params for row in rows]}
    if any(row.peak_bytes for row in rows):
        costs["peak memory in MiB"] = [(row.peak_bytes or 0) / 2**20 for row in rows]
    figure = make_subplots(rows=1, cols=len(costs), shared_yaxes=True, horizontal_spacing=0.06)
    dress(figure, 400)
    for column, (title, values) in enumerate(costs.items(), start=1):
        for trace in _marks(rows, values, first=column == 1):
            figure.add_trace(trace, row=1, col=column)
        log_axis(figure, filter(None, values), row=1, col=column)
        figure.update_xaxes(title_text=title, row=1, col=column)
    figure.update_yaxes(title_text=escaped(frame.metric), col=1)
    return figure


def _marks(rows: tuple[MethodRow, ...], costs: list[float], *, first: bool) -> Iterator[go.Scatter]:
    """costs: 0 where it is not known, which has no place on a logarithmic axis."""
    for row, cost, colour, symbol in zip(rows, costs, cycle(SERIES), cycle(SYMBOLS), strict=False):
        yield go.Scatter(
            x=[cost or None],
            y=[row.mean],
            error_y={"type": "data", "array": [row.sd], "thickness": 1.5, "color": colour},
            mode="markers",
            name=escaped(row.method),
            legendgroup=row.method,
            showlegend=first,
            marker={"size": 12, "color": colour, "symbol": symbol, "line": {"width": 1, "color": "white"}},
            hovertemplate=f"{escaped(row.method)}: {score(row.mean)} at %{{x:,.0f}}<extra></extra>",
        )
